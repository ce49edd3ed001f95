package lake

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// stockMovements has a row for whatever changed the stock of a product. The changes of a product up to a version add up to what
// was on hand and reserved then.
var stockMovements = facts[stockMovement]{
	name: "stock_movements", doc: "Every change of a product's stock.", of: event.Stock, sort: "moved_at",
	columns: shape[stockMovement]{
		{name: "sku", doc: "names the product", required: true, repeats: true, of: func(m *stockMovement) any { return &m.sku }},
		{name: "version", doc: "of the stock after it", of: func(m *stockMovement) any { return &m.version }},
		{name: "movement", doc: "received, adjusted, reserved, committed or released", required: true, repeats: true, of: func(m *stockMovement) any { return &m.movement }},
		{name: "on_hand_change", doc: "goods that came, or went where it is negative", of: func(m *stockMovement) any { return &m.onHand }},
		{name: "reserved_change", doc: "goods that were set aside, or are not any more where it is negative", of: func(m *stockMovement) any { return &m.reserved }},
		{name: "reservation_id", doc: "the reservation that it is about", of: func(m *stockMovement) any { return &m.reservation }},
		{name: "reference", doc: "delivery note or purchase order of what was received", of: func(m *stockMovement) any { return &m.reference }},
		{name: "reason", doc: "why the books were adjusted, or a reservation released", repeats: true, of: func(m *stockMovement) any { return &m.reason }},
		{name: "expires_at", doc: "when a reservation's time is over", of: func(m *stockMovement) any { return &m.expiresAt }},
		{name: "moved_at", doc: "business time", required: true, of: func(m *stockMovement) any { return &m.movedAt }},
		{name: "recorded_at", doc: "when the event store took the event", required: true, of: func(m *stockMovement) any { return &m.recordedAt }},
	},
	stream: func(m *stockMovement) string { return m.sku },
	rows:   stockMoves,
}.table()

type stockMovement struct {
	sku, movement                  string
	version, onHand, reserved      int64
	reservation, reference, reason string
	expiresAt, movedAt, recordedAt time.Time
}

func stockMoves(e event.Event, into []stockMovement) ([]stockMovement, error) {
	var message inventoryv1.StockEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return into, fmt.Errorf("payload is no %s: %w", event.Stock.Message, err)
	}
	m := stockMovement{sku: e.Stream, version: int64(e.Version), recordedAt: e.RecordedAt}
	var at *timestamppb.Timestamp
	var field string
	switch moved := message.Event.(type) {
	case *inventoryv1.StockEvent_Received:
		r := moved.Received
		field, at = "received_at", r.GetReceivedAt()
		m.movement, m.onHand, m.reference = "received", r.GetQuantity(), r.GetReference()
	case *inventoryv1.StockEvent_Adjusted:
		a := moved.Adjusted
		field, at = "adjusted_at", a.GetAdjustedAt()
		m.movement, m.onHand, m.reason = "adjusted", a.GetDelta(), a.GetReason()
	case *inventoryv1.StockEvent_Reserved:
		r := moved.Reserved
		field, at = "reserved_at", r.GetReservedAt()
		m.movement, m.reserved, m.reservation = "reserved", r.GetQuantity(), r.GetReservationId()
		var err error
		if m.expiresAt, err = optionalTime("expires_at", r.GetExpiresAt()); err != nil {
			return into, err
		}
	case *inventoryv1.StockEvent_ReservationCommitted:
		c := moved.ReservationCommitted
		field, at = "committed_at", c.GetCommittedAt()
		m.movement, m.onHand, m.reserved, m.reservation = "committed", -c.GetQuantity(), -c.GetQuantity(), c.GetReservationId()
	case *inventoryv1.StockEvent_ReservationReleased:
		r := moved.ReservationReleased
		field, at = "released_at", r.GetReleasedAt()
		m.movement, m.reserved, m.reservation, m.reason = "released", -r.GetQuantity(), r.GetReservationId(), r.GetCause().String()
	default:
		return into, nil // newer than this program
	}
	var err error
	m.movedAt, err = requiredTime(field, at)
	return append(into, m), err
}
