package tables

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/lake/declare"
)

// stockEvents has every event of a product's stock.
var stockEvents = declare.Events("stock_events", event.Stock, (*inventoryv1.StockEvent)(nil))

// stockMovements has a row for every change to a product's stock. The sums of the changes up to a
// version are the quantities on hand and reserved at that version.
var stockMovements = declare.Facts[stockMovement]{
	Name: "stock_movements", Doc: "Every change of a product's stock.", Of: event.Stock, Sort: "moved_at",
	Columns: declare.Schema[stockMovement]{
		{Name: "sku", Doc: "names the product", Required: true, Of: func(m *stockMovement) any { return &m.sku }},
		{Name: "version", Doc: "of the stock after it", Of: func(m *stockMovement) any { return &m.version }},
		{Name: "movement", Doc: "received, adjusted, reserved, committed or released", Required: true, Of: func(m *stockMovement) any { return &m.movement }},
		{Name: "on_hand_change", Doc: "goods that came, or went where it is negative", Of: func(m *stockMovement) any { return &m.onHand }},
		{Name: "reserved_change", Doc: "goods that were set aside, or are not any more where it is negative", Of: func(m *stockMovement) any { return &m.reserved }},
		{Name: "reservation_id", Doc: "the reservation that it is about", Of: func(m *stockMovement) any { return &m.reservation }},
		{Name: "reference", Doc: "delivery note or purchase order of what was received", Of: func(m *stockMovement) any { return &m.reference }},
		{Name: "reason", Doc: "why the books were adjusted, or a reservation released", Of: func(m *stockMovement) any { return &m.reason }},
		{Name: "expires_at", Doc: "when a reservation's time is over", Of: func(m *stockMovement) any { return &m.expiresAt }},
		{Name: "moved_at", Doc: "business time", Required: true, Of: func(m *stockMovement) any { return &m.movedAt }},
		{Name: "recorded_at", Doc: "when the event store took the event", Required: true, Of: func(m *stockMovement) any { return &m.recordedAt }},
	},
	Stream: func(m *stockMovement) string { return m.sku },
	Rows:   func() func(event.Event, []stockMovement) ([]stockMovement, error) { return stockMoves },
}.Table()

// stockMovement is a row of stock_movements. Changes are signed quantities.
type stockMovement struct {
	sku, movement                  string
	version, onHand, reserved      int64
	reservation, reference, reason string
	expiresAt, movedAt, recordedAt time.Time
}

// stockMoves appends the movement that an event describes. Each known event is exactly one
// movement.
func stockMoves(e event.Event, into []stockMovement) ([]stockMovement, error) {
	var message inventoryv1.StockEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return into, fmt.Errorf("decode payload as %s: %w", event.Stock.Message, err)
	}
	// The stream of an event of stock is the SKU of its product.
	m := stockMovement{sku: e.Stream, version: int64(e.Version), recordedAt: e.RecordedAt}
	// Each event type has its business time in a field of its own name. field is that name, for
	// errors.
	var at *timestamppb.Timestamp
	var field string
	switch moved := message.Event.(type) {
	// The reference is that of a delivery, and the quantity is positive.
	case *inventoryv1.StockEvent_Received:
		r := moved.Received
		field, at = "received_at", r.GetReceivedAt()
		m.movement, m.onHand, m.reference = "received", r.GetQuantity(), r.GetReference()
	// The delta is signed: goods were found or are missing.
	case *inventoryv1.StockEvent_Adjusted:
		a := moved.Adjusted
		field, at = "adjusted_at", a.GetAdjustedAt()
		m.movement, m.onHand, m.reason = "adjusted", a.GetDelta(), a.GetReason()
	// Reserved goods are still on hand, so only the reserved quantity changes.
	case *inventoryv1.StockEvent_Reserved:
		r := moved.Reserved
		field, at = "reserved_at", r.GetReservedAt()
		m.movement, m.reserved, m.reservation = "reserved", r.GetQuantity(), r.GetReservationId()
		var err error
		if m.expiresAt, err = optionalTime("expires_at", r.GetExpiresAt()); err != nil {
			return into, err
		}
	// Reserved goods leave the shop: both quantities decrease.
	case *inventoryv1.StockEvent_ReservationCommitted:
		c := moved.ReservationCommitted
		field, at = "committed_at", c.GetCommittedAt()
		m.movement, m.reservation = "committed", c.GetReservationId()
		m.onHand, m.reserved = -c.GetQuantity(), -c.GetQuantity()
	// Reserved goods become available again. The quantity on hand does not change.
	case *inventoryv1.StockEvent_ReservationReleased:
		r := moved.ReservationReleased
		field, at = "released_at", r.GetReleasedAt()
		m.movement, m.reservation, m.reason = "released", r.GetReservationId(), r.GetCause().String()
		m.reserved = -r.GetQuantity()
	default:
		return into, nil // a newer event type
	}
	var err error
	m.movedAt, err = requiredTime(field, at)
	return append(into, m), err
}
