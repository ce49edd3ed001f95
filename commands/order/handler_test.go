package order_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
)

// TestEveryProtocol runs the life of an order in every protocol.
func TestEveryProtocol(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Order)
	s := commandstest.Serve(t, store, order.NewHandler)
	for name, client := range map[string]orderv1connect.OrderServiceClient{
		"Connect":      orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL),
		"Connect JSON": orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL, connect.WithProtoJSON()),
		"gRPC":         orderv1connect.NewOrderServiceClient(s.HTTP2, s.URL, connect.WithGRPC()),
		"gRPC-Web":     orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL, connect.WithGRPCWeb()),
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			placed, err := client.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{
				CustomerId: &alice, Reference: "536365", Currency: "GBP", Country: "United Kingdom", OrderedAt: timestamppb.New(monday),
				Lines: []*orderv1.NewLine{want("MUG", 2, gbp(2, 550_000_000))}, IdempotencyKey: name,
			}))
			if err != nil {
				t.Fatal(err)
			}
			id := placed.Msg.GetOrderId()
			added, err := client.AddLines(ctx, connect.NewRequest(&orderv1.AddLinesRequest{
				OrderId: strings.ToUpper(id), AfterLine: 1, Lines: []*orderv1.NewLine{want("LAMP", 3, gbp(1, 0))}, AddedAt: timestamppb.New(tuesday),
			}))
			if err != nil || added.Msg.GetOrderId() != id || added.Msg.GetReceipt().GetVersion() != 2 {
				t.Fatalf("add lines: %v, %v", added, err)
			}
			if res, err := client.ConfirmOrder(ctx, connect.NewRequest(&orderv1.ConfirmOrderRequest{OrderId: id})); err != nil || res.Msg.GetReceipt().GetVersion() != 3 {
				t.Fatalf("confirm: %v, %v", res, err)
			}
			cancel := &orderv1.CancelOrderRequest{OrderId: id, Reason: "changed my mind"}
			if res, err := client.CancelOrder(ctx, connect.NewRequest(cancel)); err != nil ||
				res.Msg.GetReceipt().GetVersion() != 4 {
				t.Fatalf("cancel: %v, %v", res, err)
			}
			_, err = client.CancelOrder(ctx, connect.NewRequest(cancel))
			if r := commandstest.Rejection(t, err, connect.CodeFailedPrecondition); r.GetRule() != "order_cancelled" ||
				r.GetFacts()["lines"] != "2" {
				t.Errorf("no second cancellation: %v", r)
			}

			events, err := store.Load(ctx, id, 0)
			if err != nil || len(events) != 4 {
				t.Fatalf("%d events, %v", len(events), err)
			}
			var message orderv1.OrderEvent
			if err := proto.Unmarshal(events[1].Data, &message); err != nil {
				t.Fatal(err)
			}
			want := linesAdded(gbp(8, 100_000_000), line(2, "LAMP", 3, gbp(1, 0)))
			want.GetLinesAdded().OrderId = id
			if !proto.Equal(&message, want) || !events[1].OccurredAt.Equal(tuesday) {
				t.Errorf("stored %v at %v, want %v", &message, events[1].OccurredAt, want)
			}
		})
	}
}

// TestPlainJSON checks requests as curl sends them.
func TestPlainJSON(t *testing.T) {
	t.Parallel()
	s := commandstest.Serve(t, commandstest.OpenStore(t, event.Order), order.NewHandler)
	post := func(body, key string) (int, map[string]any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			s.URL+orderv1connect.OrderServicePlaceOrderProcedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", key)
		res, err := s.HTTP1.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return res.StatusCode, answer
	}
	const body = `{"currency":"GBP","country":"United Kingdom","lines":[{"sku":"85123A","quantity":"6","unitPrice":{"currencyCode":"GBP","units":"2","nanos":550000000}}]}`

	status, answer := post(body, "key")
	receipt, _ := answer["receipt"].(map[string]any)
	if status != http.StatusOK || answer["orderId"] == "" || receipt["version"] != "1" || receipt["token"] == "" {
		t.Errorf("%d %v", status, answer)
	}
	if _, again := post(body, "key"); again["orderId"] != answer["orderId"] {
		t.Errorf("the same request again returned %v, first %v", again, answer)
	}

	status, answer = post(strings.Replace(body, `"GBP","country"`, `"EUR","country"`, 1), "")
	details, _ := answer["details"].([]any)
	if status != http.StatusBadRequest || answer["code"] != "invalid_argument" || len(details) != 1 ||
		answer["message"] != "lines[0].unit_price: the price is in GBP, but must be in EUR" {
		t.Errorf("%d %v", status, answer)
	}
	if status, answer = post(`{"currency":`, ""); status != http.StatusBadRequest {
		t.Errorf("half a request: %d %v", status, answer)
	}
}

// Each error of validation begins with the path of the field.
func TestValidationNamesTheField(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Order)
	s := commandstest.Serve(t, store, order.NewHandler)
	client := orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL)
	for field, change := range map[string]func(m *orderv1.PlaceOrderRequest){
		"order_id":            func(m *orderv1.PlaceOrderRequest) { m.OrderId = "7" },
		"customer_id":         func(m *orderv1.PlaceOrderRequest) { m.CustomerId = new(string) },
		"reference":           func(m *orderv1.PlaceOrderRequest) { m.Reference = strings.Repeat("x", 65) },
		"currency":            func(m *orderv1.PlaceOrderRequest) { m.Currency = "gbp" },
		"country":             func(m *orderv1.PlaceOrderRequest) { m.Country = "" },
		"lines":               func(m *orderv1.PlaceOrderRequest) { m.Lines = nil },
		"lines[1].sku":        func(m *orderv1.PlaceOrderRequest) { m.Lines[1].Sku = "-" },
		"lines[1].quantity":   func(m *orderv1.PlaceOrderRequest) { m.Lines[1].Quantity = 0 },
		"lines[0].unit_price": func(m *orderv1.PlaceOrderRequest) { m.Lines[0].UnitPrice = nil },
		"ordered_at":          func(m *orderv1.PlaceOrderRequest) { m.OrderedAt = timestamppb.New(monday.AddDate(1000, 0, 0)) },
		"idempotency_key":     func(m *orderv1.PlaceOrderRequest) { m.IdempotencyKey = strings.Repeat("k", 201) },
	} {
		m := &orderv1.PlaceOrderRequest{
			Currency: "GBP", Country: "GB", Lines: []*orderv1.NewLine{want("MUG", 1, gbp(1, 0)), want("LAMP", 1, gbp(1, 0))},
		}
		change(m)
		_, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
		if connect.CodeOf(err) != connect.CodeInvalidArgument ||
			!strings.HasPrefix(err.Error(), "invalid_argument: "+field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	// A client that forgot the time sends the epoch.
	_, err := client.ConfirmOrder(t.Context(), connect.NewRequest(&orderv1.ConfirmOrderRequest{
		OrderId: alice, ConfirmedAt: &timestamppb.Timestamp{},
	}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "confirmed_at: ") {
		t.Errorf("the epoch: %v", err)
	}
	if n := len(commandstest.Events(t, store)); n != 0 {
		t.Errorf("%d events", n)
	}
}

// TestIdempotencyIgnoresCaseOfIDs checks that the same request with an id in capitals is the same
// request.
func TestIdempotencyIgnoresCaseOfIDs(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Order)
	s := commandstest.Serve(t, store, order.NewHandler)
	client := orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL)
	const id = "0198c5a0-7c1e-7abc-8def-0123456789ab"
	for i, spelled := range []string{id, strings.ToUpper(id)} {
		customer := spelled
		m := &orderv1.PlaceOrderRequest{
			OrderId: spelled, CustomerId: &customer, Currency: "GBP", Country: "GB",
			Lines: []*orderv1.NewLine{want("MUG", 1, gbp(1, 0))}, IdempotencyKey: "key",
		}
		res, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
		if err != nil || res.Msg.GetOrderId() != id || res.Msg.GetReceipt().GetReplayed() != (i > 0) {
			t.Errorf("%s: %v, %v", spelled, res, err)
		}
	}
	_, err := client.ConfirmOrder(t.Context(), connect.NewRequest(&orderv1.ConfirmOrderRequest{OrderId: id, IdempotencyKey: " key"}))
	if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != "idempotency_key_malformed" {
		t.Errorf("a key with a leading space: %v", r)
	}
}

// TestMisspelledFieldsStoreNothing checks that misspelled fields are rejected. If they were
// ignored, a price of 9.99 would become 9, and an order without its date would be of today.
func TestMisspelledFieldsStoreNothing(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Order)
	s := commandstest.Serve(t, store, order.NewHandler)
	for field, body := range map[string]string{
		"lines[0].unit_price.nanoss": `{"currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9,"nanoss":990000000}}]}`,
		"orderd_at":                  `{"orderd_at":"2024-01-01T00:00:00Z","currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`,
	} {
		url := s.URL + orderv1connect.OrderServicePlaceOrderProcedure
		res, err := s.HTTP1.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusBadRequest ||
			!strings.Contains(string(text), field+": unknown field") {
			t.Errorf("%s: %d %s, %v", field, res.StatusCode, text, err)
		}
	}
	if n := len(commandstest.Events(t, store)); n != 0 {
		t.Errorf("%d events", n)
	}
}

// BenchmarkPlaceOrder measures commands from HTTP to disk and back, with eight clients per core and
// one SQLite file.
func BenchmarkPlaceOrder(b *testing.B) {
	for _, lines := range []int{1, 20} {
		b.Run(fmt.Sprintf("lines=%d", lines), func(b *testing.B) {
			s := commandstest.Serve(b, commandstest.OpenStore(b, event.Order), order.NewHandler)
			client := orderv1connect.NewOrderServiceClient(s.HTTP1, s.URL)
			m := &orderv1.PlaceOrderRequest{Currency: "GBP", Country: "United Kingdom"}
			for range lines {
				m.Lines = append(m.Lines, want("85123A", 6, gbp(2, 550_000_000)))
			}
			var key atomic.Int64
			b.SetParallelism(8)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					m := proto.CloneOf(m)
					m.IdempotencyKey = strconv.FormatInt(key.Add(1), 10)
					if _, err := client.PlaceOrder(context.Background(), connect.NewRequest(m)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
