package shop

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// madeOrder is an order of the property test, and when the log had each of its events.
type madeOrder struct {
	id, customer, currency string // no customer: a guest
	ordered                time.Time
	lines                  [][]int64 // pence of the lines of OrderPlaced, then of LinesAdded
	known                  []time.Time
	cancelled              time.Time // when it was known; zero: never
}

// TestRFMOfAnyOrders: whatever customers order, add and cancel, in whatever order and how late the
// facts arrive, the vector is what the orders say that are in the window and known.
func TestRFMOfAnyOrders(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Date(2011, 6, 1, 12, 0, 0, 0, time.UTC)
		orders := make([]*madeOrder, rapid.IntRange(0, 12).Draw(t, "orders"))
		facts, offset := map[string][]features.Fact{}, int64(0)
		for i := range orders {
			orders[i] = drawOrder(t, i, at)
			for n, e := range orders[i].events(t) {
				offset++
				for _, s := range []features.Source{customerOrders, customerOrderLines, customerCancellations} {
					fresh, err := s.Project(e)
					if err != nil {
						t.Fatal(err)
					}
					for j, f := range fresh {
						f.Known, f.Origin = orders[i].knownAt(n), features.Origin{Offset: offset, Index: int32(j)}
						facts[s.Name] = append(facts[s.Name], f)
					}
				}
			}
		}
		for name, all := range facts {
			facts[name] = rapid.Permutation(all).Draw(t, name)
		}
		known := time.Time{}
		if rapid.Bool().Draw(t, "as known at a time") {
			known = drawTime(t, "known", at)
		}
		g := customerValue("GBP")
		got := features.Evaluate(g, facts, "alice", at, known)
		for i, o := range g.Outputs() {
			want, tolerance, ok := naive(orders, o, at, known)
			if !ok {
				t.Fatalf("%s is not tested", o.Name)
			}
			if tolerance == 0 && !got.Values[i].Equal(want) || tolerance > 0 &&
				(got.Values[i].Kind != want.Kind || math.Abs(got.Values[i].Float-want.Float) > tolerance*want.Float) {
				t.Errorf("%s is %+v, want %+v", o.Name, got.Values[i], want)
			}
		}
	})
}

// drawTime draws a time near one of the edges of the windows, or anywhere.
func drawTime(t *rapid.T, what string, at time.Time) time.Time {
	edge := rapid.SampledFrom([]time.Duration{0, 24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour, 90 * 24 * time.Hour}).Draw(t, what)
	near := rapid.SampledFrom([]time.Duration{-time.Microsecond, 0, time.Microsecond, -20 * time.Hour, 13 * 24 * time.Hour}).Draw(t, what)
	return at.Add(-edge).Add(near)
}

func drawOrder(t *rapid.T, number int, at time.Time) *madeOrder {
	o := &madeOrder{
		id:       fmt.Sprintf("order-%d", number),
		customer: rapid.SampledFrom([]string{"alice", "alice", "alice", "bob", ""}).Draw(t, "customer"),
		currency: rapid.SampledFrom([]string{"GBP", "GBP", "GBP", "EUR"}).Draw(t, "currency"),
		ordered:  drawTime(t, "ordered", at),
	}
	known := drawTime(t, "known", at)
	for range rapid.IntRange(1, 3).Draw(t, "events") {
		o.lines = append(o.lines, rapid.SliceOfN(rapid.Int64Range(1, 1e6), 1, 3).Draw(t, "pence"))
		o.known = append(o.known, known)
		known = known.Add(time.Duration(rapid.Int64Range(0, 1e6).Draw(t, "seconds later")) * time.Second)
	}
	if rapid.IntRange(0, 3).Draw(t, "fate") == 0 {
		o.cancelled = known
	}
	return o
}

// knownAt returns when the nth event of the order was known.
func (o *madeOrder) knownAt(n int) time.Time {
	if n < len(o.known) {
		return o.known[n]
	}
	return o.cancelled
}

// events returns the order's events, in the order of the log.
func (o *madeOrder) events(t *rapid.T) []event.Event {
	var customer *string
	if o.customer != "" {
		customer = proto.String(o.customer)
	}
	price := func(pence int64) *money.Money {
		return &money.Money{CurrencyCode: o.currency, Units: pence / 100, Nanos: int32(pence%100) * 10_000_000}
	}
	at := timestamppb.New(o.ordered)
	var all []*orderv1.OrderLine
	var events []event.Event
	add := func(m *orderv1.OrderEvent) {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, event.Event{Stream: o.id, Data: data})
	}
	var total int64
	for i, pence := range o.lines {
		var lines []*orderv1.OrderLine
		for _, p := range pence {
			total += p
			number := uint32(len(all) + 1)
			lines = append(lines, &orderv1.OrderLine{Number: number, Sku: "MUG", Quantity: 1, UnitPrice: price(p)})
			all = append(all, lines[len(lines)-1])
		}
		if i == 0 {
			add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
				OrderId: o.id, CustomerId: customer, Currency: o.currency, Lines: lines, Total: price(total), OrderedAt: at,
			}}})
			continue
		}
		add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
			OrderId: o.id, CustomerId: customer, Currency: o.currency, Lines: lines, Total: price(total), OrderedAt: at,
		}}})
	}
	if !o.cancelled.IsZero() {
		add(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
			OrderId: o.id, CustomerId: customer, Currency: o.currency, Lines: all, OrderedAt: at, CancelledAt: at,
		}}})
	}
	return events
}

// naive computes an output from the orders, without facts. Only quantiles may differ, by the
// tolerance. ok is false for an output that it does not know.
func naive(
	orders []*madeOrder, o features.Output, at, known time.Time,
) (want exact.Result, tolerance float64, ok bool) {
	var totals []int64 // pence
	var items int64
	var first, last *madeOrder
	var firstTotal, lastTotal int64
	for _, m := range orders {
		isKnown := func(t time.Time) bool { return !t.IsZero() && (known.IsZero() || !t.After(known)) }
		inside := !m.ordered.After(at) && (o.Window == features.Lifetime || m.ordered.After(at.Add(-time.Duration(o.Window))))
		if m.customer != "alice" || m.currency != "GBP" || !inside || !isKnown(m.known[0]) || isKnown(m.cancelled) {
			continue
		}
		var total int64
		for i, lines := range m.lines {
			if isKnown(m.known[i]) {
				for _, pence := range lines {
					total += pence
					items++
				}
			}
		}
		totals = append(totals, total)
		// Of orders at one time, the one with the smallest id is the first.
		if first == nil || m.ordered.Before(first.ordered) || m.ordered.Equal(first.ordered) && m.id < first.id {
			first, firstTotal = m, total
		}
		if last == nil || m.ordered.After(last.ordered) || m.ordered.Equal(last.ordered) && m.id > last.id {
			last, lastTotal = m, total
		}
	}
	slices.Sort(totals)
	n := int64(len(totals))
	var sum, squares int64
	for _, p := range totals {
		sum, squares = sum+p, squares+p*p
	}
	pounds := func(numerator, divisor int64) exact.Result {
		f, _ := big.NewRat(numerator, 100*divisor).Float64()
		return exact.Result{Kind: exact.FloatResult, Float: f}
	}
	seconds := func(m *madeOrder) exact.Result {
		f, _ := big.NewRat(at.Sub(m.ordered).Microseconds(), 1e6).Float64()
		return exact.Result{Kind: exact.FloatResult, Float: f}
	}
	switch o.Feature.Name {
	case "frequency":
		return exact.Result{Kind: exact.IntResult, Int: n}, 0, true
	case "monetary_sum":
		return pounds(sum, 1), 0, true
	}
	if n == 0 { // all others are null
		return exact.Result{}, 0, true
	}
	switch o.Feature.Name {
	case "recency_seconds":
		return seconds(last), 0, true
	case "tenure_seconds":
		return seconds(first), 0, true
	case "first_total":
		return pounds(firstTotal, 1), 0, true
	case "last_total":
		return pounds(lastTotal, 1), 0, true
	case "monetary_mean":
		return pounds(sum, n), 0, true
	case "monetary_min":
		return pounds(totals[0], 1), 0, true
	case "monetary_max":
		return pounds(totals[n-1], 1), 0, true
	case "monetary_stddev":
		variance := new(big.Int).Mul(big.NewInt(n), big.NewInt(squares))
		variance.Sub(variance, new(big.Int).Mul(big.NewInt(sum), big.NewInt(sum)))
		root := new(big.Float).SetPrec(500).SetInt(variance)
		if variance.Sign() > 0 {
			root.Sqrt(root)
		}
		f, _ := root.Quo(root, big.NewFloat(float64(100*n))).Float64()
		return exact.Result{Kind: exact.FloatResult, Float: f}, 0, true
	case "monetary_median":
		return pounds(totals[(n-1)/2], 1), 0.01, true
	case "monetary_p90":
		return pounds(totals[9*(n-1)/10], 1), 0.01, true
	case "amount_per_item":
		return pounds(sum, items), 0, true
	}
	return exact.Result{}, 0, false
}
