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
	for _, r := range records {
		if err := p.producer.Produce(ctx, r); err != nil {
			return fmt.Errorf("park %s: %w", r.Key, err)
		}
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
