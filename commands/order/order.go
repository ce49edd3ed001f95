// Package order is the life of an order:
//
//	PlaceOrder
//	    │          stock reserved ┄ payment authorised
//	    ▼                     ConfirmOrder
//	  placed ───────────────────────────────────────────► confirmed ┄┄┄► shipped ┄┄┄► delivered ┄┄┄► returned
//	  │ ↺ AddLines    ┆                                     │           (in parts)
//	  │               ┆                                     │
//	  │            expired                                  │
//	  │                     CancelOrder                     │
//	  └─────────────────────────┬───────────────────────────┘
//	                            ▼
//	                        cancelled
//
// What is dotted is not built yet, and attaches here: the fulfilment process will reserve stock and authorise payment for a
// placed order and then confirm it, or let it expire; shipping, delivery and returns are further states behind confirmed.
// The rest as a table; a dash is a refusal:
//
//	            PlaceOrder   AddLines   ConfirmOrder   CancelOrder
//	(new)       placed       –          –              –
//	placed      –            placed     confirmed      cancelled
//	confirmed   –            –          –              cancelled
//	cancelled   –            –          –              –
//
// This file is the whole domain, and pure; handler.go is its door.
package order

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// Status is where an order stands in its life.
type Status string

// The statuses. The zero Status is an order that does not exist.
const (
	Placed    Status = "placed"    // takes more lines
	Confirmed Status = "confirmed" // the shop will deliver it
	Cancelled Status = "cancelled" // nothing more can happen
)

// State is what an order needs to remember in order to decide.
type State struct {
	Status     Status
	CustomerID *string // nil for a guest
	Currency   string
	Country    string
	OrderedAt  time.Time
	Lines      uint32 // how many; the last one's number
	Total      *money.Money
}

// Command is one of Place, AddLines, Confirm and Cancel.
type Command interface{ command() }

// The commands of an order's life. At is the business time.
type (
	// Place opens an order.
	Place struct {
		OrderID    string
		CustomerID *string
		Reference  string
		Currency   string
		Country    string
		Lines      []*orderv1.NewLine
		At         time.Time
	}
	// AddLines appends lines, if the order still has AfterLine of them.
	AddLines struct {
		OrderID   string
		AfterLine uint32
		Lines     []*orderv1.NewLine
		At        time.Time
	}
	// Confirm accepts an order.
	Confirm struct {
		OrderID string
		At      time.Time
	}
	// Cancel ends an order.
	Cancel struct {
		OrderID string
		Reason  string
		At      time.Time
	}
)

func (Place) command()    {}
func (AddLines) command() {}
func (Confirm) command()  {}
func (Cancel) command()   {}

// Decider is the domain as the runner takes it.
func Decider() commands.Decider[State, Command, *orderv1.OrderEvent] {
	return commands.Decider[State, Command, *orderv1.OrderEvent]{Decide: Decide, Evolve: Evolve, Opens: opens, Schema: 1}
}

func opens(c Command) bool {
	_, ok := c.(Place)
	return ok
}

// Decide says what a command makes happen to an order, or why nothing. Each command begins with where it may be given.
func Decide(s State, c Command) ([]*orderv1.OrderEvent, error) {
	switch c := c.(type) {
	case Place:
		return s.place(c)
	case AddLines:
		return s.addLines(c)
	case Confirm:
		return s.confirm(c)
	case Cancel:
		return s.cancel(c)
	}
	return nil, fmt.Errorf("order does not know the command %T", c)
}

func (s State) place(c Place) ([]*orderv1.OrderEvent, error) {
	if s.Status != "" {
		return nil, &commands.Rejected{Code: commands.AlreadyExists, Rule: "order_already_placed", Field: "order_id",
			Reason: fmt.Sprintf("the order exists already, with %d lines", s.Lines), Facts: s.facts()}
	}
	zero := &money.Money{CurrencyCode: c.Currency}
	lines, total, err := number(c.Lines, 0, zero)
	if err != nil {
		return nil, err
	}
	return []*orderv1.OrderEvent{{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: c.OrderID, CustomerId: c.CustomerID, Reference: c.Reference, Currency: c.Currency, Country: c.Country,
		Lines: lines, Total: total, OrderedAt: timestamppb.New(c.At),
	}}}}, nil
}

func (s State) addLines(c AddLines) ([]*orderv1.OrderEvent, error) {
	if err := s.mustBe(Placed); err != nil {
		return nil, err
	}
	if c.AfterLine != s.Lines {
		return nil, &commands.Rejected{Code: commands.Refused, Rule: "lines_moved", Field: "after_line",
			Reason: fmt.Sprintf("the order has %d lines, not %d", s.Lines, c.AfterLine), Facts: s.facts()}
	}
	lines, total, err := number(c.Lines, s.Lines, s.Total)
	if err != nil {
		return nil, err
	}
	return []*orderv1.OrderEvent{{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
		OrderId: c.OrderID, Lines: lines, Total: total, AddedAt: timestamppb.New(c.At),
		CustomerId: s.CustomerID, Currency: s.Currency, Country: s.Country, OrderedAt: timestamppb.New(s.OrderedAt),
	}}}}, nil
}

func (s State) confirm(c Confirm) ([]*orderv1.OrderEvent, error) {
	if err := s.mustBe(Placed); err != nil {
		return nil, err
	}
	return []*orderv1.OrderEvent{{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{
		OrderId: c.OrderID, ConfirmedAt: timestamppb.New(c.At),
	}}}}, nil
}

func (s State) cancel(c Cancel) ([]*orderv1.OrderEvent, error) {
	if err := s.mustBe(Placed, Confirmed); err != nil {
		return nil, err
	}
	return []*orderv1.OrderEvent{{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
		OrderId: c.OrderID, Reason: c.Reason, CancelledAt: timestamppb.New(c.At),
	}}}}, nil
}

// Evolve gives the order after an event.
func Evolve(s State, e *orderv1.OrderEvent) State {
	switch e := e.GetEvent().(type) {
	case *orderv1.OrderEvent_Placed:
		s = State{
			Status: Placed, CustomerID: e.Placed.CustomerId, Currency: e.Placed.GetCurrency(), Country: e.Placed.GetCountry(),
			OrderedAt: e.Placed.GetOrderedAt().AsTime(), Lines: uint32(len(e.Placed.GetLines())), Total: e.Placed.GetTotal(),
		}
	case *orderv1.OrderEvent_LinesAdded:
		s.Lines += uint32(len(e.LinesAdded.GetLines()))
		s.Total = e.LinesAdded.GetTotal()
	case *orderv1.OrderEvent_Confirmed:
		s.Status = Confirmed
	case *orderv1.OrderEvent_Cancelled:
		s.Status = Cancelled
	}
	return s
}

// mustBe refuses a command that may not be given where the order stands.
func (s State) mustBe(allowed ...Status) error {
	for _, a := range allowed {
		if s.Status == a {
			return nil
		}
	}
	if s.Status == "" {
		return &commands.Rejected{Code: commands.NotFound, Rule: "order_unknown", Field: "order_id", Reason: "there is no such order"}
	}
	return &commands.Rejected{Code: commands.Refused, Rule: "order_" + string(s.Status), Field: "order_id",
		Reason: fmt.Sprintf("the order is %s", s.Status), Facts: s.facts()}
}

// facts are what a refused caller can go on from: where the order stands, and how many lines it has.
func (s State) facts() map[string]string {
	return map[string]string{"status": string(s.Status), "lines": strconv.FormatUint(uint64(s.Lines), 10)}
}

// number makes order lines of the wanted ones, counting on from after, and adds their amounts to total, whose currency is
// the order's.
func number(wanted []*orderv1.NewLine, after uint32, total *money.Money) ([]*orderv1.OrderLine, *money.Money, error) {
	lines := make([]*orderv1.OrderLine, len(wanted))
	for i, w := range wanted {
		if err := commands.CheckPrice(w.GetUnitPrice(), total.GetCurrencyCode()); err != nil {
			return nil, nil, err.In("lines[%d].unit_price", i)
		}
		amount, err := event.MulMoney(w.GetUnitPrice(), w.GetQuantity())
		if err == nil {
			total, err = event.AddMoney(total, amount)
		}
		if err != nil {
			return nil, nil, (&commands.Rejected{Code: commands.Invalid, Rule: "total_too_large", Reason: err.Error()}).In("lines[%d]", i)
		}
		after++
		lines[i] = &orderv1.OrderLine{
			Number: after, Sku: w.GetSku(), Description: w.GetDescription(), Quantity: w.GetQuantity(), UnitPrice: w.GetUnitPrice(),
		}
	}
	return lines, total, nil
}
