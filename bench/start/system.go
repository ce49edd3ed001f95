package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/test/servers/process"
)

// system is a data folder with orders, and the binary to run on it. The folder is used by one
// process at a time.
type system struct {
	binary, data string
	orders       int
}

const (
	ordersPerTransaction = 2000             // of the event store
	preparedMarker       = "filled"         // file in a data folder that has all orders
	readyTimeout         = 30 * time.Minute // long enough for the first run, which fills every sink
)

// prepare creates the data folder, unless it exists. It appends the orders to the store directly,
// which is much faster than commands, and runs the system once until every sink has them. The
// marker is written last, so an interrupted preparation is repeated.
func (s system) prepare(ctx context.Context) error {
	marker := filepath.Join(s.data, preparedMarker)
	if _, err := os.Stat(marker); err == nil {
		return nil // a kept folder of an earlier run
	}
	fmt.Fprintf(os.Stderr, "bench start: storing %d orders\n", s.orders)
	if err := os.MkdirAll(filepath.Join(s.data, "store"), 0o750); err != nil {
		return err
	}
	store, err := sqlite.Open(ctx, filepath.Join(s.data, "store", event.Order.Service+".db"), event.Order)
	if err != nil {
		return err
	}
	// Large batches are much faster than one transaction per order.
	for from := 0; from < s.orders && err == nil; from += ordersPerTransaction {
		var b eventstore.Batch
		for n := from; n < min(from+ordersPerTransaction, s.orders) && err == nil; n++ {
			var order eventstore.StreamAppend
			order, err = newOrder(n)
			b.Streams = append(b.Streams, order)
		}
		if err == nil {
			_, err = store.Append(ctx, b)
		}
	}
	if err := errors.Join(err, store.Close()); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "bench start: the first run")
	// The first run fills the views and the lake, which a measured start must not have to do.
	p, err := s.start(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(p.awaitSinks(ctx), p.stop(syscall.SIGTERM)); err != nil {
		return err
	}
	return os.WriteFile(marker, nil, 0o600)
}

// orderID returns the id of the n-th order, in the form of a UUIDv7. It is the same in every run,
// so that a folder can be reused.
func orderID(n int) string { return fmt.Sprintf("0199c1d2-7b1c-7000-8000-%012d", n) }

const currency = "EUR"

// newOrder returns the events of the n-th order: placed with three lines, and confirmed. The values
// repeat like those of a real shop: every three orders share a customer, and 5000 SKUs exist.
func newOrder(n int) (eventstore.StreamAppend, error) {
	// Orders are a second apart.
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
	placed := &orderv1.OrderPlaced{
		OrderId: orderID(n), Reference: fmt.Sprintf("R-%08d", n), Currency: currency, Country: "Netherlands",
		CustomerId: proto.String(fmt.Sprintf("0199c1d2-7b1c-7000-9000-%012d", n/3)), OrderedAt: timestamppb.New(at),
		Total: &money.Money{CurrencyCode: currency, Units: 100},
	}
	for i := range 3 {
		placed.Lines = append(placed.Lines, &orderv1.OrderLine{
			Number: uint32(i + 1), Sku: fmt.Sprintf("SKU-%05d", (n*7+i)%5000),
			Description: "White hanging heart lantern", Quantity: 2,
			UnitPrice: &money.Money{CurrencyCode: currency, Units: 16},
		})
	}
	// The stream is new, so the expected version is 0.
	order := eventstore.StreamAppend{Stream: placed.OrderId}
	for _, e := range []struct {
		kind    string
		message *orderv1.OrderEvent
	}{
		{"OrderPlaced", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: placed}}},
		{"OrderConfirmed", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{
			OrderId: placed.OrderId, ConfirmedAt: timestamppb.New(at.Add(time.Minute)),
		}}}},
	} {
		data, err := proto.Marshal(e.message)
		if err != nil {
			return order, err
		}
		id, err := uuid.NewV7()
		if err != nil {
			return order, err
		}
		order.Events = append(order.Events, event.Event{
			ID: id, Aggregate: event.Order.Name, Type: "millrace.order.v1." + e.kind, Data: data,
			OccurredAt: at, RecordedAt: event.Time(time.Now()),
		})
	}
	return order, nil
}

// running is one run of a system, with the addresses that it listens on: that of commands and
// queries, and that of operations.
type running struct {
	system
	process    *process.Process
	api, admin string
}

// start starts the system on free ports, and returns once it is ready. The binary and the folder
// may be relative paths, which are resolved here, because the process runs in its data folder.
func (s system) start(ctx context.Context) (*running, error) {
	ports, err := process.FreePorts(2)
	if err != nil {
		return nil, err
	}
	r := &running{
		system: s, api: fmt.Sprintf("127.0.0.1:%d", ports[0]), admin: fmt.Sprintf("127.0.0.1:%d", ports[1]),
	}
	// process.Start polls this URL until the system is ready.
	ready := process.HTTPReady("http://"+r.admin+"/readyz", http.StatusOK)
	binary, err := filepath.Abs(s.binary)
	if err != nil {
		return nil, err
	}
	data, err := filepath.Abs(s.data)
	if err != nil {
		return nil, err
	}
	library, err := clickhouse.FindLibrary("")
	if err != nil {
		return nil, err
	}
	// Listeners that the benchmark does not use take free ports, so that runs do not collide.
	r.process, err = process.Start(ctx, process.Command{
		Name: "millrace", Path: binary, Args: []string{"up", "--no-demo", "--data", data}, Dir: data,
		StartTimeout: readyTimeout,
		Env: []string{
			"MILLRACE_ADDR=" + r.api, "MILLRACE_ADMIN_ADDR=" + r.admin, "MILLRACE_TRACKING_ADDR=127.0.0.1:0",
			"MILLRACE_REDIS_LISTEN=127.0.0.1:0", "MILLRACE_KAFKA_LISTEN=127.0.0.1:0",
			"MILLRACE_CLICKHOUSE_LISTEN=127.0.0.1:0", clickhouse.EnvLibraryPath + "=" + library,
		},
		Ready: ready,
	})
	return r, err
}

// memory returns the current and the highest memory of the process, in MB. The highest is that
// since its start.
func (r *running) memory() (rssMB, peakMB int64, err error) {
	rss, err1 := r.process.ResidentMB()
	peak, err2 := r.process.PeakMB()
	return int64(rss), int64(peak), errors.Join(err1, err2)
}

// stop ends the run: at once with SIGKILL, and otherwise with a clean stop, which may take a
// minute. After that, the process is killed, and stop returns an error.
func (r *running) stop(how syscall.Signal) error {
	if how == syscall.SIGKILL {
		return r.process.Kill()
	}
	return r.process.Stop(time.Minute)
}

// awaitSinks blocks until every sink has all orders. A system becomes ready when its views have
// caught up, but the lake may still be behind.
func (r *running) awaitSinks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	// status reports the lag of every sink.
	client := adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+r.admin)
	for {
		status, err := client.Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		behind := "" // the sink that lags, or the error; empty when all sinks are complete
		if err != nil {
			behind = err.Error()
		} else {
			for _, s := range status.Msg.Sinks {
				// A lag of 0 is not enough: a sink of orders must have some.
				if s.LagEvents > 0 || strings.HasSuffix(s.Sink, " orders") && s.Count == 0 {
					behind = fmt.Sprintf("%s has %d %s and lags by %d events", s.Sink, s.Count, s.Unit, s.LagEvents)
				}
			}
		}
		if behind == "" {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("wait for the sinks: %s: %w", behind, ctx.Err())
		}
	}
}

// checkLastOrder checks that a query returns the last order as confirmed. The query has a token of
// that version, so it fails unless the view has all events of the order.
func (r *running) checkLastOrder(ctx context.Context) error {
	token := event.Token{
		Service: event.Order.Service, Stream: orderID(r.orders - 1), Version: 2, Position: event.Position{},
	}
	client := orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+r.api)
	answer, err := client.GetOrder(ctx, connect.NewRequest(&orderv1.GetOrderRequest{
		Key: &orderv1.GetOrderRequest_OrderId{OrderId: token.Stream}, Token: token.String(),
	}))
	if err != nil {
		return fmt.Errorf("read the last order: %w", err)
	}
	if stage := answer.Msg.Order.Stage; stage != orderv1.OrderStage_ORDER_STAGE_CONFIRMED {
		return fmt.Errorf("the last order is %v, want confirmed", stage)
	}
	return nil
}
