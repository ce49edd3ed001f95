package streams

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// DeadLetterTopic keeps the dead letters: records that a sink could not read. Operators can look at
// them and send them again. The topic is compacted, and the key is sink|topic|partition|offset. So
// a record that becomes a dead letter twice is kept once. A record that is too large for the topic
// is shortened, because the sink would otherwise retry it forever.
const DeadLetterTopic = "millrace.parked"

// Headers that a dead letter has in addition to the record's own.
const (
	HeaderDeadLetterReason = "millrace-park-reason" // why the sink could not read the record
	HeaderDeadLetterKey    = "millrace-park-key"    // the record's own key

	// HeaderDeadLetterAttempts is on the dead letters of events, which are parked: how often the sink
	// has tried to apply it. 0 means that it waits behind an earlier event of its stream.
	HeaderDeadLetterAttempts = "millrace-park-attempts"
	HeaderDeadLetterTopicID  = "millrace-park-topic-id" // of the event's topic
	HeaderDeadLetterStack    = "millrace-park-stack"    // where the sink's code panicked

	// These describe the value of a record that was shortened. The complete record is at the offset
	// that the dead letter's key names, as long as that topic retains it.
	HeaderDeadLetterSize   = "millrace-park-value-size"   // bytes
	HeaderDeadLetterSHA256 = "millrace-park-value-sha256" // in hexadecimal digits
)

// Limits of a shortened dead letter, in bytes.
const (
	keptValue   = 4 << 10
	keptKey     = 4 << 10
	keptHeaders = 64 << 10
	maxReason   = 4 << 10 // applies to every dead letter: a reason may quote the record
	maxStack    = 8 << 10
)

// deadLetterWriter writes to DeadLetterTopic. It creates the topic and the producer for the first
// dead letter, because most processes never have one.
type deadLetterWriter struct {
	cfg kafka.Config
	// mu protects producer while it is opened.
	mu       sync.Mutex
	producer *kafka.Producer
}

// put returns nil once all records are durable on the topic.
func (p *deadLetterWriter) put(ctx context.Context, records []kafka.Record) error {
	producer, err := p.open(ctx)
	if err != nil {
		return err
	}
	err = producer.ProduceAll(ctx, records)
	if errors.Is(err, kafka.ErrTooLarge) {
		err = putEach(ctx, producer, records)
	}
	if err != nil {
		return fmt.Errorf("write %d dead letters, the first of which is %s: %w", len(records), records[0].Key, err)
	}
	return nil
}

// open returns the producer, and creates it and the topic if necessary.
func (p *deadLetterWriter) open(ctx context.Context) (*kafka.Producer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.producer != nil {
		return p.producer, nil
	}
	topic := kafka.Topic{Name: DeadLetterTopic, Partitions: 1, Compacted: true}
	if err := kafka.EnsureTopics(ctx, p.cfg, topic); err != nil {
		return nil, err
	}
	producer, err := kafka.NewProducer(p.cfg)
	if err != nil {
		return nil, err
	}
	p.producer = producer
	return producer, nil
}

// putEach writes records one by one, and shortens those that are too large. ProduceAll does not
// report which record of a batch is too large.
func putEach(ctx context.Context, producer *kafka.Producer, records []kafka.Record) error {
	for _, r := range records {
		err := producer.Produce(ctx, r)
		// First with headers, then without: a topic may have a lower limit than others.
		for _, headers := range []int{keptHeaders, 0} {
			if errors.Is(err, kafka.ErrTooLarge) {
				err = producer.Produce(ctx, shortened(r, headers))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shortened returns a dead letter with the first bytes of its value, and with those of the record's
// own headers that fit in the given number of bytes. Two headers describe the whole value.
func shortened(r kafka.Record, headers int) kafka.Record {
	sum := sha256.Sum256(r.Value)
	whole := len(r.Value)
	r.Value = r.Value[:min(whole, keptValue)]
	var kept []event.Header
	for _, h := range r.Headers {
		switch h.Key {
		case HeaderDeadLetterReason:
		case HeaderDeadLetterKey:
			h.Value = h.Value[:min(len(h.Value), keptKey)]
		default:
			// The record's own headers are kept while they fit.
			size := len(h.Key) + len(h.Value)
			if size > headers {
				continue
			}
			headers -= size
		}
		kept = append(kept, h)
	}
	r.Headers = append(kept,
		event.Header{Key: HeaderDeadLetterSize, Value: strconv.AppendInt(nil, int64(whole), 10)},
		event.Header{Key: HeaderDeadLetterSHA256, Value: hex.AppendEncode(nil, sum[:])})
	return r
}

// close closes the producer if it was opened.
func (p *deadLetterWriter) close() {
	if p.producer != nil {
		p.producer.Close()
	}
}

// newDeadLetter returns the dead letter of a record. headers are the record's own.
func newDeadLetter(sink string, rec Record, key string, headers []event.Header, reason error) *kafka.Record {
	value := rec.Event.Data
	if value == nil { // a nil value is a tombstone, which compaction would delete
		value = []byte{}
	}
	text := reason.Error()
	return &kafka.Record{
		Topic:     DeadLetterTopic,
		Partition: kafka.AnyPartition,
		Key:       letterKey(sink, rec),
		Value:     value,
		// The capacity is limited so that append copies: headers belong to the caller.
		Headers: append(headers[:len(headers):len(headers)],
			event.Header{Key: HeaderDeadLetterReason, Value: []byte(text[:min(len(text), maxReason)])},
			event.Header{Key: HeaderDeadLetterKey, Value: []byte(key)}),
	}
}

// parkedLetter returns the dead letter of an event, which is applied again later.
func parkedLetter(letter kafka.Record, topicID string, attempts int, reason error) kafka.Record {
	letter.Headers = append(letter.Headers[:len(letter.Headers):len(letter.Headers)],
		event.Header{Key: HeaderDeadLetterAttempts, Value: strconv.AppendInt(nil, int64(attempts), 10)},
		event.Header{Key: HeaderDeadLetterTopicID, Value: []byte(topicID)})
	if panicked := (*panicError)(nil); errors.As(reason, &panicked) {
		letter.Headers = append(letter.Headers, event.Header{
			Key: HeaderDeadLetterStack, Value: panicked.stack[:min(len(panicked.stack), maxStack)]})
	}
	return letter
}

// deletion returns the record that deletes a dead letter.
func deletion(sink string, rec Record) kafka.Record {
	return kafka.Record{Topic: DeadLetterTopic, Partition: kafka.AnyPartition, Key: letterKey(sink, rec)}
}

// letterKey returns the key of the dead letter of a record.
func letterKey(sink string, rec Record) []byte {
	return fmt.Appendf(nil, "%s|%s|%d|%d", sink, rec.Topic, rec.Partition, rec.Offset)
}

// deadLetterOf returns the dead letter of an item. It has the record as it is on the log, with its
// seal, so that it can be applied again.
func (r *Runtime) deadLetterOf(it *item, reason error) *kafka.Record {
	rec, m := it.record, it.message
	if m == nil {
		m = r.archivedMessage(rec)
	}
	rec.Event.Data = m.Value
	return newDeadLetter(r.cfg.Name, rec, string(m.Key), m.Headers, reason)
}

// DeadLetters writes to DeadLetterTopic for sinks that read the log without a Runtime. It is safe
// for concurrent use.
type DeadLetters struct{ writer deadLetterWriter }

// NewDeadLetters returns a writer. It connects when the first record is written.
func NewDeadLetters(cfg kafka.Config) *DeadLetters { return &DeadLetters{deadLetterWriter{cfg: cfg}} }

// DeadLetter is a record that a sink could not read. Sink, Topic, Partition and Offset identify it.
type DeadLetter struct {
	Sink       string // name and version of the sink
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []event.Header
	Reason     error
}

// Write returns nil once all records are durable on the topic.
func (p *DeadLetters) Write(ctx context.Context, records ...DeadLetter) error {
	if len(records) == 0 {
		return nil
	}
	letters := make([]kafka.Record, 0, len(records))
	for _, r := range records {
		rec := Record{Event: event.Event{Data: r.Value}, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
		letters = append(letters, *newDeadLetter(r.Sink, rec, string(r.Key), r.Headers, r.Reason))
	}
	return p.writer.put(ctx, letters)
}

// Close releases the producer.
func (p *DeadLetters) Close() { p.writer.close() }
