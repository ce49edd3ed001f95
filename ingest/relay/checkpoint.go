package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// checkpoint is the record that ends each transaction of a relay. It states that the transaction
// contains the events after from, up to and including to.
type checkpoint struct {
	from, to event.Position // of the last transaction
	recorded time.Time      // when the store recorded the event at to
	identity
}

// identity names the store and the topic that a checkpoint belongs to, so that a relay can check
// whether they are the ones that it uses.
//
// Other producers may write to PositionsTopic, and a forged identity could make a relay stop, skip
// events or move keys. So an identity is trusted only if it is signed with the store's secret.
// Checkpoints of earlier versions have none.
type identity struct {
	epoch      string // of the store
	topicID    string // empty if the brokers have no ids
	partitions int32  // number of partitions that keys are spread over

	// id, stream and version identify the event at to.
	id      uuid.UUID
	stream  string
	version uint64

	// Every event up to base is on the log. Every later event is, or will be, at or after the floor
	// of its partition. floors are offsets, by partition.
	base   event.Position
	floors []int64

	// seal is the name under which the transaction's records are sealed, and sealFloors are the
	// floors of its announcement. They are empty if the records are not sealed.
	seal       string
	sealFloors []int64
}

// identified reports whether the checkpoint has an identity. It has one only if its signature is
// valid.
func (c checkpoint) identified() bool { return c.id != uuid.Nil }

// last returns the event at to, with the fields that the checkpoint contains.
func (c checkpoint) last() event.Event {
	return event.Event{ID: c.id, Stream: c.stream, Version: c.version, Position: c.to, RecordedAt: c.recorded}
}

// Headers of a checkpoint's record.
const (
	fromHeader       = "from"
	recordedHeader   = "recorded"
	epochHeader      = "epoch"
	topicHeader      = "topic-id"
	partitionsHeader = "partitions"
	eventHeader      = "event"
	streamHeader     = "stream"
	versionHeader    = "version"
	baseHeader       = "base"
	floorsHeader     = "floors"
	sealHeader       = "seal"
	sealFloorsHeader = "seal-floors"
	signatureHeader  = "signature" // the last header; it covers all others
)

// sign returns the signature of a checkpoint's record: an HMAC of the key, the value and all headers
// under the store's secret.
func sign(secret []byte, key, value []byte, headers []event.Header) []byte {
	h := hmac.New(sha256.New, secret)
	// The purpose is part of the format, and separates checkpoints from other signed records.
	h.Write(signedBytes("millrace mark 1", key, value, headers))
	return h.Sum(nil)
}

// signedBytes returns the bytes that a record's signature covers. Each part is prefixed with its
// length, and purpose comes first. So no two records, of any kind, have the same bytes.
func signedBytes(purpose string, key, value []byte, headers []event.Header) []byte {
	var b []byte
	add := func(part []byte) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...) }
	add([]byte(purpose))
	add(key)
	add(value)
	for _, header := range headers {
		add([]byte(header.Key))
		add(header.Value)
	}
	return b
}

// signed reports whether a record has a valid signature under the secret.
func signed(secret []byte, m kafka.Message) bool {
	last := len(m.Headers) - 1
	return last >= 0 && len(secret) > 0 && m.Headers[last].Key == signatureHeader &&
		hmac.Equal(m.Headers[last].Value, sign(secret, m.Key, m.Value, m.Headers[:last]))
}

// record returns the checkpoint as a Kafka record. It is signed if the checkpoint has an identity.
func (c checkpoint) record(service string, secret []byte) kafka.Record {
	r := kafka.Record{
		Topic: PositionsTopic, Partition: kafka.AnyPartition, Key: []byte(service), Value: []byte(c.to.String()),
	}
	add := func(key, value string) { r.Headers = append(r.Headers, event.Header{Key: key, Value: []byte(value)}) }
	add(fromHeader, c.from.String())
	add(recordedHeader, c.recorded.UTC().Format(time.RFC3339Nano))
	if c.identified() {
		add(epochHeader, c.epoch)
		add(topicHeader, c.topicID)
		add(partitionsHeader, strconv.Itoa(int(c.partitions)))
		add(eventHeader, c.id.String())
		add(streamHeader, c.stream)
		add(versionHeader, strconv.FormatUint(c.version, 10))
		add(baseHeader, c.base.String())
		add(floorsHeader, formatFloors(c.floors))
		add(sealHeader, c.seal)
		if len(c.sealFloors) > 0 {
			add(sealFloorsHeader, formatFloors(c.sealFloors))
		}
		add(signatureHeader, string(sign(secret, r.Key, r.Value, r.Headers)))
	}
	return r
}

// parseCheckpoint reads a record that record returned. It rejects a checkpoint that contradicts
// itself. If the signature is not valid, it reads the positions only, as for a checkpoint of an
// earlier version.
func parseCheckpoint(m kafka.Message, secret []byte) (checkpoint, error) {
	var out checkpoint
	headers := make(map[string]string, len(m.Headers))
	for _, h := range m.Headers {
		headers[h.Key] = string(h.Value)
	}
	var err error
	if out.to, err = event.ParsePosition(string(m.Value)); err != nil {
		return checkpoint{}, err
	}
	if out.from, err = event.ParsePosition(headers[fromHeader]); err != nil {
		return checkpoint{}, fmt.Errorf("header %s: %w", fromHeader, err)
	}
	if out.from.Compare(out.to) > 0 {
		return checkpoint{}, fmt.Errorf("from %s is after to %s", out.from, out.to)
	}
	if text, ok := headers[recordedHeader]; ok {
		if out.recorded, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return checkpoint{}, fmt.Errorf("header %s: %w", recordedHeader, err)
		}
	}
	if !signed(secret, m) {
		return out, nil
	}
	if out.identity, err = parseIdentity(headers); err != nil {
		return checkpoint{}, err
	}
	if out.base.Compare(out.from) > 0 {
		return checkpoint{}, fmt.Errorf("base %s is after from %s", out.base, out.from)
	}
	return out, nil
}

// parseIdentity reads the headers that a signature covers.
func parseIdentity(headers map[string]string) (identity, error) {
	id := identity{
		epoch: headers[epochHeader], topicID: headers[topicHeader], stream: headers[streamHeader], seal: headers[sealHeader],
	}
	var errs [4]error
	var partitions int64
	id.id, errs[0] = uuid.Parse(headers[eventHeader])
	id.version, errs[1] = strconv.ParseUint(headers[versionHeader], 10, 64)
	partitions, errs[2] = strconv.ParseInt(headers[partitionsHeader], 10, 32)
	id.base, errs[3] = event.ParsePosition(headers[baseHeader])
	if err := errors.Join(errs[:]...); err != nil {
		return identity{}, err
	}
	id.partitions = int32(partitions)
	var err error
	if id.floors, err = parseFloors(headers[floorsHeader]); err != nil {
		return identity{}, fmt.Errorf("header %s: %w", floorsHeader, err)
	}
	if text, ok := headers[sealFloorsHeader]; ok {
		if id.sealFloors, err = parseFloors(text); err != nil {
			return identity{}, fmt.Errorf("header %s: %w", sealFloorsHeader, err)
		}
	}
	// A widened topic has more partitions, and so more floors, than its keys are spread over.
	if id.id == uuid.Nil || id.partitions < 1 || len(id.floors) < int(id.partitions) {
		return identity{}, fmt.Errorf("event %s, %d partitions and %d floors do not make an identity",
			id.id, id.partitions, len(id.floors))
	}
	return id, nil
}

// formatFloors writes offsets as decimal numbers, separated by commas.
func formatFloors(floors []int64) string {
	texts := make([]string, len(floors))
	for i, f := range floors {
		texts[i] = strconv.FormatInt(f, 10)
	}
	return strings.Join(texts, ",")
}

// parseFloors reads what formatFloors wrote.
func parseFloors(list string) (floors []int64, err error) {
	for text := range strings.SplitSeq(list, ",") {
		floor, err := strconv.ParseInt(text, 10, 64)
		if err != nil || floor < 0 {
			return nil, fmt.Errorf("%q is not an offset", text)
		}
		floors = append(floors, floor)
	}
	return floors, nil
}
