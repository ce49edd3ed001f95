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

// ReadAll calls fn with each committed record of a topic, from the offsets in from up to and
// excluding the offsets in to. A partition that is missing in from is read from its beginning, and
// one that is missing in to is not read. Records of a partition are in order. ReadAll waits for the
// end of open transactions below to. If there is no progress for Config.Stall, it fails with
// ErrStalled. An error of fn ends the read and is returned.
func ReadAll(ctx context.Context, cfg Config, topic string, from, to map[int32]int64, fn func(Message) error) error {
	return readAll(ctx, cfg, "read_committed", topic, from, to, fn)
}

// ReadUncommitted is like ReadAll, but it does not wait for open transactions. It also passes
// records of open and of aborted ones.
func ReadUncommitted(
	ctx context.Context, cfg Config, topic string, from, to map[int32]int64, fn func(Message) error,
) error {
	return readAll(ctx, cfg, "read_uncommitted", topic, from, to, fn)
}

// readAll reads a range with a consumer of its own, without a group.
func readAll(
	ctx context.Context, cfg Config, isolation, topic string, from, to map[int32]int64, fn func(Message) error,
) error {
	left := make(map[int32]int64, len(to)) // offset to reach, by partition that is not done
	var assigned []kafka.TopicPartition
	for p, end := range to {
		// If the log begins later, the reader is reset to its beginning. OffsetBeginning would do
		// the same, but takes 500 ms.
		start := from[p]
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
			// Required, but never joined: partitions are assigned explicitly.
			"group.id":             "millrace-read",
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

// read polls until every partition in left is done.
func read(
	ctx context.Context, c *kafka.Consumer, assigned []kafka.TopicPartition, left map[int32]int64,
	stall time.Duration, fn func(Message) error,
) error {
	if err := c.Assign(assigned); err != nil {
		return err
	}
	// moved is the time of the last progress, and furthest the offset that each partition has
	// reached.
	var last error // last error that the client reported; it retries by itself
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
		case kafka.PartitionEOF: // it is also past aborted records and markers
			if int64(e.Offset) > furthest[e.Partition] { // it is repeated while a transaction is open
				moved, furthest[e.Partition] = time.Now(), int64(e.Offset)
			}
			// The partition may end with markers, which are never delivered as records.
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

// stalled returns an error that names one of the partitions that are behind.
func stalled(waited time.Duration, furthest, left map[int32]int64, last error) error {
	p := slices.Min(slices.Collect(maps.Keys(left)))
	err := fmt.Errorf("%w for %v: partition %d is at offset %d of %d, and %d others are behind, too: "+
		"brokers do not respond, or an open transaction blocks readers",
		ErrStalled, waited.Round(time.Second), p, furthest[p], left[p], len(left)-1)
	return errors.Join(err, last)
}

// message converts a record of the client.
func message(m *kafka.Message) Message {
	out := Message{
		Time:           m.Timestamp,
		TopicPartition: TopicPartition{*m.TopicPartition.Topic, m.TopicPartition.Partition},
		Offset:         int64(m.TopicPartition.Offset),
		Key:            m.Key, Value: m.Value, Headers: make([]event.Header, len(m.Headers)),
	}
	for i, h := range m.Headers {
		out.Headers[i] = event.Header(h)
	}
	return out
}
