// Package fetch reads partitions in whole batches, for callers that store the offsets themselves.
//
// Reader reads one topic with read_committed: Open returns one for partitions that Assign names,
// and Join one for partitions that a consumer group assigns. Poll returns batches, and Batch
// iterates over their records.
//
// It exists for its speed. Producers, and consumers that do some work per event, use internal/kafka
// (confluent-kafka-go). Here records only become columns, so the cost of getting a record out of
// the client matters: 0.28 µs of CPU with franz-go's fetches, and 1.65 µs with librdkafka's poll.
// Besides tests, it is the only package that imports franz-go's client (kgo).
//
// Invariants:
//
//   - Poll returns batches of a partition in order and without gaps, or fails with an
//     OutOfRangeError.
//   - Records are valid until the next Poll, which reuses their memory.
//   - In a group, no partition is revoked between a Poll and the next Yield.
package fetch

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka/security"
)

// Config configures a Reader.
type Config struct {
	Brokers  []string // host:port
	Topic    string
	ClientID string       // shown in the broker's logs
	MaxBytes int32        // per partition and fetch; one fetch per partition is read ahead; 0 means 1 MiB
	Logger   *slog.Logger // required
	Security security.Config
	Stall    time.Duration // limit of Describe; 0 means 30 s
}

// Reader reads one topic with read_committed. It is not safe for concurrent use.
type Reader struct {
	topic  string
	client *kgo.Client
	admin  *kadm.Client
	next   map[int32]int64 // offset after the last record that Poll returned, by assigned partition
	member *member         // membership in a group, which then has next; nil if Assign assigns partitions
	stall  time.Duration   // limit of Describe
	polled [][]*kgo.Record // records that the last Poll returned; the next one recycles them
}

// Topic describes a topic.
type Topic struct {
	ID         string          // changes when a topic is deleted and recreated; empty if the brokers have no ids
	Partitions map[int32]Range // by partition
}

// Range is the offsets of a partition: Start is the first one, and End is after the last one.
type Range struct{ Start, End int64 }

// ErrNoTopic means that the topic does not exist.
var ErrNoTopic = errors.New("unknown topic")

// OutOfRangeError means that the log does not have the offset to read from: records were deleted,
// or the topic was truncated or recreated.
type OutOfRangeError struct {
	Topic     string
	Partition int32
	Offset    int64
	Log       Range
}

func (e *OutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d of %s/%d is not in the log, which has offsets %d to %d",
		e.Offset, e.Topic, e.Partition, e.Log.Start, e.Log.End)
}

// Open returns a reader of the partitions that Assign adds. It connects when it is first used.
func Open(c Config) (*Reader, error) { return open(c) }

// open returns a reader with further client options.
func open(c Config, more ...kgo.Opt) (*Reader, error) {
	maxBytes := c.MaxBytes
	if maxBytes == 0 {
		maxBytes = 1 << 20
	}
	secure, err := securityOptions(c.Security)
	if err != nil {
		return nil, fmt.Errorf("kafka client for %s: %w", c.Topic, err)
	}
	client, err := kgo.NewClient(slices.Concat(secure, []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ClientID),
		kgo.WithLogger(logger{c.Logger}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers of transactions have offsets, too. Without them, a reader would never reach the
		// end of a partition that ends with one.
		kgo.KeepControlRecords(),
		// A missing offset must be an error, not a jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// Only the bytes per partition may limit a fetch. If the bytes of the whole response limit
		// it, the embedded broker (kfake) omits the aborted transactions of the partition that it
		// truncates, and their records become visible.
		kgo.FetchMaxPartitionBytes(maxBytes),
		kgo.FetchMaxBytes(maxFetchBytes),
		kgo.BrokerMaxReadBytes(2 * maxFetchBytes),
		// One per broker. A broker without records delays its answer, which must not delay the records
		// of another one.
		kgo.MaxConcurrentFetches(-1),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.WithPools(&pool{}),
	}, more)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client for %s: %w", c.Topic, err)
	}
	return &Reader{
		topic: c.Topic, client: client, admin: kadm.NewClient(client),
		next: map[int32]int64{}, stall: cmp.Or(c.Stall, describeTimeout),
	}, nil
}

// securityOptions returns the client options for a security configuration.
func securityOptions(s security.Config) ([]kgo.Opt, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	var opts []kgo.Opt
	trust, err := s.ClientTLS()
	if err != nil {
		return nil, err
	}
	if trust != nil {
		opts = append(opts, kgo.DialTLSConfig(trust))
	}
	login := scram.Auth{User: s.Username, Pass: s.Password}
	switch s.Mechanism {
	case security.Plain:
		opts = append(opts, kgo.SASL(plain.Auth{User: s.Username, Pass: s.Password}.AsMechanism()))
	case security.ScramSHA256:
		opts = append(opts, kgo.SASL(login.AsSha256Mechanism()))
	case security.ScramSHA512:
		opts = append(opts, kgo.SASL(login.AsSha512Mechanism()))
	}
	return opts, nil
}

// describeTimeout is the default of Config.Stall.
const describeTimeout = 30 * time.Second

// maxFetchBytes exceeds every fetch of up to 256 partitions with 1 MiB each.
const maxFetchBytes = 256 << 20

// Close stops the reader and leaves its group. A Poll that is blocked returns.
func (r *Reader) Close() { r.client.CloseAllowingRebalance() }

// Describe returns the topic's id and the ranges of its partitions. It returns ErrNoTopic if the
// topic does not exist, and security.ErrRefused if the brokers refuse this client or it does not
// trust them. Call it before Poll, which would only return nothing in these cases.
func (r *Reader) Describe(ctx context.Context) (Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, r.stall)
	defer cancel()
	t, err := r.describe(ctx)
	if refused(err) {
		return Topic{}, fmt.Errorf("%w: %w", security.ErrRefused, err)
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return Topic{}, fmt.Errorf("%w: %s", ErrNoTopic, r.topic)
	}
	return t, err
}

// refused reports whether err means that client and broker do not accept each other.
func refused(err error) bool {
	var alert tls.AlertError
	var certificate *tls.CertificateVerificationError
	return errors.Is(err, kerr.SaslAuthenticationFailed) || errors.As(err, &alert) || errors.As(err, &certificate)
}

// describe returns what Describe returns, with the client's own errors.
func (r *Reader) describe(ctx context.Context) (Topic, error) {
	topics, err := r.admin.ListTopics(ctx, r.topic)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return Topic{}, fmt.Errorf("describe topic %s: %w", r.topic, err)
	}
	detail := topics[r.topic]
	starts, err := r.admin.ListStartOffsets(ctx, r.topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return Topic{}, fmt.Errorf("first offsets of %s: %w", r.topic, err)
	}
	ends, err := r.admin.ListEndOffsets(ctx, r.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return Topic{}, fmt.Errorf("last offsets of %s: %w", r.topic, err)
	}
	t := Topic{Partitions: map[int32]Range{}}
	if detail.ID != (kadm.TopicID{}) {
		t.ID = detail.ID.String()
	}
	for p := range detail.Partitions {
		start, ok1 := starts.Lookup(r.topic, p)
		end, ok2 := ends.Lookup(r.topic, p)
		if !ok1 || !ok2 {
			return Topic{}, fmt.Errorf("offsets of %s/%d: missing in the brokers' response", r.topic, p)
		}
		t.Partitions[p] = Range{start.Offset, end.Offset}
	}
	return t, nil
}

// Assign adds partitions to read, each from its offset. It does not change partitions that are
// assigned already.
func (r *Reader) Assign(from map[int32]int64) {
	add := map[int32]kgo.Offset{}
	for p, offset := range from {
		if _, ok := r.next[p]; !ok {
			r.next[p] = offset
			add[p] = kgo.NewOffset().At(offset)
		}
	}
	r.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{r.topic: add})
}

// Assigned returns the partitions that are read, in order.
func (r *Reader) Assigned() []int32 {
	if m := r.member; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.Sorted(maps.Keys(m.next))
	}
	return slices.Sorted(maps.Keys(r.next))
}

// at returns the next offset of a partition.
func (r *Reader) at(partition int32) int64 {
	if m := r.member; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.next[partition]
	}
	return r.next[partition]
}

// moveTo sets the next offset of a partition. In a group, the partition may have been revoked.
func (r *Reader) moveTo(partition int32, next int64) {
	if m := r.member; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, ours := m.next[partition]; ours {
			m.next[partition] = next
		}
		return
	}
	r.next[partition] = next
}

// Poll blocks until there are records, for at most wait. It returns none after that time, or when
// the group waits for Yield. After an error, such as *OutOfRangeError, the reader is unusable. The
// batches, including the bytes of their records, are valid until the next Poll, which reuses their
// memory.
func (r *Reader) Poll(ctx context.Context, wait time.Duration) ([]Batch, error) {
	timed, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer r.wake(cancel)()
	// The caller is done with the last batches, so their memory can be reused.
	r.recycle()
	fetches := r.client.PollRecords(timed, maxPollRecords)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var batches []Batch
	// An error of Group.Position takes precedence.
	failed := r.memberError()
	fetches.EachError(func(_ string, partition int32, err error) {
		switch {
		// The first error counts. The end of the wait is not an error.
		case failed != nil, timed.Err() != nil && errors.Is(err, timed.Err()):
		case errors.Is(err, kerr.OffsetOutOfRange):
			failed = r.outOfRange(ctx, partition, err)
		default:
			failed = fmt.Errorf("fetch %s/%d from offset %d: %w", r.topic, partition, r.at(partition), err)
		}
	})
	if failed != nil {
		return nil, failed
	}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 || failed != nil {
			return
		}
		r.polled = append(r.polled, p.Records)
		// The last record may be a marker, so next is past markers, too.
		next := p.Records[len(p.Records)-1].Offset + 1
		millis, err := r.timestamps(ctx, p.Partition, p.Records)
		if err != nil {
			failed = fmt.Errorf("timestamps of %s/%d from offset %d: %w",
				r.topic, p.Partition, p.Records[0].Offset, err)
			return
		}
		r.moveTo(p.Partition, next)
		batches = append(batches, Batch{Partition: p.Partition, Next: next, records: p.Records, millis: millis})
	})
	return batches, failed
}

// recycle releases the memory of the records that the last Poll returned.
func (r *Reader) recycle() {
	for i, records := range r.polled {
		for _, record := range records {
			record.Recycle()
		}
		r.polled[i] = nil
	}
	r.polled = r.polled[:0]
}

// maxPollRecords is the maximum number of records per Poll, so that the caller can do its other
// work in between.
const maxPollRecords = 10_000

// outOfRange adds the range of the log to the brokers' error.
func (r *Reader) outOfRange(ctx context.Context, partition int32, cause error) error {
	t, err := r.Describe(ctx)
	if err != nil {
		return fmt.Errorf("fetch %s/%d from offset %d: %w",
			r.topic, partition, r.at(partition), errors.Join(cause, err))
	}
	return &OutOfRangeError{r.topic, partition, r.at(partition), t.Partitions[partition]}
}

// Batch is consecutive records of one partition, in offset order.
type Batch struct {
	Partition int32
	Next      int64 // offset to continue from after this batch, and after the markers in it
	records   []*kgo.Record
	millis    map[int64]int64 // timestamps that the client may have wrong, by offset
}

// Record is one record. Its slices refer to the fetched bytes and are valid until the next Poll,
// and Headers until the next record.
type Record struct {
	Offset int64
	// Millis is the record's timestamp as Kafka has it, in milliseconds since 1970. Producers may
	// set any number. It is -1 if there is none.
	Millis     int64
	Key, Value []byte
	Headers    []event.Header
}

// From returns the batch without the records before an offset.
func (b Batch) From(offset int64) Batch {
	i, _ := slices.BinarySearchFunc(b.records, offset, func(r *kgo.Record, offset int64) int {
		return cmp.Compare(r.Offset, offset)
	})
	b.records = b.records[i:]
	return b
}

// Halves splits the batch. ok is false if it has fewer than two records.
func (b Batch) Halves() (first, rest Batch, ok bool) {
	if len(b.records) < 2 {
		return b, Batch{}, false
	}
	first, rest = b, b
	n := len(b.records) / 2
	first.records, rest.records = b.records[:n:n], b.records[n:]
	first.Next = rest.records[0].Offset
	return first, rest, true
}

// Records iterates over the records. Markers of transactions are skipped.
func (b Batch) Records() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		var headers []event.Header
		for _, r := range b.records {
			if r.Attrs.IsControl() {
				continue
			}
			headers = headers[:0]
			for _, h := range r.Headers {
				headers = append(headers, event.Header(h))
			}
			if !yield(Record{Offset: r.Offset, Millis: b.millisAt(r), Key: r.Key, Value: r.Value, Headers: headers}) {
				return
			}
		}
	}
}

// logger forwards the client's log to slog.
type logger struct{ log *slog.Logger }

// Level implements kgo.Logger. Messages below warnings are about the client's internals.
func (logger) Level() kgo.LogLevel { return kgo.LogLevelWarn }

// Log implements kgo.Logger.
func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelWarn
	if level == kgo.LogLevelError {
		to = slog.LevelError
	}
	l.log.Log(context.Background(), to, "kafka client: "+msg, keyvals...)
}
