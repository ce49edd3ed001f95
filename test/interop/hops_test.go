package interop_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/landing"
	"github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/streams"
)

// TestEveryHopHasTheSameEvents checks that store, topic, table and the sink of a view contain the
// same events, even if the codec changes in the middle of the topic.
func TestEveryHopHasTheSameEvents(t *testing.T) {
	t.Parallel()
	for _, codec := range []registry.Codec{registry.Avro, registry.Protobuf} {
		t.Run(string(codec), func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			for _, c := range []registry.Codec{registry.Plain, codec, registry.Plain, codec} {
				s.appendOrders(t, 30)
				s.publish(t, c)
			}
			decoder := registry.NewDecoder(s.registry)
			table, view := s.land(t, decoder, noDeadLetters(t)), s.view(t, decoder)
			s.awaitEqual(t, "topic", func() (*digest.Digest, error) { return s.topic(t.Context(), decoder) })
			s.awaitEqual(t, "table", table)
			s.awaitEqual(t, "view", view.digest)
			view.checkNoDeadLetters(t)
		})
	}
}

// TestRegistryOutage freezes the registry. A consumer that meets an unknown schema must wait,
// without dead letters. One that knows the schema must continue, and so must the producer. The test
// is not parallel, because all tests share the registry.
func TestRegistryOutage(t *testing.T) {
	s := newShop(t)
	s.appendOrders(t, 20)
	producing := s.relay(t, s.encoder(t, registry.Avro))
	producing.published(t, s)
	old := registry.NewDecoder(s.registry)
	before := s.view(t, old)
	s.awaitEqual(t, "view before the outage", before.digest)

	if err := shared.Pause(); err != nil {
		t.Fatal(err)
	}
	s.appendOrders(t, 20)
	producing.published(t, s)
	s.awaitEqual(t, "view that knows the schema", before.digest)
	before.checkNoDeadLetters(t)

	decoder := registry.NewDecoder(s.registry)
	table, after := s.land(t, decoder, noDeadLetters(t)), s.view(t, decoder)
	polltest.Until(t, "the new consumers need the registry", s.registry.Degraded)
	if n := after.count(); n != 0 {
		t.Errorf("a view without a schema has applied %d events", n)
	}
	if err := shared.Resume(); err != nil {
		t.Fatal(err)
	}
	s.awaitEqual(t, "new view", after.digest)
	s.awaitEqual(t, "new table", table)
	after.checkNoDeadLetters(t)
}

// TestUndecodableBecomesDeadLetter checks that an undecodable value becomes a dead letter,
// unchanged and with the reason, in the view and in the lake. Everything else must continue.
func TestUndecodableBecomesDeadLetter(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.appendOrders(t, 10)
	// One relay for the whole test, because a restarted one would read the end of the topic again
	// and find the bad record, which has an old position.
	publishing := s.relay(t, s.encoder(t, registry.Avro))
	publishing.published(t, s)
	bad := s.events[0]
	bad.ID, bad.Data = uuid.Must(uuid.NewV7()), []byte("\x00\x7f\xff\xff\xffof a schema that nobody registered")
	producer, err := kafka.NewProducer(s.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	err = producer.Produce(t.Context(), kafka.Record{
		Topic: event.Order.Topic, Partition: kafka.AnyPartition, Key: []byte(bad.Stream), Value: bad.Data, Headers: bad.HeadersOf("application/avro"),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.appendOrders(t, 10)
	publishing.published(t, s)

	decoder, landed := registry.NewDecoder(s.registry), make(chan landing.DeadLetter, 1)
	view := s.view(t, decoder)
	table := s.land(t, decoder, func(_ context.Context, records []landing.DeadLetter) error {
		for _, p := range records {
			if string(p.Value) != string(bad.Data) {
				continue
			}
			select {
			case landed <- p:
			default: // a restart writes it again
			}
		}
		return nil
	})
	s.awaitEqual(t, "view", view.digest)
	s.awaitEqual(t, "table", table)
	if p := <-landed; !strings.Contains(p.Reason.Error(), "schema 2147483647") {
		t.Errorf("the lake's reason is %v", p.Reason)
	}
	admin, err := kafka.NewAdmin(s.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	var end map[int32]int64
	polltest.Until(t, "the view has written a dead letter", func() bool {
		end, err = admin.EndOffsets(t.Context(), streams.DeadLetterTopic)
		return err == nil && end[0] > 0
	})
	deadLetters := 0
	err = kafka.ReadAll(t.Context(), s.kafka, streams.DeadLetterTopic, nil, end, func(m kafka.Message) error {
		deadLetters++
		headers := map[string]string{}
		for _, h := range m.Headers {
			headers[h.Key] = string(h.Value)
		}
		if string(m.Value) != string(bad.Data) || headers["content-type"] != "application/avro" || !strings.Contains(headers[streams.HeaderDeadLetterReason], "schema 2147483647") {
			t.Errorf("dead letter %q with headers %v", m.Value, headers)
		}
		return nil
	})
	if err != nil || deadLetters != 1 {
		t.Errorf("%d dead letters, error %v", deadLetters, err)
	}
}

// TestLossStopsTheRelay checks that an event which the codec cannot represent stops the relay,
// which names the event. Nothing of it may be on the log.
func TestLossStopsTheRelay(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	now := event.Time(time.Now())
	bad := event.Event{ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1.OrderConfirmed", Data: []byte("\x1a\x04\x12\x02\x10\x01"), OccurredAt: now, RecordedAt: now} // confirmed at a nanosecond
	if _, err := s.store.Append(t.Context(),
		eventstore.Batch{Streams: []eventstore.StreamAppend{{Stream: "o1", Events: []event.Event{bad}}}}); err != nil {
		t.Fatal(err)
	}
	r := s.relay(t, s.encoder(t, registry.Avro))
	<-r.done
	if !errors.Is(r.err, relay.ErrCannotWrite) {
		t.Errorf("the relay stopped with %v", r.err)
	}
	t.Log(r.err)
	d, err := s.topic(t.Context(), nil)
	if err != nil || d.Total().Count != 0 {
		t.Errorf("the topic has %d events, error %v", d.Total().Count, err)
	}
}

// awaitEqual waits until a side has what the store has.
func (s *shop) awaitEqual(t *testing.T, side string, read func() (*digest.Digest, error)) {
	t.Helper()
	want := digest.New()
	for _, e := range s.events {
		want.AddEvent(e)
	}
	polltest.Until(t, side+" has all events of the store", func() bool {
		got, err := read()
		if err != nil {
			t.Log(side, err)
			return false
		}
		return got.Total() == want.Total()
	})
}

func (s *shop) topic(ctx context.Context, decoder *registry.Decoder) (*digest.Digest, error) {
	admin, err := kafka.NewAdmin(s.kafka)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	end, err := admin.HighWatermarks(ctx, event.Order.Topic)
	if err != nil {
		return nil, err
	}
	d := digest.New()
	err = kafka.ReadAll(ctx, s.kafka, event.Order.Topic, nil, end, func(m kafka.Message) error {
		e, err := decoder.Event(ctx, registry.Record{Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: m.Headers})
		if err == nil {
			d.AddEvent(e)
		}
		return err
	})
	return d, err
}

// noDeadLetters returns a landing.DeadLetterWriter that fails the test on any dead letter.
func noDeadLetters(t *testing.T) landing.DeadLetterWriter {
	return func(_ context.Context, records []landing.DeadLetter) error {
		for _, p := range records {
			t.Errorf("dead letter of the lake: %s/%d at %d: %v", p.Topic, p.Partition, p.Offset, p.Reason)
		}
		return nil
	}
}

// land runs the lake until the test ends. It returns a function that reads the table.
func (s *shop) land(t *testing.T, decoder *registry.Decoder,
	writeDeadLetter landing.DeadLetterWriter) func() (*digest.Digest, error) {
	t.Helper()
	dir := t.TempDir()
	l, err := lake.Open(t.Context(),
		lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"),
			Tables: tables.All(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	start(t, func(ctx context.Context) error {
		return landing.Run(ctx, l, landing.Config{
			Brokers: []string{s.kafka.Brokers}, Decoder: decoder, CommitInterval: 200 * time.Millisecond, WriteDeadLetters: writeDeadLetter,
		})
	})
	return func() (*digest.Digest, error) { return l.EventsDigest(t.Context(), event.Order) }
}

// view runs a sink that keeps everything in memory.
func (s *shop) view(t *testing.T, decoder *registry.Decoder) *memory {
	t.Helper()
	m := &memory{kafka: s.kafka, positions: map[int32]streams.Applied{}, name: "memory/" + uuid.NewString()}
	start(t, streams.New(streams.Config{
		Name: m.name, Topics: []string{event.Order.Topic}, Sink: m, Watermarks: streams.NewWatermarks(), Kafka: s.kafka, Decoder: decoder, Logger: quiet,
	}).Run)
	return m
}

type memory struct {
	name  string
	kafka kafka.Config

	mu        sync.Mutex
	events    map[uuid.UUID]event.Event
	positions map[int32]streams.Applied
}

func (m *memory) Apply(_ context.Context, records []streams.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.events == nil {
		m.events = map[uuid.UUID]event.Event{}
	}
	for _, r := range records {
		m.events[r.Event.ID] = r.Event
	}
	return nil
}

func (m *memory) Positions(context.Context, string) (map[int32]streams.Applied, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	positions := map[int32]streams.Applied{}
	for p, a := range m.positions {
		positions[p] = a
	}
	return positions, nil
}

func (m *memory) SavePositions(_ context.Context, _ string, moves []streams.Move) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, move := range moves {
		m.positions[move.Partition] = move.To
	}
	return nil
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events)
}

func (m *memory) digest() (*digest.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := digest.New()
	for _, e := range m.events {
		d.AddEvent(e)
	}
	return d, nil
}

// checkNoDeadLetters checks that no topic of dead letters was created.
func (m *memory) checkNoDeadLetters(t *testing.T) {
	t.Helper()
	admin, err := kafka.NewAdmin(m.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if n, err := admin.Partitions(t.Context(), streams.DeadLetterTopic); err == nil {
		t.Errorf("unexpected dead letters: their topic has %d partitions", n)
	}
}
