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
// Dotted states do not exist yet. The fulfilment process will reserve stock and authorise payment
// for a placed order, and then confirm it or let it expire. Shipping, delivery and returns will
// follow "confirmed". The existing states as a table, where a dash is a rejection:
//
//	            PlaceOrder   AddLines   ConfirmOrder   CancelOrder
//	(new)       placed       –          –              –
//	placed      –            placed     confirmed      cancelled
//	confirmed   –            –          –              cancelled
//	cancelled   –            –          –              –
//
// This file is the whole domain. It is pure: no I/O, no clock, no randomness. handler.go maps
// OrderService to it.
package order

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// Status is the state of an order's life.
type Status string

// The statuses. The zero Status means that the order does not exist.
const (
	Placed    Status = "placed"    // accepts more lines
	Confirmed Status = "confirmed" // the shop will deliver it
	Cancelled Status = "cancelled" // final
)

// State is the part of an order's history that decisions need.
type State struct {
	Status     Status
	CustomerID *string // nil for a guest
	Currency   string
	Country    string
	OrderedAt  time.Time
	Lines      []*orderv1.OrderLine
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
	// AddLines appends lines if the order still has AfterLine lines.
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

// Decider returns the domain for the runner.
func Decider() commands.Decider[State, Command, *orderv1.OrderEvent] {
	return commands.Decider[State, Command, *orderv1.OrderEvent]{
		Decide: Decide, Evolve: Evolve, Opens: opens, Schema: 2,
	}
}

// opens reports whether a command usually starts a new stream; see commands.Decider.
func opens(c Command) bool {
	_, ok := c.(Place)
	return ok
}

// Decide returns the events of a command, or the reason to reject it. Each command first checks the
// order's status.
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
	return nil, fmt.Errorf("unknown command %T for an order", c)
}

func (s State) place(c Place) ([]*orderv1.OrderEvent, error) {
	if s.Status != "" {
		return nil, &commands.RejectedError{
			Code: commands.AlreadyExists, Rule: "order_already_placed", Field: "order_id",
			Reason: fmt.Sprintf("the order already exists, with %d lines", len(s.Lines)), Facts: s.facts(),
		}
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

// addLines appends lines. AfterLine guards against lines of another client that this one has not
// seen, and against adding the same lines twice.
func (s State) addLines(c AddLines) ([]*orderv1.OrderEvent, error) {
	if err := s.mustBe(Placed); err != nil {
		return nil, err
	}
	if uint64(c.AfterLine) != uint64(len(s.Lines)) {
		return nil, &commands.RejectedError{Code: commands.Refused, Rule: "lines_moved", Field: "after_line",
			Reason: fmt.Sprintf("the order has %d lines, not %d", len(s.Lines), c.AfterLine), Facts: s.facts()}
	}
	lines, total, err := number(c.Lines, uint32(len(s.Lines)), s.Total)
	if err != nil {
		return nil, err
	}
	// The event repeats the order's customer, currency, country and time, so that consumers need no
	// state to process it.
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
	// As with added lines, consumers need no state: the event repeats the order.
	lines := make([]*orderv1.OrderLine, len(s.Lines))
	for i, l := range s.Lines {
		lines[i] = &orderv1.OrderLine{
			Number: l.GetNumber(), Sku: l.GetSku(), Quantity: l.GetQuantity(), UnitPrice: l.GetUnitPrice(),
		}
	}
	var events []*orderv1.OrderEvent
	for first := true; first || len(lines) > 0; first = false {
		n := min(len(lines), linesPerCancel)
		events = append(events, &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
			OrderId: c.OrderID, Reason: c.Reason, CancelledAt: timestamppb.New(c.At),
			CustomerId: s.CustomerID, Currency: s.Currency, Country: s.Country, OrderedAt: timestamppb.New(s.OrderedAt),
			Lines: lines[:n:n],
		}}})
		lines = lines[n:]
	}
	return events, nil
}

// linesPerCancel is the maximum number of lines in a cancellation. With it, the event fits the size
// limit of events: a line without description has about 100 bytes at most.
const linesPerCancel = 4000

// Evolve returns the order after an event.
func Evolve(s State, e *orderv1.OrderEvent) State {
	switch e := e.GetEvent().(type) {
	case *orderv1.OrderEvent_Placed:
		s = State{
			Status: Placed, CustomerID: e.Placed.CustomerId,
			Currency: e.Placed.GetCurrency(), Country: e.Placed.GetCountry(),
			OrderedAt: e.Placed.GetOrderedAt().AsTime(),
			Lines:     e.Placed.GetLines(), Total: e.Placed.GetTotal(),
		}
	case *orderv1.OrderEvent_LinesAdded:
		s.Lines = slices.Concat(s.Lines, e.LinesAdded.GetLines()) // the first lines belong to an event
		s.Total = e.LinesAdded.GetTotal()
	case *orderv1.OrderEvent_Confirmed:
		s.Status = Confirmed
	case *orderv1.OrderEvent_Cancelled:
		s.Status = Cancelled
	}
	return s
}

// mustBe rejects a command that the order's status does not allow.
func (s State) mustBe(allowed ...Status) error {
	for _, a := range allowed {
		if s.Status == a {
			return nil
		}
	}
	if s.Status == "" {
		return &commands.RejectedError{Code: commands.NotFound, Rule: "order_unknown", Field: "order_id",
			Reason: "the order does not exist"}
	}
	return &commands.RejectedError{Code: commands.Refused, Rule: "order_" + string(s.Status), Field: "order_id",
		Reason: fmt.Sprintf("the order is %s", s.Status), Facts: s.facts()}
}

// facts returns a rejected caller's new starting point: the status and the number of lines.
func (s State) facts() map[string]string {
	return map[string]string{"status": string(s.Status), "lines": strconv.Itoa(len(s.Lines))}
}

// number turns the wanted lines into order lines, numbered from after+1, and adds their amounts to
// total, which has the order's currency.
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
			tooLarge := &commands.RejectedError{Code: commands.Invalid, Rule: "total_too_large", Reason: err.Error()}
			return nil, nil, tooLarge.In("lines[%d]", i)
		}
		after++
		lines[i] = &orderv1.OrderLine{
			Number: after, Sku: w.GetSku(), Description: w.GetDescription(),
			Quantity: w.GetQuantity(), UnitPrice: w.GetUnitPrice(),
		}
	}
	return lines, total, nil
}
