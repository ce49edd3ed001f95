package lake

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
)

// orderLines has a row for every line of every order that was placed, as it was when the line was ordered. What became of
// the order is not in it.
var orderLines = Table{
	Name: "order_lines", Topic: event.Order.Topic, Doc: "Every line of every order that was placed, as it was ordered.",
	Sort: []Sort{{Column: "ordered_at"}},
	Columns: []columnar.Field{
		{Name: "order_id", Type: iceberg.PrimitiveTypes.String, Doc: "UUID", Required: true},
		{Name: "line", Type: iceberg.PrimitiveTypes.Int32, Doc: "number of the line in the order, from 1", Required: true},
		{Name: "customer_id", Type: iceberg.PrimitiveTypes.String, Doc: "UUID; null for a guest"},
		{Name: "sku", Type: iceberg.PrimitiveTypes.String, Doc: "what was ordered", Repeats: true, Required: true},
		{Name: "description", Type: iceberg.PrimitiveTypes.String, Doc: "as it was called in the order", Repeats: true, Required: true},
		{Name: "quantity", Type: iceberg.PrimitiveTypes.Int64, Doc: "how many", Required: true},
		{Name: "unit_price", Type: iceberg.DecimalTypeOf(pricePrecision, priceScale), Doc: "price of one", Repeats: true, Required: true},
		{Name: "currency", Type: iceberg.PrimitiveTypes.String, Doc: "ISO 4217", Repeats: true, Required: true},
		{Name: "country", Type: iceberg.PrimitiveTypes.String, Doc: "where the goods go", Repeats: true, Required: true},
		{Name: "ordered_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "business time of the order", Repeats: true, Required: true},
		{Name: "recorded_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "when the event store took the event", Repeats: true, Required: true},
	},
	Rows:    rowsOf(event.Order, func(*columnar.Columns) (decoder, error) { return &lineDecoder{}, nil }),
	derived: event.Order, sums: sums{add: addLines, expect: expectLines},
}

// Money has nine decimal places.
const (
	pricePrecision = 38
	priceScale     = 9
)

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

// lineDecoder makes a row of each line that an event brings.
type lineDecoder struct {
	message orderv1.OrderEvent // reused
	lines   []line             // reused
}

func (d *lineDecoder) append(to *row, e event.Event) error {
	if err := d.decode(e); err != nil {
		return err
	}
	for _, l := range d.lines {
		to.string(l.orderID)
		to.int32(l.number)
		to.optional(l.customerID)
		to.string(l.sku)
		to.string(l.description)
		to.int64(l.quantity)
		to.decimal(l.unitPrice)
		to.string(l.currency)
		to.string(l.country)
		to.time(l.orderedAt)
		to.time(l.recordedAt)
		to.end()
	}
	return nil
}

// decode fills d.lines with the lines that e brings; most events bring none.
func (d *lineDecoder) decode(e event.Event) error {
	d.lines = d.lines[:0]
	if err := proto.Unmarshal(e.Data, &d.message); err != nil {
		return fmt.Errorf("payload is no %s: %w", event.Order.Message, err)
	}
	// OrderPlaced and LinesAdded name alike what their lines share.
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
	default:
		return nil
	}
	if from.GetOrderedAt() == nil {
		return errors.New("the order has no ordered_at")
	}
	if err := from.GetOrderedAt().CheckValid(); err != nil {
		return fmt.Errorf("ordered_at: %w", err)
	}
	for _, l := range from.GetLines() {
		price, err := priceOf(l.GetUnitPrice(), from.GetCurrency())
		if err != nil {
			return fmt.Errorf("line %d: unit_price: %w", l.GetNumber(), err)
		}
		if l.GetNumber() > math.MaxInt32 {
			return fmt.Errorf("line %d: the number is too large", l.GetNumber())
		}
		d.lines = append(d.lines, line{
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
	return nil
}

// priceOf is money as the number that the decimal column keeps.
func priceOf(m *money.Money, currency string) (decimal128.Num, error) {
	units, nanos := m.GetUnits(), int64(m.GetNanos())
	switch {
	case m == nil:
		return decimal128.Num{}, errors.New("missing")
	case m.GetCurrencyCode() != currency:
		return decimal128.Num{}, fmt.Errorf("in %q, and the order in %q", m.GetCurrencyCode(), currency)
	case nanos <= -nanosPerUnit, nanos >= nanosPerUnit, units > 0 && nanos < 0, units < 0 && nanos > 0:
		return decimal128.Num{}, fmt.Errorf("%d units and %d nanos are no amount", units, nanos)
	}
	if units > math.MinInt64/nanosPerUnit && units < math.MaxInt64/nanosPerUnit { // nearly always
		return decimal128.FromI64(units*nanosPerUnit + nanos), nil
	}
	sum := new(big.Int).Mul(big.NewInt(units), big.NewInt(nanosPerUnit))
	return decimal128.FromBigInt(sum.Add(sum, big.NewInt(nanos))), nil
}

const nanosPerUnit = 1_000_000_000

// content is the canonical form of a line for digests: all that it says, and not where it came from.
func (l line) content(b []byte) []byte {
	for _, s := range [...]string{l.orderID, l.customerID, l.sku, l.description, l.currency, l.country} {
		b = digest.AppendString(b, s)
	}
	for _, n := range [...]uint64{
		uint64(l.number), uint64(l.quantity), uint64(l.unitPrice.HighBits()), l.unitPrice.LowBits(),
		uint64(l.orderedAt.UnixMicro()), uint64(l.recordedAt.UnixMicro()),
	} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}
