package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// encoding is the encoding of the events in a topic. Each contender reads the one that costs it
// least.
type encoding string

const (
	// asJSON is for the sink, and asProtobuf is for the lander and the ceiling.
	asJSON     encoding = "json"
	asProtobuf encoding = "protobuf"
)

// append appends the i-th event in this encoding.
func (e encoding) append(b []byte, i int64) []byte {
	if e == asJSON {
		return eventAt(i).appendJSON(b)
	}
	return eventAt(i).appendProtobuf(b)
}

// eventsPerTransaction is the number of events in a transaction of the producer that fills a topic.
const eventsPerTransaction = 200_000

// fill creates a topic with the first n events, without keys, distributed over its partitions in
// turn. So all partitions are equally long, and no task or lander ends early.
func fill(ctx context.Context, cfg kafka.Config, topic string, as encoding, partitions int32, n int64) error {
	if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: topic, Partitions: partitions}); err != nil {
		return err
	}
	cfg.Extra = map[string]string{"batch.size": "1000000", "linger.ms": "50"} // as of a busy producer
	p, err := kafka.NewTransactionalProducer(cfg, "fill-"+topic)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Init(ctx); err != nil {
		return err
	}
	var value []byte
	var bytes int64
	started := time.Now()
	for i := int64(0); i < n; {
		// One transaction per batch, as a real producer would commit, but large, because filling is
		// not measured.
		if err := p.Begin(); err != nil {
			return err
		}
		for end := min(n, i+eventsPerTransaction); i < end; i++ {
			value = as.append(value[:0], i)
			bytes += int64(len(value))
			r := kafka.Record{Topic: topic, Partition: int32(i % int64(partitions)), Value: value}
			if err := p.Produce(ctx, r); err != nil {
				return err
			}
		}
		if err := p.Commit(ctx); err != nil {
			return err
		}
		progress("%s: %d of %d events", topic, i, n)
	}
	progress("%s: %d events of %.1f bytes in %v",
		topic, n, float64(bytes)/float64(n), time.Since(started).Round(time.Millisecond))
	return nil
}

// topicOf returns the topic with the measured events in an encoding.
func topicOf(as encoding) string { return fmt.Sprintf("events-%s", as) }

// warmTopicOf returns the topic for warming up in an encoding.
func warmTopicOf(as encoding) string { return fmt.Sprintf("warm-%s", as) }
