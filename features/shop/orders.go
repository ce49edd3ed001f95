package shop

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// customerOrders has a fact for each order of a customer. Its key is the order's id.
var customerOrders = features.Source{
	Name: "customer_orders", Topic: orderTopic,
	Columns: []features.Column{
		{Name: "total", Kind: exact.Number, Scale: 9, Description: "sum of quantity × unit price"},
		{Name: "currency", Kind: exact.Text, Description: "ISO 4217"},
		{Name: "country", Kind: exact.Text, Description: "where the goods go"},
		{Name: "lines", Kind: exact.Number, Description: "how many lines it has"},
	},
	Project: projectOrder,
}

// customerCancellations has a fact for each cancellation of a customer's order, at the time of the
// cancellation. Its key is the order's id.
var customerCancellations = features.Source{
	Name: "customer_cancellations", Topic: orderTopic,
	Columns: []features.Column{{Name: "country", Kind: exact.Text, Description: "where the goods would have gone"}},
	Project: projectCancellation,
}

// projectOrder implements Source.Project for customerOrders. LinesAdded has the total and the last
// line of the whole order, so its fact replaces the earlier one.
func projectOrder(e event.Event) ([]features.Fact, error) {
	o, err := readOrder(e)
	if err != nil || o.customer == "" {
		return nil, err
	}
	fact := features.Fact{Entity: o.customer, Key: o.id, At: o.at, Retracted: o.cancelled, Values: make([]exact.Value, 4)}
	if !o.cancelled {
		total, err := amount(o.total, o.currency)
		if err != nil {
			return nil, fmt.Errorf("total: %w", err)
		}
		lines := int64(0)
		if n := len(o.lines); n > 0 {
			lines = int64(o.lines[n-1].GetNumber())
		}
		fact.Values = []exact.Value{exact.IntValue(total), text(o.currency), text(o.country), count(lines)}
	}
	return []features.Fact{fact}, nil
}

// projectCancellation implements Source.Project for customerCancellations.
func projectCancellation(e event.Event) ([]features.Fact, error) {
	o, err := readOrder(e)
	if err != nil || o.customer == "" || !o.cancelled {
		return nil, err
	}
	at, err := stamp("cancelled_at", o.cancelledAt)
	if err != nil {
		return nil, err
	}
	return []features.Fact{{Entity: o.customer, Key: o.id, At: at, Values: []exact.Value{text(o.country)}}}, nil
}

// order is what an event says about an order. The zero order is that of events without facts.
type order struct {
	id        string
	customer  string // empty for a guest
	currency  string
	country   string
	at        time.Time // when it was ordered
	total     *money.Money
	lines     []*orderv1.OrderLine // numbers ascend, and each has a SKU
	placed    bool                 // the event is OrderPlaced
	cancelled bool                 // the event is OrderCancelled

	cancelledAt *timestamppb.Timestamp
}

// readOrder decodes an event of an order.
func readOrder(e event.Event) (order, error) {
	if e.Type == typeConfirmed { // a third of the events; it needs no decoding
		return order{}, nil
	}
	last := lastOrders.Get().(*lastOrder)
	if len(e.Data) == 0 || !bytes.Equal(last.data, e.Data) {
		last.data = append(last.data[:0], e.Data...)
		last.order, last.err = decodeOrder(e.Data)
	}
	o, err := last.order, last.err
	lastOrders.Put(last)
	return o, err
}

// lastOrders remembers the last payload that was decoded, because a reader of the log calls the
// sources of all groups with one event after the other. Decoding costs more than all of their facts.
var lastOrders = sync.Pool{New: func() any { return new(lastOrder) }}

type lastOrder struct {
	data  []byte
	order order // shared: nobody changes its lines
	err   error
}

// decodeOrder decodes the payload of an event of an order.
func decodeOrder(data []byte) (order, error) {
	var m orderv1.OrderEvent
	if err := proto.Unmarshal(data, &m); err != nil {
		return order{}, fmt.Errorf("decode payload as %s: %w", event.Order.Message, err)
	}
	var o order
	var at *timestamppb.Timestamp
	switch p, a, c := m.GetPlaced(), m.GetLinesAdded(), m.GetCancelled(); {
	case p != nil:
		o = order{
			id: p.GetOrderId(), customer: p.GetCustomerId(), currency: p.GetCurrency(), country: p.GetCountry(),
			total: p.GetTotal(), lines: p.GetLines(), placed: true,
		}
		at = p.GetOrderedAt()
	case a != nil:
		o = order{
			id: a.GetOrderId(), customer: a.GetCustomerId(), currency: a.GetCurrency(), country: a.GetCountry(),
			total: a.GetTotal(), lines: a.GetLines(),
		}
		at = a.GetOrderedAt()
	case c.GetOrderedAt() != nil:
		o = order{
			id: c.GetOrderId(), customer: c.GetCustomerId(), currency: c.GetCurrency(), country: c.GetCountry(),
			lines: c.GetLines(), cancelled: true, cancelledAt: c.GetCancelledAt(),
		}
		at = c.GetOrderedAt()
	default: // no facts, a newer type of event, or a cancellation that an earlier version wrote
		return order{}, nil
	}
	if o.id == "" {
		return order{}, errors.New("order_id: missing")
	}
	var err error
	if o.at, err = stamp("ordered_at", at); err != nil {
		return order{}, err
	}
	last := uint32(0)
	for i, l := range o.lines {
		switch {
		case l.GetSku() == "":
			return order{}, fmt.Errorf("lines[%d].sku: missing", i)
		case l.GetNumber() <= last:
			return order{}, fmt.Errorf("lines[%d].number: %d, want more than %d", i, l.GetNumber(), last)
		}
		last = l.GetNumber()
	}
	return o, nil
}

const typeConfirmed = "millrace.order.v1.OrderConfirmed"

// stamp returns a time of an event with the precision of facts. field is its name in errors.
func stamp(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, fmt.Errorf("%s: missing", field)
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return event.Time(t.AsTime()), nil
}

// amount returns an amount of money in billionths. It rejects malformed amounts and those in another
// currency.
func amount(m *money.Money, currency string) (exact.Int, error) {
	if err := event.ValidateMoney(m); err != nil {
		return exact.Int{}, err
	}
	if m.GetCurrencyCode() != currency {
		return exact.Int{}, fmt.Errorf("currency is %q, but the order's is %q", m.GetCurrencyCode(), currency)
	}
	return exact.FromMoney(m.GetUnits(), m.GetNanos()), nil
}
