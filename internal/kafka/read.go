package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/event"
)

// ReadAll calls fn with every committed record of a topic from the offsets in from (a partition that is not there: its
// first record) up to, and without, the offsets in to; partitions that are not in to are not read. Records of a partition
// come in order. If a transaction below to is open, it waits for its end. If nothing comes for Config.Stall, it fails
// with ErrStalled. An error of fn ends the reading and is returned.
func ReadAll(ctx context.Context, cfg Config, topic string, from, to map[int32]int64, fn func(Message) error) error {
	return readAll(ctx, cfg, "read_committed", topic, from, to, fn)
}

// ReadUncommitted is ReadAll without the wait: it passes records of open and of aborted transactions, too.
func ReadUncommitted(
	ctx context.Context, cfg Config, topic string, from, to map[int32]int64, fn func(Message) error,
) error {
	return readAll(ctx, cfg, "read_uncommitted", topic, from, to, fn)
}

func readAll(
	ctx context.Context, cfg Config, isolation, topic string, from, to map[int32]int64, fn func(Message) error,
) error {
	left := make(map[int32]int64, len(to)) // partition to the offset at which it is done
	var assigned []kafka.TopicPartition
	for p, end := range to {
		start := from[p] // where the log begins later, the reader is reset; asking for the beginning by name takes 500 ms
		if start >= end {
			continue
		}
		left[p] = end
		assigned = append(assigned, kafka.TopicPartition{Topic: &topic, Partition: p, Offset: kafka.Offset(start)})
	}
	if len(left) == 0 {
		return nil
	}

	l := newLogs(cfg.logger())
	defer l.close()
	conf, err := cfg.configMap(l,
		kafka.ConfigMap{"fetch.wait.max.ms": 20, "fetch.queue.backoff.ms": 2, "fetch.error.backoff.ms": 50},
		kafka.ConfigMap{
			"group.id":             "millrace-read", // asked for, but never joined: partitions are assigned by hand
			"isolation.level":      isolation,
			"enable.auto.commit":   false,
			"enable.partition.eof": true,
			"auto.offset.reset":    "earliest",
		})
	if err != nil {
		return err
	}
	c, err := kafka.NewConsumer(conf)
	if err != nil {
		return fmt.Errorf("kafka: open a reader of %s: %w", topic, err)
	}
	err = read(ctx, c, assigned, left, cmp.Or(cfg.Stall, 20*time.Second), fn)
	if closeErr := c.Close(); err == nil && closeErr != nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("kafka: read topic %s: %w", topic, err)
	}
	return nil
}

func read(ctx context.Context, c *kafka.Consumer, assigned []kafka.TopicPartition, left map[int32]int64, stall time.Duration, fn func(Message) error) error {
	if err := c.Assign(assigned); err != nil {
		return err
	}
	var last error // that the client told of
	for moved, furthest := time.Now(), map[int32]int64{}; len(left) > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if waited := time.Since(moved); waited > stall {
			return stalled(waited, furthest, left, last)
		}
		switch e := c.Poll(int((50 * time.Millisecond).Milliseconds())).(type) {
		case *kafka.Message:
			if e.TopicPartition.Error != nil {
				return e.TopicPartition.Error
			}
			p, offset := e.TopicPartition.Partition, int64(e.TopicPartition.Offset)
			furthest[p] = offset + 1
			end, wanted := left[p]
			if wanted && offset < end {
				if err := fn(message(e)); err != nil {
					return err
				}
			}
			moved = time.Now()
			if wanted && offset+1 >= end {
				delete(left, p)
			}
		case kafka.PartitionEOF: // says how far it is past aborted records and markers, too
			if int64(e.Offset) > furthest[e.Partition] { // it comes again while a transaction is open
				moved, furthest[e.Partition] = time.Now(), int64(e.Offset)
			}
			if end, ok := left[e.Partition]; ok && int64(e.Offset) >= end {
				delete(left, e.Partition)
			}
		case kafka.Error:
			if isCode(e, kafka.ErrAuthentication, kafka.ErrSsl) {
				return fmt.Errorf("%w: %w", ErrRefused, e)
			}
			if e.IsFatal() || isCode(e, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopic, kafka.ErrUnknownPartition) {
				return e
			}
			last = e
		}
	}
	return nil
}

// stalled names one of the partitions that are behind.
func stalled(waited time.Duration, furthest, left map[int32]int64, last error) error {
	p := slices.Min(slices.Collect(maps.Keys(left)))
	err := fmt.Errorf("%w for %v: partition %d and %d others; it is at offset %d and has to come to %d, which an open transaction may hide",
		ErrStalled, waited.Round(time.Second), p, len(left)-1, furthest[p], left[p])
	return errors.Join(err, last)
}

func message(m *kafka.Message) Message {
	out := Message{
		TopicPartition: TopicPartition{*m.TopicPartition.Topic, m.TopicPartition.Partition},
		Offset:         int64(m.TopicPartition.Offset),
		Key:            m.Key, Value: m.Value, Headers: make([]event.Header, len(m.Headers)),
	}
	for i, h := range m.Headers {
		out.Headers[i] = event.Header(h)
	}
	return out
}
