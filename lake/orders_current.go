package lake

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// ordersCurrent has every order as it is now. What an order consists of is in order_lines.
var ordersCurrent = state[orderState]{
	name: "orders_current", doc: "Every order as it is now.", of: event.Order, key: "order_id", keyDoc: "UUID",
	columns: shape[orderState]{
		{name: "customer_id", doc: "UUID; null for a guest", of: func(s *orderState) any { return &s.customerID }},
		{name: "reference", doc: "the shop's own number of the order", of: func(s *orderState) any { return &s.reference }},
		{name: "currency", doc: "ISO 4217", repeats: true, of: func(s *orderState) any { return &s.currency }},
		{name: "country", doc: "where the goods go", repeats: true, of: func(s *orderState) any { return &s.country }},
		{name: "status", doc: "placed, confirmed or cancelled", repeats: true, of: func(s *orderState) any { return &s.status }},
		{name: "lines", doc: "how many lines it has", of: func(s *orderState) any { return &s.lines }},
		{name: "items", doc: "sum of the lines' quantities", of: func(s *orderState) any { return &s.items }},
		{name: "total", doc: "sum of quantity × unit price", of: func(s *orderState) any { return &s.total }},
		{name: "ordered_at", doc: "business time", of: func(s *orderState) any { return &s.orderedAt }},
		{name: "confirmed_at", doc: "business time; null until then", of: func(s *orderState) any { return &s.confirmedAt }},
		{name: "cancelled_at", doc: "business time; null until then", of: func(s *orderState) any { return &s.cancelledAt }},
		{name: "cancel_reason", doc: "why it was cancelled", of: func(s *orderState) any { return &s.cancelReason }},
	},
	change: changeOrder,
}.table()

type orderState struct {
	customerID, reference, currency, country, status string
	lines, items                                     int64
	total                                            amount
	orderedAt, confirmedAt, cancelledAt              time.Time
	cancelReason                                     string
}

func changeOrder(e event.Event) (func(*orderState), error) {
	var message orderv1.OrderEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("payload is no %s: %w", event.Order.Message, err)
	}
	switch m := message.Event.(type) {
	case *orderv1.OrderEvent_Placed:
		p := m.Placed
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
			s.customerID, s.reference, s.currency, s.country, s.status = p.GetCustomerId(), p.GetReference(), p.GetCurrency(), p.GetCountry(), "placed"
			s.lines, s.items, s.total, s.orderedAt = lines, items, amount{total, true}, at
		}, nil
	case *orderv1.OrderEvent_LinesAdded:
		total, err := priceOf(m.LinesAdded.GetTotal(), m.LinesAdded.GetCurrency())
		if err != nil {
			return nil, fmt.Errorf("total: %w", err)
		}
		lines, items := count(m.LinesAdded.GetLines())
		return func(s *orderState) { s.lines, s.items, s.total = s.lines+lines, s.items+items, amount{total, true} }, nil
	case *orderv1.OrderEvent_Confirmed:
		at, err := optionalTime("confirmed_at", m.Confirmed.GetConfirmedAt())
		return func(s *orderState) { s.status, s.confirmedAt = "confirmed", at }, err
	case *orderv1.OrderEvent_Cancelled:
		at, err := optionalTime("cancelled_at", m.Cancelled.GetCancelledAt())
		reason := m.Cancelled.GetReason()
		return func(s *orderState) { s.status, s.cancelledAt, s.cancelReason = "cancelled", at, reason }, err
	}
	return func(*orderState) {}, nil // newer than this program
}

func count(of []*orderv1.OrderLine) (lines, items int64) {
	for _, l := range of {
		items += l.GetQuantity()
	}
	return int64(len(of)), items
}
