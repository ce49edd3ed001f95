package tables

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/lake/declare"
)

// OrdersEvents has every event of an order.
var OrdersEvents = declare.Events("orders_events", event.Order, (*orderv1.OrderEvent)(nil))

// OrdersCurrent has the current state of every order. Its lines are in order_lines.
var OrdersCurrent = declare.State[orderState]{
	Name: "orders_current", Doc: "Every order as it is now.", Of: event.Order, Key: "order_id", KeyDoc: "UUID",
	Columns: declare.Schema[orderState]{
		{Name: "customer_id", Doc: "UUID; null for a guest", Of: func(s *orderState) any { return &s.customerID }},
		{Name: "reference", Doc: "the shop's own number of the order", Of: func(s *orderState) any { return &s.reference }},
		{Name: "currency", Doc: "ISO 4217", Of: func(s *orderState) any { return &s.currency }},
		{Name: "country", Doc: "where the goods go", Of: func(s *orderState) any { return &s.country }},
		{Name: "status", Doc: "placed, confirmed or cancelled", Of: func(s *orderState) any { return &s.status }},
		{Name: "lines", Doc: "how many lines it has", Of: func(s *orderState) any { return &s.lines }},
		{Name: "items", Doc: "sum of the lines' quantities", Of: func(s *orderState) any { return &s.items }},
		{Name: "total", Doc: "sum of quantity × unit price", Of: func(s *orderState) any { return &s.total }},
		{Name: "ordered_at", Doc: "business time", Of: func(s *orderState) any { return &s.orderedAt }},
		{Name: "confirmed_at", Doc: "business time; null until then", Of: func(s *orderState) any { return &s.confirmedAt }},
		{Name: "cancelled_at", Doc: "business time; null until then", Of: func(s *orderState) any { return &s.cancelledAt }},
		{Name: "cancel_reason", Doc: "why it was cancelled", Of: func(s *orderState) any { return &s.cancelReason }},
	},
	Change: changeOrder,
}.Table()

// orderState is the row of an order without key, version and times.
type orderState struct {
	customerID, reference, currency, country, status string
	lines, items                                     int64
	total                                            declare.Amount
	orderedAt, confirmedAt, cancelledAt              time.Time
	cancelReason                                     string
}

// changeOrder implements State.Change for orders.
func changeOrder(e event.Event) (func(*orderState), error) {
	// The event is decoded here and not in the returned function, so an event that cannot be
	// decoded becomes a dead letter regardless of the state.
	var message orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Order.Message, err)
	}
	switch m := message.Event.(type) {
	case *orderv1.OrderEvent_Placed:
		p := m.Placed
		// An order has one currency, so a total in another one is an error.
		total, err := priceOf(p.GetTotal(), p.GetCurrency())
		if err != nil {
			return nil, fmt.Errorf("total: %w", err)
		}
		at, err := requiredTime("ordered_at", p.GetOrderedAt())
		if err != nil {
			return nil, err
		}
		lines, items := count(p.GetLines())
		return func(s *orderState) {
			s.customerID, s.reference, s.status = p.GetCustomerId(), p.GetReference(), "placed"
			s.currency, s.country = p.GetCurrency(), p.GetCountry()
			s.lines, s.items, s.total, s.orderedAt = lines, items, declare.Amount{Value: total, Known: true}, at
		}, nil
	// The event has the order's new total, but only the added lines.
	case *orderv1.OrderEvent_LinesAdded:
		total, err := priceOf(m.LinesAdded.GetTotal(), m.LinesAdded.GetCurrency())
		if err != nil {
			return nil, fmt.Errorf("total: %w", err)
		}
		// The added lines are counted on top of those that the order had.
		lines, items := count(m.LinesAdded.GetLines())
		return func(s *orderState) {
			s.lines, s.items, s.total = s.lines+lines, s.items+items, declare.Amount{Value: total, Known: true}
		}, nil
	// The time is optional, unlike that of the order: the column is null without it.
	case *orderv1.OrderEvent_Confirmed:
		at, err := optionalTime("confirmed_at", m.Confirmed.GetConfirmedAt())
		return func(s *orderState) { s.status, s.confirmedAt = "confirmed", at }, err
	case *orderv1.OrderEvent_Cancelled:
		at, err := optionalTime("cancelled_at", m.Cancelled.GetCancelledAt())
		reason := m.Cancelled.GetReason()
		return func(s *orderState) { s.status, s.cancelledAt, s.cancelReason = "cancelled", at, reason }, err
	}
	// The row still gets the version of the event, although nothing else changes.
	return func(*orderState) {}, nil // a newer event type
}

// count returns the number of lines and the sum of their quantities.
func count(of []*orderv1.OrderLine) (lines, items int64) {
	// The event has no sums, only its lines.
	for _, l := range of {
		items += l.GetQuantity()
	}
	return int64(len(of)), items
}
