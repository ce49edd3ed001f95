package customer360_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams"
)

// TestProjectionNumber fails if the projection makes other fragments of the same events than the last
// time, so that a change raises Projection.
func TestProjectionNumber(t *testing.T) {
	t.Parallel()
	digests := map[int]string{1: "e3203e8d0b5ebf0af1f55e87510fa518"} // by projection
	const id, visitor = "019b8d73-dfa0-77b3-b48c-0c15d9771524", "019b8d73-dfa0-77b3-b48c-0c15d9771525"
	day := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	at := timestamppb.New(day)
	price := &money.Money{CurrencyCode: "GBP", Units: 3}
	device := &identityv1.Identifier{Kind: identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, Value: visitor}
	histories := []struct {
		of      event.Aggregate
		stream  string
		history []proto.Message
	}{
		{event.Customer, id, []proto.Message{
			&customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_Registered{Registered: &customerv1.CustomerRegistered{
				CustomerId: id, Reference: "C-1", Name: "A. Person", Email: "a@example.com", Country: "GB", RegisteredAt: at}}},
			&customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_AddressChanged{AddressChanged: &customerv1.AddressChanged{
				CustomerId: id, Address: &customerv1.Address{Recipient: "A. Person", Lines: []string{"1 Mill Lane"}, City: "Cambridge",
					PostalCode: "CB1 0AA", Country: "GB"}, ChangedAt: at}}},
			&customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{ConsentChanged: &customerv1.ConsentChanged{
				CustomerId: id, Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING, Granted: true, ChangedAt: at}}},
		}},
		{event.Order, "o-1", []proto.Message{
			&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{OrderId: "o-1", Reference: "R-1",
				CustomerId: proto.String(id), Currency: "GBP", Country: "GB", OrderedAt: at, Total: price,
				Lines: []*orderv1.OrderLine{{Number: 1, Sku: "MUG", Quantity: 1, UnitPrice: price}}}}},
			&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{Reason: "late", CancelledAt: at}}},
		}},
		{event.Identity, "customer:" + id, []proto.Message{
			&identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Linked{Linked: &identityv1.IdentifierLinked{
				Subject: "customer:" + id, CustomerId: id, Identifier: device, Revision: 1, LinkedAt: at}}},
		}},
	}
	var total digest.Sum
	for _, h := range histories {
		d, err := customer360.Facts(nil).ExpectedDigest(func(yield func(event.Event, error) bool) {
			for i, m := range h.history {
				data, err := proto.Marshal(m)
				e := event.Event{Aggregate: h.of.Name, Stream: h.stream, Version: uint64(i + 1), RecordedAt: day, Data: data}
				if !yield(e, err) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		total.Merge(d.Total())
	}
	e, err := behavior.Envelope(&behaviorv1.BehaviorEvent{MessageId: visitor, Type: behavior.Track, Event: "Product Viewed",
		AnonymousId: visitor, Timestamp: at, ReceivedAt: at, Source: "web", Properties: `{"sku":"MUG"}`})
	if err != nil {
		t.Fatal(err)
	}
	d, err := customer360.ExpectedBehavior(func(yield func(streams.Record, error) bool) {
		yield(streams.Record{Event: e, Topic: event.Behavior.Topic, Offset: 4}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	total.Merge(d.Total())
	if got, want := total.Hash(), digests[customer360.Projection]; got != want {
		t.Errorf("the fragments have the digest %s, and projection %d had %s: raise Projection, and add the digest here",
			got, customer360.Projection, want)
	}
}
