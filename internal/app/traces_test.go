package app

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/tracing/tracingtest"
)

// placeOrder places an order of a new customer in the trace of a context, which may be empty.
func placeOrder(t *testing.T, p *App, traceparent string) *orderv1.PlaceOrderResponse {
	t.Helper()
	req := connect.NewRequest(&orderv1.PlaceOrderRequest{
		Currency: "GBP", Country: "GB", CustomerId: proto.String(uuid.NewString()),
		Lines: []*orderv1.NewLine{{Sku: "MUG", Description: "Mug", Quantity: 2,
			UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 4}}},
	})
	if traceparent != "" {
		req.Header().Set("Traceparent", traceparent)
	}
	res, err := orderv1connect.NewOrderServiceClient(http.DefaultClient, "http://"+p.Addr()).PlaceOrder(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg
}

// TestOneTraceOfAnOrder: the trace of a caller's request has a span for every hop of the order's
// event, with the call as parent. Orders of earlier times have no trace, and every hop reads them.
func TestOneTraceOfAnOrder(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	useEngine(t, &c)
	earlier := startEmbedded(t, c, Shop(), Commands, Relay)
	old := placeOrder(t, earlier, "")
	if err := earlier.Close(); err != nil {
		t.Fatal(err)
	}

	to := tracingtest.NewReceiver(t)
	c.Telemetry.Traces.Endpoint, c.Telemetry.Traces.Ratio = to.URL, 0
	p := startEmbedded(t, c, Shop(), Roles()...)
	polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	traced := placeOrder(t, p, "00-"+trace+"-"+span+"-01")
	const call = "millrace.order.v1.OrderService/PlaceOrder"
	want := []string{call, "store append", "publish millrace.orders"}
	for _, v := range p.modules.viewsOf(p.modules.Services[3].Aggregate) {
		want = append(want, "apply "+v.Name)
	}
	for _, table := range p.modules.Services[3].Tables {
		want = append(want, "commit lake/"+table.Name)
	}
	want = append(want, "apply features/online")
	var spans []tracingtest.Span
	polltest.Until(t, "the receiver has a span of every hop", func() bool {
		spans = to.Spans(trace)
		return !slices.ContainsFunc(want, func(name string) bool { return find(spans, name) == nil }) &&
			slices.ContainsFunc(
				spans,
				func(s tracingtest.Span) bool { return strings.HasPrefix(s.Name, "apply features/facts_") },
			)
	})
	root := find(spans, call)
	for _, s := range spans {
		parent := root.ID
		if s.Name == call {
			parent = span
		}
		if s.Parent != parent || s.Failed || s.Ended.Before(s.Begun) {
			t.Errorf("%s: parent %q, failed %v; want parent %q", s.Name, s.Parent, s.Failed, parent)
		}
		if stream := s.Attributes["millrace.stream"]; s.Name != call && stream != traced.GetOrderId() {
			t.Errorf("%s is of the stream %q, want %q", s.Name, stream, traced.GetOrderId())
		}
	}
	for _, order := range []*orderv1.PlaceOrderResponse{old, traced} {
		res, err := orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+p.Addr()).GetOrder(t.Context(),
			connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_OrderId{OrderId: order.GetOrderId()}, Token: order.GetReceipt().GetToken()}),
		)
		if err != nil || res.Msg.GetOrder().GetOrderId() != order.GetOrderId() {
			t.Errorf("order %s: %v, %v", order.GetOrderId(), res, err)
		}
	}
	// The query without a context began a trace of its own, which is not sampled.
	if n := len(to.Spans("")); n != len(to.Spans(trace)) {
		t.Errorf("received %d spans of other traces", n-len(to.Spans(trace)))
	}
}

// find returns the span with a name, or nil.
func find(spans []tracingtest.Span, name string) *tracingtest.Span {
	i := slices.IndexFunc(spans, func(s tracingtest.Span) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &spans[i]
}

// TestTraceStream: the path of an order has its store position, its offset, and every sink.
func TestTraceStream(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	useEngine(t, &c)
	p := startEmbedded(t, c, Shop(), Roles()...)
	polltest.Until(t, "the process is ready", func() bool { return p.unready(t.Context()) == nil })
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	order := placeOrder(t, p, "00-"+trace+"-00f067aa0ba902b7-01")
	placeOrder(t, p, "")
	admin := adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())
	req := &adminv1.TraceStreamRequest{Aggregate: "order", Stream: strings.ToUpper(order.GetOrderId())}
	var res *adminv1.TraceStreamResponse
	polltest.Until(t, "every sink has applied the order", func() bool {
		got, err := admin.TraceStream(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		res = got.Msg
		return len(res.Hops) > 0 && !slices.ContainsFunc(res.Hops, func(h *adminv1.StreamHop) bool { return !h.Applied })
	})
	if len(res.Events) != 1 || res.Version != 1 || len(res.DeadLetters) != 0 {
		t.Fatalf("the path is %v", res)
	}
	e := res.Events[0]
	if e.TraceId != trace || !e.Published || e.Offset == nil || e.Type != "millrace.order.v1.OrderPlaced" ||
		e.Position == "" || e.PublishedAt.AsTime().Before(e.RecordedAt.AsTime().Add(-searchSkew)) {
		t.Errorf("the event is %v", e)
	}
	sinks := map[string]*adminv1.StreamHop{}
	for _, h := range res.Hops {
		sinks[h.Sink] = h
		if h.Error != "" || h.Next <= e.GetOffset() {
			t.Errorf("%s: %v", h.Sink, h)
		}
	}
	for _, view := range []string{"view orderstatus/v2", "view customer360/v2"} {
		if sinks[view].GetVersion() != 1 {
			t.Errorf("%s shows %v, want version 1", view, sinks[view])
		}
	}
	for _, table := range []string{"table orders_events", "table order_lines", "table orders_current"} {
		if h := sinks[table]; h.GetSnapshot() == 0 || !h.GetCommittedAt().AsTime().After(e.RecordedAt.AsTime()) {
			t.Errorf("%s: %v, want its snapshot", table, h)
		}
	}
	if sinks["features online"] == nil || sinks["features facts_customer_orders"] == nil {
		t.Errorf("features are missing: %v", res.Hops)
	}
	for want, req := range map[connect.Code]*adminv1.TraceStreamRequest{
		connect.CodeNotFound:        {Aggregate: "order", Stream: uuid.NewString()},
		connect.CodeInvalidArgument: {Aggregate: "orders", Stream: order.GetOrderId()},
	} {
		if _, err := admin.TraceStream(t.Context(), connect.NewRequest(req)); connect.CodeOf(err) != want {
			t.Errorf("%v: %v, want %v", req, err, want)
		}
	}
}
