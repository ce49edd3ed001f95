package customer360_test

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/event/identity"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

const (
	marketing   = customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING
	analytics   = customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS
	anonymousID = identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID
	emailHash   = identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH
	externalID  = identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID
)

var monday = time.Date(2010, 12, 6, 8, 26, 0, 0, time.UTC)

// world writes the events of a shop, as its services and the tracking intake do, without their
// rules.
type world struct {
	t         testing.TB
	logs      map[string]*streamstest.Log // by topic; of aggregates with a store
	behavior  []event.Event
	revisions map[[2]identity.Node]uint64
	now       time.Time // business time
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, logs: map[string]*streamstest.Log{}, revisions: map[[2]identity.Node]uint64{}, now: monday}
	for _, a := range customer360.Sources() {
		w.logs[a.Topic] = &streamstest.Log{Topic: a.Topic, Versions: map[string]uint64{}}
	}
	return w
}

// on makes the world's logs those of a broker.
func (w *world) on(logs map[string]*streamstest.Log) *world {
	w.logs = logs
	return w
}

func customerID(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

func orderID(n int) string { return fmt.Sprintf("00000000-0000-7000-9000-%012d", n) }

// add adds an event of an aggregate.
func (w *world) add(a event.Aggregate, stream string, m proto.Message) event.Event {
	data, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	e := w.logs[a.Topic].Next(a.Name, stream, data)
	if err := a.Check(e); err != nil {
		w.t.Fatal(err)
	}
	return e
}

// at returns a business time, later at each call.
func (w *world) at() *timestamppb.Timestamp {
	w.now = w.now.Add(time.Hour)
	return timestamppb.New(w.now)
}

func (w *world) register(n int) event.Event {
	return w.add(event.Customer, customerID(n), &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_Registered{
		Registered: &customerv1.CustomerRegistered{
			Reference: fmt.Sprintf("C-%d", n), Name: fmt.Sprintf("Customer %d", n),
			Email: fmt.Sprintf("c%d@example.com", n), Country: "GB", RegisteredAt: w.at(),
		},
	}})
}

func (w *world) move(n int, city string) event.Event {
	return w.add(event.Customer, customerID(n), &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_AddressChanged{
		AddressChanged: &customerv1.AddressChanged{Address: &customerv1.Address{City: city}, ChangedAt: w.at()},
	}})
}

func (w *world) consent(n int, purpose customerv1.ConsentPurpose, granted bool) event.Event {
	return w.add(event.Customer, customerID(n), &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{
		ConsentChanged: &customerv1.ConsentChanged{Purpose: purpose, Granted: granted, ChangedAt: w.at()},
	}})
}

func gbp(units int64) *money.Money {
	return &money.Money{CurrencyCode: "GBP", Units: units, Nanos: 500_000_000}
}

// place places an order; customer 0 is a guest.
func (w *world) place(order, customer int, total *money.Money) event.Event {
	placed := &orderv1.OrderPlaced{
		Reference: fmt.Sprintf("S-%d", order), Currency: total.GetCurrencyCode(), Country: "GB", Total: total, OrderedAt: w.at(),
		Lines: []*orderv1.OrderLine{{Number: 1, Sku: "MUG", Quantity: 1, UnitPrice: total}},
	}
	if customer != 0 {
		placed.CustomerId = proto.String(customerID(customer))
	}
	return w.add(event.Order, orderID(order), &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: placed}})
}

func (w *world) confirm(order int) event.Event {
	return w.add(event.Order, orderID(order), &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{
		Confirmed: &orderv1.OrderConfirmed{ConfirmedAt: w.at()},
	}})
}

func (w *world) cancel(order int) event.Event {
	return w.add(event.Order, orderID(order), &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{
		Cancelled: &orderv1.OrderCancelled{CancelledAt: w.at(), Reason: "by mistake"},
	}})
}

// revision returns the next revision of an edge.
func (w *world) revision(a, b identity.Node) uint64 {
	key := [2]identity.Node{min(a, b), max(a, b)}
	w.revisions[key]++
	return w.revisions[key]
}

// link links an identifier to a customer, or takes the link back. It returns the events of both
// ends, that of the customer last.
func (w *world) link(customer int, kind identityv1.IdentifierKind, value string, joined bool) []event.Event {
	node, err := identity.NodeOf(kind, value)
	if err != nil {
		w.t.Fatal(err)
	}
	revision, at := w.revision(identity.Customer(customerID(customer)), node), w.at()
	var events []event.Event
	for _, subject := range []identity.Node{node, identity.Customer(customerID(customer))} {
		m := &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Linked{Linked: &identityv1.IdentifierLinked{
			CustomerId: customerID(customer), Identifier: node.Identifier(), Revision: revision, LinkedAt: at,
		}}}
		if !joined {
			m.Event = &identityv1.IdentityEvent_Unlinked{Unlinked: &identityv1.IdentifierUnlinked{
				CustomerId: customerID(customer), Identifier: node.Identifier(), Revision: revision, UnlinkedAt: at,
			}}
		}
		events = append(events, w.add(event.Identity, string(subject), m))
	}
	return events
}

// merge merges two customers, or takes the merge back. It returns the events of both ends, that of
// a last.
func (w *world) merge(a, b int, joined bool) []event.Event {
	revision, at := w.revision(identity.Customer(customerID(a)), identity.Customer(customerID(b))), w.at()
	var events []event.Event
	for _, n := range []int{b, a} {
		m := &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Merged{Merged: &identityv1.CustomersMerged{
			CustomerId: customerID(a), OtherCustomerId: customerID(b), Revision: revision, MergedAt: at,
		}}}
		if !joined {
			m.Event = &identityv1.IdentityEvent_Unmerged{Unmerged: &identityv1.CustomersUnmerged{
				CustomerId: customerID(a), OtherCustomerId: customerID(b), Revision: revision, UnmergedAt: at,
			}}
		}
		events = append(events, w.add(event.Identity, string(identity.Customer(customerID(n))), m))
	}
	return events
}

// visit records behaviour of a visitor. An empty name is a page.
func (w *world) visit(key, messageID, name string) event.Event {
	m := &behaviorv1.BehaviorEvent{
		MessageId: messageID, Type: behavior.Track, Event: name, AnonymousId: key, Source: "web", Timestamp: w.at(),
	}
	if name == "" {
		m.Type, m.Name = behavior.Page, "Page "+messageID
	}
	m.ReceivedAt = m.Timestamp
	e, err := behavior.Envelope(m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.behavior = append(w.behavior, e)
	return e
}

// random adds a random change of a few customers and visitors. A merge concerns customers below 90
// only.
func (w *world) random(rng *rand.Rand) {
	n, order := 1+rng.IntN(6), 1+rng.IntN(12)
	versions := w.logs[event.Order.Topic].Versions[orderID(order)]
	switch rng.IntN(9) {
	case 0:
		if w.logs[event.Customer.Topic].Versions[customerID(n)] == 0 {
			w.register(n)
		}
	case 1:
		w.consent(n, []customerv1.ConsentPurpose{marketing, analytics}[rng.IntN(2)], rng.IntN(3) > 0)
	case 2:
		w.move(n, []string{"York", "Bath"}[rng.IntN(2)])
	case 3, 4:
		switch versions {
		case 0:
			w.place(order, order%7, gbp(rng.Int64N(100)))
		case 1:
			w.confirm(order)
		case 2:
			w.cancel(order)
		}
	case 5:
		w.link(n, anonymousID, fmt.Sprintf("browser-%d", n), rng.IntN(4) > 0)
	case 6:
		w.merge(2*(n/2)+1, 2*(n/2)+2, rng.IntN(3) > 0) // couples
	default:
		w.visit(fmt.Sprintf("browser-%d", 1+rng.IntN(6)), fmt.Sprint(len(w.behavior)), []string{"", "Product Viewed", "Added"}[rng.IntN(3)])
	}
}

// records returns everything so far as records of partitions, by topic and partition, in log order.
func (w *world) records() map[string][]streams.Record {
	all := map[string][]streams.Record{}
	for topic, l := range w.logs {
		events := l.Events
		if topic == event.Behavior.Topic {
			events = w.behavior
		}
		for _, e := range events {
			hash := sha256.Sum256([]byte(e.Stream))
			partition := int32(hash[0] % streamstest.Partitions)
			name := fmt.Sprintf("%s/%d", topic, partition)
			all[name] = append(all[name], streams.Record{
				Event: e, Topic: topic, Partition: partition, Offset: int64(len(all[name])),
			})
		}
	}
	return all
}

// interleaved returns batches of all records in a random order of partitions, in log order within
// each. Some are delivered twice.
func (w *world) interleaved(rng *rand.Rand) iter.Seq[[]streams.Record] {
	return func(yield func([]streams.Record) bool) {
		left := w.records()
		for len(left) > 0 {
			var batch []streams.Record
			for range 1 + rng.IntN(4) {
				names := slices.Sorted(maps.Keys(left))
				if len(names) == 0 {
					break
				}
				name := names[rng.IntN(len(names))]
				n := 1 + rng.IntN(len(left[name]))
				batch = append(batch, left[name][:n]...)
				if rng.IntN(4) > 0 { // else the positions were not saved
					left[name] = left[name][n:]
				}
				if len(left[name]) == 0 {
					delete(left, name)
				}
			}
			if !yield(batch) {
				return
			}
		}
	}
}

// customerOf returns the number of the customer who has placed an order.
func customerOf(t testing.TB, e event.Event) (n int) {
	t.Helper()
	var m orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &m); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(m.GetPlaced().GetCustomerId(), "00000000-0000-7000-8000-%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}
