package commands_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/auth"
)

var monday = time.Date(2025, 12, 1, 8, 26, 0, 0, time.UTC)

// orders returns a client of OrderService on a store.
func orders(t testing.TB, store eventstore.Store, opts ...commands.Option) orderv1connect.OrderServiceClient {
	t.Helper()
	s := commandstest.Serve(t, store, order.NewHandler, opts...)
	return orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL)
}

func newStore(t testing.TB) eventstore.Store { return commandstest.OpenStore(t, event.Order) }

// placing returns a request for an order with n lines. The service chooses its id.
func placing(n int, key string) *orderv1.PlaceOrderRequest {
	m := &orderv1.PlaceOrderRequest{Currency: "GBP", Country: "United Kingdom", IdempotencyKey: key}
	for range n {
		m.Lines = append(m.Lines, &orderv1.NewLine{
			Sku: "85123A", Quantity: 6, UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 2, Nanos: 550_000_000},
		})
	}
	return m
}

func place(t testing.TB, c orderv1connect.OrderServiceClient, m *orderv1.PlaceOrderRequest) *orderv1.PlaceOrderResponse {
	t.Helper()
	res, err := c.PlaceOrder(context.Background(), connect.NewRequest(m))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg
}

// Every field of an event's envelope comes from the request, the clock or the store.
func TestEventEnvelope(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	now := monday.Add(1234567890 * time.Nanosecond)
	client := orders(t, store, commands.WithClock(func() time.Time { return now }))

	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	req := connect.NewRequest(placing(1, "key 1"))
	req.Msg.OrderedAt = timestamppb.New(monday.Add(-time.Hour + 1999*time.Nanosecond))
	req.Header().Set(commands.HeaderCorrelationID, "conversation")
	req.Header().Set(commands.HeaderTraceParent, trace)
	res, err := client.PlaceOrder(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}

	events := commandstest.Events(t, store)
	if len(events) != 1 {
		t.Fatalf("%d events", len(events))
	}
	e := events[0]
	want := event.Event{
		ID: e.ID, Aggregate: "order", Stream: res.Msg.GetOrderId(), Version: 1, Type: "millrace.order.v1.OrderPlaced", Data: e.Data,
		OccurredAt: monday.Add(-time.Hour + time.Microsecond), RecordedAt: event.Time(now),
		CorrelationID: "conversation", CausationID: "key 1", TraceParent: trace, Position: e.Position,
	}
	if !equalEvents(e, want) {
		t.Errorf("stored\n%+v, want\n%+v", e, want)
	}
	if e.ID.Version() != 7 {
		t.Errorf("event id %v is not a UUIDv7", e.ID)
	}
	if id, err := uuid.Parse(res.Msg.GetOrderId()); err != nil || id.Version() != 7 {
		t.Errorf("order id %q is not a UUIDv7: %v", res.Msg.GetOrderId(), err)
	}
	var message orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		t.Fatal(err)
	}
	if at := message.GetPlaced().GetOrderedAt().AsTime(); !at.Equal(want.OccurredAt) {
		t.Errorf("the message has the time %v, the envelope %v", at, want.OccurredAt)
	}
	token, err := event.ParseToken(res.Msg.GetReceipt().GetToken())
	if wantToken := (event.Token{
		Service: "order", Stream: e.Stream, Version: 1, Position: e.Position,
	}); err != nil || token != wantToken {
		t.Errorf("the token is %+v (%v), want %+v", token, err, wantToken)
	}
	if r := res.Msg.GetReceipt(); r.GetVersion() != 1 || r.GetReplayed() {
		t.Errorf("receipt %v", r)
	}
}

// equalEvents compares events. Times are equal if they are the same instant.
func equalEvents(a, b event.Event) bool {
	same := a.OccurredAt.Equal(b.OccurredAt) && a.RecordedAt.Equal(b.RecordedAt) && string(a.Data) == string(b.Data)
	return same && a.ID == b.ID && a.Aggregate == b.Aggregate && a.Stream == b.Stream && a.Version == b.Version &&
		a.Type == b.Type &&
		a.CorrelationID == b.CorrelationID && a.CausationID == b.CausationID && a.TraceParent == b.TraceParent &&
		a.Position == b.Position
}

// Without a correlation id, the events are correlated by the id of the first one. A malformed trace
// is dropped.
func TestCommandWithoutCorrelationID(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	client := orders(t, store)
	req := connect.NewRequest(placing(1, ""))
	req.Header().Set(commands.HeaderTraceParent, "00-not-a-trace-01")
	before := event.Time(time.Now())
	if _, err := client.PlaceOrder(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	e := commandstest.Events(t, store)[0]
	if e.CorrelationID != e.ID.String() || e.CausationID != "" || e.TraceParent != "" {
		t.Errorf("correlation %q of event %v, causation %q, trace %q",
			e.CorrelationID, e.ID, e.CausationID, e.TraceParent)
	}
	if e.OccurredAt.Before(before) || !e.OccurredAt.Equal(e.OccurredAt.Truncate(time.Microsecond)) {
		t.Errorf("a command without a time occurred at %v, given at %v", e.OccurredAt, before)
	}
}

// A repeated request returns the first answer, wherever the key is.
func TestRepeatedKeyReturnsFirstAnswer(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	client := orders(t, store)
	first := place(t, client, placing(3, "key"))
	other := place(t, client, placing(3, "another key"))
	if other.GetOrderId() == first.GetOrderId() {
		t.Fatal("two keys, one order")
	}

	again := place(t, client, placing(3, "key"))
	if !again.GetReceipt().GetReplayed() {
		t.Error("the receipt of a repeated request is not marked as replayed")
	}
	again.Receipt.Replayed = false
	if !proto.Equal(again, first) {
		t.Errorf("the same key returned %v, then %v", first, again)
	}

	inHeader := connect.NewRequest(placing(3, ""))
	inHeader.Header().Set(commands.HeaderIdempotencyKey, "key")
	res, err := client.PlaceOrder(t.Context(), inHeader)
	if err != nil || res.Msg.GetOrderId() != first.GetOrderId() || !res.Msg.GetReceipt().GetReplayed() {
		t.Errorf("the key in the header returned %v, %v", res, err)
	}
	if n := len(commandstest.Events(t, store)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// TestKeysAreScopedToTheCaller lets two callers choose the same key. Neither must get the answer to
// the other's command.
func TestKeysAreScopedToTheCaller(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	tokens := map[string]string{"anna": "anna-0123456789-0123456789", "bert": "bert-0123456789-0123456789"}
	var lines strings.Builder
	for name, token := range tokens {
		fmt.Fprintf(&lines, "%s:%s\n", name, token)
	}
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	known, err := auth.Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(order.NewHandler(newStore(t)))
	server := httptest.NewServer(known.Guard(mux))
	defer server.Close()
	client := orderv1connect.NewOrderServiceClient(server.Client(), server.URL)
	placed := func(caller string) string {
		t.Helper()
		req := connect.NewRequest(placing(1, "key"))
		req.Header().Set("Authorization", "Bearer "+tokens[caller])
		res, err := client.PlaceOrder(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.OrderId
	}
	first := placed("anna")
	if again := placed("anna"); again != first {
		t.Errorf("anna's key returned %s and then %s", first, again)
	}
	if other := placed("bert"); other == first {
		t.Errorf("bert got anna's order %s", other)
	}
}

// The same key with another request or another procedure is rejected, with facts to continue from.
func TestReusedKeyWithAnotherRequest(t *testing.T) {
	t.Parallel()
	client := orders(t, newStore(t))
	named := placing(3, "key")
	named.OrderId = "0196F0C4-0000-7000-8000-00000000000A"
	first := place(t, client, named)
	if want := strings.ToLower(named.GetOrderId()); first.GetOrderId() != want {
		t.Errorf("order %q, want %q", first.GetOrderId(), want)
	}

	for name, change := range map[string]func(m *orderv1.PlaceOrderRequest){
		"more lines, same order":  func(m *orderv1.PlaceOrderRequest) { m.Lines = placing(4, "").GetLines() },
		"same lines, other order": func(m *orderv1.PlaceOrderRequest) { m.OrderId = "" },
	} {
		m := proto.CloneOf(named)
		change(m)
		_, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
		r := commandstest.Rejection(t, err, connect.CodeInvalidArgument)
		if r.GetRule() != "idempotency_key_reused" || r.GetField() != "idempotency_key" ||
			r.GetFacts()["stream"] != first.GetOrderId() || r.GetFacts()["version"] != "1" {
			t.Errorf("%s: %v", name, r)
		}
		if want := map[bool]string{true: "3"}[m.GetOrderId() != ""]; r.GetFacts()["lines"] != want {
			t.Errorf("%s: the facts have %q lines, want %q", name, r.GetFacts()["lines"], want)
		}
	}

	// The same message to another procedure is a different request.
	_, err := client.ConfirmOrder(t.Context(), connect.NewRequest(&orderv1.ConfirmOrderRequest{
		OrderId: first.GetOrderId(), IdempotencyKey: "key",
	}))
	if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != "idempotency_key_reused" {
		t.Errorf("another procedure: %v", r)
	}

	// Without a key, the state of the order decides.
	named.IdempotencyKey = ""
	_, err = client.PlaceOrder(t.Context(), connect.NewRequest(named))
	if r := commandstest.Rejection(t, err, connect.CodeAlreadyExists); r.GetRule() != "order_already_placed" ||
		r.GetFacts()["lines"] != "3" {
		t.Errorf("without the key: %v", r)
	}
}

// A rejected command does not consume its key: sent again, it is decided again.
func TestRejectionIsNotStored(t *testing.T) {
	t.Parallel()
	client := orders(t, newStore(t))
	placed := place(t, client, placing(1, ""))
	add := func(after uint32) error {
		_, err := client.AddLines(t.Context(), connect.NewRequest(&orderv1.AddLinesRequest{
			OrderId: placed.GetOrderId(), AfterLine: after, Lines: placing(1, "").GetLines(), IdempotencyKey: map[uint32]string{2: "key"}[after],
		}))
		return err
	}
	r := commandstest.Rejection(t, add(2), connect.CodeFailedPrecondition)
	if r.GetRule() != "lines_moved" || r.GetField() != "after_line" || r.GetFacts()["lines"] != "1" {
		t.Errorf("%v", r)
	}
	if err := add(1); err != nil {
		t.Fatal(err)
	}
	if err := add(2); err != nil {
		t.Errorf("the key of a rejected command: %v", err)
	}
}

// A command that changes nothing stores no event. Its receipt is that of the stream's newest event,
// and its answer is stored under its key.
func TestCommandWithoutChange(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Product)
	s := commandstest.Serve(t, store, catalog.NewHandler, commands.WithSnapshotEvery(1))
	client := catalogv1connect.NewCatalogServiceClient(s.HTTP1, s.URL)
	for _, sku := range []string{"LAMP", "MUG"} {
		_, err := client.ListProduct(t.Context(), connect.NewRequest(&catalogv1.ListProductRequest{
			Sku: sku, Title: sku, Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS,
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	set := func(key string) *catalogv1.SetPriceResponse {
		res, err := client.SetPrice(t.Context(), connect.NewRequest(&catalogv1.SetPriceRequest{
			Sku: "LAMP", Price: &money.Money{CurrencyCode: "GBP", Units: 2}, IdempotencyKey: key,
		}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	first := set("")
	if _, err := client.DelistProduct(t.Context(), connect.NewRequest(&catalogv1.DelistProductRequest{Sku: "MUG"})); err != nil {
		t.Fatal(err) // the head of the store is now in another stream
	}
	for _, key := range []string{"", "key", "key"} {
		if again := set(key); again.GetReceipt().GetVersion() != 2 ||
			again.GetReceipt().GetToken() != first.GetReceipt().GetToken() {
			t.Errorf("key %q: receipt %v, want that of %v", key, again.GetReceipt(), first.GetReceipt())
		}
	}
	if !set("key").GetReceipt().GetReplayed() {
		t.Error("an answer without events was not stored")
	}
	if n := len(commandstest.Events(t, store)); n != 4 {
		t.Errorf("%d events, want 4", n)
	}
}

// Keys and ids that a store or a header could change are rejected, with the field.
func TestMalformedKeysAndHeaders(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	client := orders(t, store)
	for name, c := range map[string]struct{ field, header, correlation, rule, at string }{
		"two keys":                   {field: "a", header: "b", rule: "idempotency_key_ambiguous", at: "idempotency_key"},
		"a key of 201 bytes":         {header: strings.Repeat("k", 201), rule: "idempotency_key_malformed", at: "idempotency_key"},
		"a key of 101 runes":         {field: strings.Repeat("ü", 101), rule: "idempotency_key_malformed", at: "idempotency_key"},
		"a key with a zero":          {field: "a\x00b", rule: "idempotency_key_malformed", at: "idempotency_key"},
		"a key that is not UTF-8":    {header: "\xff", rule: "idempotency_key_malformed", at: "idempotency_key"},
		"a correlation id of a page": {correlation: strings.Repeat("c", 2000), rule: "correlation_id_malformed", at: "X-Correlation-Id"},
	} {
		req := connect.NewRequest(placing(1, c.field))
		req.Header().Set(commands.HeaderIdempotencyKey, c.header)
		req.Header().Set(commands.HeaderCorrelationID, c.correlation)
		_, err := client.PlaceOrder(t.Context(), req)
		if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != c.rule ||
			r.GetField() != c.at {
			t.Errorf("%s: %v", name, r)
		}
	}
	req := connect.NewRequest(placing(1, "same"))
	req.Header().Set(commands.HeaderIdempotencyKey, "same")
	if _, err := client.PlaceOrder(t.Context(), req); err != nil {
		t.Errorf("the same key twice: %v", err)
	}
	if n := len(commandstest.Events(t, store)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// Of concurrent requests with one key, one is stored, and all get its answer.
func TestConcurrentCommandsWithOneKey(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	client := orders(t, store)
	const n = 16
	answers := make([]*orderv1.PlaceOrderResponse, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			res, err := client.PlaceOrder(t.Context(), connect.NewRequest(placing(2, "key")))
			if err != nil {
				t.Error(err)
				return
			}
			answers[i] = res.Msg
		})
	}
	wg.Wait()
	first := 0
	for _, a := range answers {
		if !a.GetReceipt().GetReplayed() {
			first++
		}
		if a.GetOrderId() != answers[0].GetOrderId() ||
			a.GetReceipt().GetToken() != answers[0].GetReceipt().GetToken() {
			t.Errorf("answers %v and %v", a, answers[0])
		}
	}
	if events := commandstest.Events(t, store); first != 1 || len(events) != 1 {
		t.Errorf("%d first answers and %d events, want one of each", first, len(events))
	}
}

// Concurrent commands on one stream all succeed, each at its own version.
func TestCommandsOnOneStreamAreSerialized(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Stock)
	s := commandstest.Serve(t, store, inventory.NewHandler)
	client := inventoryv1connect.NewInventoryServiceClient(s.HTTP1, s.URL)
	const n = 32
	versions := make([]uint64, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			res, err := client.ReceiveStock(t.Context(), connect.NewRequest(&inventoryv1.ReceiveStockRequest{Sku: "85123A", Quantity: 1}))
			if err != nil {
				t.Error(err)
				return
			}
			versions[i] = res.Msg.GetReceipt().GetVersion()
		})
	}
	wg.Wait()
	seen := map[uint64]bool{}
	for _, v := range versions {
		seen[v] = true
	}
	stock, err := client.GetStock(t.Context(), connect.NewRequest(&inventoryv1.GetStockRequest{Sku: "85123A"}))
	if err != nil || stock.Msg.GetOnHand() != n || stock.Msg.GetVersion() != n || len(seen) != n {
		t.Errorf("%d commands at %d versions resulted in %v, %v", n, len(seen), stock, err)
	}
}

// TestOpeningCommandSkipsTheRead checks that a command which opens a stream does not read it
// first. If the stream exists, the decision must be the same as after a read.
func TestOpeningCommandSkipsTheRead(t *testing.T) {
	t.Parallel()
	loads := 0
	store := &faulty{Store: newStore(t)}
	store.load = func(stream string, after uint64) ([]event.Event, error) {
		loads++
		return store.Store.Load(context.Background(), stream, after)
	}
	client := orders(t, store)
	m := placing(3, "")
	m.OrderId = "0196f0c4-0000-7000-8000-00000000000a"
	place(t, client, m)
	if loads != 0 {
		t.Errorf("a new order was read %d times", loads)
	}
	_, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
	if r := commandstest.Rejection(t, err, connect.CodeAlreadyExists); r.GetFacts()["lines"] != "3" || loads != 1 {
		t.Errorf("%v after %d reads", r, loads)
	}
	m.Lines[0].UnitPrice.CurrencyCode = "EUR" // a new order would reject it as well, but for another reason
	_, err = client.PlaceOrder(t.Context(), connect.NewRequest(m))
	if r := commandstest.Rejection(t, err, connect.CodeAlreadyExists); r.GetRule() != "order_already_placed" {
		t.Errorf("%v", r)
	}
}
