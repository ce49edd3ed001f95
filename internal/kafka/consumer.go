package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/event"
)

// TopicPartition names one partition of one topic.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// ConsumerConfig describes what a Consumer reads and with whom it shares it.
type ConsumerConfig struct {
	Config
	// Group is the consumer group. Its committed offsets are for outside lag tools alone: reading
	// starts where Assigned says.
	Group  string
	Topics []string
	// Assigned is told which partitions came, and answers from which offset each is read; one that
	// it leaves out, or has at 0, is read from the beginning, wherever that is. Any other offset
	// must be in the log, or Poll fails with ErrOutOfRange. It is called within Poll.
	Assigned func([]TopicPartition) map[TopicPartition]int64
	// Gone is called within Poll for a partition that does not have the offset to read. It reports
	// whether to read the partition from its beginning instead of failing with ErrOutOfRange. It
	// may be nil.
	Gone func(TopicPartition) bool
	// Revoked is told which partitions go, before another member can get them; of those lost,
	// another may have them already. It is called within Poll and Close.
	Revoked func(partitions []TopicPartition, lost bool)
}

// Message is a record, or the news that there is none.
type Message struct {
	TopicPartition
	Offset  int64
	Key     []byte
	Value   []byte
	Headers []event.Header
	End     bool // no record: the partition ended before Offset when this was read
}

// Consumer is a member of a consumer group that reads what transactions have committed. One
// goroutine polls it and seeks; the other methods may be called from any, but none after Close.
type Consumer struct {
	cfg    ConsumerConfig
	log    *slog.Logger
	client *kafka.Consumer
	admin  Admin
	logs   *logs

	// Of the polling goroutine:
	owned map[TopicPartition]*int64 // what Assigned was told of and Revoked was not, and the offset that Poll is at
	last  struct {                  // of owned: the partition of the last message, as the next is of the same mostly
		partition TopicPartition
		at        *int64
	}
	let     bool // the group has let us in
	refused refusal
}

// NewConsumer joins the group. The group is left by Close, or when the process ends, after the
// session's timeout.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	c := &Consumer{cfg: cfg, log: cfg.logger().With("group", cfg.Group), logs: newLogs(cfg.logger()), owned: map[TopicPartition]*int64{}}
	conf, err := cfg.configMap(c.logs,
		kafka.ConfigMap{
			// A killed member keeps its partitions this long. It is the shortest that brokers allow
			// by default; twelve heartbeats, which the client sends from a thread of its own, fit
			// into it. To be taken for dead costs a living member little: it joins again, and what
			// it read is told apart by the sink.
			"session.timeout.ms":         6000,
			"heartbeat.interval.ms":      500, // a member learns of a rebalance with its heartbeat
			"fetch.queue.backoff.ms":     2,   // the default, 1000, halves the throughput of a busy consumer
			"fetch.error.backoff.ms":     50,
			"queued.max.messages.kbytes": 16 << 10,
		},
		kafka.ConfigMap{
			"group.id":                      cfg.Group,
			"partition.assignment.strategy": "cooperative-sticky",
			"isolation.level":               "read_committed",
			"auto.offset.reset":             "error", // a jump would be loss, or a second delivery of everything
			"enable.auto.offset.store":      false,   // else Close commits past what was polled and not worked on
			"enable.partition.eof":          true,
		})
	if err == nil {
		c.client, err = kafka.NewConsumer(conf)
	}
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("kafka: open a consumer of group %s on %s: %w", cfg.Group, cfg.Brokers, err)
	}
	c.admin.refused, c.admin.log, c.admin.brokers, c.admin.stall = &c.refused, c.log, cfg.Brokers, cmp.Or(cfg.Stall, askWithin)
	if c.admin.admin, err = kafka.NewAdminClientFromConsumer(c.client); err == nil {
		err = c.client.SubscribeTopics(cfg.Topics, c.rebalance)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kafka: group %s: subscribe to %v: %w", cfg.Group, cfg.Topics, err), c.Close())
	}
	return c, nil
}

func (c *Consumer) rebalance(client *kafka.Consumer, e kafka.Event) error {
	switch e := e.(type) {
	case kafka.AssignedPartitions:
		c.let = true
		assigned := names(e.Partitions)
		starts := c.cfg.Assigned(assigned)
		for i, p := range assigned {
			c.owned[p] = new(starts[p])
			// 0 and not "the beginning", which the client would ask the brokers for first, and half
			// a second later.
			e.Partitions[i].Offset = kafka.Offset(starts[p])
		}
		if err := client.IncrementalAssign(e.Partitions); err != nil {
			c.log.Error("kafka: take assigned partitions", "error", err)
		}
	case kafka.RevokedPartitions:
		c.revoke(names(e.Partitions), client.AssignmentLost())
		if err := client.IncrementalUnassign(e.Partitions); err != nil {
			c.log.Error("kafka: give revoked partitions back", "error", err)
		}
	}
	return nil // the client ignores it
}

func (c *Consumer) revoke(partitions []TopicPartition, lost bool) {
	for _, p := range partitions {
		delete(c.owned, p)
	}
	c.last.at = nil
	c.cfg.Revoked(partitions, lost)
}

func names(partitions []kafka.TopicPartition) []TopicPartition {
	out := make([]TopicPartition, len(partitions))
	for i, p := range partitions {
		out[i] = TopicPartition{*p.Topic, p.Partition}
	}
	return out
}

// Poll waits for the next message, at most so long, and returns nil if none came. It must be called
// again within max.poll.interval.ms (5 minutes), or the group gives the partitions away. An error
// is fatal to the Consumer: ErrOutOfRange, or ErrRefused before the group has let us in. What the
// client gets over by itself is logged.
func (c *Consumer) Poll(timeout time.Duration) (*Message, error) {
	switch e := c.client.Poll(int(timeout.Milliseconds())).(type) {
	case *kafka.Message:
		if e.TopicPartition.Error == nil {
			m := message(e)
			c.stands(m.TopicPartition, m.Offset+1)
			return &m, nil
		}
		c.log.Warn("kafka: read", "partition", e.TopicPartition.String(), "error", e.TopicPartition.Error)
	case kafka.PartitionEOF:
		m := Message{TopicPartition: TopicPartition{*e.Topic, e.Partition}, Offset: int64(e.Offset), End: true}
		c.stands(m.TopicPartition, m.Offset)
		return &m, nil
	case kafka.Error:
		if e.IsFatal() {
			return nil, fmt.Errorf("kafka: group %s: %w", c.cfg.Group, e)
		}
		if isCode(e, kafka.ErrAutoOffsetReset) {
			return nil, c.outOfRange()
		}
		c.refused.note(e)
		if err := c.refused.err(); err != nil && !c.let {
			return nil, fmt.Errorf("kafka: group %s: %w", c.cfg.Group, err)
		}
		c.log.Warn("kafka: consumer", "error", e)
	}
	return nil, nil
}

// stands notes the offset that Poll has come to in a partition.
func (c *Consumer) stands(p TopicPartition, at int64) {
	if c.last.at == nil || c.last.partition != p {
		c.last.partition, c.last.at = p, c.owned[p]
	}
	if c.last.at != nil {
		*c.last.at = at
	}
}

// outOfRange is called where some log does not hold the offset to read, and finds out which: the
// client does not say. Where we stand at 0, nothing has been read yet, and the log begins later.
// All else is an error.
func (c *Consumer) outOfRange() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	starts, ends := map[string]map[int32]int64{}, map[string]map[int32]int64{}
	for p, at := range c.owned {
		if starts[p.Topic] == nil {
			var err1, err2 error
			starts[p.Topic], err1 = c.admin.StartOffsets(ctx, p.Topic)
			ends[p.Topic], err2 = c.admin.HighWatermarks(ctx, p.Topic)
			if err := errors.Join(err1, err2); err != nil {
				return fmt.Errorf("kafka: group %s: %w: find out which: %w", c.cfg.Group, ErrOutOfRange, err)
			}
		}
		start, end := starts[p.Topic][p.Partition], ends[p.Topic][p.Partition]
		if start <= *at && *at <= end {
			continue
		}
		if *at != 0 && (c.cfg.Gone == nil || !c.cfg.Gone(p)) {
			return fmt.Errorf("kafka: group %s: %w: offset %d of %s/%d, which holds %d to %d", c.cfg.Group, ErrOutOfRange, *at, p.Topic, p.Partition, start, end)
		}
		*at = start
	}
	// Some partition stands still now, and what stands still cannot seek. So all are taken anew,
	// each where it stands: those that begin later too, whose own news of it may be on the way
	// already.
	again := make([]kafka.TopicPartition, 0, len(c.owned))
	for p, at := range c.owned {
		again = append(again, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition, Offset: kafka.Offset(*at)})
	}
	if err := errors.Join(c.client.IncrementalUnassign(again), c.client.IncrementalAssign(again)); err != nil {
		return fmt.Errorf("kafka: group %s: read from where the logs begin: %w", c.cfg.Group, err)
	}
	return nil
}

// Seek makes assigned partitions continue at other offsets; 0 is the beginning. Nothing that was
// fetched before is polled after.
func (c *Consumer) Seek(offsets map[TopicPartition]int64) error {
	ps := make([]kafka.TopicPartition, 0, len(offsets))
	for p, offset := range offsets {
		ps = append(ps, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition, Offset: kafka.Offset(offset)})
	}
	got, err := c.client.SeekPartitions(ps)
	for _, p := range got {
		if err == nil {
			err = p.Error
		}
	}
	if err != nil {
		return fmt.Errorf("kafka: group %s: seek: %w", c.cfg.Group, err)
	}
	for p, offset := range offsets {
		c.stands(p, offset)
	}
	return nil
}

// Pause stops the fetching of assigned partitions, so that Poll can continue for the group's sake
// while there is no room for messages.
func (c *Consumer) Pause(partitions []TopicPartition) error {
	return c.client.Pause(clientNames(partitions))
}

// Resume undoes Pause.
func (c *Consumer) Resume(partitions []TopicPartition) error {
	return c.client.Resume(clientNames(partitions))
}

func clientNames(partitions []TopicPartition) []kafka.TopicPartition {
	ps := make([]kafka.TopicPartition, len(partitions))
	for i, p := range partitions {
		ps[i] = kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition}
	}
	return ps
}

// Store notes the offsets to read next, which the client commits to the group now and then and when
// a partition goes.
func (c *Consumer) Store(offsets map[TopicPartition]int64) error {
	ps := make([]kafka.TopicPartition, 0, len(offsets))
	for p, offset := range offsets {
		ps = append(ps, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition, Offset: kafka.Offset(offset)})
	}
	if _, err := c.client.StoreOffsets(ps); err != nil {
		return fmt.Errorf("kafka: group %s: store offsets: %w", c.cfg.Group, err)
	}
	return nil
}

// Ends asks the brokers where the partitions of a topic end: the offset behind the last record that
// Poll can return now.
func (c *Consumer) Ends(ctx context.Context, topic string) (map[int32]int64, error) {
	return c.admin.EndOffsets(ctx, topic)
}

// Topic asks which topic has a name.
func (c *Consumer) Topic(ctx context.Context, name string) (TopicInfo, error) {
	return c.admin.Topic(ctx, name)
}

// closeTimeout is longer than a close takes that goes well, or that gives up because no broker
// answers.
const closeTimeout = 15 * time.Second

// Close tells Revoked of all partitions, commits what was stored and leaves the group. Where no
// broker answers it gives up after the session's timeout, 6 seconds. Should the client hang, it is
// abandoned after 15: the group then waits for its session to end, and the process can.
func (c *Consumer) Close() error {
	closed := make(chan error, 1)
	go func() { closed <- c.client.Close() }()
	hung := time.NewTimer(closeTimeout)
	defer hung.Stop()
	select {
	case err := <-closed:
		c.logs.close()
		if len(c.owned) > 0 { // the client left in the middle of a rebalance, and told of a part only
			c.revoke(slices.Collect(maps.Keys(c.owned)), true)
		}
		if err != nil {
			return fmt.Errorf("kafka: group %s: close: %w", c.cfg.Group, err)
		}
		return nil
	case <-hung.C:
		return fmt.Errorf("kafka: group %s: the client has not closed within %v", c.cfg.Group, closeTimeout)
	}
}
