package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/gen/millrace/catalog/v1/catalogv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

// replayed is a system with one view, of which tests build versions.
type replayed struct {
	*App
	admin   adminv1connect.AdminServiceClient
	orders  orderv1connect.OrderServiceClient
	queries orderv1connect.OrderQueryServiceClient
}

// startReplayed starts the orders and their view. Queries are served without the role, which needs
// the SQL engine.
func startReplayed(t *testing.T, c config.Config) *replayed {
	t.Helper()
	p := startEmbedded(t, c, modulesOf("order", orderstatus.Name), Commands, Relay, Views, Lake, Admin)
	polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	return &replayed{p,
		adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr()),
		orderv1connect.NewOrderServiceClient(http.DefaultClient, "http://"+p.Addr()), serveQueries(t, p)}
}

// modulesOf returns the modules of one aggregate and one view.
func modulesOf(aggregate, view string) (m Modules) {
	for _, s := range Shop().Services {
		if s.Aggregate.Name == aggregate {
			m.Services = append(m.Services, s)
		}
	}
	for _, v := range Shop().Views {
		if v.Name == view {
			m.Views = append(m.Views, v)
		}
	}
	return m
}

// serveQueries returns a client of the order status that a process shows.
func serveQueries(t *testing.T, p *App) orderv1connect.OrderQueryServiceClient {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(p.views[0].Handler(rpc.HandlerOptions(p.log, time.Now)...))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, s.URL)
}

// place places an order, and returns its id once the view shows it.
func (r *replayed) place(t *testing.T, reference string) string {
	t.Helper()
	ctx := t.Context()
	res, err := r.orders.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{
		Reference: reference, Currency: "GBP", Country: "GB",
		Lines: []*orderv1.NewLine{{Sku: "MUG", Quantity: 1, UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 3}}}}))
	if err == nil {
		_, err = r.queries.GetOrder(ctx, connect.NewRequest(&orderv1.GetOrderRequest{Token: res.Msg.GetReceipt().GetToken(),
			Key: &orderv1.GetOrderRequest_OrderId{OrderId: res.Msg.GetOrderId()}}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetOrderId()
}

// extend adds a line to an order, which has one line less than after.
func (r *replayed) extend(ctx context.Context, id string, after uint32) (token string, err error) {
	res, err := r.orders.AddLines(ctx, connect.NewRequest(&orderv1.AddLinesRequest{OrderId: id, AfterLine: after,
		Lines: []*orderv1.NewLine{{Sku: "CUP", Quantity: 1, UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 1}}}}))
	if err != nil {
		return "", err
	}
	return res.Msg.GetReceipt().GetToken(), nil
}

// replay starts a version, and waits until it can be swapped in.
func (r *replayed) replay(t *testing.T, name string) *adminv1.Version {
	t.Helper()
	res, err := r.admin.StartReplay(
		t.Context(),
		connect.NewRequest(&adminv1.StartReplayRequest{View: "orderstatus", Name: name}),
	)
	if err != nil {
		t.Fatal(err)
	}
	version := res.Msg.GetVersion()
	polltest.Until(t, version.GetSink()+" is filled", func() bool {
		v := r.version(t, version.GetSink())
		return v != nil && v.GetState() == adminv1.VersionState_VERSION_STATE_READY
	})
	return version
}

// version returns a version as the API shows it, or nil.
func (r *replayed) version(t *testing.T, sink string) *adminv1.Version {
	t.Helper()
	res, err := r.admin.ListVersions(t.Context(), connect.NewRequest(&adminv1.ListVersionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range res.Msg.GetVersions() {
		if v.GetSink() == sink {
			return v
		}
	}
	return nil
}

// compare compares a version with the serving one.
func (r *replayed) compare(t *testing.T, sink string) *adminv1.VersionComparison {
	t.Helper()
	return r.compareWithin(t, sink, defaultCompareWait)
}

// compareWithin is compare with a bound on the wait for documents that one side lacks.
func (r *replayed) compareWithin(t *testing.T, sink string, wait time.Duration) *adminv1.VersionComparison {
	t.Helper()
	stream, err := r.admin.CompareVersions(t.Context(), connect.NewRequest(&adminv1.CompareVersionsRequest{
		Sink: sink, Wait: durationpb.New(wait)}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // the stream's own error counts
	var result *adminv1.VersionComparison
	for stream.Receive() {
		if c := stream.Msg().GetResult(); c != nil {
			result = c
		}
	}
	if stream.Err() != nil || result == nil {
		t.Fatalf("compare %s: %v", sink, stream.Err())
	}
	return result
}

// TestReplay builds a version while orders are placed, compares and swaps it, goes back, and drops it.
// Readers meanwhile see what they had seen before, with a token and without, in the process that feeds
// the view and in one that follows it.
func TestReplay(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	r := startReplayed(t, c)
	ctx := t.Context()
	const first, second = "orderstatus/v2", "orderstatus/v2@2"
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = r.place(t, fmt.Sprintf("R-%d", i))
	}

	// Another process answers queries of the same view.
	c.Kafka.Brokers, c.Redis.Addr = r.addresses["kafka"], r.addresses["redis"]
	follower := newApp(modulesOf("order", orderstatus.Name), c, nil, slog.New(slog.DiscardHandler))
	for _, step := range []func(context.Context) error{follower.startKafka, follower.openViews, follower.startFollowers} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := follower.Close(); err != nil {
			t.Error(err)
		}
	}()

	// Each order has a writer, a reader with its tokens and a reader without, until the end.
	stop := make(chan struct{})
	var running sync.WaitGroup
	var reads atomic.Int64
	for i, id := range ids[:6] {
		queries := r.queries
		if i%2 == 1 {
			queries = serveQueries(t, follower)
		}
		var token atomic.Pointer[string]
		running.Go(func() {
			for lines := uint32(1); ; lines++ {
				next, err := r.extend(ctx, id, lines)
				if err != nil {
					t.Error(err)
					return
				}
				token.Store(&next)
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond): // the pace of a customer
				}
			}
		})
		for _, withToken := range []bool{true, false} {
			running.Go(func() {
				seen := uint64(0)
				for {
					req := &orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_OrderId{OrderId: id}}
					if last := token.Load(); withToken && last != nil {
						req.Token = *last
					}
					res, err := queries.GetOrder(ctx, connect.NewRequest(req))
					if connect.CodeOf(err) == connect.CodeNotFound && seen == 0 {
						continue // the follower's process has not read the order yet
					}
					if err != nil || res.Msg.GetOrder().GetVersion() < seen {
						t.Errorf("order %d, with token %v: version %d after %d, %v", i, withToken,
							res.Msg.GetOrder().GetVersion(), seen, err)
						return
					}
					seen = res.Msg.GetOrder().GetVersion()
					reads.Add(1)
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
	}

	if v := r.replay(t, ""); v.GetSink() != second {
		t.Fatalf("the version is %s, want %s", v.GetSink(), second)
	}
	if c := r.compare(t, second); !c.GetEqual() || c.GetEqualDocuments() != uint64(len(ids)) ||
		c.GetServingHash() != c.GetVersionHash() {
		t.Errorf("the versions differ: %v", c)
	}
	serves := func(sink string) func() bool {
		return func() bool { return r.views[0].now().sink == sink && follower.views[0].now().sink == sink }
	}
	if _, err := r.admin.SwapVersion(ctx, connect.NewRequest(&adminv1.SwapVersionRequest{Sink: second})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "both processes have switched", serves(second))
	_, err := r.admin.DropVersion(ctx, connect.NewRequest(&adminv1.DropVersionRequest{Sink: second}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the serving version is dropped: %v", err)
	}
	after := reads.Load()
	polltest.Until(t, "the new version is read", func() bool { return reads.Load() > after+100 })
	if _, err := r.admin.RollbackVersion(ctx, connect.NewRequest(&adminv1.RollbackVersionRequest{View: "orderstatus"})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "both processes have gone back", serves(first))
	after = reads.Load()
	polltest.Until(t, "the old version is read", func() bool { return reads.Load() > after+100 })
	close(stop)
	running.Wait()

	drop := func() bool {
		_, err := r.admin.DropVersion(ctx, connect.NewRequest(&adminv1.DropVersionRequest{Sink: second}))
		return err == nil // it served until a moment ago
	}
	polltest.Until(t, "the version may be dropped", drop)
	polltest.Until(t, "the version is gone", func() bool { return r.version(t, second) == nil })
	positions, err := r.viewSinks.redis.Documents(second).Positions(ctx)
	if err != nil || len(positions) > 0 {
		t.Errorf("the dropped version has positions %v, %v", positions, err)
	}
}

// TestReplayFindsDifferences checks that a document that a version lacks, or has otherwise, is named.
func TestReplayFindsDifferences(t *testing.T) {
	t.Parallel()
	r := startReplayed(t, embeddedConfig(t))
	ctx := t.Context()
	ids := []string{r.place(t, "R-1"), r.place(t, "R-2")}
	r.replay(t, "next")
	const sink = "orderstatus/v2@next"
	// Another projection would have stored another country, of the same event.
	for sink, country := range map[string]string{orderstatus.Name: "GB", sink: "DE"} {
		data, err := proto.Marshal(&orderv1.OrderStatus{OrderId: ids[0], Version: 2, Country: country})
		if err != nil {
			t.Fatal(err)
		}
		docs := r.viewSinks.redis.Documents(sink)
		if err := docs.Save(ctx, []redis.Document{{ID: ids[0], Version: 2, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	c := r.compare(t, sink)
	if c.GetEqual() || c.GetEqualDocuments() != 1 || c.GetDifferentDocuments() != 1 ||
		c.GetServingHash() == c.GetVersionHash() ||
		len(c.GetDifferences()) != 1 {
		t.Fatalf("one of two documents differs, but the result is %v", c)
	}
	if d := c.GetDifferences()[0]; d.GetKey() != ids[0] || d.GetKind() != adminv1.DocumentDifferenceKind_DOCUMENT_DIFFERENCE_KIND_CONTENT ||
		len(d.GetFields()) != 1 || d.GetFields()[0].GetField() != "country" ||
		!strings.Contains(d.GetFields()[0].GetVersion(), "DE") {
		t.Errorf("the difference is %v", d)
	}
	for want, call := range map[string]func() error{
		"unknown view": func() error {
			_, err := r.admin.StartReplay(ctx, connect.NewRequest(&adminv1.StartReplayRequest{View: "orders"}))
			return err
		},
		"unknown version": func() error {
			_, err := r.admin.SwapVersion(ctx, connect.NewRequest(&adminv1.SwapVersionRequest{Sink: "orderstatus/v2@x"}))
			return err
		},
		"no version served": func() error {
			_, err := r.admin.RollbackVersion(ctx, connect.NewRequest(&adminv1.RollbackVersionRequest{View: "orderstatus"}))
			return err
		},
	} {
		if err := call(); err == nil ||
			!slices.Contains([]connect.Code{connect.CodeNotFound, connect.CodeFailedPrecondition}, connect.CodeOf(err)) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestReplayOfTheCatalogue builds a version of the search index, swaps it, restarts the process and
// drops the first version. The products are found all the time.
func TestReplayOfTheCatalogue(t *testing.T) {
	t.Parallel()
	c, m := embeddedConfig(t), modulesOf("product", catalog.Name)
	ctx := t.Context()
	run := func() (*replayed, catalogv1connect.CatalogQueryServiceClient) {
		p, err := start(ctx, m, c, []Role{Commands, Relay, Views, Lake, Admin}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
		mux := http.NewServeMux()
		mux.Handle(p.views[0].Handler(rpc.HandlerOptions(p.log, time.Now)...))
		s := httptest.NewServer(mux)
		t.Cleanup(s.Close)
		return &replayed{App: p, admin: adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())},
			catalogv1connect.NewCatalogQueryServiceClient(http.DefaultClient, s.URL)
	}
	r, queries := run()
	found := func(token string) {
		t.Helper()
		res, err := queries.SearchProducts(
			ctx,
			connect.NewRequest(&catalogv1.SearchProductsRequest{Text: "lantern", Token: token}),
		)
		if err != nil || res.Msg.GetTotal() != 2 || res.Msg.GetFreshness().GetView() != catalog.Name {
			t.Errorf("the search finds %v, %v; want two products", res, err)
		}
	}
	products := catalogv1connect.NewCatalogServiceClient(http.DefaultClient, "http://"+r.Addr())
	token := ""
	for _, sku := range []string{"L-1", "L-2"} {
		res, err := products.ListProduct(
			ctx,
			connect.NewRequest(&catalogv1.ListProductRequest{Sku: sku, Title: "Lantern " + sku,
				Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS}),
		)
		if err != nil {
			t.Fatal(err)
		}
		token = res.Msg.GetReceipt().GetToken()
		if _, err := queries.GetProduct(ctx, connect.NewRequest(&catalogv1.GetProductRequest{Sku: sku, Token: token})); err != nil {
			t.Fatal(err)
		}
	}
	const second = "catalog/v2@2"
	if _, err := r.admin.StartReplay(ctx, connect.NewRequest(&adminv1.StartReplayRequest{View: "catalog"})); err != nil {
		t.Fatal(err)
	}
	ready := func() bool { return r.version(t, second).GetState() == adminv1.VersionState_VERSION_STATE_READY }
	polltest.Until(t, "the version is filled", ready)
	if c := r.compare(t, second); !c.GetEqual() || c.GetEqualDocuments() != 2 {
		t.Errorf("the versions differ: %v", c)
	}
	if _, err := r.admin.SwapVersion(ctx, connect.NewRequest(&adminv1.SwapVersionRequest{Sink: second})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the process has switched", func() bool { return r.views[0].now().sink == second })
	found(token)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r, queries = run()
	if sink := r.views[0].now().sink; sink != second {
		t.Errorf("after a restart, %s serves", sink)
	}
	found(token)
	polltest.Until(t, "the first version may be dropped", func() bool {
		_, err := r.admin.DropVersion(ctx, connect.NewRequest(&adminv1.DropVersionRequest{Sink: catalog.Name}))
		return err == nil
	})
	polltest.Until(t, "the first version is gone", func() bool { return r.version(t, catalog.Name) == nil })
	found(token)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}
