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

// DeadLetterTopic keeps the records that a sink could not read, so that people can look at them and
// send them again. It is compacted: a record is parked under sink|topic|partition|offset, so
// parking it again leaves it there once. A record that is too large for it is parked shortened,
// because a sink would otherwise retry it forever.
const DeadLetterTopic = "millrace.parked"

// Headers that a parked record has beside its own.
const (
	HeaderDeadLetterReason = "millrace-park-reason"
	HeaderDeadLetterKey    = "millrace-park-key" // key of the record as it was

	// Of a record that is parked shortened: what its value was. The whole record is where the key
	// of the parked record says, for as long as that topic keeps it.
	HeaderDeadLetterSize   = "millrace-park-value-size"   // bytes
	HeaderDeadLetterSHA256 = "millrace-park-value-sha256" // in hexadecimal digits
)

// What is kept of a record that is parked shortened, in bytes.
const (
	keptValue   = 4 << 10
	keptKey     = 4 << 10
	keptHeaders = 64 << 10
	maxReason   = 4 << 10 // of any record: a reason may quote what it is about
)

// deadLetterWriter writes to DeadLetterTopic. The topic and the producer are made when first wanted, which
// is hardly ever.
type deadLetterWriter struct {
	cfg      kafka.Config
	mu       sync.Mutex
	producer *kafka.Producer
}

// put returns once all records are safe on the topic.
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
		return fmt.Errorf("park %d records, the first of which is %s: %w", len(records), records[0].Key, err)
	}
	return nil
}

func (p *deadLetterWriter) open(ctx context.Context) (*kafka.Producer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.producer != nil {
		return p.producer, nil
	}
	if err := kafka.EnsureTopics(ctx, p.cfg, kafka.Topic{Name: DeadLetterTopic, Partitions: 1, Compacted: true}); err != nil {
		return nil, err
	}
	producer, err := kafka.NewProducer(p.cfg)
	if err != nil {
		return nil, err
	}
	p.producer = producer
	return producer, nil
}

// putEach puts records one by one, and those shortened that are too large as they are.
func putEach(ctx context.Context, producer *kafka.Producer, records []kafka.Record) error {
	for _, r := range records {
		err := producer.Produce(ctx, r)
		for _, headers := range []int{keptHeaders, 0} { // a topic may take less than others do
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

// shortened returns a parked record with the beginning of its value and, of its own headers, those
// that fit, which tells what the value was.
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

func (p *deadLetterWriter) close() {
	if p.producer != nil {
		p.producer.Close()
	}
}

// newDeadLetter returns a record for DeadLetterTopic.
func newDeadLetter(sink string, rec Record, key string, headers []event.Header, reason error) *kafka.Record {
	value := rec.Event.Data
	if value == nil { // a tombstone would be compacted away, and with it what tells of the record
		value = []byte{}
	}
	why := reason.Error()
	return &kafka.Record{
		Topic:     DeadLetterTopic,
		Partition: kafka.AnyPartition,
		Key:       fmt.Appendf(nil, "%s|%s|%d|%d", sink, rec.Topic, rec.Partition, rec.Offset),
		Value:     value,
		Headers: append(headers[:len(headers):len(headers)],
			event.Header{Key: HeaderDeadLetterReason, Value: []byte(why[:min(len(why), maxReason)])},
			event.Header{Key: HeaderDeadLetterKey, Value: []byte(key)}),
	}
}

// deadLetterOf is newDeadLetter for a record whose envelope could be read.
func deadLetterOf(sink string, rec Record, reason error) *kafka.Record {
	return newDeadLetter(sink, rec, rec.Event.Stream, rec.Event.Headers(), reason)
}

// DeadLetters writes to DeadLetterTopic for sinks that read the log without a Runtime. It is safe for
// concurrent use.
type DeadLetters struct{ writer deadLetterWriter }

// NewDeadLetters opens nothing yet.
func NewDeadLetters(cfg kafka.Config) *DeadLetters { return &DeadLetters{deadLetterWriter{cfg: cfg}} }

// DeadLetter is a record that a sink could not read. Sink, topic, partition and offset name it.
type DeadLetter struct {
	Sink       string // and its version
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []event.Header
	Reason     error
}

// Write returns once all records are safe on the topic.
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
