package shop

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// stockMovements has a fact for each change of a product's stock. Its key is the version of the
// stock after it. The sums of the changes are the quantities on hand and reserved.
var stockMovements = features.Source{
	Name: "stock_movements", Topic: stockTopic,
	Columns: []features.Column{
		{Name: "movement", Kind: exact.Text, Description: "received, adjusted, reserved, committed or released"},
		{Name: "on_hand_change", Kind: exact.Number, Description: "goods that came, or went where it is negative"},
		{Name: "reserved_change", Kind: exact.Number,
			Description: "goods that were set aside, or are not any more where it is negative"},
	},
	Project: projectStock,
}

// projectStock implements Source.Project for stockMovements.
func projectStock(e event.Event) ([]features.Fact, error) {
	var message inventoryv1.StockEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Stock.Message, err)
	}
	var movement, field string
	var at *timestamppb.Timestamp
	var onHand, reserved exact.Int
	switch m := message.GetEvent().(type) {
	case *inventoryv1.StockEvent_Received:
		movement, field, at = "received", "received_at", m.Received.GetReceivedAt()
		onHand = exact.FromInt64(m.Received.GetQuantity())
	case *inventoryv1.StockEvent_Adjusted:
		movement, field, at = "adjusted", "adjusted_at", m.Adjusted.GetAdjustedAt()
		onHand = exact.FromInt64(m.Adjusted.GetDelta())
	case *inventoryv1.StockEvent_Reserved:
		movement, field, at = "reserved", "reserved_at", m.Reserved.GetReservedAt()
		reserved = exact.FromInt64(m.Reserved.GetQuantity())
	case *inventoryv1.StockEvent_ReservationCommitted: // reserved goods leave the shop
		movement, field, at = "committed", "committed_at", m.ReservationCommitted.GetCommittedAt()
		onHand = exact.FromInt64(m.ReservationCommitted.GetQuantity()).Neg()
		reserved = onHand
	case *inventoryv1.StockEvent_ReservationReleased: // reserved goods are available again
		movement, field, at = "released", "released_at", m.ReservationReleased.GetReleasedAt()
		reserved = exact.FromInt64(m.ReservationReleased.GetQuantity()).Neg()
	default: // a newer type of event
		return nil, nil
	}
	if e.Stream == "" {
		return nil, errors.New("sku: missing")
	}
	moved, err := stamp(field, at)
	if err != nil {
		return nil, err
	}
	return []features.Fact{{
		Entity: e.Stream, Key: strconv.FormatUint(e.Version, 10), At: moved,
		Values: []exact.Value{text(movement), exact.IntValue(onHand), exact.IntValue(reserved)},
	}}, nil
}
