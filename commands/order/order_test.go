package order_test

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/order"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

var (
	monday  = time.Date(2010, 12, 6, 8, 26, 0, 0, time.UTC)
	tuesday = monday.AddDate(0, 0, 1)
	alice   = "0196f0c4-0000-7000-8000-000000000001"
)

const id = "0196f0c4-0000-7000-8000-00000000000a"

func gbp(units int64, nanos int32) *money.Money {
	return &money.Money{CurrencyCode: "GBP", Units: units, Nanos: nanos}
}

func want(sku string, quantity int64, price *money.Money) *orderv1.NewLine {
	return &orderv1.NewLine{Sku: sku, Description: "a " + sku, Quantity: quantity, UnitPrice: price}
}

func line(number uint32, sku string, quantity int64, price *money.Money) *orderv1.OrderLine {
	return &orderv1.OrderLine{Number: number, Sku: sku, Description: "a " + sku, Quantity: quantity, UnitPrice: price}
}

func place(lines ...*orderv1.NewLine) order.Place {
	return order.Place{
		OrderID: id, CustomerID: &alice, Reference: "536365", Currency: "GBP", Country: "United Kingdom", Lines: lines, At: monday,
	}
}

func placed(total *money.Money, lines ...*orderv1.OrderLine) *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: id, CustomerId: &alice, Reference: "536365", Currency: "GBP", Country: "United Kingdom",
		Lines: lines, Total: total, OrderedAt: timestamppb.New(monday),
	}}}
}

func linesAdded(total *money.Money, lines ...*orderv1.OrderLine) *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
		OrderId: id, Lines: lines, Total: total, AddedAt: timestamppb.New(tuesday),
		CustomerId: &alice, Currency: "GBP", Country: "United Kingdom", OrderedAt: timestamppb.New(monday),
	}}}
}

func confirmed() *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{
		OrderId: id, ConfirmedAt: timestamppb.New(tuesday),
	}}}
}

// cancelled is the cancellation of an order with lines, which it repeats without descriptions.
func cancelled(lines ...*orderv1.OrderLine) *orderv1.OrderEvent {
	bare := make([]*orderv1.OrderLine, len(lines))
	for i, l := range lines {
		bare[i] = proto.CloneOf(l)
		bare[i].Description = ""
	}
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
		OrderId: id, Reason: "changed my mind", CancelledAt: timestamppb.New(tuesday),
		CustomerId: &alice, Currency: "GBP", Country: "United Kingdom", OrderedAt: timestamppb.New(monday), Lines: bare,
	}}}
}

func refused(code commands.Code, rule, field string, facts ...string) *commands.RejectedError {
	r := &commands.RejectedError{Code: code, Rule: rule, Field: field}
	for i := 0; i < len(facts); i += 2 {
		if r.Facts == nil {
			r.Facts = map[string]string{}
		}
		r.Facts[facts[i]] = facts[i+1]
	}
	return r
}

// Each spec is a history, a command, and the events or the rejection that follow.
func TestOrderLifecycle(t *testing.T) {
	t.Parallel()
	type events = []*orderv1.OrderEvent
	var (
		mug  = line(1, "MUG", 2, gbp(2, 550_000_000))
		open = placed(gbp(5, 100_000_000), mug)
		add  = order.AddLines{
			OrderID: id, AfterLine: 1, Lines: []*orderv1.NewLine{want("LAMP", 3, gbp(1, 0))}, At: tuesday,
		}
		confirm = order.Confirm{OrderID: id, At: tuesday}
		cancel  = order.Cancel{OrderID: id, Reason: "changed my mind", At: tuesday}
		again   = place(want("MUG", 1, gbp(1, 0)))
		addTo   = func(after uint32, lines ...*orderv1.NewLine) order.AddLines {
			return order.AddLines{OrderID: id, AfterLine: after, Lines: lines, At: tuesday}
		}
		stranger = refused(commands.NotFound, "order_unknown", "order_id")
		was      = func(status string, lines int) []string {
			return []string{"status", status, "lines", strconv.Itoa(lines)}
		}
	)
	guest, guestPlaced := place(want("MUG", 2, gbp(2, 550_000_000))), placed(gbp(5, 100_000_000), mug)
	guest.CustomerID, guestPlaced.GetPlaced().CustomerId = nil, nil
	lamp, guestCancelled := line(2, "LAMP", 1, gbp(1, 0)), cancelled(mug)
	guestCancelled.GetCancelled().CustomerId = nil

	commandstest.Check(t, order.Decider(), map[string]commandstest.Spec[order.Command, *orderv1.OrderEvent]{
		"an order is placed: lines are numbered from 1, the total is their sum": {
			When: place(want("MUG", 2, gbp(2, 550_000_000)), want("LAMP", 3, gbp(0, 1)), want("MUG", 1, gbp(0, 0))),
			Then: events{placed(gbp(5, 100_000_003), mug, line(2, "LAMP", 3, gbp(0, 1)), line(3, "MUG", 1, gbp(0, 0)))},
		},
		"a guest places an order":                  {When: guest, Then: events{guestPlaced}},
		"lines are added: they count on":           {Given: events{open}, When: add, Then: events{linesAdded(gbp(8, 100_000_000), line(2, "LAMP", 3, gbp(1, 0)))}},
		"a placed order is confirmed":              {Given: events{open}, When: confirm, Then: events{confirmed()}},
		"a placed order is cancelled":              {Given: events{open}, When: cancel, Then: events{cancelled(mug)}},
		"a confirmed order is cancelled":           {Given: events{open, confirmed()}, When: cancel, Then: events{cancelled(mug)}},
		"a cancellation repeats all lines":         {Given: events{open, linesAdded(gbp(6, 0), lamp)}, When: cancel, Then: events{cancelled(mug, lamp)}},
		"a guest's order is cancelled":             {Given: events{guestPlaced}, When: cancel, Then: events{guestCancelled}},
		"an order with added lines is confirmed":   {Given: events{open, linesAdded(gbp(6, 0), line(2, "LAMP", 1, gbp(1, 0)))}, When: confirm, Then: events{confirmed()}},
		"no second placing":                        {Given: events{open}, When: again, Refused: refused(commands.AlreadyExists, "order_already_placed", "order_id", was("placed", 1)...)},
		"no second placing after a cancellation":   {Given: events{open, cancelled()}, When: again, Refused: refused(commands.AlreadyExists, "order_already_placed", "order_id", was("cancelled", 1)...)},
		"no lines for an unknown order":            {When: add, Refused: stranger},
		"no lines where the order has fewer":       {Given: events{open}, When: addTo(2, want("LAMP", 3, gbp(1, 0))), Refused: refused(commands.Refused, "lines_moved", "after_line", was("placed", 1)...)},
		"no lines where the order has more by now": {Given: events{open, linesAdded(gbp(6, 0), line(2, "LAMP", 1, gbp(1, 0)))}, When: add, Refused: refused(commands.Refused, "lines_moved", "after_line", was("placed", 2)...)},
		"no lines after confirmation":              {Given: events{open, confirmed()}, When: add, Refused: refused(commands.Refused, "order_confirmed", "order_id", was("confirmed", 1)...)},
		"no lines after cancellation":              {Given: events{open, cancelled()}, When: add, Refused: refused(commands.Refused, "order_cancelled", "order_id", was("cancelled", 1)...)},
		"no confirmation of an unknown order":      {When: confirm, Refused: stranger},
		"no second confirmation":                   {Given: events{open, confirmed()}, When: confirm, Refused: refused(commands.Refused, "order_confirmed", "order_id", was("confirmed", 1)...)},
		"no confirmation after cancellation":       {Given: events{open, cancelled()}, When: confirm, Refused: refused(commands.Refused, "order_cancelled", "order_id", was("cancelled", 1)...)},
		"no cancellation of an unknown order":      {When: cancel, Refused: stranger},
		"no second cancellation":                   {Given: events{open, cancelled()}, When: cancel, Refused: refused(commands.Refused, "order_cancelled", "order_id", was("cancelled", 1)...)},
		"no price in another currency":             {When: place(want("MUG", 1, gbp(1, 0)), want("LAMP", 1, &money.Money{CurrencyCode: "EUR", Units: 1})), Refused: refused(commands.Invalid, "currency_differs", "lines[1].unit_price")},
		"no price below zero":                      {When: place(want("MUG", 1, gbp(0, -1))), Refused: refused(commands.Invalid, "price_negative", "lines[0].unit_price")},
		"no price that is malformed":               {When: place(want("MUG", 1, gbp(1, -1))), Refused: refused(commands.Invalid, "money_malformed", "lines[0].unit_price")},
		"no added price in another currency":       {Given: events{open}, When: addTo(1, want("LAMP", 1, &money.Money{CurrencyCode: "EUR", Units: 1})), Refused: refused(commands.Invalid, "currency_differs", "lines[0].unit_price")},
		"no line amount beyond all money":          {When: place(want("MUG", 2, gbp(math.MaxInt64, 0))), Refused: refused(commands.Invalid, "total_too_large", "lines[0]")},
		"no total beyond all money":                {When: place(want("MUG", 1, gbp(math.MaxInt64, 0)), want("MUG", 1, gbp(1, 0))), Refused: refused(commands.Invalid, "total_too_large", "lines[1]")},
	})
}

// The state survives its encoding in a snapshot.
func TestOrderSnapshots(t *testing.T) {
	t.Parallel()
	commandstest.Snapshots(t, order.Decider(), drawCommand)
}

// TestOrderInvariants checks for any sequence of commands that lines are numbered without
// gaps, that the total is the sum of the lines, and that nothing happens after a cancellation.
func TestOrderInvariants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s order.State
		var pence, lines int64
		for range rapid.IntRange(1, 30).Draw(t, "commands") {
			before := s
			events, err := order.Decide(s, drawCommand(t, s))
			if err != nil {
				continue
			}
			if before.Status == order.Cancelled {
				t.Fatalf("events after the cancellation: %v", events)
			}
			for _, e := range events {
				s = order.Evolve(s, e)
				added, total := e.GetPlaced().GetLines(), e.GetPlaced().GetTotal()
				if e.GetLinesAdded() != nil {
					added, total = e.GetLinesAdded().GetLines(), e.GetLinesAdded().GetTotal()
				}
				for _, l := range added {
					lines++
					pence += l.GetQuantity() * (l.GetUnitPrice().GetUnits()*100 + int64(l.GetUnitPrice().GetNanos())/1e7)
					if int64(l.GetNumber()) != lines {
						t.Fatalf("line %d is numbered %d", lines, l.GetNumber())
					}
				}
				if len(added) > 0 && total.GetUnits()*100+int64(total.GetNanos())/1e7 != pence {
					t.Fatalf("the total is %v, the sum of the lines is %d pence", total, pence)
				}
			}
			if int64(len(s.Lines)) != lines {
				t.Fatalf("the state has %d lines, there are %d", len(s.Lines), lines)
			}
		}
	})
}

// drawCommand draws a command that the state often allows.
func drawCommand(t *rapid.T, s order.State) order.Command {
	var lines []*orderv1.NewLine
	for range rapid.IntRange(1, 3).Draw(t, "lines") {
		price := gbp(rapid.Int64Range(-1, 1000).Draw(t, "pounds"), 10_000_000*rapid.Int32Range(0, 99).Draw(t, "pence"))
		lines = append(lines, want("MUG", rapid.Int64Range(1, 1e6).Draw(t, "quantity"), price))
	}
	switch rapid.SampledFrom([]string{"place", "add", "add", "add", "confirm", "cancel"}).Draw(t, "command") {
	case "place":
		return place(lines...)
	case "add":
		return order.AddLines{
			OrderID: id, AfterLine: uint32(len(s.Lines)) + rapid.SampledFrom([]uint32{0, 0, 0, 1}).Draw(t, "off by"), Lines: lines, At: tuesday,
		}
	case "confirm":
		return order.Confirm{OrderID: id, At: tuesday}
	}
	return order.Cancel{OrderID: id, Reason: "changed my mind", At: tuesday}
}

// TestCancelManyLines: however many lines an order has, its cancellation repeats each of them once,
// in events that fit the size limit.
func TestCancelManyLines(t *testing.T) {
	t.Parallel()
	sku, dear := strings.Repeat("S", 64), gbp(math.MaxInt64/1_000_000_001, 999_999_999)
	var s order.State
	var number uint32
	for range 3 {
		var lines []*orderv1.OrderLine
		for range 4000 {
			number++
			lines = append(lines, line(number, sku, 1_000_000_000, dear))
		}
		e := placed(dear, lines...)
		if s.Status != "" {
			e = linesAdded(dear, lines...)
		}
		s = order.Evolve(s, e)
	}
	events, err := order.Decide(s, order.Cancel{OrderID: id, Reason: strings.Repeat("r", 500), At: tuesday})
	if err != nil || len(events) != 3 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	next := uint32(1)
	for _, e := range events {
		if size := proto.Size(e); size > eventstore.MaxData {
			t.Errorf("an event has %d bytes, the limit is %d", size, eventstore.MaxData)
		}
		for _, l := range e.GetCancelled().GetLines() {
			if l.GetNumber() != next {
				t.Fatalf("line %d follows line %d", l.GetNumber(), next-1)
			}
			next++
		}
		s = order.Evolve(s, e)
	}
	if next != number+1 || s.Status != order.Cancelled {
		t.Errorf("%d of %d lines, status %s", next-1, number, s.Status)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 20, 1000} {
		var lines []*orderv1.NewLine
		for range n {
			lines = append(lines, want("85123A", 6, gbp(2, 550_000_000)))
		}
		b.Run("lines="+strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := order.Decide(order.State{}, place(lines...)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
