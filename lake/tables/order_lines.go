package tables

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/lake/declare"
)

// OrderLines has a row for every line of every order as it was ordered. Later changes to the order
// are not reflected.
var OrderLines = declare.Facts[line]{
	Name: "order_lines", Doc: "Every line of every order that was placed, as it was ordered.", Of: event.Order,
	Sort:    "ordered_at",
	Columns: lineColumns,
	Stream:  func(l *line) string { return l.orderID },
	Rows:    func() func(event.Event, []line) ([]line, error) { return new(lineDecoder).lines },
}.Table()

// lineColumns are the columns of order_lines.
var lineColumns = declare.Schema[line]{
	{Name: "order_id", Doc: "UUID", Required: true, Of: func(l *line) any { return &l.orderID }},
	{Name: "line", Doc: "number of the line in the order, from 1", Of: func(l *line) any { return &l.number }},
	{Name: "customer_id", Doc: "UUID; null for a guest", Of: func(l *line) any { return &l.customerID }},
	{Name: "sku", Doc: "what was ordered", Required: true, Of: func(l *line) any { return &l.sku }},
	{Name: "description", Doc: "as it was called in the order", Required: true, Of: func(l *line) any { return &l.description }},
	{Name: "quantity", Doc: "how many", Of: func(l *line) any { return &l.quantity }},
	{Name: "unit_price", Doc: "price of one", Of: func(l *line) any { return &l.unitPrice }},
	{Name: "currency", Doc: "ISO 4217", Required: true, Of: func(l *line) any { return &l.currency }},
	{Name: "country", Doc: "where the goods go", Required: true, Of: func(l *line) any { return &l.country }},
	{Name: "ordered_at", Doc: "business time of the order", Required: true, Of: func(l *line) any { return &l.orderedAt }},
	{Name: "recorded_at", Doc: "when the event store took the event", Required: true, Of: func(l *line) any { return &l.recordedAt }},
}

// line is a row of order_lines.
type line struct {
	orderID     string
	number      int32
	customerID  string // empty for a guest
	sku         string
	description string
	quantity    int64
	unitPrice   decimal128.Num
	currency    string
	country     string
	orderedAt   time.Time
	recordedAt  time.Time
}

// lineDecoder converts the lines of an event into rows.
type lineDecoder struct {
	message orderv1.OrderEvent // reused
}

// lines appends a row for each line that e has. Most events have none.
func (d *lineDecoder) lines(e event.Event, into []line) ([]line, error) {
	// Unmarshal resets the message first, so no line of a previous event remains.
	if err := proto.Unmarshal(e.Data, &d.message); err != nil {
		return into, fmt.Errorf("decode payload as %s: %w", event.Order.Message, err)
	}
	// OrderPlaced and LinesAdded share these fields.
	var from interface {
		GetOrderId() string
		GetCustomerId() string
		GetCurrency() string
		GetCountry() string
		GetOrderedAt() *timestamppb.Timestamp
		GetLines() []*orderv1.OrderLine
	}
	switch m := d.message.Event.(type) {
	case *orderv1.OrderEvent_Placed:
		from = m.Placed
	case *orderv1.OrderEvent_LinesAdded:
		from = m.LinesAdded
	// All other events contribute no rows.
	default:
		return into, nil // without lines, or a newer event type
	}
	// The table is sorted by ordered_at, so every row needs it.
	if from.GetOrderedAt() == nil {
		return into, errors.New("ordered_at: missing")
	}
	if err := from.GetOrderedAt().CheckValid(); err != nil {
		return into, fmt.Errorf("ordered_at: %w", err)
	}
	// If a line is invalid, the whole event becomes a dead letter, not only that line.
	for _, l := range from.GetLines() {
		// A row has one currency column, that of the order.
		price, err := priceOf(l.GetUnitPrice(), from.GetCurrency())
		if err != nil {
			return into, fmt.Errorf("line %d: unit_price: %w", l.GetNumber(), err)
		}
		// The contract has an unsigned number, and the column a signed one.
		if l.GetNumber() > math.MaxInt32 {
			return into, fmt.Errorf("line %d: number exceeds %d", l.GetNumber(), math.MaxInt32)
		}
		into = append(into, line{
			orderID:     from.GetOrderId(),
			number:      int32(l.GetNumber()),
			customerID:  from.GetCustomerId(),
			sku:         l.GetSku(),
			description: l.GetDescription(),
			quantity:    l.GetQuantity(),
			unitPrice:   price,
			currency:    from.GetCurrency(),
			country:     from.GetCountry(),
			orderedAt:   event.Time(from.GetOrderedAt().AsTime()),
			recordedAt:  e.RecordedAt,
		})
	}
	return into, nil
}
