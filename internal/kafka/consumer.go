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

// TopicPartition identifies a partition of a topic.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// ConsumerConfig configures a Consumer. All callbacks run in the goroutine that calls Poll or
// Close.
type ConsumerConfig struct {
	Config
	// Group is the consumer group. Its committed offsets are only for external tools that show lag.
	// Reading starts at the offsets that Assigned returns.
	Group  string
	Topics []string
	// Assigned is called within Poll when partitions are assigned. It returns the offset to read
	// each of them from. A partition that is missing, or has offset 0, is read from its beginning,
	// even if that is a later offset. Any other offset must be on the log, or Poll fails with
	// ErrOutOfRange.
	Assigned func([]TopicPartition) map[TopicPartition]int64
	// OutOfRange is called within Poll for a partition that does not have the offset to read. It
	// reports whether to read the partition from its beginning instead of failing with
	// ErrOutOfRange. It may be nil.
	OutOfRange func(TopicPartition) bool
	// Revoked is called within Poll and Close when partitions are revoked, before another member
	// can get them. If they are lost, another member may have them already.
	Revoked func(partitions []TopicPartition, lost bool)
}

// Message is a record, or the notice that a partition has no more records.
type Message struct {
	TopicPartition
	Offset  int64
	Key     []byte
	Value   []byte
	Headers []event.Header
	Time    time.Time // when the record was written, by the clock of its producer
	End     bool      // not a record: the partition ended before Offset at that time
}

// Consumer is a member of a consumer group that reads committed records. The group only distributes
// partitions over its members. The offsets to read from are the caller's; see ConsumerConfig.
//
// Poll, Seek, Pause, Resume and Close must be called by one goroutine. The other methods are safe for concurrent
// use, but not after Close.
type Consumer struct {
	cfg    ConsumerConfig
	log    *slog.Logger
	client *kafka.Consumer
	admin  Admin
	logs   *logs

	// The fields below are used by the polling goroutine only.
	// owned has the assigned partitions that Revoked was not called for yet, with the offset that
	// Poll has reached.
	owned map[TopicPartition]*int64
	// last caches the owned partition of the last message, since consecutive messages are mostly of
	// the same one.
	last struct {
		partition TopicPartition
		at        *int64
	}
	paused   map[TopicPartition]bool // partitions that the client pauses, whether or not they are owned
	accepted bool                    // the group has accepted this member
	refused  refusalTracker
}

// NewConsumer joins the group. The member leaves with Close, or with the session timeout after the
// process has ended.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	c := &Consumer{
		cfg: cfg, log: cfg.logger().With("group", cfg.Group), logs: newLogs(cfg.logger()),
		owned: map[TopicPartition]*int64{}, paused: map[TopicPartition]bool{},
	}
	conf, err := cfg.configMap(c.logs,
		kafka.ConfigMap{
			// A killed member keeps its partitions for the session timeout. This is the shortest
			// that brokers allow by default. It is twelve heartbeats, which the client sends from
			// its own thread. A live member that misses it rejoins, and the sink recognises records
			// that were delivered twice.
			"session.timeout.ms":    6000,
			"heartbeat.interval.ms": 500, // a heartbeat's response announces a rebalance
			// The default, 1000, halves the throughput of a busy consumer.
			"fetch.queue.backoff.ms":     2,
			"fetch.error.backoff.ms":     50,
			"queued.max.messages.kbytes": 16 << 10,
		},
		kafka.ConfigMap{
			"group.id":                      cfg.Group,
			"partition.assignment.strategy": "cooperative-sticky",
			"isolation.level":               "read_committed",
			// A jump would lose records, or deliver all of them again.
			"auto.offset.reset": "error",
			// Otherwise Close would commit records that were polled and not processed.
			"enable.auto.offset.store": false,
			"enable.partition.eof":     true,
		})
	if err == nil {
		c.client, err = kafka.NewConsumer(conf)
	}
	if err != nil {
		c.logs.close()
		return nil, fmt.Errorf("kafka: open a consumer of group %s on %s: %w", cfg.Group, cfg.Brokers, err)
	}
	// The admin client shares the consumer's connections.
	c.admin.refused, c.admin.log, c.admin.brokers = &c.refused, c.log, cfg.Brokers
	c.admin.stall = cmp.Or(cfg.Stall, requestTimeout)
	if c.admin.admin, err = kafka.NewAdminClientFromConsumer(c.client); err == nil {
		err = c.client.SubscribeTopics(cfg.Topics, c.rebalance)
	}
	if err != nil {
		err = fmt.Errorf("kafka: group %s: subscribe to %v: %w", cfg.Group, cfg.Topics, err)
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// rebalance is the client's callback, which runs within Poll and Close.
func (c *Consumer) rebalance(client *kafka.Consumer, e kafka.Event) error {
	switch e := e.(type) {
	case kafka.AssignedPartitions:
		c.accepted = true
		assigned := fromClient(e.Partitions)
		starts := c.cfg.Assigned(assigned)
		for i, p := range assigned {
			c.owned[p] = new(starts[p])
			// Use 0, not OffsetBeginning: for the latter the client asks the brokers first, which
			// takes half a second.
			e.Partitions[i].Offset = kafka.Offset(starts[p])
		}
		if err := client.IncrementalAssign(e.Partitions); err != nil {
			c.log.Error("kafka: assign partitions", "error", err)
		}
		// The client remembers a pause across assignments.
		assigned = slices.DeleteFunc(assigned, func(p TopicPartition) bool { return !c.paused[p] })
		if err := c.Resume(assigned); err != nil {
			c.log.Error("kafka: resume assigned partitions", "error", err)
		}
	case kafka.RevokedPartitions:
		c.revoke(fromClient(e.Partitions), client.AssignmentLost())
		if err := client.IncrementalUnassign(e.Partitions); err != nil {
			c.log.Error("kafka: unassign revoked partitions", "error", err)
		}
	}
	return nil // the client ignores the result
}

// revoke removes partitions from owned and calls Revoked. After that, offsets of these partitions
// must not be stored, because another member may own them.
func (c *Consumer) revoke(partitions []TopicPartition, lost bool) {
	for _, p := range partitions {
		delete(c.owned, p)
	}
	c.last.at = nil
	c.cfg.Revoked(partitions, lost)
}

// fromClient converts the client's partitions.
func fromClient(partitions []kafka.TopicPartition) []TopicPartition {
	out := make([]TopicPartition, len(partitions))
	for i, p := range partitions {
		out[i] = TopicPartition{*p.Topic, p.Partition}
	}
	return out
}

// Poll waits for the next message for at most timeout, and returns nil if there is none. It must be
// called again within max.poll.interval.ms (5 minutes), or the group reassigns the partitions.
// After an error the Consumer is unusable: the error is ErrOutOfRange, ErrRefused before the group
// has accepted this member, or a fatal one. Errors that the client retries are logged.
func (c *Consumer) Poll(timeout time.Duration) (*Message, error) {
	switch e := c.client.Poll(int(timeout.Milliseconds())).(type) {
	case *kafka.Message:
		if e.TopicPartition.Error == nil {
			m := message(e)
			c.setOffset(m.TopicPartition, m.Offset+1)
			return &m, nil
		}
		c.log.Warn("kafka: read", "partition", e.TopicPartition.String(), "error", e.TopicPartition.Error)
	case kafka.PartitionEOF: // all records that are visible now have been returned
		m := Message{TopicPartition: TopicPartition{*e.Topic, e.Partition}, Offset: int64(e.Offset), End: true}
		c.setOffset(m.TopicPartition, m.Offset)
		return &m, nil
	case kafka.Error:
		// A fatal error means that this client cannot work any more.
		if e.IsFatal() {
			return nil, fmt.Errorf("kafka: group %s: %w", c.cfg.Group, e)
		}
		if isCode(e, kafka.ErrAutoOffsetReset) {
			return nil, c.outOfRange()
		}
		// A member that the group has accepted before keeps trying: its credentials may be in
		// rotation.
		c.refused.note(e)
		if err := c.refused.err(); err != nil && !c.accepted {
			return nil, fmt.Errorf("kafka: group %s: %w", c.cfg.Group, err)
		}
		c.log.Warn("kafka: consumer", "error", e)
	}
	return nil, nil
}

// setOffset records the offset that Poll has reached in a partition.
func (c *Consumer) setOffset(p TopicPartition, at int64) {
	if c.last.at == nil || c.last.partition != p {
		c.last.partition, c.last.at = p, c.owned[p]
	}
	if c.last.at != nil {
		*c.last.at = at
	}
}

// outOfRange handles a log that does not have the offset to read. The client does not say which one
// it is, so outOfRange checks all. At offset 0 nothing has been read yet, and the log begins later:
// read from there. Otherwise ConsumerConfig.OutOfRange decides.
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
				return fmt.Errorf("kafka: group %s: %w: find the partition: %w", c.cfg.Group, ErrOutOfRange, err)
			}
		}
		// High watermarks, because an offset behind an open transaction is valid, too.
		start, end := starts[p.Topic][p.Partition], ends[p.Topic][p.Partition]
		if start <= *at && *at <= end {
			continue
		}
		if *at != 0 && (c.cfg.OutOfRange == nil || !c.cfg.OutOfRange(p)) {
			return fmt.Errorf("kafka: group %s: %w: offset %d of %s/%d, which has offsets %d to %d",
				c.cfg.Group, ErrOutOfRange, *at, p.Topic, p.Partition, start, end)
		}
		*at = start
	}
	// The client has stopped some partition, and a stopped partition cannot seek. So reassign all
	// partitions, each at its offset. That includes partitions that begin later and whose own error
	// may still be in the queue.
	all := make([]kafka.TopicPartition, 0, len(c.owned))
	for p, at := range c.owned {
		all = append(all, kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition, Offset: kafka.Offset(*at)})
	}
	if err := errors.Join(c.client.IncrementalUnassign(all), c.client.IncrementalAssign(all)); err != nil {
		return fmt.Errorf("kafka: group %s: resume at the first available offsets: %w", c.cfg.Group, err)
	}
	return nil
}

// Seek makes assigned partitions continue at other offsets. 0 is the beginning. After it, Poll
// returns no record that was fetched before.
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
		c.setOffset(p, offset)
	}
	return nil
}

// Pause stops fetching assigned partitions until Resume is called or they are assigned again. Poll
// can continue without returning messages, so that the member remains in the group.
func (c *Consumer) Pause(partitions []TopicPartition) error {
	for _, p := range partitions {
		c.paused[p] = true
	}
	return c.client.Pause(toClient(partitions))
}

// Resume reverses Pause.
func (c *Consumer) Resume(partitions []TopicPartition) error {
	err := c.client.Resume(toClient(partitions))
	if err == nil {
		for _, p := range partitions {
			delete(c.paused, p)
		}
	}
	return err
}

// toClient converts partitions to the client's.
func toClient(partitions []TopicPartition) []kafka.TopicPartition {
	ps := make([]kafka.TopicPartition, len(partitions))
	for i, p := range partitions {
		ps[i] = kafka.TopicPartition{Topic: &p.Topic, Partition: p.Partition}
	}
	return ps
}

// Store records the offsets to read next. The client commits them to the group periodically, and
// when a partition is revoked.
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

// Ends returns the end offsets of a topic's partitions: the offsets after the last records that
// Poll can return now.
func (c *Consumer) Ends(ctx context.Context, topic string) (map[int32]int64, error) {
	return c.admin.EndOffsets(ctx, topic)
}

// Starts returns the offsets of the first records that a topic's partitions have.
func (c *Consumer) Starts(ctx context.Context, topic string) (map[int32]int64, error) {
	return c.admin.StartOffsets(ctx, topic)
}

// Topic returns the info of a topic.
func (c *Consumer) Topic(ctx context.Context, name string) (TopicInfo, error) {
	return c.admin.Topic(ctx, name)
}

// closeTimeout exceeds the time of a close that succeeds, and of one that gives up because no
// broker responds.
const closeTimeout = 15 * time.Second

// Close calls Revoked for all partitions, commits the stored offsets and leaves the group. If no
// broker answers, it gives up after the session timeout, 6 seconds. If the client hangs, Close
// abandons it after closeTimeout, so that the process can end. The group then waits for the session
// timeout.
func (c *Consumer) Close() error {
	closed := make(chan error, 1) // buffered, so that an abandoned close can end
	go func() { closed <- c.client.Close() }()
	hung := time.NewTimer(closeTimeout)
	defer hung.Stop()
	select {
	case err := <-closed:
		c.logs.close()
		// The client left during a rebalance and did not report all partitions.
		if len(c.owned) > 0 {
			c.revoke(slices.Collect(maps.Keys(c.owned)), true)
		}
		if err != nil {
			return fmt.Errorf("kafka: group %s: close: %w", c.cfg.Group, err)
		}
		return nil
	case <-hung.C:
		return fmt.Errorf("kafka: group %s: close: no response from the client within %v", c.cfg.Group, closeTimeout)
	}
}
