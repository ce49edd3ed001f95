package orderstatus_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/streams/streamstest"
)

// serve serves a view over HTTP as a process does.
func serve(t *testing.T, v *orderstatus.View) orderv1connect.OrderQueryServiceClient {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderQueryServiceHandler(orderstatus.NewQueries(v),
		rpc.HandlerOptions(streamstest.Quiet, time.Now)...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return orderv1connect.NewOrderQueryServiceClient(server.Client(), server.URL)
}

func byID(id, token string) *connect.Request[orderv1.GetOrderRequest] {
	return connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_OrderId{OrderId: id},
		Token: token})
}

func byReference(reference, token string) *connect.Request[orderv1.GetOrderRequest] {
	return connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_Reference{Reference: reference},
		Token: token})
}

func tokenOf(e event.Event) string {
	return event.Token{Service: "order", Stream: e.Stream, Version: e.Version, Position: e.Position}.String()
}

const (
	order1 = "00000000-0000-7000-8000-000000000001"
	order2 = "00000000-0000-7000-8000-000000000002"

	order10 = "00000000-0000-7000-8000-00000000000a"
)

func TestGetOrder(t *testing.T) {
	t.Parallel()
	client := newRedis(t)
	v := orderstatus.New(client, streamstest.Quiet)
	queries := serve(t, v)
	l := &streamstest.Log{Versions: map[string]uint64{}}
	first := l.Next("order", order1, marshal(t, placed("536365", line(1))))
	second := l.Next("order", order1, marshal(t, confirmed()))
	twin := l.Next("order", order2, marshal(t, placed("536365", line(1)))) // a reference that the shop used twice
	tenth := l.Next("order", order10, marshal(t, placed("10", line(1))))
	if err := v.Apply(t.Context(), records([]event.Event{first, second, twin, tenth})); err != nil {
		t.Fatal(err)
	}
	shouted := tenth
	shouted.Stream = strings.ToUpper(shouted.Stream)
	for name, c := range map[string]struct {
		request *connect.Request[orderv1.GetOrderRequest]
		want    string // order id
		code    connect.Code
	}{
		"by id":                        {byID(order1, ""), order1, 0},
		"by id in capitals":            {byID(strings.ToUpper(order10), ""), order10, 0},
		"with a token in capitals":     {byID(order10, tokenOf(shouted)), order10, 0},
		"by id, with its token":        {byID(order1, tokenOf(second)), order1, 0},
		"with the token of another":    {byID(order1, tokenOf(twin)), order1, 0},
		"by reference, the last":       {byReference("536365", ""), order2, 0},
		"by reference, with a token":   {byReference("536365", tokenOf(second)), order2, 0},
		"no such order":                {byID("00000000-0000-7000-8000-000000000009", ""), "", connect.CodeNotFound},
		"no such reference":            {byReference("1", ""), "", connect.CodeNotFound},
		"no such order, with a token":  {byID("00000000-0000-7000-8000-000000000009", tokenOf(first)), "", connect.CodeNotFound},
		"an id that is none":           {byID("1", ""), "", connect.CodeInvalidArgument},
		"neither id nor reference":     {connect.NewRequest(&orderv1.GetOrderRequest{}), "", connect.CodeInvalidArgument},
		"a token that is none":         {byID(order1, "rubbish"), "", connect.CodeInvalidArgument},
		"a token of another service":   {byID(order1, event.Token{Service: "catalog", Stream: "x", Version: 1}.String()), "", connect.CodeInvalidArgument},
		"a token longer than any good": {byID(order1, string(make([]byte, 1001))), "", connect.CodeInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := queries.GetOrder(t.Context(), c.request)
			if c.code != 0 {
				if connect.CodeOf(err) != c.code {
					t.Errorf("got %v, %v, want %v", got, err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			o, f := got.Msg.Order, got.Msg.Freshness
			if o.OrderId != c.want {
				t.Errorf("got %v", o)
			}
			if f.View != orderstatus.Name || f.Version != o.Version || !proto.Equal(f.AsOf, o.RecordedAt) {
				t.Errorf("freshness %v of %v", f, o)
			}
		})
	}
}

func TestGetOrderWaitsForItsToken(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Order.Topic)
	client := newRedis(t)
	v := orderstatus.New(client, streamstest.Quiet)
	queries := serve(t, v)
	e := l.Next("order", order1, marshal(t, placed("536365", line(1))))

	// Nothing feeds the view. The typed error must arrive before the caller's deadline.
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := queries.GetOrder(short, byID(order1, tokenOf(e)))
	var stale *connect.Error
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded || !errors.As(err, &stale) || len(stale.Details()) != 1 {
		t.Fatalf("got %v, without the detail or too late", err)
	}
	if detail, err := stale.Details()[0].Value(); err != nil ||
		!proto.Equal(detail, &eventv1.Stale{View: orderstatus.Name, Stream: order1, WantVersion: 1}) {
		t.Errorf("detail %v, %v", detail, err)
	}

	answers := make(chan error, 2)
	for _, request := range []*connect.Request[orderv1.GetOrderRequest]{byID(order1, tokenOf(e)),
		byReference("536365", tokenOf(e))} {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := queries.GetOrder(ctx, request)
			if err == nil && got.Msg.Order.GetVersion() != 1 {
				err = errors.New("answered with another version")
			}
			answers <- err
		}()
	}
	r := v.Runtime(cfg, nil, streamstest.Quiet)
	streamstest.Start(t, r)
	l.Write(t, e)
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	streamstest.CatchUp(t, r)
	got, err := queries.GetOrder(t.Context(), byID(order1, ""))
	if err != nil || got.Msg.Freshness.LagEvents != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
