package shop

import (
	"fmt"
	"strconv"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// customerOrderLines has a fact for each line of a customer's orders. Its key is the order's id and
// the number of the line.
var customerOrderLines = features.Source{
	Name: "customer_order_lines", Topic: orderTopic,
	Columns: []features.Column{
		{Name: "sku", Kind: exact.Text, Description: "what was ordered"},
		lineColumns[0], lineColumns[1], lineColumns[2], lineColumns[3],
	},
	Project: func(e event.Event) ([]features.Fact, error) {
		o, err := readOrder(e)
		if err != nil || o.customer == "" {
			return nil, err
		}
		return o.lineFacts(5, func(l *orderv1.OrderLine, f *features.Fact) {
			f.Entity, f.Values[0] = o.customer, text(l.GetSku())
		})
	},
}

// productOrderLines has a fact for each line in which a product was ordered. Its key is the order's
// id and the number of the line. Orders of guests count.
var productOrderLines = features.Source{
	Name: "product_order_lines", Topic: orderTopic,
	Columns: []features.Column{
		{Name: "order_id", Kind: exact.Text, Description: "UUID"},
		{Name: "customer_id", Kind: exact.Text, Description: "UUID; null for a guest"},
		lineColumns[0], lineColumns[1], lineColumns[2], lineColumns[3],
	},
	Project: func(e event.Event) ([]features.Fact, error) {
		o, err := readOrder(e)
		if err != nil {
			return nil, err
		}
		return o.lineFacts(6, func(l *orderv1.OrderLine, f *features.Fact) {
			f.Entity, f.Values[0], f.Values[1] = l.GetSku(), text(o.id), text(o.customer)
		})
	},
}

// lineColumns are the last columns of both sources.
var lineColumns = [4]features.Column{
	{Name: "quantity", Kind: exact.Number, Description: "how many"},
	{Name: "unit_price", Kind: exact.Number, Scale: 9, Description: "price of one"},
	{Name: "amount", Kind: exact.Number, Scale: 9, Description: "quantity × unit price"},
	{Name: "currency", Kind: exact.Text, Description: "ISO 4217"},
}

// lineFacts returns a fact for each line of the event. The last columns are lineColumns; set sets
// the entity and the columns before.
func (o order) lineFacts(columns int, set func(*orderv1.OrderLine, *features.Fact)) ([]features.Fact, error) {
	if len(o.lines) == 0 {
		return nil, nil
	}
	facts := make([]features.Fact, len(o.lines))
	values := make([]exact.Value, len(o.lines)*columns)
	for i, l := range o.lines {
		mine := values[i*columns : (i+1)*columns : (i+1)*columns]
		facts[i] = features.Fact{Key: lineKey(o.id, l.GetNumber()), At: o.at, Retracted: o.cancelled, Values: mine}
		set(l, &facts[i])
		if o.cancelled {
			clear(mine)
			continue
		}
		price, err := amount(l.GetUnitPrice(), o.currency)
		if err != nil {
			return nil, fmt.Errorf("lines[%d].unit_price: %w", i, err)
		}
		quantity := exact.FromInt64(l.GetQuantity())
		total := price.Mul(quantity)
		if total.Compare(maxAmount) > 0 || total.Compare(maxAmount.Neg()) < 0 {
			return nil, fmt.Errorf("lines[%d].quantity: %d times the price does not fit an amount of money",
				i, l.GetQuantity())
		}
		copy(mine[columns-len(lineColumns):], []exact.Value{
			exact.IntValue(quantity), exact.IntValue(price), exact.IntValue(total), text(o.currency),
		})
	}
	return facts, nil
}

// maxAmount bounds amounts, as package exact requires: 2^63 units.
var maxAmount = exact.FromMoney(1<<62, 0).Add(exact.FromMoney(1<<62, 0))

// lineKey returns the key of the fact about a line of an order.
func lineKey(order string, number uint32) string {
	return order + "/" + strconv.FormatUint(uint64(number), 10)
}
