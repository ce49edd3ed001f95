package streams

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// ParkTopic keeps the records that a sink could not read, so that people can look at them and send them again. It is
// compacted: a record is parked under sink|topic|partition|offset, so parking it again leaves it there once.
const ParkTopic = "millrace.parked"

// Headers that a parked record has beside its own.
const (
	HeaderParkReason = "millrace-park-reason"
	HeaderParkKey    = "millrace-park-key" // key of the record as it was
)

// parking writes to ParkTopic. The topic and the producer are made when first wanted, which is hardly ever.
type parking struct {
	cfg      kafka.Config
	mu       sync.Mutex
	producer *kafka.Producer
}

// put returns once all records are safe on the topic.
func (p *parking) put(ctx context.Context, records []kafka.Record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.producer == nil {
		if err := kafka.EnsureTopics(ctx, p.cfg, kafka.Topic{Name: ParkTopic, Partitions: 1, Compacted: true}); err != nil {
			return err
		}
		producer, err := kafka.NewProducer(p.cfg)
		if err != nil {
			return err
		}
		p.producer = producer
	}
	if err := p.producer.ProduceAll(ctx, records); err != nil {
		return fmt.Errorf("park %d records, the first of which is %s: %w", len(records), records[0].Key, err)
	}
	return nil
}

func (p *parking) close() {
	if p.producer != nil {
		p.producer.Close()
	}
}

// parkedRecord is a record as it goes to ParkTopic.
func parkedRecord(sink string, rec Record, key string, headers []event.Header, reason error) *kafka.Record {
	return &kafka.Record{
		Topic:     ParkTopic,
		Partition: kafka.AnyPartition,
		Key:       fmt.Appendf(nil, "%s|%s|%d|%d", sink, rec.Topic, rec.Partition, rec.Offset),
		Value:     rec.Event.Data,
		Headers: append(headers[:len(headers):len(headers)],
			event.Header{Key: HeaderParkReason, Value: []byte(reason.Error())},
			event.Header{Key: HeaderParkKey, Value: []byte(key)}),
	}
}

// parkedEvent is parkedRecord of a record whose envelope could be read.
func parkedEvent(sink string, rec Record, reason error) *kafka.Record {
	return parkedRecord(sink, rec, rec.Event.Stream, rec.Event.Headers(), reason)
}

// Parking is ParkTopic for sinks that read the log without a Runtime. It is safe for concurrent use.
type Parking struct{ parking parking }

// NewParking opens nothing yet.
func NewParking(cfg kafka.Config) *Parking { return &Parking{parking{cfg: cfg}} }

// Parked is a record that a sink could not read. Sink, topic, partition and offset name it.
type Parked struct {
	Sink       string // and its version
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Headers    []event.Header
	Reason     error
}

// Park returns once the record is safe on the topic.
func (p *Parking) Park(ctx context.Context, r Parked) error {
	rec := Record{Event: event.Event{Data: r.Value}, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}
	return p.parking.put(ctx, []kafka.Record{*parkedRecord(r.Sink, rec, string(r.Key), r.Headers, r.Reason)})
}

// Close lets go of the producer.
func (p *Parking) Close() { p.parking.close() }
