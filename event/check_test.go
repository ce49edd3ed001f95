package event_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	_ "github.com/millrace/millrace/gen/millrace/catalog/v1"
	_ "github.com/millrace/millrace/gen/millrace/customer/v1"
	_ "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

const orderID = "0192f0c8-1111-7222-8333-444455556666"

// orderPlaced returns the payload of a valid event after a change.
func orderPlaced(change func(*orderv1.OrderPlaced)) []byte {
	now := timestamppb.New(time.Unix(1_700_000_000, 0))
	p := &orderv1.OrderPlaced{
		OrderId: orderID, Currency: "GBP", Country: "FR", OrderedAt: now, Total: gbp(2, 0),
		Lines: []*orderv1.OrderLine{{Number: 1, Sku: "A", Quantity: 1, UnitPrice: gbp(2, 0)}},
	}
	change(p)
	b, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: p}})
	if err != nil {
		panic(err)
	}
	return b
}

// confirmed returns the payload of another type of event.
func confirmed() []byte {
	b, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{
		Confirmed: &orderv1.OrderConfirmed{OrderId: orderID},
	}})
	if err != nil {
		panic(err)
	}
	return b
}

// field returns a field of wire type bytes.
func field(n protowire.Number, content string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), content)
}

// TestCheck checks which records are events, and which only look like events.
func TestCheck(t *testing.T) {
	t.Parallel()
	unchanged := func(*orderv1.OrderPlaced) {}
	for name, c := range map[string]struct {
		change func(*event.Event)
		valid  bool
	}{
		"as the service writes it":  {func(*event.Event) {}, true},
		"another kind":              {func(e *event.Event) { e.Type, e.Data = "millrace.order.v1.OrderConfirmed", confirmed() }, true},
		"a newer kind":              {func(e *event.Event) { e.Type, e.Data = "millrace.order.v1.OrderSplit", field(50, "x") }, true},
		"a kind of a newer version": {func(e *event.Event) { e.Type, e.Data = "millrace.order.v2.OrderPlaced", field(51, "x") }, true},
		"a newer field":             {func(e *event.Event) { e.Data = append(e.Data, field(50, "x")...) }, true},

		"of another aggregate":        {func(e *event.Event) { e.Aggregate = "stock" }, false},
		"a version beyond bigint":     {func(e *event.Event) { e.Version = math.MaxInt64 + 1 }, false},
		"a key that is not UTF-8":     {func(e *event.Event) { e.Stream = "\xff" }, false},
		"a correlation id of bytes":   {func(e *event.Event) { e.CorrelationID = "\xc3\x28" }, false},
		"a type of another family":    {func(e *event.Event) { e.Type = "millrace.inventory.v1.StockReceived" }, false},
		"a type that is not a name":   {func(e *event.Event) { e.Type = "millrace.order.v1.Order Placed" }, false},
		"a newer kind, but empty":     {func(e *event.Event) { e.Type, e.Data = "millrace.order.v1.OrderSplit", nil }, false},
		"a newer kind, but not newer": {func(e *event.Event) { e.Type = "millrace.order.v1.OrderSplit" }, false},
		"a newer kind, but garbage":   {func(e *event.Event) { e.Type, e.Data = "millrace.order.v1.OrderSplit", []byte{0xff} }, false},
		"nothing":                     {func(e *event.Event) { e.Data = nil }, false},
		"garbage":                     {func(e *event.Event) { e.Data = []byte{0xff, 0xfe, 1} }, false},
		"text":                        {func(e *event.Event) { e.Data = []byte(`{"placed":{}}`) }, false},
		"garbage that is Protobuf":    {func(e *event.Event) { e.Data = field(77, "x") }, false},
		"garbage at the end":          {func(e *event.Event) { e.Data = append(e.Data, 0xff) }, false},
		"cut short":                   {func(e *event.Event) { e.Data = e.Data[:len(e.Data)-3] }, false},
		"garbage inside":              {func(e *event.Event) { e.Data = field(1, "\xff\xff") }, false},
		"a number for the message":    {func(e *event.Event) { e.Data = []byte{1 << 3, 7} }, false},
		"another kind than its type":  {func(e *event.Event) { e.Data = confirmed() }, false},
		"two kinds":                   {func(e *event.Event) { e.Data = append(e.Data, confirmed()...) }, false},
		"twice the same":              {func(e *event.Event) { e.Data = append(e.Data, e.Data...) }, false},
		"about another stream":        {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.OrderId = "b" }) }, false},
		"about no stream":             {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.OrderId = "" }) }, false},
		"without a time":              {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.OrderedAt = nil }) }, false},
		"at a time out of range": {func(e *event.Event) {
			e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.OrderedAt.Seconds = 1 << 60 })
		}, false},
		"at a time of minus a nano": {func(e *event.Event) {
			e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.OrderedAt.Nanos = -1 })
		}, false},
		"without a total": {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.Total = nil }) }, false},
		"a line without a price": {func(e *event.Event) {
			e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.Lines[0].UnitPrice = nil })
		}, false},
		"an amount of two signs": {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.Total.Nanos = -5 }) }, false},
		"a price in another currency": {func(e *event.Event) {
			e.Data = orderPlaced(func(p *orderv1.OrderPlaced) {
				p.Lines[0].UnitPrice = &money.Money{CurrencyCode: "EUR", Units: 2}
			})
		}, false},
		"a total in no currency": {func(e *event.Event) { e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.Total.CurrencyCode = "" }) }, false},
		"a line number of 32 bits": {func(e *event.Event) {
			e.Data = orderPlaced(func(p *orderv1.OrderPlaced) { p.Lines[0].Number = 1 << 31 })
		}, false},
		"text that is not UTF-8": {func(e *event.Event) {
			e.Data = field(1, string(field(1, orderID))+string(field(5, "\xff")))
		}, false},
	} {
		e := event.Event{
			ID: uuid.New(), Aggregate: "order", Stream: orderID, Version: 1, Type: "millrace.order.v1.OrderPlaced",
			Data: orderPlaced(unchanged), OccurredAt: time.Unix(1, 0), RecordedAt: time.Unix(1, 0),
		}
		c.change(&e)
		err := event.CheckOn(event.Order.Topic, e)
		if (err == nil) != c.valid || err != nil && !errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%s: %v", name, err)
		}
		if err := event.CheckOn("elsewhere", e); err != nil {
			t.Errorf("%s, on another topic: %v", name, err)
		}
	}
}

// FuzzCheck checks that any accepted event is a message that every reader can decode, with values
// that tables and answers can represent.
func FuzzCheck(f *testing.F) {
	f.Add("millrace.order.v1.OrderPlaced", orderPlaced(func(*orderv1.OrderPlaced) {}))
	f.Add("millrace.order.v1.OrderConfirmed", confirmed())
	f.Add("millrace.order.v1.OrderSplit", field(50, "x"))
	f.Add("millrace.order.v1.OrderCancelled", []byte("\x22\x04\x0a\x02ab"))
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		e := event.Event{ID: uuid.New(), Aggregate: "order", Stream: orderID, Version: 1, Type: kind, Data: data}
		if err := event.Order.Check(e); err != nil {
			if !errors.Is(err, event.ErrNotEvent) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		m := &orderv1.OrderEvent{}
		if err := proto.Unmarshal(data, m); err != nil {
			t.Fatalf("%s %x: %v", kind, data, err)
		}
		if p := m.GetPlaced(); p != nil {
			if p.OrderId != orderID || p.OrderedAt.CheckValid() != nil {
				t.Fatalf("%x holds %v", data, p)
			}
			for _, l := range p.Lines {
				if l.UnitPrice.GetCurrencyCode() != p.Currency || l.Number > math.MaxInt32 {
					t.Fatalf("%x holds %v", data, p)
				}
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	e := event.Event{
		ID: uuid.New(), Aggregate: "order", Stream: orderID, Version: 1, Type: "millrace.order.v1.OrderPlaced",
		Data: orderPlaced(func(*orderv1.OrderPlaced) {}),
	}
	for b.Loop() {
		if err := event.Order.Check(e); err != nil {
			b.Fatal(err)
		}
	}
}
