package relay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// mark is the position record of a transaction: it carries the events after from, up to and with to, which was recorded then.
type mark struct {
	from, to event.Position
	recorded time.Time
	identity
}

// identity names the two sides that a mark stands between, so that a relay that finds it can tell whether they are the ones it
// has before it. Marks of earlier versions have none.
type identity struct {
	epoch      string // of the store
	topicID    string // empty where the brokers have no ids
	partitions int32  // that keys are spread over

	// The event at to.
	id      uuid.UUID
	stream  string
	version uint64

	// Every event up to base is on the log, and every later one is there, or will be, at or behind its partition's floor.
	base   event.Position
	floors []int64
}

func (m mark) identified() bool { return m.id != uuid.Nil }

// last is the event at to, as far as the mark tells.
func (m mark) last() event.Event {
	return event.Event{ID: m.id, Stream: m.stream, Version: m.version, Position: m.to}
}

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
)

func (m mark) record(service string) kafka.Record {
	r := kafka.Record{Topic: PositionsTopic, Partition: kafka.AnyPartition, Key: []byte(service), Value: []byte(m.to.String())}
	add := func(key, value string) { r.Headers = append(r.Headers, event.Header{Key: key, Value: []byte(value)}) }
	add(fromHeader, m.from.String())
	add(recordedHeader, m.recorded.UTC().Format(time.RFC3339Nano))
	if m.identified() {
		add(epochHeader, m.epoch)
		add(topicHeader, m.topicID)
		add(partitionsHeader, strconv.Itoa(int(m.partitions)))
		add(eventHeader, m.id.String())
		add(streamHeader, m.stream)
		add(versionHeader, strconv.FormatUint(m.version, 10))
		add(baseHeader, m.base.String())
		floors := make([]string, len(m.floors))
		for i, f := range m.floors {
			floors[i] = strconv.FormatInt(f, 10)
		}
		add(floorsHeader, strings.Join(floors, ","))
	}
	return r
}

// parseMark reads what record wrote. It refuses a mark that says only a part of who it is, or contradicts itself.
func parseMark(m kafka.Message) (mark, error) {
	var out mark
	headers := make(map[string]string, len(m.Headers))
	for _, h := range m.Headers {
		headers[h.Key] = string(h.Value)
	}
	var err error
	if out.to, err = event.ParsePosition(string(m.Value)); err != nil {
		return mark{}, err
	}
	if out.from, err = event.ParsePosition(headers[fromHeader]); err != nil {
		return mark{}, fmt.Errorf("header %s: %w", fromHeader, err)
	}
	if out.from.Compare(out.to) > 0 {
		return mark{}, fmt.Errorf("it goes from %s back to %s", out.from, out.to)
	}
	if text, ok := headers[recordedHeader]; ok {
		if out.recorded, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return mark{}, fmt.Errorf("header %s: %w", recordedHeader, err)
		}
	}
	if _, ok := headers[eventHeader]; !ok {
		return out, nil
	}
	if out.identity, err = parseIdentity(headers); err != nil {
		return mark{}, err
	}
	if out.base.Compare(out.from) > 0 {
		return mark{}, fmt.Errorf("its base %s is after %s, where it begins", out.base, out.from)
	}
	return out, nil
}

func parseIdentity(headers map[string]string) (identity, error) {
	id := identity{epoch: headers[epochHeader], topicID: headers[topicHeader], stream: headers[streamHeader]}
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
	for text := range strings.SplitSeq(headers[floorsHeader], ",") {
		floor, err := strconv.ParseInt(text, 10, 64)
		if err != nil || floor < 0 {
			return identity{}, fmt.Errorf("header %s: offset %q", floorsHeader, text)
		}
		id.floors = append(id.floors, floor)
	}
	if id.id == uuid.Nil || id.partitions < 1 || len(id.floors) < int(id.partitions) {
		return identity{}, fmt.Errorf("event %s, %d partitions and offsets of %d", id.id, id.partitions, len(id.floors))
	}
	return id, nil
}
