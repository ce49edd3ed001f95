// Package streamstest provides a log for tests of sinks: an embedded broker, and a Log, which
// writes events to a topic in transactions, as the relay does.
//
// Start runs a Runtime for a test, CatchUp blocks until its sink has applied the log, and
// NoopRuntime is a runtime without a sink's cost, for comparison in benchmarks.
//
// A Log remembers its events, so a test can compute from them what a sink should contain. It needs
// no event store: its positions are simply consecutive numbers.
package streamstest

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/millrace/millrace/event"
	broker "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// Quiet logs nothing.
var Quiet = slog.New(slog.DiscardHandler)

// StartBroker starts a broker, for use in TestMain. stop ends it and deletes its data.
func StartBroker() (cfg kafka.Config, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "millrace-log-")
	if err != nil {
		return kafka.Config{}, nil, err
	}
	b, err := broker.Start(context.Background(), broker.Config{DataDir: dir, Logger: Quiet})
	if err != nil {
		return kafka.Config{}, nil, errors.Join(err, os.RemoveAll(dir))
	}
	stop = func() error { return errors.Join(b.Close(), os.RemoveAll(dir)) }
	return kafka.Config{Brokers: b.Addr(), ClientID: "test", Logger: Quiet}, stop, nil
}

// NewBroker starts a broker that ends with the test. Tests of a package usually share one instead;
// see StartBroker.
func NewBroker(t testing.TB) kafka.Config {
	t.Helper()
	cfg, stop, err := StartBroker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return cfg
}

// Partitions is the number of partitions of a Log's topic.
const Partitions = 4

// Log is a topic and the events that were written to it. It is not safe for concurrent use.
//
// Next creates events with the right versions, and Write publishes them. Tests that need wrong
// events change what Next returned, or write records.
type Log struct {
	Topic    string
	Events   []event.Event     // in the order in which Next returned them
	Versions map[string]uint64 // last version, by stream
	on       kafka.Config
	producer *kafka.TransactionalProducer
}

// NewLog creates a topic and returns its Log.
func NewLog(t testing.TB, cfg kafka.Config, topic string) *Log {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), cfg, kafka.Topic{Name: topic, Partitions: Partitions}); err != nil {
		t.Fatal(err)
	}
	p, err := kafka.NewTransactionalProducer(cfg, topic)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &Log{Topic: topic, on: cfg, Versions: map[string]uint64{}, producer: p}
}

// Next returns the next event of a stream, without writing it. If data is a message of a known
// aggregate, Next sets the field that names the stream.
func (l *Log) Next(aggregate, stream string, data []byte) event.Event {
	l.Versions[stream]++
	kind, data := describe(aggregate, stream, data)
	now := event.Time(time.Now())
	e := event.Event{
		ID: uuid.Must(uuid.NewV7()), Aggregate: aggregate, Stream: stream, Version: l.Versions[stream], Type: kind,
		Data: data, OccurredAt: now, RecordedAt: now, Position: event.Position{Sequence: uint64(len(l.Events)) + 1},
	}
	l.Events = append(l.Events, e)
	return e
}

// describe returns the type of the event in data, and data with the event's first field, which
// names the stream, set to stream. For an unknown aggregate it returns data unchanged.
func describe(aggregate, stream string, data []byte) (kind string, _ []byte) {
	for _, a := range event.Aggregates() {
		if a.Name != aggregate {
			continue
		}
		of, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(a.Message))
		if err != nil {
			break
		}
		m := of.New()
		if proto.Unmarshal(data, m.Interface()) != nil {
			break
		}
		member := m.WhichOneof(m.Descriptor().Oneofs().ByName("event"))
		// A field of a later version: the member is unknown here.
		if member == nil {
			return string(m.Descriptor().ParentFile().Package()) + ".Newer", data
		}
		// The first field of each event is the id of its aggregate.
		inner := m.Mutable(member).Message()
		inner.Set(inner.Descriptor().Fields().ByNumber(1), protoreflect.ValueOfString(stream))
		if data, err = proto.Marshal(m.Interface()); err != nil {
			panic(err)
		}
		return string(inner.Descriptor().FullName()), data
	}
	return "test." + aggregate, data
}

// Record returns an event as the relay publishes it.
func (l *Log) Record(e event.Event) kafka.Record {
	return kafka.Record{
		Topic: l.Topic, Partition: kafka.AnyPartition, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers(),
	}
}

// Write publishes events, in the given order.
func (l *Log) Write(t testing.TB, events ...event.Event) {
	t.Helper()
	records := make([]kafka.Record, len(events))
	for i, e := range events {
		records[i] = l.Record(e)
	}
	l.WriteRecords(t, records...)
}

// WriteRecords publishes records in transactions of at most 100. The records are readable when it
// returns.
func (l *Log) WriteRecords(t testing.TB, records ...kafka.Record) {
	t.Helper()
	defer l.stable(t)
	for len(records) > 0 {
		n := min(100, len(records))
		err := l.producer.Begin()
		for _, r := range records[:n] {
			err = errors.Join(err, l.producer.Produce(t.Context(), r))
		}
		if err = errors.Join(err, l.producer.Commit(t.Context())); err != nil {
			t.Error(err)
			return
		}
		records = records[n:]
	}
}

// stable blocks until everything committed is readable. Apache Kafka acknowledges a commit before
// it writes the markers, and until then the readable end is below the high watermark.
func (l *Log) stable(t testing.TB) {
	t.Helper()
	admin, err := kafka.NewAdmin(l.on)
	if err != nil {
		t.Error(err)
		return
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for {
		high, err := admin.HighWatermarks(ctx, l.Topic)
		if err == nil {
			var readable map[int32]int64
			if readable, err = admin.EndOffsets(ctx, l.Topic); err == nil && maps.Equal(high, readable) {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Errorf("committed records of %s did not become readable: %v", l.Topic, err)
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// All iterates over the events, as an event store does.
func (l *Log) All() iter.Seq2[event.Event, error] {
	return func(yield func(event.Event, error) bool) {
		for _, e := range l.Events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Start runs a runtime until stop is called or the test ends.
func Start(t testing.TB, r *streams.Runtime) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// CatchUp blocks until a runtime's sink has applied everything that is on the log now.
func CatchUp(t testing.TB, r *streams.Runtime) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.CatchUp(ctx); err != nil {
		t.Fatal(err)
	}
}

// RunUntilCaughtUp runs a runtime with an empty sink until it has caught up. Leaving the consumer
// group is not timed.
func RunUntilCaughtUp(b *testing.B, r *streams.Runtime) {
	b.Helper()
	stop := Start(b, r)
	CatchUp(b, r)
	b.StopTimer()
	stop()
	b.StartTimer()
}

// NoopRuntime returns a runtime whose sink does nothing. Its throughput is the upper bound for any
// sink.
func NoopRuntime(cfg kafka.Config, topic string) *streams.Runtime {
	return streams.New(streams.Config{
		Name: "nothing", Topics: []string{topic}, Sink: &noopSink{}, Watermarks: streams.NewWatermarks(),
		Kafka: cfg, Logger: Quiet,
	})
}

// noopSink is a sink that keeps its positions and no data.
type noopSink struct {
	mu        sync.Mutex
	positions map[int32]streams.Applied
}

// Apply implements streams.Sink. It does nothing.
func (*noopSink) Apply(context.Context, []streams.Record) error { return nil }

// Positions implements streams.Sink.
func (n *noopSink) Positions(context.Context, string) (map[int32]streams.Applied, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.positions), nil
}

// SavePositions implements streams.Sink. It does not check where a move starts.
func (n *noopSink) SavePositions(_ context.Context, _ string, moves []streams.Move) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.positions == nil {
		n.positions = map[int32]streams.Applied{}
	}
	for _, m := range moves {
		n.positions[m.Partition] = m.To
	}
	return nil
}

// Eventually polls until holds returns true. It fails the test after a minute, which is long enough
// for a rebalance on a busy machine.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
