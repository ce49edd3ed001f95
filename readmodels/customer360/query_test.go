package customer360_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/gen/millrace/customer360/v1/customer360v1connect"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/rpc"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// serve serves a view over HTTP as a process does.
func serve(t *testing.T, v *customer360.View) customer360v1connect.CustomerQueryServiceClient {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(v.Handler(rpc.HandlerOptions(streamstest.Quiet, time.Now)...))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return customer360v1connect.NewCustomerQueryServiceClient(server.Client(), server.URL)
}

func byID(n int, token string) *customer360v1.GetProfileRequest {
	return &customer360v1.GetProfileRequest{Key: &customer360v1.GetProfileRequest_CustomerId{CustomerId: customerID(n)}, Token: token}
}

func byIdentifier(kind identityv1.IdentifierKind, value string) *customer360v1.GetProfileRequest {
	return &customer360v1.GetProfileRequest{Key: &customer360v1.GetProfileRequest_Identifier{
		Identifier: &identityv1.IdentifierKey{Kind: kind, Value: value},
	}}
}

func tokenOf(a event.Aggregate, e event.Event) string {
	return event.Token{Service: a.Service, Stream: e.Stream, Version: e.Version, Position: e.Position}.String()
}

// everything returns all records of a world, in log order of each partition.
func (w *world) everything() (all []streams.Record) {
	for _, some := range w.records() {
		all = append(all, some...)
	}
	return all
}

// TestGetProfile checks a profile that has all parts, by every way to ask for it.
func TestGetProfile(t *testing.T) {
	v := customer360.New(newRedis(t), streamstest.Quiet)
	w := newWorld(t)
	w.visit("browser-1", "a", "")      // 1: before anybody has signed in
	w.visit("browser-1", "b", "Added") // 2
	w.visit("browser-1", "b", "Added") // 3: a copy of the same event
	w.register(1)                      // 4
	w.register(2)                      // 5
	w.consent(1, marketing, true)      // 6
	w.consent(1, analytics, true)      // 7
	w.consent(2, marketing, true)      // 8
	w.move(2, "Bath")                  // 9
	w.place(1, 1, gbp(10))             // 10
	w.place(2, 2, gbp(20))             // 11
	w.place(3, 1, gbp(40))             // 12
	w.confirm(1)                       // 13
	w.cancel(3)                        // 14
	w.place(4, 0, gbp(80))             // a guest's
	w.link(1, anonymousID, "browser-1", true)
	w.link(2, externalID, "till-7", true)
	w.merge(1, 2, true)
	w.visit(customerID(2), "c", "Added")
	if err := v.Apply(t.Context(), w.everything()); err != nil {
		t.Fatal(err)
	}
	at := func(hours int) string { return monday.Add(time.Duration(hours) * time.Hour).Format(time.RFC3339) }
	want := &customer360v1.Profile{}
	if err := protojson.Unmarshal(fmt.Appendf(nil, `{
		"customerId": %[1]q, "customerIds": [%[1]q, %[2]q], "registeredAt": %[3]q,
		"contact": {"reference": "C-1", "name": "Customer 1", "email": "c1@example.com", "country": "GB", "address": {"city": "Bath"}},
		"consents": [
			{"purpose": "CONSENT_PURPOSE_MARKETING", "granted": true, "changedAt": %[4]q},
			{"purpose": "CONSENT_PURPOSE_ANALYTICS", "changedAt": %[5]q}],
		"orders": {"count": "2", "open": "1", "cancelled": "1", "firstAt": %[6]q, "lastAt": %[7]q,
			"totals": [{"currencyCode": "GBP", "units": "31"}],
			"openOrders": [{"orderId": %[8]q, "reference": "S-2", "total": {"currencyCode": "GBP", "units": "20", "nanos": 500000000}, "orderedAt": %[7]q, "stage": "ORDER_STAGE_PLACED"}]},
		"behavior": {"events": "3", "counts": {"page": "1", "Added": "2"}, "firstSeen": %[9]q, "lastSeen": %[10]q, "lastPage": "Page a", "lastPageAt": %[9]q},
		"identifiers": [{"kind": "IDENTIFIER_KIND_ANONYMOUS_ID", "value": "browser-1"}, {"kind": "IDENTIFIER_KIND_EXTERNAL_ID", "value": "till-7"}]
	}`, customerID(1), customerID(2), at(4), at(8), at(7), at(10), at(11), orderID(2), at(1), at(19)), want); err != nil {
		t.Fatal(err)
	}
	queries := serve(t, v)
	hash := strings.Repeat("ab", 32)
	lastOf := func(a event.Aggregate) event.Event {
		l := w.logs[a.Topic]
		return l.Events[len(l.Events)-1]
	}
	shouted := byID(2, "")
	shouted.Key = &customer360v1.GetProfileRequest_CustomerId{CustomerId: strings.ToUpper(customerID(2))}
	for name, c := range map[string]struct {
		request *customer360v1.GetProfileRequest
		code    connect.Code
	}{
		"by id":                        {byID(1, ""), 0},
		"by the other customer":        {byID(2, ""), 0},
		"by id in capitals":            {shouted, 0},
		"by an anonymous id":           {byIdentifier(anonymousID, "browser-1"), 0},
		"by another system's number":   {byIdentifier(externalID, "till-7"), 0},
		"with the token of an order":   {byID(1, tokenOf(event.Order, lastOf(event.Order))), 0},
		"with the token of a customer": {byID(1, tokenOf(event.Customer, lastOf(event.Customer))), 0},
		"with the token of the merge":  {byID(2, tokenOf(event.Identity, lastOf(event.Identity))), 0},
		"a customer nobody knows":      {byID(9, ""), connect.CodeNotFound},
		"a visitor without a customer": {byIdentifier(anonymousID, "browser-2"), connect.CodeNotFound},
		"an unknown hash":              {byIdentifier(emailHash, hash), connect.CodeNotFound},
		"a hash that is none":          {byIdentifier(emailHash, "alice@example.com"), connect.CodeInvalidArgument},
		"a placeholder":                {byIdentifier(externalID, "null"), connect.CodeInvalidArgument},
		"a token that is none":         {byID(1, "rubbish"), connect.CodeInvalidArgument},
		"a token of another service":   {byID(1, event.Token{Service: "catalog", Stream: "x", Version: 1}.String()), connect.CodeInvalidArgument},
		"a token of the intake":        {byID(1, event.Token{Service: "tracking", Stream: "x", Version: 1}.String()), connect.CodeInvalidArgument},
		"neither id nor identifier":    {&customer360v1.GetProfileRequest{}, connect.CodeInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := queries.GetProfile(t.Context(), connect.NewRequest(c.request))
			if c.code != 0 {
				if connect.CodeOf(err) != c.code {
					t.Errorf("got %v, %v, want %v", got, err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.Msg.GetProfile(), want) {
				t.Errorf("got  %v\nwant %v", got.Msg.GetProfile(), want)
			}
			if f := got.Msg.GetFreshness(); f.GetView() != customer360.Name || f.GetAsOf() == nil {
				t.Errorf("freshness %v", f)
			}
		})
	}
}

// TestTokenOfAMergeWaitsForBothEnds checks that a query with the token of a merge sees it from the
// other customer, too, whose stream is on another partition.
func TestTokenOfAMergeWaitsForBothEnds(t *testing.T) {
	v := customer360.New(newRedis(t), streamstest.Quiet)
	queries := serve(t, v)
	w := newWorld(t)
	w.register(1)
	w.register(2)
	ends := w.merge(1, 2, true) // the token is of the last one, customer 1
	all := w.everything()
	token := tokenOf(event.Identity, ends[1])
	other := func(r streams.Record) bool {
		return r.Topic == event.Identity.Topic && r.Event.Stream == ends[0].Stream
	}
	var late []streams.Record
	for _, r := range all {
		if other(r) {
			late = append(late, r)
			continue
		}
		if err := v.Apply(t.Context(), []streams.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := queries.GetProfile(short, connect.NewRequest(byID(2, token))); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Fatalf("before the other end is applied: %v", err)
	}
	if err := v.Apply(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	got, err := queries.GetProfile(t.Context(), connect.NewRequest(byID(2, token)))
	if err != nil || len(got.Msg.GetProfile().GetCustomerIds()) != 2 {
		t.Errorf("after it: %v, %v", got, err)
	}
}

// TestVisitorsAreBounded checks that the fragment of a visitor does not grow without end, and that
// records below its offset and copies change nothing.
func TestVisitorsAreBounded(t *testing.T) {
	v := customer360.New(newRedis(t), streamstest.Quiet)
	queries := serve(t, v)
	w := newWorld(t)
	w.register(1)
	w.link(1, anonymousID, "browser-1", true)
	const n = 80
	for i := range n {
		w.visit("browser-1", fmt.Sprint(i), fmt.Sprintf("Event %d %s", i, strings.Repeat("é", 100)))
	}
	all := w.everything()
	for range 2 {
		if err := v.Apply(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	// A copy on the log, at a later offset.
	for _, r := range all {
		if r.Topic == event.Behavior.Topic && r.Event.ID == w.behavior[n-1].ID {
			r.Offset += 10
			if err := v.Apply(t.Context(), []streams.Record{r}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := queries.GetProfile(t.Context(), connect.NewRequest(byID(1, "")))
	if err != nil {
		t.Fatal(err)
	}
	b := got.Msg.GetProfile().GetBehavior()
	if b.GetEvents() != n || len(b.GetCounts()) != 50 || b.GetOtherEvents() != n-50 {
		t.Errorf("%d events, %d names, %d others", b.GetEvents(), len(b.GetCounts()), b.GetOtherEvents())
	}
	for name := range b.GetCounts() {
		if len(name) > 100 {
			t.Errorf("a name has %d bytes", len(name))
		}
	}
}
