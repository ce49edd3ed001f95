package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/rpc"
)

var now = time.Date(2025, 12, 1, 8, 26, 0, 0, time.UTC)

// service returns a given response or error for PlaceOrder.
type service struct {
	orderv1connect.UnimplementedOrderServiceHandler
	place func(ctx context.Context) error
}

func (s service) PlaceOrder(
	ctx context.Context, _ *connect.Request[orderv1.PlaceOrderRequest],
) (*connect.Response[orderv1.PlaceOrderResponse], error) {
	if err := s.place(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&orderv1.PlaceOrderResponse{OrderId: "placed"}), nil
}

func serve(t *testing.T, log *bytes.Buffer, place func(ctx context.Context) error) orderv1connect.OrderServiceClient {
	t.Helper()
	mux := http.NewServeMux()
	opts := rpc.HandlerOptions(slog.New(slog.NewTextHandler(log, nil)), func() time.Time { return now })
	mux.Handle(orderv1connect.NewOrderServiceHandler(service{place: place}, opts...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return orderv1connect.NewOrderServiceClient(server.Client(), server.URL)
}

func good(lines int) *orderv1.PlaceOrderRequest {
	m := &orderv1.PlaceOrderRequest{Currency: "GBP", Country: "GB"}
	for range lines {
		m.Lines = append(m.Lines, &orderv1.NewLine{Sku: "MUG", Quantity: 1,
			UnitPrice: &money.Money{CurrencyCode: "GBP"}})
	}
	return m
}

func TestPublicErrors(t *testing.T) {
	t.Parallel()
	const secret = "dsn=postgres://admin:hunter2@db"
	for name, c := range map[string]struct {
		place  func(ctx context.Context) error
		code   connect.Code
		logged bool
	}{
		"a Connect error is meant for them": {func(context.Context) error {
			return connect.NewError(connect.CodeNotFound, errors.New("no such order"))
		}, connect.CodeNotFound, false},
		"so is one that was wrapped": {func(context.Context) error {
			return fmt.Errorf("place: %w", connect.NewError(connect.CodeAborted, errors.New("try again")))
		}, connect.CodeAborted, false},
		"another error is not": {func(context.Context) error { return errors.New(secret) }, connect.CodeInternal, true},
		"a server that cannot be reached": {func(context.Context) error {
			return fmt.Errorf("%s: %w", secret, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
		}, connect.CodeUnavailable, true},
		"a connection that ended": {func(context.Context) error { return fmt.Errorf("%s: %w", secret, io.EOF) },
			connect.CodeUnavailable, true},
		"a panic is not":          {func(context.Context) error { panic(secret) }, connect.CodeInternal, true},
		"a deadline is theirs":    {func(context.Context) error { return fmt.Errorf("append: %w", context.DeadlineExceeded) }, connect.CodeDeadlineExceeded, false},
		"a cancellation is, too":  {func(context.Context) error { return fmt.Errorf("append: %w", context.Canceled) }, connect.CodeCanceled, false},
		"nothing at all is wrong": {func(context.Context) error { return nil }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			_, err := serve(t, &log, c.place).PlaceOrder(t.Context(), connect.NewRequest(good(1)))
			if c.code == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if connect.CodeOf(err) != c.code || strings.Contains(err.Error(), secret) {
				t.Errorf("want code %v, got %v", c.code, err)
			}
			if c.logged != strings.Contains(log.String(), secret) {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

func TestValidation(t *testing.T) {
	t.Parallel()
	called := 0
	var log bytes.Buffer
	client := serve(t, &log, func(context.Context) error { called++; return nil })
	for name, c := range map[string]struct {
		change func(m *orderv1.PlaceOrderRequest)
		text   string
		rules  int
	}{
		"one field":         {func(m *orderv1.PlaceOrderRequest) { m.Currency = "pound" }, "currency: ", 1},
		"one deep inside":   {func(m *orderv1.PlaceOrderRequest) { m.Lines[1].Quantity = -1 }, "lines[1].quantity: ", 1},
		"a time after now":  {func(m *orderv1.PlaceOrderRequest) { m.OrderedAt = timestamppb.New(now.Add(1)) }, "ordered_at: ", 1},
		"a time before all": {func(m *orderv1.PlaceOrderRequest) { m.OrderedAt = &timestamppb.Timestamp{Seconds: -1 << 60} }, "ordered_at: ", 1},
		"two fields":        {func(m *orderv1.PlaceOrderRequest) { m.Currency, m.Country = "", "" }, "; country: ", 2},
		"too many to name": {func(m *orderv1.PlaceOrderRequest) {
			for i := range m.GetLines() {
				m.Lines[i].Quantity = 0
			}
		}, "; and 10 more", 10},
	} {
		m := good(20)
		c.change(m)
		_, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
		var typed *connect.Error
		if !errors.As(err, &typed) || typed.Code() != connect.CodeInvalidArgument ||
			!strings.Contains(typed.Message(), c.text) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var violations *validate.Violations
		for _, d := range typed.Details() {
			if v, err := d.Value(); err == nil {
				violations, _ = v.(*validate.Violations)
			}
		}
		if len(violations.GetViolations()) != c.rules {
			t.Errorf("%s: details %v", name, violations)
		}
	}
	if called != 0 {
		t.Errorf("the service was called %d times", called)
	}
	m := good(1)
	m.OrderedAt = timestamppb.New(now.Add(-1))
	if _, err := client.PlaceOrder(t.Context(), connect.NewRequest(m)); err != nil || called != 1 {
		t.Errorf("a good request: %v, %d calls", err, called)
	}
}

func TestLargeRequestIsRefused(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	client := serve(t, &log, func(context.Context) error { return errors.New("it was called") })
	m := good(1)
	m.Reference = strings.Repeat("x", rpc.MaxRequestBytes)
	if _, err := client.PlaceOrder(t.Context(),
		connect.NewRequest(m)); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("%v", err)
	}
}

// operations returns given responses.
type operations struct {
	adminv1connect.UnimplementedAdminServiceHandler
	fail func(ctx context.Context) error
}

func (o operations) Status(
	ctx context.Context, _ *connect.Request[adminv1.StatusRequest],
) (*connect.Response[adminv1.StatusResponse], error) {
	return nil, o.fail(ctx)
}

func (o operations) Verify(
	ctx context.Context, _ *connect.Request[adminv1.VerifyRequest],
	_ *connect.ServerStream[adminv1.VerifyResponse],
) error {
	return o.fail(ctx)
}

// Operators learn which server does not answer, and that they may retry: an unavailable store is
// not a bug.
func TestOperatorErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail func(ctx context.Context) error
		code connect.Code
		says string
	}{
		"a store that is away": {func(context.Context) error { return fmt.Errorf("store of order: %w", errors.New("connection refused")) }, connect.CodeUnavailable, "store of order: connection refused"},
		"a disk that is full":  {func(context.Context) error { return syscall.ENOSPC }, connect.CodeUnavailable, "no space left"},
		"a store that is slow": {func(context.Context) error { return fmt.Errorf("store of order: %w", context.DeadlineExceeded) }, connect.CodeUnavailable, "store of order"},
		"a typed error":        {func(context.Context) error { return connect.NewError(connect.CodeAborted, errors.New("moved")) }, connect.CodeAborted, "moved"},
		"a panic":              {func(context.Context) error { panic("bug") }, connect.CodeInternal, "log"},
		"the call's deadline": {func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("a query was cancelled")
		}, connect.CodeDeadlineExceeded, ""},
	} {
		mux := http.NewServeMux()
		mux.Handle(adminv1connect.NewAdminServiceHandler(operations{fail: c.fail},
			rpc.OperationOptions(slog.New(slog.DiscardHandler))...))
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		client := adminv1connect.NewAdminServiceClient(server.Client(), server.URL)
		ctx := t.Context()
		if c.code == connect.CodeDeadlineExceeded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
		}
		_, err := client.Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		if connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: status: %v, want %v", name, err, c.code)
		}
		stream, err := client.Verify(ctx, connect.NewRequest(&adminv1.VerifyRequest{}))
		if err == nil {
			for stream.Receive() {
			}
			err = errors.Join(stream.Err(), stream.Close())
		}
		if connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: verify: %v, want %v", name, err, c.code)
		}
	}
}
