package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	_ "github.com/millrace/millrace/gen/millrace/catalog/v1"
	_ "github.com/millrace/millrace/gen/millrace/customer/v1"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

// recorder keeps requests as handlers receive them.
type recorder struct {
	orderv1connect.UnimplementedOrderServiceHandler
	orderv1connect.UnimplementedOrderQueryServiceHandler
	placed *orderv1.PlaceOrderRequest
	got    *orderv1.GetOrderRequest
}

func (r *recorder) PlaceOrder(
	_ context.Context, req *connect.Request[orderv1.PlaceOrderRequest],
) (*connect.Response[orderv1.PlaceOrderResponse], error) {
	r.placed = req.Msg
	return connect.NewResponse(&orderv1.PlaceOrderResponse{}), nil
}

func (r *recorder) GetOrder(
	_ context.Context, req *connect.Request[orderv1.GetOrderRequest],
) (*connect.Response[orderv1.GetOrderResponse], error) {
	r.got = req.Msg
	return connect.NewResponse(&orderv1.GetOrderResponse{}), nil
}

func record(
	t *testing.T, opts ...rpc.Option,
) (*recorder, orderv1connect.OrderServiceClient, orderv1connect.OrderQueryServiceClient) {
	t.Helper()
	r := &recorder{}
	mux := http.NewServeMux()
	options := rpc.HandlerOptions(slog.New(slog.DiscardHandler), func() time.Time { return now }, opts...)
	mux.Handle(orderv1connect.NewOrderServiceHandler(r, options...))
	mux.Handle(orderv1connect.NewOrderQueryServiceHandler(r, options...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return r, orderv1connect.NewOrderServiceClient(server.Client(), server.URL),
		orderv1connect.NewOrderQueryServiceClient(server.Client(), server.URL)
}

const id = "0198c5a0-7c1e-7abc-8def-0123456789ab"

func TestIdentifiersAreNormalized(t *testing.T) {
	t.Parallel()
	r, commands, queries := record(t)
	upper := strings.ToUpper(id)
	m := good(1)
	m.OrderId, m.CustomerId, m.Reference = upper, &upper, "Bestellung fu\u0308r Anna" // u and a combining diaeresis
	if _, err := commands.PlaceOrder(t.Context(), connect.NewRequest(m)); err != nil {
		t.Fatal(err)
	}
	if p := r.placed; p.GetOrderId() != id || p.GetCustomerId() != id || p.GetReference() != "Bestellung für Anna" {
		t.Errorf("the command is %v", p)
	}
	if _, err := queries.GetOrder(t.Context(),
		connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_OrderId{OrderId: upper}})); err != nil || r.got.GetOrderId() != id {
		t.Errorf("the query is %v, %v", r.got, err)
	}
	for sent, want := range map[string]string{"fu\u0308r": "für", "older ": "older ", "a  b": "a  b"} { // stored ones are found
		if _, err := queries.GetOrder(t.Context(),
			connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_Reference{Reference: sent}})); err != nil || r.got.GetReference() != want {
			t.Errorf("%q: the query is %v, %v", sent, r.got, err)
		}
	}
}

func TestIdentifiersThatAreRefused(t *testing.T) {
	t.Parallel()
	_, commands, queries := record(t)
	for name, c := range map[string]struct {
		change func(m *orderv1.PlaceOrderRequest)
		want   string
	}{
		"a UUID in braces":            {func(m *orderv1.PlaceOrderRequest) { m.OrderId = "{" + id + "}" }, "order_id: must be a valid UUID"},
		"a UUID as URN":               {func(m *orderv1.PlaceOrderRequest) { m.OrderId = "urn:uuid:" + id }, "order_id: must be a valid UUID"},
		"a UUID without its hyphens":  {func(m *orderv1.PlaceOrderRequest) { m.OrderId = strings.ReplaceAll(id, "-", "") }, "order_id: must be a valid UUID"},
		"a UUID and a space":          {func(m *orderv1.PlaceOrderRequest) { m.OrderId = id + " " }, "order_id: must be a valid UUID"},
		"a reference with NUL":        {func(m *orderv1.PlaceOrderRequest) { m.Reference = "A\x00" }, "reference: it contains the invisible character U+0000"},
		"a reference and a space":     {func(m *orderv1.PlaceOrderRequest) { m.Reference = "536365 " }, "reference: it ends with a space"},
		"a reference that is a space": {func(m *orderv1.PlaceOrderRequest) { m.Reference = " " }, "reference: it begins with a space"},
		"what nobody sees":            {func(m *orderv1.PlaceOrderRequest) { m.Reference = "53\u200b6365" }, "reference: it contains the invisible character U+200B"},
		"a SKU and a space":           {func(m *orderv1.PlaceOrderRequest) { m.Lines[1].Sku = "MUG " }, "lines[1].sku: it ends with a space"},
		"a SKU with two in a row":     {func(m *orderv1.PlaceOrderRequest) { m.Lines[0].Sku = "BANK  CHARGES" }, "lines[0].sku: it contains two spaces in a row"},
		"a SKU with NUL":              {func(m *orderv1.PlaceOrderRequest) { m.Lines[0].Sku = "M\x00" }, "lines[0].sku: "},
		"a currency that is none":     {func(m *orderv1.PlaceOrderRequest) { m.Currency = "ZZZ" }, `currency: "ZZZ" is not an ISO 4217 currency`},
		"a price in one":              {func(m *orderv1.PlaceOrderRequest) { m.Lines[0].UnitPrice.CurrencyCode = "XXX" }, `lines[0].unit_price: "XXX" is not an ISO 4217 currency`},
		"half a penny":                {func(m *orderv1.PlaceOrderRequest) { m.Lines[1].UnitPrice.Nanos = 5_000_000 }, "lines[1].unit_price: 0.005 has more than the 2 decimals of GBP"},
		"half a yen": {func(m *orderv1.PlaceOrderRequest) {
			m.Currency, m.Lines[0].UnitPrice = "JPY", &money.Money{CurrencyCode: "JPY", Units: 1, Nanos: 500_000_000}
		}, "lines[0].unit_price: 1.5 has more than the 0 decimals of JPY"},
		"a time of two seconds in nanoseconds": {func(m *orderv1.PlaceOrderRequest) { m.OrderedAt = &timestamppb.Timestamp{Seconds: 1, Nanos: 2e9} }, "ordered_at: not a time in the years 1 to 9999"},
	} {
		m := good(2)
		c.change(m)
		_, err := commands.PlaceOrder(t.Context(), connect.NewRequest(m))
		var typed *connect.Error
		if !errors.As(err, &typed) || typed.Code() != connect.CodeInvalidArgument ||
			!strings.Contains(typed.Message(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		value, err := typed.Details()[0].Value()
		if violations, ok := value.(*validate.Violations); err != nil || !ok || len(violations.GetViolations()) != 1 {
			t.Errorf("%s: details %v", name, value)
		}
	}
	for _, other := range []string{"{" + id + "}", "urn:uuid:" + id} {
		_, err := queries.GetOrder(t.Context(),
			connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_OrderId{OrderId: other}}))
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestCurrenciesOfTheSetting(t *testing.T) {
	t.Parallel()
	_, commands, _ := record(t, rpc.WithCurrencies(event.Currencies{"GBP": 3, "PTS": 0}))
	for price, ok := range map[*money.Money]bool{
		{CurrencyCode: "GBP", Nanos: 1_000_000}:   true,
		{CurrencyCode: "GBP", Nanos: 100_000}:     false,
		{CurrencyCode: "PTS", Units: 7}:           true,
		{CurrencyCode: "PTS", Nanos: 500_000_000}: false,
		{CurrencyCode: "EUR", Nanos: 1_000_000}:   false,
	} {
		m := good(1)
		m.Currency, m.Lines[0].UnitPrice = price.GetCurrencyCode(), price
		if _, err := commands.PlaceOrder(t.Context(), connect.NewRequest(m)); (err == nil) != ok {
			t.Errorf("%v: %v", price, err)
		}
	}
}

// Every new string field of a contract must say whether it is an identifier.
func TestNoIdentifierIsForgotten(t *testing.T) {
	t.Parallel()
	seen := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			if service := file.Services().Get(i); strings.HasPrefix(string(service.FullName()), "millrace.") {
				for j := range service.Methods().Len() {
					method := service.Methods().Get(j)
					query := method.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
					seen += identifiers(t, method.Input(), query)
				}
			}
		}
		return true
	})
	if seen < 20 {
		t.Errorf("only %d identifiers are looked at", seen)
	}
}

func identifiers(t *testing.T, md protoreflect.MessageDescriptor, query bool) (seen int) {
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.Message() != nil && strings.HasPrefix(string(fd.Message().FullName()), "millrace.") {
			seen += identifiers(t, fd.Message(), query)
			continue
		}
		rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
		kind, _ := proto.GetExtension(fd.Options(), eventv1.E_Identifier).(eventv1.Identifier)
		var marked bool
		switch fd.Name() {
		case "order_id", "customer_id":
			marked = rules.GetString().GetUuid()
		case "sku": // ASCII by its rule; commands that end or queries that show existing ones accept older ones, too
			marked = query || kind == eventv1.Identifier_IDENTIFIER_NAME ||
				md.Name() == "DelistProductRequest" || md.Name() == "CommitReservationRequest" ||
				md.Name() == "ReleaseReservationRequest"
		case "reference", "reservation_id", "categories", "category":
			marked = kind == eventv1.Identifier_IDENTIFIER_NAME || kind == eventv1.Identifier_IDENTIFIER_LOOKUP
		case "currency":
			marked = kind == eventv1.Identifier_IDENTIFIER_CURRENCY
		default:
			continue
		}
		if seen++; !marked {
			t.Errorf("%s bears no mark", fd.FullName())
		}
	}
	return seen
}
