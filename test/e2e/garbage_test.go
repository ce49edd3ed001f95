package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/kafka"
)

// TestGarbage writes records to the topics that are not events of the store. Whatever they look
// like, they must not be visible anywhere, must not take the version of an acknowledged event, and
// must be counted.
func TestGarbage(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		garbage(t, nil, "")
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		env := servers.env(t)
		brokers, err := servers.all.Kafka.Start() // already started
		if err != nil {
			t.Fatal(err)
		}
		garbage(t, env, brokers)
	})
}

// garbage runs on the given brokers without a login, or on those of the embedded system if brokers
// is empty.
func garbage(t *testing.T, env []string, brokers string) {
	s := upOn(t, env, t.TempDir(), "127.0.0.1:0")
	s.ready()
	if brokers == "" {
		brokers = s.address("kafka")
	}
	log := s.log(brokers)

	kinds := 0
	for k := range garbageRecords(uuid.NewString(), recorded{}) {
		id := uuid.NewString()
		s.place(id)
		for same := range garbageRecords(id, log.event(id, 1)) {
			if same.name == k.name {
				log.produce(same.Record) // claims to be version 2
			}
		}
		token := s.confirm(id)
		if order := s.order(id, token); order.Version != "2" || order.Stage != "ORDER_STAGE_CONFIRMED" {
			t.Errorf("after %s the order is at version %s, %s; want version 2, confirmed", k.name, order.Version,
				order.Stage)
		}
		kinds++
	}

	// Ten thousand records, of existing and other streams.
	id := uuid.NewString()
	s.place(id)
	placed := log.event(id, 1)
	const flood = 10_000
	var records []kafka.Record
	for len(records) < flood {
		stream := id
		if len(records)%2 == 0 {
			stream = uuid.NewString()
		}
		for k := range garbageRecords(stream, placed) {
			records = append(records, k.Record)
		}
	}
	log.produce(records[:flood]...)
	s.confirm(id)

	want := kinds + flood
	if got := s.notEvents(event.Order.Topic); got != want { // everything else is equal
		t.Errorf("verify reports %d records that are not events, want %d", got, want)
	}
	if order := s.order(id, ""); order.Stage != "ORDER_STAGE_CONFIRMED" {
		t.Errorf("after all garbage records the order is %s", order.Stage)
	}

	// A view that is rebuilt from the same log must show the same.
	s.stop()
	s = upOn(t, env, s.data, "127.0.0.1:0")
	s.ready()
	if got := s.notEvents(event.Order.Topic); got != want {
		t.Errorf("after a restart verify reports %d records that are not events, want %d", got, want)
	}
	s.stop()
}

// kind is one kind of record that is not an event of the store.
type kind struct {
	kafka.Record
	name string
}

// garbageRecords returns a record of each kind. Those that look like events claim to be version 2
// of the stream. placed is a real event of the topic.
func garbageRecords(stream string, placed recorded) func(func(kind) bool) {
	now := event.Time(time.Now())
	confirmed, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{OrderId: stream}}})
	if err != nil {
		panic(err)
	}
	forged := func(change func(*event.Event)) kafka.Record {
		e := event.Event{
			ID: uuid.Must(uuid.NewV7()), Aggregate: event.Order.Name, Stream: stream, Version: 2, Type: "millrace.order.v1.OrderConfirmed",
			Data: confirmed, OccurredAt: now, RecordedAt: now, Position: event.Position{Sequence: placed.Position.Sequence + 1, Transaction: placed.Position.Transaction},
		}
		change(&e)
		return kafka.Record{Topic: event.Order.Topic, Partition: kafka.AnyPartition, Key: []byte(e.Stream),
			Value: e.Data, Headers: e.Headers()}
	}
	data := func(b string) kafka.Record { return forged(func(e *event.Event) { e.Data = []byte(b) }) }
	records := []struct {
		name string
		kafka.Record
	}{
		{"rubbish", data("\xff\xff\xff rubbish")},
		{"text", data(`{"confirmed":{}}`)},
		{"nothing", data("")},
		{"a payload cut short", data(string(confirmed[:len(confirmed)-3]))},
		{"a payload of another type", forged(func(e *event.Event) { e.Type = "millrace.order.v1.OrderCancelled" })},
		{"a payload of a schema that nobody has", data("\x00\x00\x00\x00\x7f\x02x")},
		{"an event of another aggregate", forged(func(e *event.Event) { e.Aggregate = "stock" })},
		{"no envelope", kafka.Record{Topic: event.Order.Topic, Partition: kafka.AnyPartition, Key: []byte(stream), Value: confirmed}},
		{"no key", kafka.Record{Topic: event.Order.Topic, Partition: 0, Value: []byte("x")}},
		{"a forged event", forged(func(*event.Event) {})},
		{"a forged event far ahead", forged(func(e *event.Event) { e.Position = event.Position{Transaction: 99999999} })},
		{"a forged event of a newer type", forged(func(e *event.Event) { e.Type, e.Data = "millrace.order.v1.OrderSplit", []byte("\x92\x03\x01x") })},
		{"a forged event with a real one's seal", func() kafka.Record {
			r := forged(func(*event.Event) {})
			if headers := placed.Headers; len(headers) > 0 {
				r.Headers = append(r.Headers, headers[len(headers)-1])
			}
			return r
		}()},
		{"a copy of an event", placed.copy(0)},
		{"a copy of an event on another partition", placed.copy(1)},
	}
	return func(yield func(kind) bool) {
		for _, r := range records {
			if !yield(kind{r.Record, r.name}) {
				return
			}
		}
	}
}

// eventLog is the system's Kafka, for writing records directly.
type eventLog struct {
	t        *testing.T
	config   kafka.Config
	producer *kafka.Producer
}

func (s *system) log(brokers string) *eventLog {
	s.t.Helper()
	config := kafka.Config{Brokers: brokers, ClientID: "e2e"}
	p, err := kafka.NewProducer(config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Close)
	return &eventLog{s.t, config, p}
}

func (l *eventLog) produce(records ...kafka.Record) {
	l.t.Helper()
	if err := l.producer.ProduceAll(context.WithoutCancel(l.t.Context()), records); err != nil {
		l.t.Fatal(err)
	}
}

// recorded is an event as it was read from the log.
type recorded struct {
	event.Event
	Headers []event.Header
}

// copy returns the event's record as a tool that replays the topic would produce it, in a partition
// that is further by this number.
func (r recorded) copy(further int32) kafka.Record {
	partitions := max(1, kafka.PartitionsOf(r.Headers))
	return kafka.Record{
		Topic: event.Order.Topic, Partition: (kafka.Partition([]byte(r.Stream), partitions) + further) % partitions,
		Key: []byte(r.Stream), Value: r.Data, Headers: r.Headers,
	}
}

var errFound = errors.New("found")

// event waits until the log contains a version of an order.
func (l *eventLog) event(stream string, version uint64) (found recorded) {
	l.t.Helper()
	admin, err := kafka.NewAdmin(l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	defer admin.Close()
	eventually(l.t, "on the log: "+stream, func() bool {
		end, err := admin.EndOffsets(l.t.Context(), event.Order.Topic)
		if err != nil {
			l.t.Fatal(err)
		}
		err = kafka.ReadAll(l.t.Context(), l.config, event.Order.Topic, nil, end, func(m kafka.Message) error {
			e, err := event.FromRecord(m.Key, m.Value, m.Headers)
			if err != nil || e.Stream != stream || e.Version != version {
				return nil //nolint:nilerr // garbage
			}
			found = recorded{e, m.Headers}
			return errFound
		})
		return errors.Is(err, errFound)
	})
	return found
}

// address returns the address of one of the system's servers.
func (s *system) address(name string) string {
	s.t.Helper()
	var status struct {
		Addresses map[string]string `json:"addresses"`
	}
	if err := json.Unmarshal([]byte(s.run("status", "--output", "json")), &status); err != nil {
		s.t.Fatal(err)
	}
	return status.Addresses[name]
}

// call calls a method of the API, which must succeed.
func (s *system) call(method string, request, answer any) {
	s.t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.Post("http://"+s.addr+"/"+method, "application/json", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %s, %v: %s", method, body, resp.Status, err, &text)
	}
	if err := json.Unmarshal(text.Bytes(), answer); err != nil {
		s.t.Fatal(err)
	}
}

type receipt struct {
	Receipt struct {
		Token string `json:"token"`
	} `json:"receipt"`
}

func (s *system) place(id string) {
	s.t.Helper()
	s.call("millrace.order.v1.OrderService/PlaceOrder", map[string]any{
		"orderId": id, "currency": "GBP", "country": "FR", "idempotencyKey": "place-" + id,
		"lines": []any{map[string]any{"sku": "A", "quantity": 1, "unitPrice": map[string]any{"currencyCode": "GBP", "units": 2}}},
	}, new(receipt))
}

// confirm confirms an order and returns the token of the receipt.
func (s *system) confirm(id string) string {
	s.t.Helper()
	var r receipt
	s.call("millrace.order.v1.OrderService/ConfirmOrder",
		map[string]any{"orderId": id, "idempotencyKey": "confirm-" + id}, &r)
	return r.Receipt.Token
}

type order struct {
	Version string `json:"version"`
	Stage   string `json:"stage"`
}

func (s *system) order(id, token string) order {
	s.t.Helper()
	var answer struct {
		Order order `json:"order"`
	}
	s.call("millrace.order.v1.OrderQueryService/GetOrder", map[string]any{"orderId": id, "token": token}, &answer)
	return answer.Order
}

// notEvents returns how many records of a topic verify counts as not being events. Everything else
// must be equal.
func (s *system) notEvents(topic string) int {
	s.t.Helper()
	var result struct {
		Equal      bool `json:"equal"`
		Aggregates []struct {
			Sides []struct {
				Side      string `json:"side"`
				NotEvents int    `json:"not_events"`
			}
		}
	}
	out := s.run("verify", "--output", "json", "--wait", "8m")
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		s.t.Fatal(err)
	}
	if !result.Equal {
		s.t.Fatalf("not equal: %s", out)
	}
	for _, a := range result.Aggregates {
		for _, side := range a.Sides {
			if side.Side == fmt.Sprint("topic ", topic) {
				return side.NotEvents
			}
		}
	}
	s.t.Fatalf("verify does not report topic %s", topic)
	return 0
}
