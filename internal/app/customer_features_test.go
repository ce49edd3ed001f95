package app

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	factfeed "github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/shop"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/gen/millrace/customer/v1/customerv1connect"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/gen/millrace/identity/v1/identityv1connect"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/internal/config"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/readmodels/customer360"
)

const (
	oneCustomer   = "019b8d73-dfa0-77b3-b48c-0c15d9771524"
	otherCustomer = "019b8d73-dfa0-77b3-b48c-0c15d9771525"
)

// orderEvents returns the events of a random order: placed, perhaps with lines added, perhaps
// cancelled.
func orderEvents(t *rapid.T, n int, customer string) []event.Event {
	id := fmt.Sprintf("00000000-0000-7000-9000-%012d", n)
	currency := rapid.SampledFrom([]string{"GBP", "EUR"}).Draw(t, "currency")
	at := timestamppb.New(drawnTime(t, "ordered at"))
	amount := func(units int64) *money.Money {
		return &money.Money{CurrencyCode: currency, Units: units, Nanos: 250_000_000}
	}
	var lines []*orderv1.OrderLine
	draw := func() {
		for range rapid.IntRange(1, 4).Draw(t, "lines") {
			lines = append(lines, &orderv1.OrderLine{Number: uint32(len(lines) + 1), Quantity: 2,
				Sku:       rapid.SampledFrom([]string{"MUG", "CUP", "TOY"}).Draw(t, "sku"),
				UnitPrice: amount(rapid.Int64Range(0, 900).Draw(t, "price"))})
		}
	}
	total := func() *money.Money {
		units := int64(0)
		for _, l := range lines {
			units += 2 * l.GetUnitPrice().GetUnits()
		}
		return &money.Money{CurrencyCode: currency, Units: units}
	}
	var all []event.Event
	add := func(m *orderv1.OrderEvent) {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, event.Event{Aggregate: event.Order.Name, Stream: id, Version: uint64(len(all) + 1), Data: data,
			RecordedAt: at.AsTime()})
	}
	draw()
	add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: id, CustomerId: &customer, Currency: currency, Country: "GB", Lines: slices.Clone(lines), Total: total(),
		OrderedAt: at}}})
	if rapid.Bool().Draw(t, "lines added") {
		draw()
		add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
			OrderId: id, CustomerId: &customer, Currency: currency, Country: "GB", Lines: slices.Clone(lines), Total: total(),
			OrderedAt: at}}})
	}
	if rapid.IntRange(0, 3).Draw(t, "cancelled") == 0 {
		add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
			OrderId: id, CustomerId: &customer, Currency: currency, Country: "GB", Lines: slices.Clone(lines), OrderedAt: at,
			CancelledAt: timestamppb.New(drawnTime(t, "cancelled at"))}}})
	}
	return all
}

var june = time.Date(2011, 6, 1, 12, 0, 0, 0, time.UTC)

// drawnTime returns a time in the 100 days around June, often close to the edge of a window.
func drawnTime(t *rapid.T, label string) time.Time {
	days := rapid.SampledFrom([]int{0, 1, 7, 30, 90, 95, -2}).Draw(t, label+", days ago")
	return june.AddDate(0, 0, -days).Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, label+", µs")) * time.Microsecond)
}

// TestProfileFeaturesEqualTheDefinition checks that the features of a person are those of
// features.Evaluate over the facts of all of their customers' orders, to the last bit, and that a value
// does not change before it is due.
func TestProfileFeaturesEqualTheDefinition(t *testing.T) {
	t.Parallel()
	groups := shop.Groups(shop.Options{})
	computed := newCustomerFeatures(groups)
	if len(computed.List()) < 50 {
		t.Fatalf("%d features", len(computed.List()))
	}
	rapid.Check(t, func(t *rapid.T) {
		stored, facts := map[string][]*customer360v1.Fact{}, map[string][]features.Fact{}
		for n := range rapid.IntRange(0, 6).Draw(t, "orders") {
			var fragment *customer360.Fragment
			for version, e := range orderEvents(t, n, rapid.SampledFrom([]string{oneCustomer, otherCustomer}).Draw(t, "customer")) {
				var err error
				if fragment, err = customerFacts.Project(fragment, e); err != nil {
					t.Fatal(err)
				}
				for _, s := range distinctSources(groups) {
					fresh, err := factfeed.Project(s, e, features.Origin{Offset: int64(10*n + version)})
					if err != nil {
						t.Fatal(err)
					}
					for _, f := range fresh {
						f.Entity = "the person"
						facts[s.Name] = append(facts[s.Name], f)
					}
				}
			}
			for _, s := range fragment.GetOrder().GetFacts() {
				for _, f := range s.GetFacts() {
					f.Key = fmt.Sprintf("00000000-0000-7000-9000-%012d", n) + f.GetKey()
					stored[s.GetSource()] = append(stored[s.GetSource()], f)
				}
			}
		}
		at := drawnTime(t, "at").AddDate(0, 0, 30)
		value := computed.Of(stored)
		want := map[string]exact.Result{}
		for _, g := range groups {
			if g.Entity == CustomerEntity {
				v := features.Evaluate(g, facts, "the person", at, time.Time{})
				for i, o := range g.Outputs() {
					want[g.Name+"."+o.Name] = v.Values[i]
				}
			}
		}
		for i, f := range computed.List() {
			name := f.Group + "." + f.Name
			got, due := value(i, at)
			if w := valueOfResult(want[name], true, false); fmt.Sprint(kindOf(got)) != fmt.Sprint(kindOf(w)) {
				t.Fatalf("%s at %v is %v, want %v", name, at, got, w)
			}
			if due.IsZero() {
				due = at.AddDate(1, 0, 0)
			}
			if due.After(at) { // else it changes all the time
				before := due.Add(-time.Microsecond)
				later := at.Add(time.Duration(rapid.Int64Range(0, int64(before.Sub(at))).Draw(t, "later"))).Truncate(time.Microsecond)
				if again, _ := value(i, later); !proto.Equal(&featuresv1.Value{Kind: again.GetKind()}, &featuresv1.Value{Kind: got.GetKind()}) {
					t.Fatalf("%s is %v at %v and %v at %v, but due at %v", name, got, at, again, later, due)
				}
			}
		}
	})
}

// kindOf returns the value of a feature without its status.
func kindOf(v *featuresv1.Value) any {
	switch k := v.GetKind().(type) {
	case *featuresv1.Value_Integer:
		return k.Integer
	case *featuresv1.Value_Number:
		return k.Number
	case *featuresv1.Value_Text:
		return k.Text
	case *featuresv1.Value_Texts:
		return k.Texts.GetItems()
	}
	return nil
}

// distinctSources returns the sources of the groups of customers.
func distinctSources(groups []*features.Group) (all []*features.Source) {
	for _, g := range groups {
		for i := range g.Sources {
			if g.Entity == CustomerEntity && !slices.ContainsFunc(all, func(s *features.Source) bool { return s.Name == g.Sources[i].Name }) {
				all = append(all, &g.Sources[i])
			}
		}
	}
	return all
}

// TestSegmentOfFeatures checks a segment over features from the commands to its members: who spent
// enough and has not ordered lately is a member, after a merge by the orders of both, and not any more
// after the merge was taken back, when time has passed, or when they refuse analytics.
func TestSegmentOfFeatures(t *testing.T) {
	t.Parallel()
	c := embeddedConfig(t)
	useEngine(t, &c)
	c.Customer360.Segments = map[string]config.Segment{"lapsed": {
		Expression: "features.customer_value.monetary_sum_90d > 500 && features.customer_activity.orders_30d == 0",
		Purpose:    "marketing",
	}}
	var m Modules
	for _, s := range Shop().Services {
		if slices.Contains([]string{"customer", "order", "identity"}, s.Aggregate.Name) {
			m.Services = append(m.Services, s)
		}
	}
	m.Sources = Shop().Sources
	for _, v := range Shop().Views {
		if v.Name == customer360.Name {
			m.Views = append(m.Views, v)
		}
	}
	p := startEmbedded(t, c, m, Commands, Relay, Views, Lake, Query)
	polltest.Until(t, "the process is ready", func() bool { return get(t, p, "/readyz") == http.StatusOK })
	url := "http://" + p.Addr()
	customers := customerv1connect.NewCustomerServiceClient(http.DefaultClient, url)
	orders := orderv1connect.NewOrderServiceClient(http.DefaultClient, url)
	graph := identityv1connect.NewIdentityServiceClient(http.DefaultClient, url)
	queries := customer360v1connect.NewCustomerQueryServiceClient(http.DefaultClient, url)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	consent := func(id string, purpose customerv1.ConsentPurpose, granted bool) {
		_, err := customers.SetConsent(ctx, connect.NewRequest(&customerv1.SetConsentRequest{CustomerId: id, Purpose: purpose, Granted: granted}))
		must(err)
	}
	place := func(id string, units int64, ago time.Duration) {
		_, err := orders.PlaceOrder(ctx, connect.NewRequest(&orderv1.PlaceOrderRequest{CustomerId: &id, Currency: "GBP", Country: "GB",
			OrderedAt: timestamppb.New(time.Now().Add(-ago)),
			Lines:     []*orderv1.NewLine{{Sku: "MUG", Quantity: 1, UnitPrice: &money.Money{CurrencyCode: "GBP", Units: units}}}}))
		must(err)
	}
	members := func(want ...string) func() bool {
		return func() bool {
			r, err := queries.ListSegment(ctx, connect.NewRequest(&customer360v1.ListSegmentRequest{Segment: "lapsed"}))
			return err == nil && slices.Equal(r.Msg.GetCustomerIds(), want)
		}
	}
	spent := func(id string) float64 {
		r, err := queries.GetProfile(ctx, connect.NewRequest(&customer360v1.GetProfileRequest{
			Key: &customer360v1.GetProfileRequest_CustomerId{CustomerId: id}}))
		must(err)
		for _, g := range r.Msg.GetProfile().GetFeatures() {
			for _, f := range g.GetFeatures() {
				if g.GetGroup() == "customer_value/v1" && f.GetName() == "monetary_sum_90d" {
					return f.GetValue().GetNumber()
				}
			}
		}
		return -1 // there are none
	}
	const day = 24 * time.Hour
	for _, id := range []string{oneCustomer, otherCustomer} {
		_, err := customers.RegisterCustomer(ctx, connect.NewRequest(&customerv1.RegisterCustomerRequest{CustomerId: id, Country: "GB"}))
		must(err)
		consent(id, customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING, true)
	}
	place(oneCustomer, 300, 60*day)
	place(otherCustomer, 250, 45*day)
	merge := &identityv1.MergeCustomersRequest{CustomerId: oneCustomer, OtherCustomerId: otherCustomer}
	_, err := graph.MergeCustomers(ctx, connect.NewRequest(merge))
	must(err)
	polltest.Until(t, "the merged person is a member", members(oneCustomer))
	if got := spent(otherCustomer); got != 550 {
		t.Errorf("together they spent %v, want 550", got)
	}
	_, err = graph.UnmergeCustomers(ctx, connect.NewRequest(&identityv1.UnmergeCustomersRequest{CustomerId: oneCustomer, OtherCustomerId: otherCustomer}))
	must(err)
	polltest.Until(t, "neither is a member", members())
	if one, other := spent(oneCustomer), spent(otherCustomer); one != 300 || other != 250 {
		t.Errorf("they spent %v and %v, want 300 and 250", one, other)
	}
	// This order leaves the window while nothing happens.
	place(otherCustomer, 400, 90*day-20*time.Second)
	polltest.Until(t, "the other one is a member", members(otherCustomer))
	polltest.Until(t, "time has passed", members())
	place(otherCustomer, 400, 50*day)
	polltest.Until(t, "the other one is a member again", members(otherCustomer))
	consent(otherCustomer, customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, true)
	consent(otherCustomer, customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, false) // a withdrawal
	polltest.Until(t, "who refuses analytics is no member", members())
	if got := spent(otherCustomer); got != -1 {
		t.Errorf("who refuses analytics has features: %v", got)
	}
	consent(otherCustomer, customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, true)
	polltest.Until(t, "who grants it again is one", members(otherCustomer))
}
