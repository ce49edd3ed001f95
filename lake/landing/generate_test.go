package landing

import (
	"fmt"
	"math/rand/v2"
	"slices"
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

// generator generates events of every aggregate, deterministically for a seed.
type generator struct {
	rnd      *rand.Rand
	now      time.Time
	sequence uint64
	versions map[string]uint64

	orders              []*openOrder // that something may still happen to
	customers, products []string
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

// openOrder has what later events of an order repeat.
type openOrder struct {
	id       string
	customer *string
	country  string
	ordered  *timestamppb.Timestamp
	lines    []*orderv1.OrderLine // so far
}

// placed returns the first event of an order.
func (g *generator) placed() (*openOrder, event.Event) {
	o := &openOrder{
		id: g.uuid().String(), ordered: timestamppb.New(event.Time(g.now)),
		country: []string{"United Kingdom", "EIRE", "DE", "Côte d'Ivoire"}[g.rnd.IntN(4)],
	}
	if g.rnd.IntN(4) > 0 {
		o.customer = proto.String(g.uuid().String())
	}
	return o, g.event(event.Order, o.id, "millrace.order.v1.OrderPlaced", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: o.id, CustomerId: o.customer, Reference: fmt.Sprint(g.rnd.IntN(1e6)), Currency: "GBP", Country: o.country,
		Lines: g.lines(o, 1+g.rnd.IntN(6)), Total: g.money(), OrderedAt: o.ordered,
	}}})
}

// orderEvents returns the first events of one order: placed, sometimes extended, mostly confirmed.
func (g *generator) orderEvents() []event.Event {
	o, first := g.placed()
	events := []event.Event{first}
	if g.rnd.IntN(5) == 0 {
		events = append(events, g.linesAdded(o))
	}
	switch g.rnd.IntN(10) {
	case 0:
		return append(events, g.cancelled(o))
	case 1, 2, 3:
	default:
		events = append(events, g.confirmed(o))
	}
	g.orders = append(g.orders, o)
	return events
}

// laterEvent returns an event of an earlier order, if there is one.
func (g *generator) laterEvent() []event.Event {
	if len(g.orders) == 0 {
		return nil
	}
	at := g.rnd.IntN(len(g.orders))
	switch o := g.orders[at]; g.rnd.IntN(3) {
	case 0:
		return []event.Event{g.linesAdded(o)}
	case 1:
		return []event.Event{g.confirmed(o)}
	default:
		g.orders = slices.Delete(g.orders, at, at+1)
		return []event.Event{g.cancelled(o)}
	}
}

func (g *generator) lines(o *openOrder, n int) []*orderv1.OrderLine {
	out := make([]*orderv1.OrderLine, n)
	for i := range out {
		out[i] = &orderv1.OrderLine{
			Number: uint32(len(o.lines) + 1), Sku: g.sku(), Description: []string{"WHITE HANGING HEART T-LIGHT HOLDER", "", "Œuf \"dur\" 卵", "a,b\nc"}[g.rnd.IntN(4)],
			Quantity: g.rnd.Int64N(80000) + 1, UnitPrice: g.money(),
		}
		o.lines = append(o.lines, out[i])
	}
	return out
}

func (g *generator) linesAdded(o *openOrder) event.Event {
	return g.event(event.Order, o.id, "millrace.order.v1.LinesAdded", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
		OrderId: o.id, CustomerId: o.customer, Currency: "GBP", Country: o.country, OrderedAt: o.ordered,
		Lines: g.lines(o, 1+g.rnd.IntN(3)), Total: g.money(), AddedAt: timestamppb.New(g.now),
	}}})
}

func (g *generator) confirmed(o *openOrder) event.Event {
	return g.event(event.Order, o.id, "millrace.order.v1.OrderConfirmed", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{
		Confirmed: &orderv1.OrderConfirmed{OrderId: o.id, ConfirmedAt: timestamppb.New(g.now)},
	}})
}

// cancelled returns a cancellation, sometimes as earlier versions wrote it: without the order.
func (g *generator) cancelled(o *openOrder) event.Event {
	c := &orderv1.OrderCancelled{OrderId: o.id, Reason: "changed my mind", CancelledAt: timestamppb.New(g.now)}
	if g.rnd.IntN(4) > 0 {
		c.CustomerId, c.Currency, c.Country, c.OrderedAt = o.customer, "GBP", o.country, o.ordered
		for _, l := range o.lines {
			c.Lines = append(c.Lines, &orderv1.OrderLine{
				Number: l.GetNumber(), Sku: l.GetSku(), Quantity: l.GetQuantity(), UnitPrice: l.GetUnitPrice(),
			})
		}
	}
	return g.event(event.Order, o.id, "millrace.order.v1.OrderCancelled",
		&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: c}})
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

// customerEvents registers a customer, and sometimes changes an earlier one.
func (g *generator) customerEvents() []event.Event {
	id := g.uuid().String()
	events := []event.Event{g.event(event.Customer, id, "millrace.customer.v1.CustomerRegistered", &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_Registered{
		Registered: &customerv1.CustomerRegistered{CustomerId: id, Reference: "17850", Name: "Émile", Email: "e@example.com", Country: "United Kingdom", RegisteredAt: timestamppb.New(g.now)},
	}})}
	g.customers = append(g.customers, id)
	id = g.customers[g.rnd.IntN(len(g.customers))]
	switch g.rnd.IntN(3) {
	case 0:
		purpose := customerv1.ConsentPurpose(1 + g.rnd.IntN(3))
		events = append(events, g.event(event.Customer, id, "millrace.customer.v1.ConsentChanged", &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_ConsentChanged{
			ConsentChanged: &customerv1.ConsentChanged{CustomerId: id, Purpose: purpose, Granted: g.rnd.IntN(3) > 0, ChangedAt: timestamppb.New(g.now)},
		}}))
	case 1:
		events = append(events, g.event(event.Customer, id, "millrace.customer.v1.AddressChanged", &customerv1.CustomerEvent{Event: &customerv1.CustomerEvent_AddressChanged{
			AddressChanged: &customerv1.AddressChanged{CustomerId: id, ChangedAt: timestamppb.New(g.now), Address: &customerv1.Address{
				Recipient: "Émile", Lines: []string{"1, rue de l'Œuf", ""}[:g.rnd.IntN(3)], City: "Lyon", Country: "FR",
			}},
		}}))
	}
	return events
}

// productEvents lists a product, and sometimes changes an earlier one.
func (g *generator) productEvents() []event.Event {
	sku := g.sku() + "-" + g.uuid().String()
	price := func(sku, currency string) event.Event {
		m := g.money()
		m.CurrencyCode = currency
		return g.event(event.Product, sku, "millrace.catalog.v1.PriceSet", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{
			Sku: sku, Price: m, ValidFrom: timestamppb.New(g.now),
		}}})
	}
	events := []event.Event{
		g.event(event.Product, sku, "millrace.catalog.v1.ProductListed", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
			Sku: sku, Title: "T-LIGHT HOLDER", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: []string{"home", "light"}, ListedAt: timestamppb.New(g.now),
		}}}),
		price(sku, "GBP"),
	}
	g.products = append(g.products, sku)
	sku = g.products[g.rnd.IntN(len(g.products))]
	switch g.rnd.IntN(4) {
	case 0:
		events = append(events, price(sku, []string{"GBP", "EUR", "CHF"}[g.rnd.IntN(3)]))
	case 1:
		events = append(events, g.event(event.Product, sku, "millrace.catalog.v1.ProductRevised", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Revised{
			Revised: &catalogv1.ProductRevised{Sku: sku, Title: "HOLDER", Categories: []string{"Œuf"}[:g.rnd.IntN(2)], RevisedAt: timestamppb.New(g.now)},
		}}))
	case 2:
		events = append(events, g.event(event.Product, sku, "millrace.catalog.v1.ProductDelisted", &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Delisted{
			Delisted: &catalogv1.ProductDelisted{Sku: sku, DelistedAt: timestamppb.New(g.now)},
		}}))
	}
	return events
}

func (g *generator) stockEvents() []event.Event {
	sku, reservation := g.sku()+"-"+g.uuid().String(), g.uuid().String()
	now := timestamppb.New(g.now)
	events := []event.Event{
		g.event(event.Stock, sku, "millrace.inventory.v1.StockReceived", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Received{
			Received: &inventoryv1.StockReceived{Sku: sku, Quantity: g.rnd.Int64N(1e6), Reference: "PO-7", ReceivedAt: now},
		}}),
		g.event(event.Stock, sku, "millrace.inventory.v1.StockReserved", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Reserved{
			Reserved: &inventoryv1.StockReserved{Sku: sku, ReservationId: reservation, Quantity: 5, ReservedAt: now, ExpiresAt: timestamppb.New(g.now.Add(time.Hour))},
		}}),
	}
	switch g.rnd.IntN(3) {
	case 0:
		events = append(events, g.event(event.Stock, sku, "millrace.inventory.v1.ReservationCommitted", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationCommitted{
			ReservationCommitted: &inventoryv1.ReservationCommitted{Sku: sku, ReservationId: reservation, Quantity: 5, CommittedAt: now},
		}}))
	case 1:
		events = append(events, g.event(event.Stock, sku, "millrace.inventory.v1.ReservationReleased", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationReleased{
			ReservationReleased: &inventoryv1.ReservationReleased{Sku: sku, ReservationId: reservation, Quantity: 5, Cause: inventoryv1.ReleaseCause_RELEASE_CAUSE_EXPIRED, ReleasedAt: now},
		}}))
	default:
		events = append(events, g.event(event.Stock, sku, "millrace.inventory.v1.StockAdjusted", &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Adjusted{
			Adjusted: &inventoryv1.StockAdjusted{Sku: sku, Delta: -3, Reason: "broken", AdjustedAt: now},
		}}))
	}
	return events
}

// history returns a shop's events by aggregate, for a number of orders and proportionally many
// others. Some concern earlier histories.
func (g *generator) history(orders int) map[event.Aggregate][]event.Event {
	h := map[event.Aggregate][]event.Event{}
	for i := range orders {
		h[event.Order] = append(h[event.Order], g.orderEvents()...)
		if i%3 == 0 {
			h[event.Order] = append(h[event.Order], g.laterEvent()...)
		}
		if i%4 == 0 {
			h[event.Customer] = append(h[event.Customer], g.customerEvents()...)
			h[event.Product] = append(h[event.Product], g.productEvents()...)
			h[event.Stock] = append(h[event.Stock], g.stockEvents()...)
		}
	}
	return h
}
