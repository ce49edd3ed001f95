package lake

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// generator makes events of every aggregate: the same seed, the same events.
type generator struct {
	rnd      *rand.Rand
	now      time.Time
	sequence uint64
	versions map[string]uint64
}

func newGenerator(seed uint64) *generator {
	return &generator{
		rnd:      rand.New(rand.NewPCG(seed, 1)),
		now:      time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC),
		versions: map[string]uint64{},
	}
}

func (g *generator) uuid() uuid.UUID {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(g.rnd.Uint32())
	}
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

func (g *generator) event(agg event.Aggregate, stream, kind string, message proto.Message) event.Event {
	data, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	g.sequence++
	g.versions[stream]++
	g.now = g.now.Add(time.Duration(g.rnd.IntN(90_000_000)) * time.Microsecond)
	e := event.Event{
		ID: g.uuid(), Aggregate: agg.Name, Stream: stream, Version: g.versions[stream], Type: kind, Data: data,
		OccurredAt: event.Time(g.now), RecordedAt: event.Time(g.now.Add(time.Duration(g.sequence) * time.Microsecond)),
		Position: event.Position{Sequence: g.sequence},
	}
	if g.rnd.IntN(2) == 0 {
		e.CorrelationID, e.CausationID = g.uuid().String(), "command/"+g.uuid().String()
		e.TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	}
	return e
}

// orderEvents makes the events of one order: placed, sometimes added to, mostly confirmed.
func (g *generator) orderEvents() []event.Event {
	id := g.uuid().String()
	var customer *string
	if g.rnd.IntN(4) > 0 {
		customer = proto.String(g.uuid().String())
	}
	ordered := timestamppb.New(event.Time(g.now))
	country := []string{"United Kingdom", "EIRE", "DE", "Côte d'Ivoire"}[g.rnd.IntN(4)]
	var number uint32
	lines := func(n int) []*orderv1.OrderLine {
		out := make([]*orderv1.OrderLine, n)
		for i := range out {
			number++
			out[i] = &orderv1.OrderLine{
				Number: number, Sku: g.sku(), Description: []string{"WHITE HANGING HEART T-LIGHT HOLDER", "", "Œuf \"dur\" 卵", "a,b\nc"}[g.rnd.IntN(4)],
				Quantity: g.rnd.Int64N(80000) + 1, UnitPrice: g.money(),
			}
		}
		return out
	}
	events := []event.Event{g.event(event.Order, id, "millrace.order.v1.OrderPlaced", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: id, CustomerId: customer, Reference: fmt.Sprint(g.rnd.IntN(1e6)), Currency: "GBP", Country: country,
		Lines: lines(1 + g.rnd.IntN(6)), Total: g.money(), OrderedAt: ordered,
	}}})}
	if g.rnd.IntN(5) == 0 {
		events = append(events, g.event(event.Order, id, "millrace.order.v1.LinesAdded", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
			OrderId: id, CustomerId: customer, Currency: "GBP", Country: country, OrderedAt: ordered,
			Lines: lines(1 + g.rnd.IntN(3)), Total: g.money(), AddedAt: timestamppb.New(g.now),
		}}}))
	}
	if g.rnd.IntN(10) > 0 {
		events = append(events, g.event(event.Order, id, "millrace.order.v1.OrderConfirmed", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{
			Confirmed: &orderv1.OrderConfirmed{OrderId: id, ConfirmedAt: timestamppb.New(g.now)},
		}}))
	} else {
		events = append(events, g.event(event.Order, id, "millrace.order.v1.OrderCancelled", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{
			Cancelled: &orderv1.OrderCancelled{OrderId: id, Reason: "changed my mind", CancelledAt: timestamppb.New(g.now)},
		}}))
	}
	return events
}

func (g *generator) sku() string {
	return fmt.Sprintf("%d%c", 20000+g.rnd.IntN(3000), 'A'+rune(g.rnd.IntN(3)))
}

func (g *generator) money() *money.Money {
	switch g.rnd.IntN(20) {
	case 0:
		return &money.Money{CurrencyCode: "GBP", Units: 0, Nanos: 1_000_000} // a tenth of a penny
	case 1:
		return &money.Money{CurrencyCode: "GBP", Units: 9_000_000_000_000, Nanos: 999_999_999}
	case 2:
		return &money.Money{CurrencyCode: "GBP", Units: -3, Nanos: -500_000_000}
	}
	return &money.Money{CurrencyCode: "GBP", Units: g.rnd.Int64N(40), Nanos: int32(g.rnd.IntN(100)) * 10_000_000}
}

func (g *generator) customerEvents() []event.Event {
	id := g.uuid().String()
	events := []event.Event{g.event(event.Customer, id, "millrace.customer.v1.CustomerRegistered", &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_Registered{
		Registered: &customerv1.CustomerRegistered{CustomerId: id, Reference: "17850", Country: "United Kingdom", RegisteredAt: timestamppb.New(g.now)},
	}})}
	if g.rnd.IntN(2) == 0 {
		events = append(events, g.event(event.Customer, id, "millrace.customer.v1.ConsentChanged", &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{
			ConsentChanged: &customerv1.ConsentChanged{CustomerId: id, Purpose: customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS, Granted: true, ChangedAt: timestamppb.New(g.now)},
		}}))
	}
	return events
}

func (g *generator) productEvents() []event.Event {
	sku := g.sku() + "-" + g.uuid().String()
	return []event.Event{
		g.event(event.Product, sku, "millrace.catalog.v1.ProductListed", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
			Sku: sku, Title: "T-LIGHT HOLDER", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: []string{"home", "light"}, ListedAt: timestamppb.New(g.now),
		}}}),
		g.event(event.Product, sku, "millrace.catalog.v1.PriceSet", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{
			Sku: sku, Price: g.money(), ValidFrom: timestamppb.New(g.now),
		}}}),
	}
}

func (g *generator) stockEvents() []event.Event {
	sku := g.sku() + "-" + g.uuid().String()
	return []event.Event{g.event(event.Stock, sku, "millrace.inventory.v1.StockReceived", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Received{
		Received: &inventoryv1.StockReceived{Sku: sku, Quantity: g.rnd.Int64N(1e6), Reference: "PO-7", ReceivedAt: timestamppb.New(g.now)},
	}})}
}

// history makes a shop's events by aggregate: that many orders, and of the rest what goes with them.
func (g *generator) history(orders int) map[event.Aggregate][]event.Event {
	h := map[event.Aggregate][]event.Event{}
	for i := range orders {
		h[event.Order] = append(h[event.Order], g.orderEvents()...)
		if i%4 == 0 {
			h[event.Customer] = append(h[event.Customer], g.customerEvents()...)
			h[event.Product] = append(h[event.Product], g.productEvents()...)
			h[event.Stock] = append(h[event.Stock], g.stockEvents()...)
		}
	}
	return h
}
