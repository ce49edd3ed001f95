// Command visible measures how long after its acknowledgement a command is visible: it places
// orders at a fixed rate, and asks for the status of some of them with the token of the receipt. The
// query blocks until the view has applied the order, so its duration is what a user waits.
//
//	bin/millrace up --no-demo &
//	go run ./bench/visible -for 30s
//
// Without -rate, it first measures how many orders per second the system accepts, and then places
// half as many. A fixed rate does not wait for answers: if the system is slow for a moment, the
// orders of that moment count with their whole delay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
)

// main runs the benchmark until it ends or is interrupted.
func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench visible:", err)
		cancel()
		os.Exit(1)
	}
}

// shop is the system under test.
type shop struct {
	commands orderv1connect.OrderServiceClient
	queries  orderv1connect.OrderQueryServiceClient
}

// maxClients bounds the requests in flight. A system that falls behind the rate by more is reported.
const maxClients = 2000

func run(ctx context.Context) error {
	addr := flag.String("addr", "http://127.0.0.1:7400", "address of the API")
	rate := flag.Int("rate", 0, "orders per second; 0 is half of what the system accepts")
	clients := flag.Int("clients", 64, "clients that measure what the system accepts")
	duration := flag.Duration("for", 30*time.Second, "how long to measure")
	every := flag.Int("every", 4, "the status of each Nth order is asked for")
	flag.Parse()
	if *rate < 0 || *clients < 1 || *duration <= 0 || *every < 1 {
		return errors.New("-rate must not be negative, and -clients, -for and -every must be positive")
	}
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: maxClients}, Timeout: time.Minute,
	}
	defer client.CloseIdleConnections()
	s := shop{
		orderv1connect.NewOrderServiceClient(client, *addr), orderv1connect.NewOrderQueryServiceClient(client, *addr),
	}
	if *rate == 0 {
		accepted, err := s.saturate(ctx, *clients, *duration/3)
		if err != nil {
			return err
		}
		fmt.Printf("%d clients: %.0f orders/s\n", *clients, accepted)
		*rate = max(1, int(accepted/2))
	}
	return s.measure(ctx, *rate, *every, *duration)
}

// place places an order, and returns its id and the token of the receipt.
func (s shop) place(ctx context.Context) (id, token string, err error) {
	line := &orderv1.NewLine{
		Sku: "22423", Description: "REGENCY CAKESTAND 3 TIER", Quantity: 2,
		UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 10},
	}
	res, err := s.commands.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{
		Currency: "GBP", Country: "United Kingdom", Lines: []*orderv1.NewLine{line, line, line},
	}))
	if err != nil {
		return "", "", err
	}
	return res.Msg.OrderId, res.Msg.Receipt.Token, nil
}

// saturate returns how many orders per second the system accepts from a number of clients.
func (s shop) saturate(ctx context.Context, clients int, duration time.Duration) (perSecond float64, err error) {
	start := time.Now()
	var accepted atomic.Int64
	errs := make([]error, clients)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for time.Since(start) < duration && errs[i] == nil {
				if _, _, errs[i] = s.place(ctx); errs[i] == nil {
					accepted.Add(1)
				}
			}
		})
	}
	running.Wait()
	return float64(accepted.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

// sample is what one order took.
type sample struct {
	acknowledged, visible time.Duration // visible is from the acknowledgement on; 0 if it was not asked for
	err                   error
}

// measure places orders at a rate, and prints how long they took.
func (s shop) measure(ctx context.Context, rate, every int, duration time.Duration) error {
	samples := make([]sample, int(float64(rate)*duration.Seconds()))
	inFlight := make(chan struct{}, maxClients)
	var running sync.WaitGroup
	start := time.Now()
	for n := range samples {
		due := start.Add(time.Duration(n) * time.Second / time.Duration(rate))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Until(due)): // several are due at once after a pause
		}
		select {
		case inFlight <- struct{}{}:
		default:
			return fmt.Errorf("the system is %d orders behind a rate of %d/s: choose a lower -rate", maxClients, rate)
		}
		running.Go(func() {
			samples[n] = s.one(ctx, due, n%every == 0)
			<-inFlight
		})
	}
	running.Wait()
	took := time.Since(start)

	var acknowledged, visible []time.Duration
	var errs []error
	for _, one := range samples {
		if one.err != nil {
			errs = append(errs, one.err)
			continue
		}
		acknowledged = append(acknowledged, one.acknowledged)
		if one.visible > 0 {
			visible = append(visible, one.visible)
		}
	}
	fmt.Printf("%.0f orders/s for %s, %d failed\n\n", float64(len(samples))/took.Seconds(), took.Round(time.Second),
		len(errs))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "\torders\tp50 ms\tp90 ms\tp99 ms\tp99.9 ms\tmax ms\t")
	for _, row := range []struct {
		name  string
		times []time.Duration
	}{{"acknowledged", acknowledged}, {"visible after that", visible}} {
		slices.Sort(row.times)
		_, _ = fmt.Fprintf(w, "%s\t%d\t", row.name, len(row.times))
		for _, q := range []float64{.5, .9, .99, .999, 1} {
			_, _ = fmt.Fprintf(w, "%.1f\t", quantile(row.times, q).Seconds()*1e3)
		}
		_, _ = fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return errors.Join(errs[:min(len(errs), 3)]...)
}

// one places an order that is due at a time, and asks for its status.
func (s shop) one(ctx context.Context, due time.Time, ask bool) (taken sample) {
	id, token, err := s.place(ctx)
	if err != nil {
		return sample{err: err}
	}
	acknowledged := time.Now()
	taken.acknowledged = acknowledged.Sub(due)
	if ask {
		_, err = s.queries.GetOrder(ctx, connect.NewRequest(&orderv1.GetOrderRequest{
			Key: &orderv1.GetOrderRequest_OrderId{OrderId: id}, Token: token,
		}))
		taken.visible, taken.err = time.Since(acknowledged), err
	}
	return taken
}

// quantile returns a quantile of sorted durations, 0 if there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
