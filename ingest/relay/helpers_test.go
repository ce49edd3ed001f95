package relay_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
)

// broker is a Kafka broker, and an aggregate that only one test uses on it.
type broker struct {
	kafka.Config
	order event.Aggregate
}

// each runs a test on the embedded broker and on Apache Kafka.
func each(t *testing.T, test func(t *testing.T, b broker)) {
	t.Helper()
	apache.Each(t, func(t *testing.T, brokers string) { test(t, newBroker(t, brokers)) })
}

// newBroker returns an aggregate of its own on the brokers, with its topics.
func newBroker(t testing.TB, brokers string) broker {
	t.Helper()
	b := broker{kafka.Config{Brokers: brokers, Logger: quiet}, event.Order}
	b.order.Service += "-" + uuid.NewString()
	b.order.Topic += "-" + b.order.Service
	topics := relay.Topics([]event.Aggregate{b.order}, partitions)
	if err := kafka.EnsureTopics(t.Context(), b.Config, topics...); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b broker) openStore(t testing.TB, path string) eventstore.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path, b.order)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (b broker) newStore(t testing.TB) eventstore.Store {
	return b.openStore(t, filepath.Join(t.TempDir(), "order.db"))
}

// writer appends events to a few streams.
type writer struct {
	store    eventstore.Store
	versions map[string]uint64
	streams  int
	size     int
	valid    bool // the events are valid for readers
}

func newWriter(s eventstore.Store) *writer {
	return &writer{store: s, versions: map[string]uint64{}, streams: 20, size: 100}
}

// batch appends n events, in one transaction.
func (w *writer) batch(ctx context.Context, n int) error {
	by := map[string][]event.Event{}
	for range n {
		stream := fmt.Sprintf("order-%d", rand.N(w.streams))
		now := event.Time(time.Now())
		data := make([]byte, w.size)
		for i := range data {
			data[i] = byte(rand.N(256))
		}
		if w.valid {
			data = orderPlaced(stream)
		}
		by[stream] = append(by[stream], event.Event{
			ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1.OrderPlaced", Data: data,
			OccurredAt: now, RecordedAt: now, CorrelationID: "c",
		})
	}
	var b eventstore.Batch
	for stream, events := range by {
		b.Streams = append(b.Streams, eventstore.StreamAppend{
			Stream: stream, ExpectedVersion: w.versions[stream], Events: events,
		})
	}
	if _, err := w.store.Append(ctx, b); err != nil {
		return err
	}
	for stream, events := range by {
		w.versions[stream] += uint64(len(events))
	}
	return nil
}

// orderPlaced returns the payload of a valid event.
func orderPlaced(stream string) []byte {
	amount := &money.Money{CurrencyCode: "GBP", Units: 2}
	b, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: stream, Currency: "GBP", Country: "FR", OrderedAt: timestamppb.Now(), Total: amount,
		Lines: []*orderv1.OrderLine{{Number: 1, Sku: "A", Quantity: 1, UnitPrice: amount}},
	}}})
	if err != nil {
		panic(err)
	}
	return b
}

// append is batch for tests, which must not fail.
func (w *writer) append(t testing.TB, n int) {
	t.Helper()
	if err := w.batch(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func (b broker) newRelay(t testing.TB, s eventstore.Store, change ...func(*relay.Config)) *relay.Relay {
	t.Helper()
	c := relay.Config{
		Store: s, Aggregate: b.order, Kafka: b.Config, TransactionalID: "relay-" + b.order.Service, Logger: quiet,
	}
	for _, f := range change {
		f(&c)
	}
	r, err := relay.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// running is a running relay. stop ends it and returns Run's error.
type running struct {
	relay  *relay.Relay
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// run starts a relay and stops it when the test ends.
func run(t testing.TB, r *relay.Relay) *running { return start(t, r, r.Run) }

// supervise is run for a relay that is started again when it is fenced, as the supervisor of a process
// does: a broker that is slow may abort a transaction.
func supervise(t testing.TB, r *relay.Relay) *running {
	return start(t, r, func(ctx context.Context) error {
		for {
			if err := r.Run(ctx); !errors.Is(err, relay.ErrFenced) {
				return err
			}
		}
	})
}

// start calls a relay's run until the test ends.
func start(t testing.TB, r *relay.Relay, run func(context.Context) error) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	x := &running{relay: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		x.err = run(ctx)
	}()
	t.Cleanup(func() { _ = x.stop() })
	return x
}

func (x *running) stop() error {
	x.cancel()
	<-x.done
	return x.err
}

// await blocks until the relay has published all of the store's events.
func (x *running) await(t testing.TB, s eventstore.Store) {
	t.Helper()
	head, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		select {
		case <-x.done:
			t.Fatalf("the relay stopped: %v", x.err)
		default:
		}
		return x.relay.Progress().Position == head
	}, "the relay reaches %s", head)
}

// eventually polls ok until it returns true, and fails after three minutes.
func eventually(t testing.TB, ok func() bool, what string, args ...any) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out after three minutes: "+what, args...)
		}
	}
}

// read reads all committed records of the topic.
func (b broker) read(ctx context.Context, fn func(kafka.Message) error) error {
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		return err
	}
	defer a.Close()
	end, err := a.HighWatermarks(ctx, b.order.Topic)
	if err != nil {
		return err
	}
	return kafka.ReadAll(ctx, b.Config, b.order.Topic, nil, end, fn)
}

// checkEqual fails unless the topic has exactly the store's events, in their keys' partitions and in
// store order.
func (b broker) checkEqual(t testing.TB, s eventstore.Store) {
	t.Helper()
	var got [partitions][]event.Event
	err := b.read(t.Context(), func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		got[m.Partition] = append(got[m.Partition], e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, s, got)
}

// compare fails unless got, by partition, are the store's events in store order.
func compare(t testing.TB, s eventstore.Store, got [partitions][]event.Event) {
	t.Helper()
	var want [partitions][]event.Event
	for after := (event.Position{}); ; {
		events, err := s.Read(t.Context(), after, 10000)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			p := kafka.Partition([]byte(e.Stream), partitions)
			want[p] = append(want[p], e)
		}
		after = events[len(events)-1].Position
	}
	for p := range want {
		for i := range max(len(want[p]), len(got[p])) {
			switch {
			case i >= len(got[p]):
				t.Fatalf("partition %d ends before %s; %d of %d events", p, want[p][i].Position, len(got[p]), len(want[p]))
			case i >= len(want[p]):
				t.Fatalf("partition %d continues with %s; %d of %d events", p, got[p][i].Position, len(got[p]), len(want[p]))
			case !reflect.DeepEqual(want[p][i], got[p][i]):
				t.Fatalf("partition %d, event %d:\n got %+v\nwant %+v", p, i, got[p][i], want[p][i])
			}
		}
	}
}
