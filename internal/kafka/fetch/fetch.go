// Package fetch reads partitions in whole batches: the caller names the partitions and the offsets,
// and keeps them itself.
//
// It is the reason why there are two Kafka clients here. Whatever is produced, and whatever is
// consumed with work to do per event, goes through internal/kafka (confluent-kafka-go). Where
// batches only flow on into columns, the cost of getting a record out of the client is what counts:
// 0.28 µs of CPU with franz-go's fetches, 1.65 µs with librdkafka's poll. This package is the one
// place that imports franz-go's client.
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

// Config describes what to read.
type Config struct {
	Brokers  []string // host:port
	Topic    string
	ClientID string       // shown in the broker's logs
	MaxBytes int32        // of each partition in one fetch; one fetch is read ahead; 0 means 1 MiB
	Logger   *slog.Logger // required
	Security security.Config
	Stall    time.Duration // how long Describe may take; 30 s where 0
}

// Reader reads one topic with read_committed. It is not safe for concurrent use.
type Reader struct {
	topic  string
	client *kgo.Client
	admin  *kadm.Client
	next   map[int32]int64 // where each assigned partition stands; what is read ahead does not count
	member *member         // of a group, which then keeps next; nil if partitions are assigned
	stall  time.Duration   // of Describe
	polled [][]*kgo.Record // by the last Poll, whose memory the next one gives back
}

// Topic is what the brokers say of a topic.
type Topic struct {
	ID         string          // changes when a topic is deleted and made again; empty if the brokers have no ids
	Partitions map[int32]Range // by partition
}

// Range is what a partition holds: the first offset and the one behind the last.
type Range struct{ Start, End int64 }

// ErrNoTopic says that the topic does not exist (yet).
var ErrNoTopic = errors.New("no such topic")

// OutOfRangeError says that the log does not hold the offset to read from: what was there was
// deleted, or the topic was truncated or made anew.
type OutOfRangeError struct {
	Topic     string
	Partition int32
	Offset    int64
	Log       Range
}

func (e *OutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d of %s/%d is not in the log, which holds %d to %d", e.Offset, e.Topic, e.Partition, e.Log.Start, e.Log.End)
}

// Open returns a reader of partitions that Assign names. It connects when it is first used.
func Open(c Config) (*Reader, error) { return open(c) }

func open(c Config, more ...kgo.Opt) (*Reader, error) {
	maxBytes := c.MaxBytes
	if maxBytes == 0 {
		maxBytes = 1 << 20
	}
	secure, err := secured(c.Security)
	if err != nil {
		return nil, fmt.Errorf("kafka client for %s: %w", c.Topic, err)
	}
	client, err := kgo.NewClient(append(append(secure, more...),
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ClientID),
		kgo.WithLogger(logger{c.Logger}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Markers of transactions move a partition on like any record: who never sees them never
		// reaches the end.
		kgo.KeepControlRecords(),
		// An offset that is not there must be an error, not a jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// Only the bytes per partition may limit a fetch. Where it is the bytes of the whole
		// answer, the embedded broker (kfake) forgets to name the aborted transactions of the
		// partition that it cuts, and their records come through.
		kgo.FetchMaxPartitionBytes(maxBytes),
		kgo.FetchMaxBytes(wholeFetch),
		kgo.BrokerMaxReadBytes(2*wholeFetch),
		kgo.MaxConcurrentFetches(1),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.WithPools(&memory{}),
	)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client for %s: %w", c.Topic, err)
	}
	return &Reader{
		topic: c.Topic, client: client, admin: kadm.NewClient(client), next: map[int32]int64{}, stall: cmp.Or(c.Stall, describeWithin),
	}, nil
}

// secured says in franz-go's words what the description says.
func secured(s security.Config) ([]kgo.Opt, error) {
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

const describeWithin = 30 * time.Second

// No fetch gets as large as this with up to 256 partitions of 1 MiB.
const wholeFetch = 256 << 20

// Close stops the reader, and leaves its group; a Poll under way returns.
func (r *Reader) Close() { r.client.CloseAllowingRebalance() }

// Describe asks the brokers for the topic. It fails with ErrNoTopic where there is none, and with
// security.ErrRefused where the brokers do not let us in, or we do not trust them. Ask it before
// Poll, which then would only find nothing.
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

func refused(err error) bool {
	var alert tls.AlertError
	var certificate *tls.CertificateVerificationError
	return errors.Is(err, kerr.SaslAuthenticationFailed) || errors.As(err, &alert) || errors.As(err, &certificate)
}

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
			return Topic{}, fmt.Errorf("offsets of %s/%d: the brokers did not say", r.topic, p)
		}
		t.Partitions[p] = Range{start.Offset, end.Offset}
	}
	return t, nil
}

// Assign adds partitions to read, each from its offset. Those that are assigned already stay as
// they are.
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

// Assigned lists the partitions that are read, in order.
func (r *Reader) Assigned() []int32 {
	if m := r.member; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.Sorted(maps.Keys(m.next))
	}
	return slices.Sorted(maps.Keys(r.next))
}

func (r *Reader) at(partition int32) int64 {
	if m := r.member; m != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.next[partition]
	}
	return r.next[partition]
}

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

// Poll waits for records, for as long as wait at most; it returns none when the time is over, or
// when the group wants Yield. An *OutOfRangeError, and any other error, means that the reader is of
// no more use. What it returns, to the last byte of a record, is valid until the next Poll, which
// fetches into the same memory.
func (r *Reader) Poll(ctx context.Context, wait time.Duration) ([]Batch, error) {
	timed, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer r.wake(cancel)()
	r.recycle()
	fetches := r.client.PollRecords(timed, maxPollRecords)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var batches []Batch
	failed := r.expelled()
	fetches.EachError(func(_ string, partition int32, err error) {
		switch {
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
		next := p.Records[len(p.Records)-1].Offset + 1
		millis, err := r.timestamps(ctx, p.Partition, p.Records)
		if err != nil {
			failed = fmt.Errorf("timestamps of %s/%d from offset %d: %w", r.topic, p.Partition, p.Records[0].Offset, err)
			return
		}
		r.moveTo(p.Partition, next)
		batches = append(batches, Batch{Partition: p.Partition, Next: next, records: p.Records, millis: millis})
	})
	return batches, failed
}

// recycle gives back the memory of what the last Poll returned.
func (r *Reader) recycle() {
	for i, records := range r.polled {
		for _, record := range records {
			record.Recycle()
		}
		r.polled[i] = nil
	}
	r.polled = r.polled[:0]
}

// A poll hands over this many records at most, so that the caller gets to its other work.
const maxPollRecords = 10_000

// outOfRange completes the brokers' error with what the log holds.
func (r *Reader) outOfRange(ctx context.Context, partition int32, cause error) error {
	t, err := r.Describe(ctx)
	if err != nil {
		return fmt.Errorf("fetch %s/%d from offset %d: %w", r.topic, partition, r.at(partition), errors.Join(cause, err))
	}
	return &OutOfRangeError{r.topic, partition, r.at(partition), t.Partitions[partition]}
}

// Batch is a run of records of one partition, in the order of their offsets.
type Batch struct {
	Partition int32
	Next      int64 // the offset to read on from after this batch; markers of transactions are passed too
	records   []*kgo.Record
	millis    map[int64]int64 // by offset: timestamps that the client may have wrong
}

// Record is one record. It aliases the fetched bytes, so that it holds until the next Poll, and its
// Headers until the next record.
type Record struct {
	Offset int64
	// Millis is the record's timestamp as Kafka has it, which any number can be; milliseconds since
	// 1970, -1 where there is none.
	Millis     int64
	Key, Value []byte
	Headers    []event.Header
}

// From returns the batch without the records before an offset.
func (b Batch) From(offset int64) Batch {
	i, _ := slices.BinarySearchFunc(b.records, offset, func(r *kgo.Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
	b.records = b.records[i:]
	return b
}

// Halves splits the batch; it does not where there is but one record.
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

// Records yields the records; markers of transactions are left out.
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

// logger hands the client's log on.
type logger struct{ log *slog.Logger }

// Level implements kgo.Logger: the client's own chatter is of interest from warnings on.
func (logger) Level() kgo.LogLevel { return kgo.LogLevelWarn }

// Log implements kgo.Logger.
func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := slog.LevelWarn
	if level == kgo.LogLevelError {
		to = slog.LevelError
	}
	l.log.Log(context.Background(), to, "kafka client: "+msg, keyvals...)
}
