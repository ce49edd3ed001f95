// Package inventory is the stock of one SKU, and the reservations on it:
//
//	ReceiveStock, AdjustStock                        ReserveStock
//	           │                                          │
//	           ▼                                          ▼
//	        on hand ◄────── CommitReservation ──────── reserved ─────── ReleaseReservation,
//	   (less what was sold)   takes the goods             │             or its time is over
//	                                                      └──► available again
//
// At every moment 0 ≤ reserved ≤ on hand, so nothing is sold twice: a reservation takes from the
// available stock (on hand less reserved), and the store lets only one of two simultaneous commands
// append.
//
// A reservation expires by itself, without a timer. The next accepted command first records what
// has expired, and readers count expired reservations as available. After its end, however it came
// about, a reservation is forgotten and its id is free.
//
// This file is the whole domain. It is pure: no I/O, no clock, no randomness. handler.go maps
// InventoryService to it.
package inventory

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// State is the stock of one SKU.
type State struct {
	OnHand       int64
	Reserved     int64 // sum over Reservations
	Reservations map[string]Reservation
}

// Reservation is a quantity set aside until a time.
type Reservation struct {
	Quantity  int64
	ExpiresAt time.Time
}

// Available returns the quantity that can be reserved.
func (s State) Available() int64 { return s.OnHand - s.Reserved }

// Command is one of Receive, Adjust, Reserve, Commit and Release.
type Command interface{ on() On }

// On is the stock that a command addresses, and the time by which reservations expire.
type On struct {
	SKU string
	Now time.Time
}

func (o On) on() On { return o }

// The commands on a stock. At is the business time, which may be earlier than On.Now.
type (
	// Receive adds arrived goods.
	Receive struct {
		On
		Quantity  int64
		Reference string
		At        time.Time
	}
	// Adjust corrects the quantity on hand.
	Adjust struct {
		On
		Delta  int64
		Reason string
		At     time.Time
	}
	// Reserve sets goods aside for a time. Repeating an active reservation changes nothing.
	Reserve struct {
		On
		ReservationID string
		Quantity      int64
		TimeToLive    time.Duration
	}
	// Commit takes reserved goods out of stock.
	Commit struct {
		On
		ReservationID string
	}
	// Release returns reserved goods to the available stock.
	Release struct {
		On
		ReservationID string
	}
)

// Decider returns the domain for the runner.
func Decider() commands.Decider[State, Command, *inventoryv1.StockEvent] {
	return commands.Decider[State, Command, *inventoryv1.StockEvent]{Decide: Decide, Evolve: Evolve, Schema: 1}
}

// Decide returns the events of a command, or the reason to reject it. Expired reservations are
// released first.
func Decide(s State, c Command) ([]*inventoryv1.StockEvent, error) {
	// expirations are stored together with the command's own event. now is the state after them, on
	// which the command is decided. s still contains expired reservations, for a better error.
	expirations := s.expirations(c.on())
	now := s.after(expirations)
	var e *inventoryv1.StockEvent
	var err error
	switch c := c.(type) {
	case Receive:
		e = now.receive(c)
	case Adjust:
		e, err = now.adjust(c)
	case Reserve:
		e, err = now.reserve(c)
	case Commit:
		e, err = now.commit(c, s)
	case Release:
		e, err = now.release(c, s)
	default:
		err = fmt.Errorf("unknown command %T for a stock", c)
	}
	switch {
	case err != nil:
		return nil, err
	case e == nil:
		return expirations, nil
	}
	return append(expirations, e), nil
}

// expirations returns the events that end expired reservations, the earliest first.
func (s State) expirations(on On) []*inventoryv1.StockEvent {
	var ids []string
	for id, r := range s.Reservations {
		if !r.ExpiresAt.After(on.Now) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(s.Reservations[a].ExpiresAt.Compare(s.Reservations[b].ExpiresAt), cmp.Compare(a, b))
	})
	var events []*inventoryv1.StockEvent
	for _, id := range ids {
		expiredAt := s.Reservations[id].ExpiresAt
		events = append(events, s.released(on.SKU, id, inventoryv1.ReleaseCause_RELEASE_CAUSE_EXPIRED, expiredAt))
	}
	return events
}

func (s State) receive(c Receive) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Received{Received: &inventoryv1.StockReceived{
		Sku: c.SKU, Quantity: c.Quantity, Reference: c.Reference, ReceivedAt: timestamppb.New(c.At),
	}}}
}

// adjust corrects the quantity on hand. It cannot take goods that are reserved.
func (s State) adjust(c Adjust) (*inventoryv1.StockEvent, error) {
	if s.OnHand+c.Delta < 0 {
		return nil, s.refuse("stock_negative", "delta", fmt.Sprintf("only %d are on hand", s.OnHand))
	}
	if s.OnHand+c.Delta < s.Reserved {
		return nil, s.refuse("stock_reserved", "delta",
			fmt.Sprintf("%d of the %d on hand are reserved", s.Reserved, s.OnHand))
	}
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Adjusted{Adjusted: &inventoryv1.StockAdjusted{
		Sku: c.SKU, Delta: c.Delta, Reason: c.Reason, AdjustedAt: timestamppb.New(c.At),
	}}}, nil
}

func (s State) reserve(c Reserve) (*inventoryv1.StockEvent, error) {
	// The same reservation again changes nothing, so that a client can repeat it without an
	// idempotency key.
	if held, ok := s.Reservations[c.ReservationID]; ok {
		if held.Quantity != c.Quantity {
			return nil, s.refuse("reservation_differs", "quantity",
				fmt.Sprintf("the reservation already exists, for %d", held.Quantity))
		}
		return nil, nil
	}
	if c.Quantity > s.Available() {
		return nil, s.refuse("stock_insufficient", "quantity", fmt.Sprintf("only %d are available", s.Available()))
	}
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Reserved{Reserved: &inventoryv1.StockReserved{
		Sku: c.SKU, ReservationId: c.ReservationID, Quantity: c.Quantity,
		ReservedAt: timestamppb.New(c.Now), ExpiresAt: timestamppb.New(event.Time(c.Now.Add(c.TimeToLive))),
	}}}, nil
}

// commit takes reserved goods out of stock. before is the state with the reservations that have
// just expired.
func (s State) commit(c Commit, before State) (*inventoryv1.StockEvent, error) {
	held, ok := s.Reservations[c.ReservationID]
	if !ok {
		if _, expired := before.Reservations[c.ReservationID]; expired {
			return nil, s.refuse("reservation_expired", "reservation_id", "the reservation has expired")
		}
		return nil, errUnknownReservation()
	}
	committed := &inventoryv1.ReservationCommitted{
		Sku: c.SKU, ReservationId: c.ReservationID, Quantity: held.Quantity, CommittedAt: timestamppb.New(c.Now),
	}
	return &inventoryv1.StockEvent{
		Event: &inventoryv1.StockEvent_ReservationCommitted{ReservationCommitted: committed},
	}, nil
}

// release ends a reservation. before is the state with the reservations that have just expired.
func (s State) release(c Release, before State) (*inventoryv1.StockEvent, error) {
	if _, ok := s.Reservations[c.ReservationID]; ok {
		return s.released(c.SKU, c.ReservationID, inventoryv1.ReleaseCause_RELEASE_CAUSE_REQUESTED, c.Now), nil
	}
	if _, expired := before.Reservations[c.ReservationID]; expired {
		return nil, nil // the reservation has expired, which has the same effect
	}
	return nil, errUnknownReservation()
}

// Evolve returns the stock after an event. It changes the reservations of s in place.
func Evolve(s State, e *inventoryv1.StockEvent) State {
	switch e := e.GetEvent().(type) {
	case *inventoryv1.StockEvent_Received:
		s.OnHand += e.Received.GetQuantity()
	case *inventoryv1.StockEvent_Adjusted:
		s.OnHand += e.Adjusted.GetDelta()
	case *inventoryv1.StockEvent_Reserved:
		if s.Reservations == nil {
			s.Reservations = map[string]Reservation{}
		}
		r := e.Reserved
		s.Reservations[r.GetReservationId()] = Reservation{r.GetQuantity(), r.GetExpiresAt().AsTime()}
		s.Reserved += r.GetQuantity()
	case *inventoryv1.StockEvent_ReservationCommitted:
		delete(s.Reservations, e.ReservationCommitted.GetReservationId())
		s.Reserved -= e.ReservationCommitted.GetQuantity()
		s.OnHand -= e.ReservationCommitted.GetQuantity()
	case *inventoryv1.StockEvent_ReservationReleased:
		delete(s.Reservations, e.ReservationReleased.GetReservationId())
		s.Reserved -= e.ReservationReleased.GetQuantity()
	}
	return s
}

// after returns the stock after some events, without changing s.
func (s State) after(events []*inventoryv1.StockEvent) State {
	// Evolve changes the map in place, and s must remain as it is.
	if len(events) > 0 {
		s.Reservations = maps.Clone(s.Reservations)
	}
	for _, e := range events {
		s = Evolve(s, e)
	}
	return s
}

// released returns the event that ends a reservation without a sale.
func (s State) released(sku, id string, cause inventoryv1.ReleaseCause, at time.Time) *inventoryv1.StockEvent {
	released := &inventoryv1.ReservationReleased{
		Sku: sku, ReservationId: id, Quantity: s.Reservations[id].Quantity, Cause: cause,
		ReleasedAt: timestamppb.New(at),
	}
	return &inventoryv1.StockEvent{
		Event: &inventoryv1.StockEvent_ReservationReleased{ReservationReleased: released},
	}
}

// refuse returns a rejection with the caller's new starting point: on_hand, reserved and available.
func (s State) refuse(rule, field, reason string) error {
	facts := map[string]string{
		"on_hand":   strconv.FormatInt(s.OnHand, 10),
		"reserved":  strconv.FormatInt(s.Reserved, 10),
		"available": strconv.FormatInt(s.Available(), 10),
	}
	return &commands.RejectedError{Code: commands.Refused, Rule: rule, Field: field, Reason: reason, Facts: facts}
}

// errUnknownReservation is also the answer for a reservation that has ended: its id is forgotten.
func errUnknownReservation() error {
	return &commands.RejectedError{Code: commands.NotFound, Rule: "reservation_unknown", Field: "reservation_id",
		Reason: "the reservation does not exist, or was committed or released"}
}
