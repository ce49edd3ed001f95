package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"github.com/millrace/millrace/internal/backoff"
)

// Admin creates and describes topics. It is safe for concurrent use.
type Admin struct {
	*connection
	refused  *refusalTracker
	admin    *kafka.AdminClient
	replicas int // of new topics; -1 means the brokers' default

	log     *slog.Logger
	brokers string
	stall   time.Duration // limit of one request
}

// requestTimeout bounds a request to the brokers, for callers that set no limit themselves.
const requestTimeout = 30 * time.Second

// NewAdmin returns a client. It sends nothing before the first call.
func NewAdmin(cfg Config) (*Admin, error) {
	c, err := connect(cfg, nil, limitChannels(kafka.ConfigMap{}))
	if err != nil {
		return nil, err
	}
	a, err := kafka.NewAdminClientFromProducer(c.client)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("kafka: open an admin client: %w", err)
	}
	return &Admin{
		connection: c, refused: c.refused, admin: a, replicas: cmp.Or(cfg.Replicas, -1),
		log: cfg.logger(), brokers: cfg.Brokers, stall: cmp.Or(cfg.Stall, requestTimeout),
	}, nil
}

// await repeats a call at the start of a process until it succeeds or ctx ends. Each time the call
// stalls, await logs what it waits for. It retries after ErrStalled only, and returns all other
// errors.
func (a *Admin) await(ctx context.Context, what string, call func(context.Context) error) error {
	for begun := time.Now(); ; {
		short, cancel := context.WithTimeoutCause(ctx, a.stall, ErrStalled)
		err := call(short)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, ErrStalled) {
			return err
		}
		a.log.Warn("kafka: still waiting", "for", what, "brokers", a.brokers,
			"since", begun.Format(time.RFC3339), "error", err)
	}
}

// Ping blocks until a broker responds. It retries until ctx ends, but returns ErrRefused at
// once, because another attempt would not help. Call it when a process starts: the clients retry
// refused connections forever, too.
func (a *Admin) Ping(ctx context.Context) error {
	err := a.await(ctx, "a broker to respond", func(ctx context.Context) error {
		return retry(ctx, a.refused, func(ctx context.Context) error {
			_, err := a.admin.GetMetadata(nil, false, millisLeft(ctx))
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("kafka: connect to the brokers: %w", err)
	}
	return nil
}

// Topic describes a topic for EnsureTopics. The number of replicas is Config.Replicas.
type Topic struct {
	Name       string
	Partitions int32
	// Compacted keeps the last record of each key forever. Otherwise every record is kept forever,
	// because views and tables are rebuilt from the log, or for Retention, if it is not 0.
	Compacted bool
	Retention time.Duration
}

// config returns the topic's settings.
func (t Topic) config() map[string]string {
	if t.Compacted {
		// Kafka never compacts the segment that it is writing to. With the default size of 1 GiB,
		// readers would have to skip that much.
		return map[string]string{"cleanup.policy": "compact", "segment.bytes": strconv.Itoa(16 << 20)}
	}
	keep := "-1"
	if t.Retention > 0 {
		keep = strconv.FormatInt(t.Retention.Milliseconds(), 10)
	}
	return map[string]string{"retention.ms": keep, "retention.bytes": "-1"}
}

// EnsureTopics creates the topics that do not exist, and returns when the brokers know all of them.
// It does not change existing topics. It returns an error for one with fewer partitions than
// wanted, because keys would move if it were widened.
func EnsureTopics(ctx context.Context, cfg Config, topics ...Topic) error {
	a, err := NewAdmin(cfg)
	if err != nil {
		return err
	}
	defer a.Close()
	return a.EnsureTopics(ctx, topics...)
}

// EnsureTopics is like the function EnsureTopics, with an open client.
func (a *Admin) EnsureTopics(ctx context.Context, topics ...Topic) error {
	if err := a.Ping(ctx); err != nil {
		return err
	}
	if err := a.createTopics(ctx, topics); err != nil {
		return err
	}
	for _, t := range topics {
		var n int32
		err := a.await(ctx, "topic "+t.Name, func(ctx context.Context) (err error) {
			n, err = a.awaitTopic(ctx, t.Name)
			return err
		})
		if err != nil {
			return err
		}
		if n < t.Partitions {
			return fmt.Errorf("kafka: topic %s has %d partitions, but %d are configured: "+
				"configure %d, or move its records to a new topic", t.Name, n, t.Partitions, n)
		}
	}
	return nil
}

// createTopics creates the topics that do not exist. It retries what a cluster refuses while its
// brokers start or are overloaded, for at most createTimeout.
func (a *Admin) createTopics(ctx context.Context, topics []Topic) error {
	specs := make([]kafka.TopicSpecification, len(topics))
	for i, t := range topics {
		specs[i] = kafka.TopicSpecification{Topic: t.Name, NumPartitions: int(t.Partitions),
			ReplicationFactor: a.replicas, Config: t.config()}
	}
	waits := backoff.Server.Start()
	for begun := time.Now(); ; {
		results, err := a.admin.CreateTopics(ctx, specs)
		if err != nil {
			return fmt.Errorf("kafka: create topics: %w", err)
		}
		var failed error
		temporary := true
		for _, r := range results {
			// Existing topics are fine; EnsureTopics checks their partitions.
			if c := r.Error.Code(); c != kafka.ErrNoError && c != kafka.ErrTopicAlreadyExists {
				failed = errors.Join(failed, fmt.Errorf("kafka: create topic %s: %w", r.Topic, r.Error))
				temporary = temporary && tooFewBrokers(r.Error)
			}
		}
		if failed == nil || !temporary || time.Since(begun) > createTimeout {
			return failed
		}
		a.log.Warn("kafka: cannot create topics yet; trying again", "since", begun.Format(time.RFC3339),
			"error", failed)
		if !waits.Wait(ctx) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), failed)
		}
	}
}

// createTimeout is how long createTopics tries. A restarted or overloaded broker is back by then;
// a number of replicas that exceeds the number of brokers is still an error.
const createTimeout = 30 * time.Second

// tooFewBrokers reports whether a topic was refused because too few brokers were available. A
// broker that has just started, or missed its heartbeats, is fenced for a while, and Kafka answers
// as if the number of replicas were wrong.
func tooFewBrokers(err kafka.Error) bool {
	return isCode(err, kafka.ErrInvalidReplicationFactor, kafka.ErrBrokerNotAvailable, kafka.ErrNotController)
}

// awaitTopic blocks until the topic exists and each partition has a leader. It returns the number
// of partitions.
func (a *Admin) awaitTopic(ctx context.Context, topic string) (int32, error) {
	for {
		n, err := a.Partitions(ctx, topic)
		if err == nil || !errors.Is(err, ErrUnknownTopic) && !errors.Is(err, errNoLeader) {
			return n, err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return 0, fmt.Errorf("kafka: wait for topic %s: %w: %w", topic, context.Cause(ctx), err)
		}
	}
}

// errNoLeader is temporary: the partition gets a leader soon.
var errNoLeader = errors.New("a partition has no leader yet")

// Partitions returns the number of a topic's partitions. It returns ErrUnknownTopic if the topic
// does not exist.
func (a *Admin) Partitions(ctx context.Context, topic string) (int32, error) {
	var meta *kafka.Metadata
	err := retry(ctx, a.refused, func(ctx context.Context) (err error) {
		meta, err = a.admin.GetMetadata(&topic, false, millisLeft(ctx))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("kafka: describe topic %s: %w", topic, err)
	}
	t := meta.Topics[topic]
	if isCode(t.Error, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopic) || len(t.Partitions) == 0 {
		return 0, fmt.Errorf("kafka: topic %s: %w", topic, ErrUnknownTopic)
	}
	if t.Error.Code() != kafka.ErrNoError {
		return 0, fmt.Errorf("kafka: topic %s: %w", topic, t.Error)
	}
	for _, p := range t.Partitions {
		if p.Leader < 0 {
			return 0, fmt.Errorf("kafka: topic %s, partition %d: %w", topic, p.ID, errNoLeader)
		}
	}
	return int32(len(t.Partitions)), nil
}

// TopicInfo identifies a topic, and its state before and after it was widened.
type TopicInfo struct {
	ID         string // changes when a topic is deleted and recreated; empty if the brokers have no ids
	Partitions int32
}

// Topic returns the info of a topic. It returns ErrUnknownTopic if the topic does not exist.
func (a *Admin) Topic(ctx context.Context, name string) (TopicInfo, error) {
	answer, err := a.admin.DescribeTopics(ctx,
		kafka.NewTopicCollectionOfTopicNames([]string{name}), kafka.SetAdminRequestTimeout(describeTimeout))
	if err == nil && len(answer.TopicDescriptions) != 1 {
		err = fmt.Errorf("%d descriptions, want 1", len(answer.TopicDescriptions))
	}
	if err != nil {
		return TopicInfo{}, fmt.Errorf("kafka: describe topic %s: %w", name, err)
	}
	t := answer.TopicDescriptions[0]
	switch {
	case isCode(t.Error, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopic):
		return TopicInfo{}, fmt.Errorf("kafka: topic %s: %w", name, ErrUnknownTopic)
	case t.Error.Code() != kafka.ErrNoError:
		return TopicInfo{}, fmt.Errorf("kafka: topic %s: %w", name, t.Error)
	}
	info := TopicInfo{Partitions: int32(len(t.Partitions))}
	// Brokers without topic ids return zero.
	if t.TopicID.GetMostSignificantBits() != 0 || t.TopicID.GetLeastSignificantBits() != 0 {
		info.ID = t.TopicID.String()
	}
	return info, nil
}

// StartOffsets returns the offset of the first record, by partition.
func (a *Admin) StartOffsets(ctx context.Context, topic string) (map[int32]int64, error) {
	return a.offsets(ctx, topic, kafka.EarliestOffsetSpec, kafka.IsolationLevelReadUncommitted)
}

// EndOffsets returns the last stable offset, by partition: read_committed readers can read up to
// it.
func (a *Admin) EndOffsets(ctx context.Context, topic string) (map[int32]int64, error) {
	return a.offsets(ctx, topic, kafka.LatestOffsetSpec, kafka.IsolationLevelReadCommitted)
}

// OffsetsAt returns the offset of the first record that was written at a time or later, by partition.
// It is negative if there is none.
func (a *Admin) OffsetsAt(ctx context.Context, topic string, at time.Time) (map[int32]int64, error) {
	return a.offsets(ctx, topic, kafka.NewOffsetSpecForTimestamp(at.UnixMilli()), kafka.IsolationLevelReadUncommitted)
}

// HighWatermarks returns the offset after the last record, committed or not, by partition.
func (a *Admin) HighWatermarks(ctx context.Context, topic string) (map[int32]int64, error) {
	return a.offsets(ctx, topic, kafka.LatestOffsetSpec, kafka.IsolationLevelReadUncommitted)
}

// offsets retries for about two seconds while a partition has no known leader, as after the
// creation of a topic.
func (a *Admin) offsets(ctx context.Context, topic string, spec kafka.OffsetSpec,
	isolation kafka.IsolationLevel) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.stall,
		fmt.Errorf("%w for %v: no broker responds", ErrStalled, a.stall))
	defer cancel()
	const maxAttempts, pause = 20, 100 * time.Millisecond
	for attempt := 1; ; attempt++ {
		offsets, err := a.listOffsets(ctx, topic, spec, isolation)
		if !leaderChanges(err) || attempt == maxAttempts || !sleep(ctx, pause) {
			return offsets, err
		}
	}
}

// leaderChanges reports whether an error is temporary because a partition's leader has changed, or
// is not known to all brokers yet: after an election, and in a topic that was just created or
// widened.
func leaderChanges(err error) bool {
	return errors.Is(err, errNoLeader) || isCode(err,
		kafka.ErrNotLeaderForPartition, kafka.ErrLeaderNotAvailable, kafka.ErrFencedLeaderEpoch,
		kafka.ErrUnknownLeaderEpoch,
		kafka.ErrOffsetNotAvailable, kafka.ErrUnknownTopicOrPart)
}

// listOffsets sends one request for the offsets of all partitions.
func (a *Admin) listOffsets(ctx context.Context, topic string, spec kafka.OffsetSpec,
	isolation kafka.IsolationLevel) (map[int32]int64, error) {
	n, err := a.Partitions(ctx, topic)
	if err != nil {
		return nil, err
	}
	query := make(map[kafka.TopicPartition]kafka.OffsetSpec, n)
	for p := range n {
		query[kafka.TopicPartition{Topic: &topic, Partition: p}] = spec
	}
	res, err := a.admin.ListOffsets(ctx, query, kafka.SetAdminIsolationLevel(isolation))
	if err != nil {
		return nil, fmt.Errorf("kafka: offsets of topic %s: %w", topic, err)
	}
	offsets := make(map[int32]int64, n)
	for tp, info := range res.ResultInfos {
		if info.Error.Code() != kafka.ErrNoError {
			return nil, fmt.Errorf("kafka: offset of topic %s, partition %d: %w", topic, tp.Partition, info.Error)
		}
		offsets[tp.Partition] = int64(info.Offset)
	}
	// Callers rely on having every partition.
	if len(offsets) != int(n) {
		return nil, fmt.Errorf("kafka: offsets of topic %s: got %d, want one for each of %d partitions", topic,
			len(offsets), n)
	}
	return offsets, nil
}
