package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
)

// fault is something that a network does to a connection.
type fault struct {
	name  string
	toxic string // of Toxiproxy, as JSON without its stream; empty means that the server is unreachable
	worst bool   // it is tried in every run
}

var theFaults = []fault{
	{"1 s more latency", `{"type":"latency","attributes":{"latency":1000}}`, false},
	{"4 KB/s", `{"type":"bandwidth","attributes":{"rate":4}}`, false},
	{"slow trickle", `{"type":"slicer","attributes":{"average_size":16,"size_variation":8,"delay":20000}}`, false},
	{"resets", `{"type":"reset_peer","attributes":{"timeout":0}}`, false},
	{"half-open", `{"type":"timeout","attributes":{"timeout":0}}`, true},
	{"down", "", false},
}

const (
	faultLasts  = 6 * time.Second
	callTimeout = 3 * time.Second // deadline of each call of a user
	// recovery bounds the wait until everything works again. Only a system that does not recover by
	// itself exceeds it.
	recovery = 3 * time.Minute
)

// The uses of a system, and what each needs.
const (
	command = "command"
	status  = "order status"
	finding = "search"
	landed  = "lake"
)

// dependent has, for each server, the uses that cannot work without it.
var dependent = map[string][]string{
	"PostgreSQL":    {command, status, finding, landed}, // nothing new is visible without commands
	"Redis":         {status},
	"Elasticsearch": {finding},
	"S3":            {landed},
}

// TestFaults tries each fault on each server.
func TestFaults(t *testing.T) {
	s := startSystem(t)
	u := users{
		orders: orderv1connect.NewOrderServiceClient(http.DefaultClient, s.api),
		status: orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, s.api),
		lists:  catalogv1connect.NewCatalogServiceClient(http.DefaultClient, s.api),
		finds:  catalogv1connect.NewCatalogQueryServiceClient(http.DefaultClient, s.api),
		admin:  adminv1connect.NewAdminServiceClient(http.DefaultClient, s.admin),
	}
	defer http.DefaultClient.CloseIdleConnections()
	u.recovered(t)
	var rows []row
	for _, server := range s.servers {
		for _, f := range theFaults {
			if !f.worst && !*full {
				continue
			}
			t.Run(server.name+"/"+f.name, func(t *testing.T) { rows = append(rows, u.try(t, server, f)) })
		}
	}
	if *report != "" && !t.Failed() {
		if err := os.WriteFile(*report, []byte(table(rows)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// users are the callers of a system.
type users struct {
	orders orderv1connect.OrderServiceClient
	status orderv1connect.OrderQueryServiceClient
	lists  catalogv1connect.CatalogServiceClient
	finds  catalogv1connect.CatalogQueryServiceClient
	admin  adminv1connect.AdminServiceClient
}

// row is the result of one fault.
type row struct {
	server, fault string
	seen          map[string]*answers // by use
	recovered     time.Duration
}

// answers are what one kind of call got.
type answers struct {
	ok      int
	codes   map[connect.Code]int
	slowest time.Duration
}

// try makes a fault while users work, and then waits until everything works again.
func (u users) try(t *testing.T, server *proxied, f fault) row {
	t.Helper()
	if err := server.fail(f); err != nil {
		t.Fatal(err)
	}
	seen := u.work(t, time.Now().Add(faultLasts))
	if err := server.heal(); err != nil {
		t.Fatal(err)
	}
	r := row{server: server.name, fault: f.name, seen: seen, recovered: u.recovered(t)}

	for use, a := range seen {
		for code := range a.codes {
			if !slices.Contains([]connect.Code{connect.CodeUnavailable, connect.CodeDeadlineExceeded,
				connect.CodeResourceExhausted}, code) {
				t.Errorf("%s of %s: %s answered %q %d times", f.name, server.name, use, code, a.codes[code])
			}
		}
		if a.ok == 0 && !slices.Contains(dependent[server.name], use) {
			t.Errorf("%s of %s: %s never worked, and does not need it: %v", f.name, server.name, use, a.codes)
		}
	}
	letters, err := u.admin.ListDeadLetters(t.Context(), connect.NewRequest(&adminv1.ListDeadLettersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(letters.Msg.DeadLetters) > 0 {
		t.Errorf(
			"%s of %s: %d dead letters, the first: %v",
			f.name,
			server.name,
			len(letters.Msg.DeadLetters),
			letters.Msg.DeadLetters[0],
		)
	}
	u.verify(t)
	return r
}

// work lets users work until a time, and returns what they got.
func (u users) work(t *testing.T, until time.Time) map[string]*answers {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]*answers{}
	for _, use := range []string{command, status, finding} {
		seen[use] = &answers{codes: map[connect.Code]int{}}
	}
	call := func(use string, f func(context.Context) error) bool {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		start := time.Now()
		err := f(ctx)
		mu.Lock()
		defer mu.Unlock()
		a := seen[use]
		a.slowest = max(a.slowest, time.Since(start))
		if err == nil {
			a.ok++
			return true
		}
		a.codes[connect.CodeOf(err)]++
		return false
	}
	var working sync.WaitGroup
	// Three users of each kind work at once, each waiting for its answer.
	for range 3 {
		working.Go(func() {
			for time.Now().Before(until) {
				var order *orderv1.PlaceOrderResponse
				if call(command, func(ctx context.Context) (err error) { order, err = u.place(ctx); return err }) {
					call(status, func(ctx context.Context) error { return u.see(ctx, order) })
				}
			}
		})
		working.Go(func() {
			for time.Now().Before(until) {
				call(finding, func(ctx context.Context) error { return u.find(ctx, "") })
			}
		})
	}
	working.Wait()
	return seen
}

// place places an order.
func (u users) place(ctx context.Context) (*orderv1.PlaceOrderResponse, error) {
	res, err := u.orders.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{
		Currency: "GBP", Country: "United Kingdom", Lines: []*orderv1.NewLine{{
			Sku: "22423", Description: "REGENCY CAKESTAND 3 TIER", Quantity: 1,
			UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 12},
		}},
	}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// see asks for the status of an order that was placed.
func (u users) see(ctx context.Context, order *orderv1.PlaceOrderResponse) error {
	_, err := u.status.GetOrder(ctx, connect.NewRequest(&orderv1.GetOrderRequest{
		Key: &orderv1.GetOrderRequest_OrderId{OrderId: order.OrderId}, Token: order.Receipt.Token,
	}))
	return err
}

// find searches for products, with the token of a product if there is one.
func (u users) find(ctx context.Context, token string) error {
	_, err := u.finds.SearchProducts(
		ctx,
		connect.NewRequest(&catalogv1.SearchProductsRequest{Text: "cakestand", Token: token}),
	)
	return err
}

// recovered returns how long it takes until a new order and a new product are visible, and the lake
// has them.
func (u users) recovered(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), recovery)
	defer cancel()
	// Each is tried until it works, as users do.
	until := func(what string, f func(context.Context) error) {
		for {
			once, stop := context.WithTimeout(ctx, callTimeout)
			err := f(once)
			stop()
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("%s does not work %v after the fault: %v", what, recovery, err)
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
	var order *orderv1.PlaceOrderResponse
	until("PlaceOrder", func(ctx context.Context) (err error) { order, err = u.place(ctx); return err })
	var token string
	sku := "F-" + uuid.NewString()
	until("ListProduct", func(ctx context.Context) error {
		res, err := u.lists.ListProduct(ctx, connect.NewRequest(&catalogv1.ListProductRequest{
			Sku: sku, Title: "Cakestand", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, IdempotencyKey: sku,
		}))
		if err == nil {
			token = res.Msg.Receipt.Token
		}
		return err
	})
	until("GetOrder", func(ctx context.Context) error { return u.see(ctx, order) })
	until("SearchProducts", func(ctx context.Context) error { return u.find(ctx, token) })
	until("the lake", func(ctx context.Context) error {
		res, err := u.admin.Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			return err
		}
		for _, s := range res.Msg.Sinks {
			if strings.HasPrefix(s.Sink, "table ") && s.LagEvents > 0 {
				return fmt.Errorf("%s has a lag of %d events", s.Sink, s.LagEvents)
			}
		}
		return nil
	})
	return time.Since(start)
}

// verify checks that stores, views and tables are equal.
func (u users) verify(t *testing.T) {
	t.Helper()
	stream, err := u.admin.Verify(t.Context(), connect.NewRequest(&adminv1.VerifyRequest{Wait: durationpb.New(recovery)}))
	if err != nil {
		t.Fatal(err)
	}
	var result *adminv1.VerifyResult
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil {
		t.Fatal(err)
	}
	if !result.GetEqual() {
		t.Errorf("the sinks differ: %v", result)
	}
}

// page is docs/faults.md, up to its table.
const page = `# Faults of servers, and what users see

` + "`make faults`" + ` writes this page. A whole system runs with its event store in PostgreSQL, the view of orders
in Redis, the search in Elasticsearch and the lake on S3. The network to one of them fails for %v, by
Toxiproxy, while three users place orders and ask for their status, and three search. Each call has a
deadline of %v.

For every row the test requires that

- a caller gets an answer, or an error that says that the call may be tried again;
- what does not need the server works on;
- no event becomes a dead letter;
- everything works again by itself, and stores, views and tables are equal.

The last column is the time from the end of the fault until a new order and a new product are visible
by their tokens, and every table has all events.

| server | fault | command | order status | search | works again after |
|---|---|---|---|---|---:|
`

// table returns the page with the rows.
func table(rows []row) string {
	var b strings.Builder
	fmt.Fprintf(&b, page, faultLasts, callTimeout)
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %.1f s |\n", r.server, r.fault, r.seen[command], r.seen[status],
			r.seen[finding], r.recovered.Seconds())
	}
	return b.String()
}

// String returns what callers got, such as "12 ok, 3 unavailable, at most 1.2 s".
func (a *answers) String() string {
	if a.ok == 0 && len(a.codes) == 0 {
		return "not asked"
	}
	var parts []string
	if a.ok > 0 {
		parts = append(parts, fmt.Sprintf("%d ok", a.ok))
	}
	codes := make([]string, 0, len(a.codes))
	for code, n := range a.codes {
		codes = append(codes, fmt.Sprintf("%d %s", n, code))
	}
	slices.Sort(codes)
	return fmt.Sprintf("%s; at most %.1f s", strings.Join(append(parts, codes...), ", "), a.slowest.Seconds())
}
