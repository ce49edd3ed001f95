package customer360

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// Parts are the fragments of one person.
type Parts struct {
	Person    identity.Person
	Customers map[string]*Fragment // by customer id
	Orders    map[string]*Fragment // by order id
	Behavior  map[string]*Fragment // by key of the records
}

// Empty reports whether nothing is known but ids.
func (p Parts) Empty() bool {
	return len(p.Customers)+len(p.Orders)+len(p.Behavior)+len(p.Person.Identifiers) == 0 && len(p.Person.Customers) < 2
}

// AsOf returns when the newest event of the fragments was recorded.
func (p Parts) AsOf() *timestamppb.Timestamp {
	var newest *timestamppb.Timestamp
	for _, fragments := range []map[string]*Fragment{p.Customers, p.Orders, p.Behavior} {
		for _, f := range fragments {
			newest = later(newest, f.GetRecordedAt())
		}
	}
	return newest
}

// maxOpenOrders is the maximum number of open orders that a profile lists.
const maxOpenOrders = 20

// Compose makes the profile of a person. It is pure, and its result depends on nothing but the
// fragments: not on the order in which they were applied, and not on merges that were taken back.
func Compose(p Parts) (*customer360v1.Profile, error) {
	profile := &customer360v1.Profile{
		CustomerId: p.Person.Canonical(), CustomerIds: p.Person.Customers, Contact: &customer360v1.Contact{},
		Orders: &customer360v1.Orders{}, Behavior: &customer360v1.Behavior{},
	}
	for _, n := range p.Person.Identifiers {
		profile.Identifiers = append(profile.Identifiers, n.Identifier())
	}
	slices.SortFunc(profile.Identifiers, func(a, b *identityv1.Identifier) int {
		return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), strings.Compare(a.GetValue(), b.GetValue()))
	})
	for _, id := range p.Person.Customers {
		if c := p.Customers[id].GetCustomer(); c != nil {
			addContact(profile, c)
		}
	}
	profile.Consents = consents(p)
	if err := addOrders(profile.Orders, p.Orders); err != nil {
		return nil, err
	}
	for _, f := range p.Behavior {
		addBehavior(profile.Behavior, f.GetBehavior())
	}
	return profile, nil
}

// addContact fills what is not known yet. Customers come in canonical order.
func addContact(to *customer360v1.Profile, c *customer360v1.CustomerFragment) {
	k := to.GetContact()
	k.Reference = cmp.Or(k.Reference, c.GetReference())
	k.Name, k.Email = cmp.Or(k.Name, c.GetName()), cmp.Or(k.Email, c.GetEmail())
	k.Country = cmp.Or(k.Country, c.GetCountry())
	if k.Address == nil {
		k.Address = c.GetAddress()
	}
	to.RegisteredAt = earlier(to.RegisteredAt, c.GetRegisteredAt())
}

// consents returns what the person says of each purpose. Several customers must all agree: a
// purpose that one of them does not grant is not granted.
func consents(p Parts) []*customer360v1.Consent {
	byPurpose := map[customerv1.ConsentPurpose]*customer360v1.Consent{}
	registered := 0
	granting := map[customerv1.ConsentPurpose]int{}
	for _, f := range p.Customers {
		registered++
		for _, c := range f.GetCustomer().GetConsents() {
			known := byPurpose[c.GetPurpose()]
			if known == nil {
				known = &customer360v1.Consent{Purpose: c.GetPurpose()}
				byPurpose[c.GetPurpose()] = known
			}
			known.ChangedAt = later(known.ChangedAt, c.GetChangedAt())
			if c.GetGranted() {
				granting[c.GetPurpose()]++
			}
		}
	}
	var all []*customer360v1.Consent
	for purpose, c := range byPurpose {
		c.Granted = granting[purpose] == registered
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *customer360v1.Consent) int { return cmp.Compare(a.GetPurpose(), b.GetPurpose()) })
	return all
}

// maxNanos is the largest fraction of an amount of money.
const maxNanos = nanosPerUnit - 1

// addOrders sums up orders. A sum that does not fit is the largest amount: the profile remains, and a
// segment of customers who spend much has them.
func addOrders(to *customer360v1.Orders, orders map[string]*Fragment) error {
	totals := map[string]*money.Money{}
	for id, f := range orders {
		o := f.GetOrder()
		if o.GetStage() == orderv1.OrderStage_ORDER_STAGE_CANCELLED {
			to.Cancelled++
			continue
		}
		to.Count++
		to.FirstAt, to.LastAt = earlier(to.FirstAt, o.GetOrderedAt()), later(to.LastAt, o.GetOrderedAt())
		currency := o.GetTotal().GetCurrencyCode()
		if totals[currency] == nil {
			totals[currency] = &money.Money{CurrencyCode: currency}
		}
		total, err := event.AddMoney(totals[currency], o.GetTotal())
		if errors.Is(err, event.ErrMoneyOverflow) { // amounts of orders are not negative
			total, err = &money.Money{CurrencyCode: currency, Units: math.MaxInt64, Nanos: maxNanos}, nil
		}
		if err != nil {
			return fmt.Errorf("sum of the orders of a customer, at order %s: %w", id, err)
		}
		totals[currency] = total
		if o.GetStage() == orderv1.OrderStage_ORDER_STAGE_PLACED {
			to.Open++
			to.OpenOrders = append(to.OpenOrders, &customer360v1.OrderSummary{
				OrderId: id, Reference: o.GetReference(), Total: o.GetTotal(), OrderedAt: o.GetOrderedAt(),
				Stage: o.GetStage(),
			})
		}
	}
	for _, total := range totals {
		to.Totals = append(to.Totals, total)
	}
	slices.SortFunc(to.Totals, func(a, b *money.Money) int {
		return strings.Compare(a.GetCurrencyCode(), b.GetCurrencyCode())
	})
	slices.SortFunc(to.OpenOrders, func(a, b *customer360v1.OrderSummary) int {
		return cmp.Or(b.GetOrderedAt().AsTime().Compare(a.GetOrderedAt().AsTime()),
			strings.Compare(a.GetOrderId(), b.GetOrderId()))
	})
	to.OpenOrders = to.OpenOrders[:min(len(to.OpenOrders), maxOpenOrders)]
	return nil
}

// addBehavior adds what was done under one key. A person may have many keys, so there may be more
// names than in one fragment; all are bounded.
func addBehavior(to *customer360v1.Behavior, b *customer360v1.BehaviorFragment) {
	to.Events += b.GetEvents()
	to.OtherEvents += b.GetOtherEvents()
	for name, n := range b.GetCounts() {
		if to.Counts == nil {
			to.Counts = map[string]uint64{}
		}
		to.Counts[name] += n
	}
	to.FirstSeen, to.LastSeen = earlier(to.FirstSeen, b.GetFirstSeen()), later(to.LastSeen, b.GetLastSeen())
	at, last := b.GetLastPageAt(), to.GetLastPageAt()
	if at == nil {
		return
	}
	// The name decides between equal times, so that the order of fragments does not matter.
	if last == nil || at.AsTime().After(last.AsTime()) || at.AsTime().Equal(last.AsTime()) && b.GetLastPage() > to.LastPage {
		to.LastPage, to.LastPageAt = b.GetLastPage(), at
	}
}

// earlier returns the earlier one of two times, either of which may be absent.
func earlier(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a == nil || b != nil && b.AsTime().Before(a.AsTime()) {
		return b
	}
	return a
}

// later returns the later one of two times, either of which may be absent.
func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a == nil || b != nil && b.AsTime().After(a.AsTime()) {
		return b
	}
	return a
}

// timeOf returns a time, which is zero if it is absent.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
