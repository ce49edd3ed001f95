package rpc_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

// stock and queries return empty responses.
type (
	stock struct {
		inventoryv1connect.UnimplementedInventoryServiceHandler
	}
	queries struct {
		orderv1connect.UnimplementedOrderQueryServiceHandler
	}
)

func (stock) ReserveStock(
	context.Context, *connect.Request[inventoryv1.ReserveStockRequest],
) (*connect.Response[inventoryv1.ReserveStockResponse], error) {
	return connect.NewResponse(&inventoryv1.ReserveStockResponse{}), nil
}

func (queries) GetOrder(
	context.Context, *connect.Request[orderv1.GetOrderRequest],
) (*connect.Response[orderv1.GetOrderResponse], error) {
	return connect.NewResponse(&orderv1.GetOrderResponse{}), nil
}

func accepted(context.Context) error { return nil }

// raw serves a strict command service and a query service, and returns a function that sends
// requests like curl.
func raw(t *testing.T, opts ...rpc.Option) func(procedure, contentType, body string) (int, string) {
	t.Helper()
	mux := http.NewServeMux()
	options := func(opts ...rpc.Option) []connect.HandlerOption {
		return rpc.HandlerOptions(slog.New(slog.DiscardHandler), func() time.Time { return now }, opts...)
	}
	opts = append(opts, rpc.Strict())
	mux.Handle(orderv1connect.NewOrderServiceHandler(service{place: accepted}, options(opts...)...))
	mux.Handle(inventoryv1connect.NewInventoryServiceHandler(stock{}, options(opts...)...))
	mux.Handle(orderv1connect.NewOrderQueryServiceHandler(queries{}, options()...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return func(procedure, contentType, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+procedure,
			strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Message string }
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return res.StatusCode, answer.Message
	}
}

const (
	placeOrder   = orderv1connect.OrderServicePlaceOrderProcedure
	reserveStock = inventoryv1connect.InventoryServiceReserveStockProcedure
	getOrder     = orderv1connect.OrderQueryServiceGetOrderProcedure
	order        = `{"currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`
)

// A command with an unknown field is refused, because a part of it would be ignored. The error
// names the field.
func TestMisspelledJSONIsRefused(t *testing.T) {
	t.Parallel()
	post := raw(t)
	in := func(old, changed string) string { return strings.Replace(order, old, changed, 1) }
	for name, c := range map[string]struct{ procedure, body, want string }{
		"a field deep inside": {placeOrder, in(`"units":9`, `"units":9,"nanoss":990000000`),
			"lines[0].unit_price.nanoss: unknown field; did you mean nanos?"},
		"a field of the request": {placeOrder, in(`{`, `{"orderd_at":"2024-01-01T00:00:00Z",`),
			"orderd_at: unknown field; did you mean ordered_at?"},
		"one like nothing there is": {placeOrder, in(`{`, `{"discount":5,`), "discount: unknown field"},
		"another case":              {placeOrder, in(`"currency"`, `"Currency"`), "Currency: unknown field; did you mean currency?"},
		"a field of another level":  {placeOrder, in(`"quantity"`, `"units":1,"quantity"`), "lines[0].units: unknown field"},
		"a name with no letters":    {placeOrder, in(`{`, `{"\u0000\n":1,`), `\x00\n: unknown field`},
		"a long name":               {placeOrder, in(`{`, `{"`+strings.Repeat("x", 5000)+`":1,`), strings.Repeat("x", 64) + "…: unknown field"},
		"a field given twice":       {placeOrder, in(`{`, `{"currency":"EUR",`), "currency: set twice"},
		"in both of its spellings":  {placeOrder, in(`"unitPrice"`, `"unit_price":{},"unitPrice"`), "lines[0].unit_price: set twice"},
		"a text for a list":         {placeOrder, `{"lines":"MUG"}`, "lines: want a list"},
		"a text for an object":      {placeOrder, `{"lines":["MUG"]}`, "lines[0]: want an object"},
		"a list for the whole":      {placeOrder, `[]`, "the body: want an object"},
		"a text for a number":       {placeOrder, in(`"quantity":1`, `"quantity":"one"`), "lines[0].quantity: want a 64-bit integer"},
		"a part of a number":        {placeOrder, in(`"units":9`, `"units":9.99`), "lines[0].unit_price.units: want a 64-bit integer"},
		"a number for a text":       {placeOrder, in(`"GBP"`, `826`), "currency: want a UTF-8 string"},
		"a time that is none":       {placeOrder, in(`{`, `{"orderedAt":"yesterday",`), `ordered_at: want an RFC 3339 time`},
		"a time without its zone":   {placeOrder, in(`{`, `{"orderedAt":"2024-01-01T00:00:00",`), `ordered_at: want an RFC 3339 time`},
		"a day for a time":          {placeOrder, in(`{`, `{"ordered_at":"2024-01-01",`), `ordered_at: want an RFC 3339 time`},
		"a number for a time":       {placeOrder, in(`{`, `{"orderedAt":1704067200,`), `ordered_at: want an RFC 3339 time`},
		"the year 10000":            {placeOrder, in(`{`, `{"orderedAt":"10000-01-01T00:00:00Z",`), `ordered_at: want an RFC 3339 time`},
		"a duration that is none":   {reserveStock, `{"timeToLive":"15 minutes"}`, `time_to_live: want a duration in seconds, such as "900s" or "0.5s"`},
		"half an object":            {placeOrder, "{\n  \"currency\":", "not JSON: line 2, column 13: unexpected end of JSON input"},
		"no JSON":                   {placeOrder, "currency=GBP", "not JSON: line 1, column 1: invalid character 'c' looking for beginning of value"},
		"nothing":                   {placeOrder, "", "the body is empty: want a JSON object"},
		"two objects":               {placeOrder, order + order, "not JSON: line 1, column"},
	} {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			status, message := post(c.procedure, contentType, c.body)
			if status != http.StatusBadRequest || !strings.Contains(message, c.want) {
				t.Errorf("%s: %d %q, want 400 and %q", name, status, message, c.want)
			}
			if strings.Contains(message, "v1.") || strings.Contains(message, "*") {
				t.Errorf("%s: %q shows a Go type", name, message)
			}
		}
	}
	for name, body := range map[string]string{
		"names as in the contract": strings.NewReplacer("unitPrice", "unit_price", "currencyCode", "currency_code").Replace(order),
		"names in camel case":      order,
		"null":                     in(`{`, `{"orderedAt":null,`),
		"a time with nanoseconds":  in(`{`, `{"orderedAt":"2024-01-01T00:00:00.123456789+02:00",`),
	} {
		if status, message := post(placeOrder, "application/json", body); status != http.StatusOK {
			t.Errorf("%s: %d %s", name, status, message)
		}
	}
}

// A query may have fields that this server does not know yet.
func TestQueriesIgnoreUnknownFields(t *testing.T) {
	t.Parallel()
	post := raw(t)
	if status, message := post(getOrder, "application/json",
		`{"reference":"536365","detail":"full"}`); status != http.StatusOK {
		t.Errorf("an unknown field: %d %s", status, message)
	}
	for body, want := range map[string]string{
		`{"reference":536365}`:                  "reference: want a UTF-8 string",
		`{"reference":"5","orderId":"6"}`:       "order_id: another field of the oneof key is also set",
		`{"reference":"5","reference":"6"}`:     "reference: set twice",
		`{"later":{"deep":[1]},"reference":[]}`: "reference: want a UTF-8 string",
	} {
		if status, message := post(getOrder, "application/json", body); status != http.StatusBadRequest ||
			!strings.Contains(message, want) {
			t.Errorf("%s: %d %q, want 400 and %q", body, status, message, want)
		}
	}
}

func TestUnreadableProtobufNamesNoGoType(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"\xff", "\x0a\x05abc", "\x1a\x02\xff\xfe"} {
		status, message := raw(t)(placeOrder, "application/proto", body)
		if status != http.StatusBadRequest || !strings.Contains(message, "millrace.order.v1.PlaceOrderRequest") ||
			strings.Contains(message, "*") {
			t.Errorf("%q: %d %q", body, status, message)
		}
	}
}

// Clients' clocks may be ahead. The error tells them the server's time.
func TestLeewayForClientClocks(t *testing.T) {
	t.Parallel()
	const leeway = 30 * time.Second
	post := raw(t, rpc.WithLeeway(leeway))
	at := func(t time.Time) string {
		b, err := protojson.Marshal(timestamppb.New(t))
		if err != nil {
			panic(err)
		}
		return strings.Replace(order, "{", `{"orderedAt":`+string(b)+`,`, 1)
	}
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Second, leeway} {
		if status, message := post(placeOrder, "application/json", at(now.Add(ahead))); status != http.StatusOK {
			t.Errorf("%v ahead: %d %s", ahead, status, message)
		}
	}
	const want = "ordered_at: must not be in the future: the server's time is 2025-12-01T08:26:00Z, and a client's clock may be up to 30s ahead"
	for _, ahead := range []time.Duration{leeway + 1, time.Hour} {
		status, message := post(placeOrder, "application/json", at(now.Add(ahead)))
		if status != http.StatusBadRequest || message != want {
			t.Errorf("%v ahead: %d %q, want 400 and %q", ahead, status, message, want)
		}
	}
	for name, early := range map[string]time.Time{"the epoch": time.Unix(0, 0), "the year 1": {}} {
		if status, message := post(placeOrder, "application/json", at(early)); status != http.StatusBadRequest ||
			message != "ordered_at: must be greater than 1970-01-01T00:00:00Z" {
			t.Errorf("%s: %d %q", name, status, message)
		}
	}
	_, message := raw(t)(placeOrder, "application/json", at(now.Add(1)))
	if !strings.HasSuffix(message, "the server's time is 2025-12-01T08:26:00Z") {
		t.Errorf("without a leeway: %q", message)
	}
}

// Any body is accepted, or refused with a message for the caller.
func FuzzJSON(f *testing.F) {
	f.Add(order)
	f.Add(`{"lines":[{"unitPrice":{"nanoss":1}}]}`)
	f.Add(`{"orderedAt":{}}`)
	f.Add(`{"orderId":"a","order_id":"b"}`)
	f.Add("[[")
	f.Fuzz(func(t *testing.T, body string) {
		status, message := raw(t)(placeOrder, "application/json", body)
		if status != http.StatusOK && status != http.StatusBadRequest || strings.Contains(message, "orderv1") {
			t.Errorf("%q: %d %q", body, status, message)
		}
	})
}
