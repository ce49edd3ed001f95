package app

import (
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
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/readmodels/customer360"
)

// customersOf returns the modules of the view of customers.
func customersOf() (m Modules) {
	for _, s := range Shop().Services {
		if slices.Contains([]string{"customer", "order", "identity"}, s.Aggregate.Name) {
			m.Services = append(m.Services, s)
		}
	}
	m.Sources = Shop().Sources
	m.Views = slices.DeleteFunc(Shop().Views, func(v View) bool { return v.Name != customer360.Name })
	return m
}

// TestReplayOfTheCustomers builds a version of the profiles while a customer places orders, swaps it, and
// goes back. Readers never see an older profile, or a segment without its members. The version that
// serves evaluates segments, so each change of membership is published once.
func TestReplayOfTheCustomers(t *testing.T) {
	t.Parallel()
	c, ctx := embeddedConfig(t), t.Context()
	c.Customer360.Segments = map[string]config.Segment{"spenders": {
		Expression: "features.customer_value.monetary_sum_90d > 0", Purpose: "marketing",
	}}
	p, err := start(ctx, customersOf(), c, []Role{Commands, Relay, Views, Lake, Admin}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	mux := http.NewServeMux()
	mux.Handle(p.views[0].Handler(rpc.HandlerOptions(p.log, time.Now)...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	r := &replayed{App: p, admin: adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())}
	queries := customer360v1connect.NewCustomerQueryServiceClient(http.DefaultClient, server.URL)
	customers := customerv1connect.NewCustomerServiceClient(http.DefaultClient, "http://"+p.Addr())
	orders := orderv1connect.NewOrderServiceClient(http.DefaultClient, "http://"+p.Addr())

	place := func(id string) (token string) {
		res, err := orders.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{CustomerId: &id, Currency: "GBP",
			Country: "GB", Lines: []*orderv1.NewLine{{Sku: "MUG", Quantity: 1,
				UnitPrice: &money.Money{CurrencyCode: "GBP", Units: 3}}}}))
		if err != nil {
			t.Error(err)
			return ""
		}
		return res.Msg.GetReceipt().GetToken()
	}
	// join makes a new customer who becomes a member of the segment.
	var ids []string
	join := func() {
		t.Helper()
		id := uuid.Must(uuid.NewV7()).String()
		_, err := customers.RegisterCustomer(ctx, connect.NewRequest(&customerv1.RegisterCustomerRequest{
			CustomerId: id, Name: "A. Person", Email: id + "@example.com", Country: "GB"}))
		if err == nil {
			_, err = customers.SetConsent(ctx, connect.NewRequest(&customerv1.SetConsentRequest{CustomerId: id,
				Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING, Granted: true}))
		}
		if err != nil {
			t.Fatal(err)
		}
		place(id)
		ids = append(ids, id) // version 7, so in the order of the list
		polltest.Until(t, "the customer is a member", func() bool {
			res, err := queries.ListSegment(ctx, connect.NewRequest(&customer360v1.ListSegmentRequest{Segment: "spenders"}))
			return err == nil && slices.Equal(res.Msg.GetCustomerIds(), ids)
		})
	}
	join()

	stop := make(chan struct{})
	var running sync.WaitGroup
	var token atomic.Pointer[string]
	var reads atomic.Int64
	busy := ids[0]
	running.Go(func() {
		for {
			if next := place(busy); next != "" {
				token.Store(&next)
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // the pace of a customer
			}
		}
	})
	for _, withToken := range []bool{true, false} {
		running.Go(func() {
			for seen := uint64(0); ; reads.Add(1) {
				req := &customer360v1.GetProfileRequest{Key: &customer360v1.GetProfileRequest_CustomerId{CustomerId: busy}}
				if last := token.Load(); withToken && last != nil {
					req.Token = *last
				}
				res, err := queries.GetProfile(ctx, connect.NewRequest(req))
				if err != nil || res.Msg.GetProfile().GetOrders().GetCount() < seen {
					t.Errorf("with token %v: %d orders after %d, %v", withToken,
						res.Msg.GetProfile().GetOrders().GetCount(), seen, err)
					return
				}
				seen = res.Msg.GetProfile().GetOrders().GetCount()
				count, err := queries.CountSegment(ctx, connect.NewRequest(&customer360v1.CountSegmentRequest{Segment: "spenders"}))
				if err != nil || count.Msg.GetMembers() == 0 {
					t.Errorf("the segment has %d members, %v", count.Msg.GetMembers(), err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}

	const first, second = customer360.Name, customer360.Name + "@2"
	if _, err := r.admin.StartReplay(ctx, connect.NewRequest(&adminv1.StartReplayRequest{View: "customer360"})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the version is filled", func() bool {
		return r.version(t, second).GetState() == adminv1.VersionState_VERSION_STATE_READY
	})
	if c := r.compare(t, second); !c.GetEqual() || c.GetEqualDocuments() == 0 || c.GetServingHash() != c.GetVersionHash() {
		t.Errorf("the versions differ: %v", c)
	}
	for _, change := range []struct {
		serves string
		make   func() error
	}{
		{second, func() error {
			_, err := r.admin.SwapVersion(ctx, connect.NewRequest(&adminv1.SwapVersionRequest{Sink: second}))
			return err
		}},
		{first, func() error {
			_, err := r.admin.RollbackVersion(ctx, connect.NewRequest(&adminv1.RollbackVersionRequest{View: "customer360"}))
			return err
		}},
	} {
		if err := change.make(); err != nil {
			t.Fatal(err)
		}
		polltest.Until(t, change.serves+" serves", func() bool { return r.views[0].now().sink == change.serves })
		join() // it evaluates segments
		before := reads.Load()
		polltest.Until(t, change.serves+" is read", func() bool { return reads.Load() > before+20 })
	}
	close(stop)
	running.Wait()

	changes := map[string]int{}
	admin, err := kafka.NewAdmin(p.kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, customer360.SegmentTopic)
	if err == nil {
		err = kafka.ReadAll(ctx, p.kafka, customer360.SegmentTopic, nil, ends, func(m kafka.Message) error {
			changes[string(m.Key)]++
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if n := changes["spenders|"+id]; n != 1 {
			t.Errorf("%d changes of the membership of %s were published, want 1", n, id)
		}
	}
}

// TestComparisonHidesPersonalData checks that a comparison of profiles names a differing field, and
// shows neither its value nor a key that may be personal.
func TestComparisonHidesPersonalData(t *testing.T) {
	t.Parallel()
	c, ctx := embeddedConfig(t), t.Context()
	p := startEmbedded(t, c, customersOf(), Commands, Relay, Views, Lake, Admin)
	polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	r := &replayed{App: p, admin: adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())}
	if _, err := r.admin.StartReplay(ctx, connect.NewRequest(&adminv1.StartReplayRequest{View: "customer360"})); err != nil {
		t.Fatal(err)
	}
	const second = customer360.Name + "@2"
	polltest.Until(t, "the version is filled", func() bool {
		return r.version(t, second).GetState() == adminv1.VersionState_VERSION_STATE_READY
	})
	id := "identity/" + "anonymous:canary-visitor"
	if err := p.viewSinks.redis.Documents(second).Save(ctx, []redis.Document{{ID: id, Version: 1}}); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(r.compareWithin(t, second, time.Second)); strings.Contains(text, "canary") || !strings.Contains(text, "identity/sha256:") {
		t.Errorf("the comparison is %s", text)
	}
}

// TestOutdatedView checks that a view which another projection has built is reported, with the command
// that builds it again, until it has been.
func TestOutdatedView(t *testing.T) {
	t.Parallel()
	c, ctx := embeddedConfig(t), t.Context()
	m := modulesOf("order", "orderstatus/v2")
	older := startEmbedded(t, c, m, Commands, Relay, Views, Lake, Admin)
	polltest.Until(t, "the process is ready", func() bool { return get(t, older, "/readyz") == http.StatusOK })
	if err := older.Close(); err != nil {
		t.Fatal(err)
	}
	m.Views[0].Projection++ // a release later
	p, err := start(ctx, m, c, []Role{Commands, Relay, Views, Lake, Admin}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	r := &replayed{App: p, admin: adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+p.AdminAddr())}
	outdated := func() []*adminv1.OutdatedView {
		t.Helper()
		res, err := r.admin.Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetOutdated()
	}
	all := outdated()
	if len(all) != 1 || all[0].GetView() != "orderstatus/v2" || all[0].GetBuiltBy()+1 != all[0].GetCurrent() ||
		!strings.Contains(all[0].GetRemedy(), "millrace replay --target orderstatus") {
		t.Fatalf("status says %v", all)
	}
	version := r.replay(t, "")
	if _, err := r.admin.SwapVersion(ctx, connect.NewRequest(&adminv1.SwapVersionRequest{Sink: version.GetSink()})); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the new version serves", func() bool { return len(outdated()) == 0 })
}
