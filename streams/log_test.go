package streams_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

// All tests share the brokers. Each has its own topics and sinks.
var (
	shared kafka.Config // embedded
	apache server.Cluster
)

func TestMain(m *testing.M) {
	cfg, stop, err := streamstest.StartBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared = cfg
	process.Parallel(6)
	code := m.Run()
	if err = errors.Join(stop(), apache.Stop()); err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const partitions = streamstest.Partitions

// each runs a test on the embedded broker and on Apache Kafka.
func each(t *testing.T, test func(t *testing.T, on kafka.Config)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, shared)
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		test(t, kafka.Config{Brokers: apache.Brokers(t), ClientID: "test", Logger: streamstest.Quiet})
	})
}

// log is a topic that only one test uses.
type log struct {
	*streamstest.Log
	on kafka.Config
}

func newLog(t testing.TB, on kafka.Config) log {
	return log{streamstest.NewLog(t, on, "t."+uuid.NewString()), on}
}

func (l log) next(stream string) event.Event { return l.Next("test", stream, []byte("data")) }

// events returns n events, spread over streams whose names start with prefix.
func (l log) events(prefix string, streams, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = l.next(fmt.Sprintf("%s-%d", prefix, (i*7)%streams))
	}
	return events
}

// memory is a sink that stores the version of each stream. It panics if it is used after Run has
// returned.
type memory struct {
	mu         sync.Mutex
	versions   map[string]uint64
	positions  map[string]map[int32]streams.Applied
	applied    int // records that changed a stream
	deliveries int // records, redeliveries included
	entered    int // Apply calls in progress
	closed     bool

	before     func(ctx context.Context, records []streams.Record) error // called first, unlocked
	read       func(ctx context.Context)                                 // called after positions were read, unlocked
	unreadable func(streams.Record) error
}

func newMemory() *memory {
	return &memory{versions: map[string]uint64{}, positions: map[string]map[int32]streams.Applied{}}
}

func (s *memory) Apply(ctx context.Context, records []streams.Record) error {
	s.mu.Lock()
	s.entered++
	before, closed := s.before, s.closed
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.entered--
		s.mu.Unlock()
	}()
	if closed {
		panic("the sink was used after Run returned")
	}
	if before != nil {
		if err := before(ctx, records); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var bad streams.UnreadableError
	for _, r := range records {
		s.deliveries++
		if s.unreadable != nil { // set under mu
			if err := s.unreadable(r); err != nil {
				bad.Records, bad.Reasons = append(bad.Records, r), append(bad.Reasons, err)
				continue
			}
		}
		have := s.versions[r.Event.Stream]
		if r.Event.Version > have+1 {
			return &streams.GapError{Record: r, Have: have}
		}
		if r.Event.Version == have+1 {
			s.versions[r.Event.Stream]++
			s.applied++
		}
	}
	if len(bad.Records) > 0 {
		return &bad
	}
	return nil
}

func (s *memory) Positions(ctx context.Context, topic string) (map[int32]streams.Applied, error) {
	s.mu.Lock()
	positions := maps.Clone(s.positions[topic])
	s.mu.Unlock()
	if s.read != nil {
		s.read(ctx)
	}
	return positions, nil
}

func (s *memory) SavePositions(_ context.Context, topic string, moves []streams.Move) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range moves {
		if at, there := s.positions[topic][m.Partition]; there == m.First || at.Next != m.From.Next {
			return fmt.Errorf("partition %d: %w", m.Partition, streams.ErrLost)
		}
	}
	if s.positions[topic] == nil {
		s.positions[topic] = map[int32]streams.Applied{}
	}
	for _, m := range moves {
		s.positions[topic][m.Partition] = m.To
	}
	return nil
}

// flush deletes everything.
func (s *memory) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.versions)
	clear(s.positions)
}

func (s *memory) setBefore(before func(context.Context, []streams.Record) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

func (s *memory) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *memory) counts() (applied, deliveries int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied, s.deliveries
}

// mustHave fails unless the sink has each stream at the version that was written.
func (s *memory) mustHave(t *testing.T, want map[string]uint64) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(s.versions, want) {
		for stream, version := range want {
			if s.versions[stream] != version {
				t.Fatalf("stream %s is at version %d, want %d; %d streams of %d",
					stream, s.versions[stream], version, len(s.versions), len(want))
			}
		}
		t.Fatalf("%d streams, want %d", len(s.versions), len(want))
	}
}

// running is a running runtime.
type running struct {
	*streams.Runtime
	watermarks *streams.Watermarks
	stop       func()
}

func config(l log, sink streams.Sink) streams.Config {
	return streams.Config{
		Name: "view-of-" + l.Topic, Topics: []string{l.Topic}, Sink: sink, Watermarks: streams.NewWatermarks(),
		Kafka: l.on,
		Batch: 50, SaveEvery: 20 * time.Millisecond, Logger: streamstest.Quiet,
	}
}

func start(t testing.TB, cfg streams.Config) *running {
	r := streams.New(cfg)
	return &running{r, cfg.Watermarks, streamstest.Start(t, r)}
}

func (r *running) catchUp(t testing.TB) {
	t.Helper()
	streamstest.CatchUp(t, r.Runtime)
}

// readDeadLetters returns the dead letters of one sink, by key, and the number of records.
func readDeadLetters(t *testing.T, on kafka.Config, sink string) (byKey map[string]kafka.Message, records int) {
	t.Helper()
	admin, err := kafka.NewAdmin(on)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(t.Context(), streams.DeadLetterTopic)
	if err != nil {
		t.Fatal(err)
	}
	byKey = map[string]kafka.Message{}
	err = kafka.ReadAll(t.Context(), on, streams.DeadLetterTopic, nil, ends, func(m kafka.Message) error {
		if strings.HasPrefix(string(m.Key), sink+"|") {
			byKey[string(m.Key)] = m
			records++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return byKey, records
}

func header(m kafka.Message, key string) string {
	for _, h := range m.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// messages is a slog.Handler that keeps the messages.
type messages struct {
	slog.Handler
	mu     sync.Mutex
	logged []string
}

func (m *messages) Enabled(context.Context, slog.Level) bool { return true }

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logged = append(m.logged, r.Message)
	return nil
}

func (m *messages) has(part string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.logged, func(s string) bool { return strings.Contains(s, part) })
}
