package client_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/client"
	"github.com/millrace/millrace/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// orders responds to each call of PlaceOrder with the next given response. It repeats the last one.
type orders struct {
	orderv1connect.UnimplementedOrderServiceHandler
	calls   atomic.Int64
	answers []error
}

func (o *orders) PlaceOrder(
	context.Context, *connect.Request[orderv1.PlaceOrderRequest],
) (*connect.Response[orderv1.PlaceOrderResponse], error) {
	n := int(o.calls.Add(1))
	if err := o.answers[min(n, len(o.answers))-1]; err != nil {
		return nil, err
	}
	return connect.NewResponse(&orderv1.PlaceOrderResponse{Receipt: &eventv1.Receipt{Version: 7}}), nil
}

func start(t *testing.T, retryFor time.Duration, answers ...error) (*client.Client, *orders) {
	t.Helper()
	o := &orders{answers: answers}
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(o))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	c := client.New(strings.TrimPrefix(server.URL, "http://"), retryFor)
	t.Cleanup(c.Close)
	return c, o
}

func failure(code connect.Code) error { return connect.NewError(code, errors.New("for the test")) }

func TestTransientFailuresAreRetried(t *testing.T) {
	t.Parallel()
	c, o := start(t, time.Minute, failure(connect.CodeUnavailable), failure(connect.CodeAborted),
		failure(connect.CodeCanceled), nil)
	receipt, err := c.Send(t.Context(), &orderv1.PlaceOrderRequest{})
	if err != nil || receipt.GetVersion() != 7 || o.calls.Load() != 4 {
		t.Fatalf("%v, %v after %d calls, want the receipt after 4", receipt, err, o.calls.Load())
	}
}

func TestOtherFailuresAreNot(t *testing.T) {
	t.Parallel()
	for _, code := range []connect.Code{connect.CodeInternal, connect.CodeUnknown, connect.CodeInvalidArgument,
		connect.CodePermissionDenied, connect.CodeUnimplemented} {
		c, o := start(t, time.Minute, failure(code))
		if _, err := c.Send(t.Context(), &orderv1.PlaceOrderRequest{}); connect.CodeOf(err) != code ||
			o.calls.Load() != 1 {
			t.Errorf("%v after %d calls, want %v after one", err, o.calls.Load(), code)
		}
	}
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	c, o := start(t, 30*time.Millisecond, failure(connect.CodeUnavailable))
	_, err := c.Send(t.Context(), &orderv1.PlaceOrderRequest{})
	if !errors.Is(err, client.ErrUnreachable) || connect.CodeOf(err) != connect.CodeUnavailable || o.calls.Load() < 2 {
		t.Errorf("%v after %d calls, want ErrUnreachable after a few", err, o.calls.Load())
	}
	if _, refused := client.Refusal(err); refused {
		t.Error("a server that is away is taken for one that refuses")
	}
}

// A caller whose context ends gets the context's error, not ErrUnreachable.
func TestContextEndsRetries(t *testing.T) {
	t.Parallel()
	c, _ := start(t, time.Hour, failure(connect.CodeUnavailable))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Send(ctx, &orderv1.PlaceOrderRequest{}); err == nil || errors.Is(err, client.ErrUnreachable) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// A refusal has the detail of a business rule, or a reason made from the error. An internal error
// is not a refusal.
func TestRefusal(t *testing.T) {
	t.Parallel()
	rule := &eventv1.Rejection{Rule: "order_already_placed", Reason: "it exists",
		Facts: map[string]string{"lines": "17"}}
	for name, test := range map[string]struct {
		err  error
		want *eventv1.Rejection
	}{
		"business rule": {rpc.WithDetail(connect.NewError(connect.CodeAlreadyExists, errors.New("it exists")), rule), rule},
		"validation":    {connect.NewError(connect.CodeInvalidArgument, errors.New("country: too short")), &eventv1.Rejection{Reason: "country: too short"}},
		"bug":           {failure(connect.CodeInternal), nil},
	} {
		c, _ := start(t, time.Minute, test.err)
		_, err := c.Send(t.Context(), &orderv1.PlaceOrderRequest{})
		if got, ok := client.Refusal(err); ok != (test.want != nil) || !proto.Equal(got, test.want) {
			t.Errorf("%s: refusal %v, want %v", name, got, test.want)
		}
	}
	if _, ok := client.Refusal(nil); ok {
		t.Error("no error is a refusal")
	}
}

// Send accepts every method of the services that changes something.
func TestSendAcceptsAllCommands(t *testing.T) {
	t.Parallel()
	c := client.New("127.0.0.1:1", 0)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	commands := 0
	for _, file := range []protoreflect.FileDescriptor{
		catalogv1.File_millrace_catalog_v1_catalog_service_proto,
		customerv1.File_millrace_customer_v1_customer_service_proto,
		inventoryv1.File_millrace_inventory_v1_inventory_service_proto,
		orderv1.File_millrace_order_v1_order_service_proto,
	} {
		methods := file.Services().Get(0).Methods()
		for i := range methods.Len() {
			method := methods.Get(i)
			if method.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
				continue
			}
			commands++
			request, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Send(ctx, request.New().Interface()); connect.CodeOf(err) != connect.CodeCanceled {
				t.Errorf("%s: %v", method.FullName(), err)
			}
			if name := client.Name(request.New().Interface()); name != string(method.Name()) {
				t.Errorf("%s is called %s", method.FullName(), name)
			}
		}
	}
	if commands < 16 {
		t.Errorf("only %d commands were tried", commands)
	}
	if _, err := c.Send(ctx, &eventv1.Receipt{}); err == nil || connect.CodeOf(err) == connect.CodeCanceled {
		t.Errorf("a receipt was sent: %v", err)
	}
}

// TestInProcess checks that a handler of this process answers, refuses and is retried as a server.
func TestInProcess(t *testing.T) {
	t.Parallel()
	o := &orders{answers: []error{failure(connect.CodeUnavailable), nil, failure(connect.CodeInvalidArgument)}}
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(o))
	c := client.InProcess(mux, time.Minute)
	defer c.Close()
	receipt, err := c.Send(t.Context(), &orderv1.PlaceOrderRequest{Country: "GB"})
	if err != nil || receipt.GetVersion() != 7 || o.calls.Load() != 2 {
		t.Fatalf("%v, %v after %d calls, want the receipt after 2", receipt, err, o.calls.Load())
	}
	_, err = c.Send(t.Context(), &orderv1.PlaceOrderRequest{})
	if r, refused := client.Refusal(err); !refused || r.GetReason() != "for the test" {
		t.Errorf("%v is the refusal %v", err, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Send(ctx, &orderv1.PlaceOrderRequest{}); !errors.Is(err, context.Canceled) && connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("after the end of the context: %v", err)
	}
}
