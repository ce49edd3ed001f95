// Package interop_test reads topics as other systems do: with Confluent's own clients and no code
// of Millrace. It also follows events through the whole system in every codec, with the schema
// registry unavailable, with undecodable values, and with events that a codec cannot represent.
package interop_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/registry"
)

// shared is the registry of all tests.
var shared server.Server

func TestMain(m *testing.M) {
	code := m.Run()
	if err := errors.Join(shared.Stop(), goleak.Find()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var quiet = slog.New(slog.DiscardHandler)

// shop is a store of orders, a log, and a schema registry.
type shop struct {
	kafka    kafka.Config
	registry *registry.Client
	url      string // of the registry
	store    eventstore.Store
	events   []event.Event // in the store, in its order
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{url: shared.URL(t), kafka: streamstest.NewBroker(t)}
	var err error
	if s.store, err = sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "order.db"), event.Order); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.registry, err = registry.NewClient(registry.Config{URL: s.url, Timeout: 3 * time.Second,
		Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.registry.Close)
	if err := kafka.EnsureTopics(t.Context(), s.kafka, relay.Topics(event.Aggregates(), 2)...); err != nil {
		t.Fatal(err)
	}
	return s
}

// appendOrders appends the events of this many orders to the store.
func (s *shop) appendOrders(t *testing.T, orders int) {
	t.Helper()
	for range orders {
		id := uuid.Must(uuid.NewV7()).String()
		amount := func() *money.Money {
			m := &money.Money{CurrencyCode: "GBP", Units: rand.Int64N(2000) - 1000,
				Nanos: rand.Int32N(100) * 10_000_000}
			if m.Units < 0 {
				m.Nanos = -m.Nanos
			}
			return m
		}
		now := event.Time(time.Now())
		placed := &orderv1.OrderPlaced{OrderId: id, Reference: fmt.Sprint(rand.N(1_000_000)), Currency: "GBP",
			Country: "Éire", Total: amount(), OrderedAt: timestamppb.New(now)}
		if rand.N(2) == 0 {
			placed.CustomerId = proto.String(uuid.NewString())
		}
		for n := range rand.Uint32N(4) {
			placed.Lines = append(placed.Lines,
				&orderv1.OrderLine{Number: n + 1, Sku: "85123A", Description: "WHITE HANGING HEART",
					Quantity: rand.Int64N(20) - 5, UnitPrice: amount()})
		}
		history := []*orderv1.OrderEvent{
			{Event: &orderv1.OrderEvent_Placed{Placed: placed}},
			{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{OrderId: id,
				ConfirmedAt: timestamppb.New(now)}}},
			{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{OrderId: id, Reason: "",
				CancelledAt: timestamppb.New(now)}}},
		}
		types := []string{"OrderPlaced", "OrderConfirmed", "OrderCancelled"}
		var events []event.Event
		for i, m := range history[:1+rand.N(3)] {
			data, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			events = append(events,
				event.Event{ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1." + types[i], Data: data,
					OccurredAt: now, RecordedAt: now})
		}
		batch := eventstore.Batch{Streams: []eventstore.StreamAppend{{Stream: id, Events: events}}}
		if _, err := s.store.Append(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	events, err := s.store.Read(t.Context(), event.Position{}, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	s.events = events
}

// encoder returns an encoder with a subject of the test's own.
func (s *shop) encoder(t *testing.T, codec registry.Codec) *registry.Encoder {
	t.Helper()
	m, err := registry.Message(event.Order)
	if err != nil {
		t.Fatal(err)
	}
	e, err := registry.NewEncoder(registry.EncoderConfig{Client: s.registry, Topic: t.Name(), Message: m,
		Codec: codec, Compatibility: "BACKWARD_TRANSITIVE"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// relay starts a relay of the store.
func (s *shop) relay(t *testing.T, e *registry.Encoder) *running {
	t.Helper()
	r, err := relay.New(relay.Config{Store: s.store, Aggregate: event.Order, Kafka: s.kafka,
		TransactionalID: "relay-order", Encoder: e, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return &running{relay: r, process: start(t, r.Run)}
}

// publish publishes the content of the store in a codec.
func (s *shop) publish(t *testing.T, codec registry.Codec) {
	t.Helper()
	r := s.relay(t, s.encoder(t, codec))
	r.published(t, s)
	r.stop(t)
}

type running struct {
	relay *relay.Relay
	*process
}

// published waits until the log has everything that the store has.
func (r *running) published(t *testing.T, s *shop) {
	t.Helper()
	last := s.events[len(s.events)-1].Position
	polltest.Until(t, "the log has all events of the store",
		func() bool { return r.relay.Progress().Position.Compare(last) >= 0 })
}
