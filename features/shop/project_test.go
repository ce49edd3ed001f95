package shop

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

const (
	anOrder = "0196f0c4-0000-7000-8000-00000000000a"
	alice   = "0196f0c4-0000-7000-8000-000000000001"
)

var (
	monday  = time.Date(2010, 12, 6, 8, 26, 0, 123_000, time.UTC)
	tuesday = monday.AddDate(0, 0, 1)
)

func gbp(units int64, nanos int32) *money.Money {
	return &money.Money{CurrencyCode: "GBP", Units: units, Nanos: nanos}
}

func line(number uint32, sku string, quantity int64, price *money.Money) *orderv1.OrderLine {
	return &orderv1.OrderLine{Number: number, Sku: sku, Quantity: quantity, UnitPrice: price}
}

// orderEvent returns the event of a message of the oneof.
func orderEvent(t testing.TB, message proto.Message) event.Event {
	t.Helper()
	m := &orderv1.OrderEvent{}
	switch v := message.(type) {
	case *orderv1.OrderPlaced:
		m.Event = &orderv1.OrderEvent_Placed{Placed: v}
	case *orderv1.LinesAdded:
		m.Event = &orderv1.OrderEvent_LinesAdded{LinesAdded: v}
	case *orderv1.OrderConfirmed:
		m.Event = &orderv1.OrderEvent_Confirmed{Confirmed: v}
	case *orderv1.OrderCancelled:
		m.Event = &orderv1.OrderEvent_Cancelled{Cancelled: v}
	}
	return envelope(t, event.Order, anOrder, message, m)
}

func envelope(t testing.TB, a event.Aggregate, stream string, message, events proto.Message) event.Event {
	t.Helper()
	data, err := proto.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	e := event.Event{
		ID: uuid.MustParse("0196f0c4-0000-7000-8000-0000000000ee"), Aggregate: a.Name, Stream: stream, Version: 7,
		Type: string(message.ProtoReflect().Descriptor().FullName()), Data: data,
	}
	if err := a.Check(e); err != nil {
		t.Fatalf("the test's event is none: %v", err)
	}
	return e
}

// placed is an order of two products; LAMP is in two lines.
func placed() *orderv1.OrderPlaced {
	return &orderv1.OrderPlaced{
		OrderId: anOrder, CustomerId: proto.String(alice), Reference: "536365", Currency: "GBP", Country: "EIRE",
		Total: gbp(9, 100_000_000), OrderedAt: timestamppb.New(monday),
		Lines: []*orderv1.OrderLine{line(1, "MUG", 2, gbp(2, 550_000_000)), line(2, "LAMP", 3, gbp(1, 0)), line(3, "LAMP", 1, gbp(1, 0))},
	}
}

func added() *orderv1.LinesAdded {
	return &orderv1.LinesAdded{
		OrderId: anOrder, CustomerId: proto.String(alice), Currency: "GBP", Country: "EIRE", Total: gbp(14, 0),
		OrderedAt: timestamppb.New(monday), AddedAt: timestamppb.New(tuesday),
		Lines: []*orderv1.OrderLine{line(4, "PEN", 7, gbp(0, 700_000_000))},
	}
}

func cancelled() *orderv1.OrderCancelled {
	p := placed()
	return &orderv1.OrderCancelled{
		OrderId: anOrder, Reason: "late", CancelledAt: timestamppb.New(tuesday), CustomerId: p.CustomerId,
		Currency: "GBP", Country: "EIRE", OrderedAt: p.GetOrderedAt(), Lines: append(p.GetLines(), added().GetLines()...),
	}
}

func number(n int64) exact.Value { return exact.IntValue(exact.FromInt64(n)) }

func amountOf(units int64, nanos int32) exact.Value {
	return exact.IntValue(exact.FromMoney(units, nanos))
}

// TestOrderFacts: what each event of an order says in each source.
func TestOrderFacts(t *testing.T) {
	t.Parallel()
	guest, guestCancelled, old := placed(), cancelled(), &orderv1.OrderCancelled{OrderId: anOrder}
	guest.CustomerId, guestCancelled.CustomerId = nil, nil
	old.CancelledAt = timestamppb.New(tuesday)
	at := monday.Truncate(time.Microsecond)
	fact := func(entity, key string, values ...exact.Value) features.Fact {
		return features.Fact{Entity: entity, Key: anOrder + key, At: at, Values: values}
	}
	gone := func(entity, key string, columns int) features.Fact {
		return features.Fact{Entity: entity, Key: anOrder + key, At: at, Retracted: true, Values: make([]exact.Value, columns)}
	}
	tx := exact.TextValue
	type facts = []features.Fact
	for name, c := range map[string]struct {
		source  string
		message proto.Message
		want    facts
	}{
		"an order": {"customer_orders", placed(), facts{fact(alice, "", amountOf(9, 100_000_000), tx("GBP"), tx("EIRE"), number(3))}},
		"its lines": {"customer_order_lines", placed(), facts{
			fact(alice, "/1", tx("MUG"), number(2), amountOf(2, 550_000_000), amountOf(5, 100_000_000), tx("GBP")),
			fact(alice, "/2", tx("LAMP"), number(3), amountOf(1, 0), amountOf(3, 0), tx("GBP")),
			fact(alice, "/3", tx("LAMP"), number(1), amountOf(1, 0), amountOf(1, 0), tx("GBP")),
		}},
		"its products": {"product_order_lines", placed(), facts{
			fact("MUG", "/1", tx(anOrder), tx(alice), number(2), amountOf(2, 550_000_000), amountOf(5, 100_000_000), tx("GBP")),
			fact("LAMP", "/2", tx(anOrder), tx(alice), number(3), amountOf(1, 0), amountOf(3, 0), tx("GBP")),
			fact("LAMP", "/3", tx(anOrder), tx(alice), number(1), amountOf(1, 0), amountOf(1, 0), tx("GBP")),
		}},
		"its pairs":                     {"basket_pairs", placed(), facts{fact("LAMP", "/MUG", tx("MUG")), fact("MUG", "/LAMP", tx("LAMP"))}},
		"added lines replace the order": {"customer_orders", added(), facts{fact(alice, "", amountOf(14, 0), tx("GBP"), tx("EIRE"), number(4))}},
		"added lines": {"customer_order_lines", added(), facts{
			fact(alice, "/4", tx("PEN"), number(7), amountOf(0, 700_000_000), amountOf(4, 900_000_000), tx("GBP")),
		}},
		"added lines are not paired": {"basket_pairs", added(), nil},
		"a cancellation retracts":    {"customer_orders", cancelled(), facts{gone(alice, "", 4)}},
		"a cancellation retracts all lines": {"customer_order_lines", cancelled(), facts{
			gone(alice, "/1", 5), gone(alice, "/2", 5), gone(alice, "/3", 5), gone(alice, "/4", 5),
		}},
		"a cancellation retracts products": {"product_order_lines", cancelled(), facts{
			gone("MUG", "/1", 6), gone("LAMP", "/2", 6), gone("LAMP", "/3", 6), gone("PEN", "/4", 6),
		}},
		"a cancellation retracts pairs, and those that never were": {"basket_pairs", cancelled(), facts{
			gone("LAMP", "/MUG", 1), gone("PEN", "/MUG", 1), gone("MUG", "/LAMP", 1), gone("PEN", "/LAMP", 1),
			gone("MUG", "/PEN", 1), gone("LAMP", "/PEN", 1),
		}},
		"a cancellation is a fact, too": {"customer_cancellations", cancelled(), facts{{
			Entity: alice, Key: anOrder, At: tuesday.Truncate(time.Microsecond), Values: []exact.Value{tx("EIRE")},
		}}},
		"an order is no cancellation":       {"customer_cancellations", placed(), nil},
		"a confirmation":                    {"customer_orders", &orderv1.OrderConfirmed{OrderId: anOrder, ConfirmedAt: timestamppb.New(tuesday)}, nil},
		"a guest's order":                   {"customer_orders", guest, nil},
		"a guest's lines":                   {"customer_order_lines", guest, nil},
		"a guest's cancellation":            {"customer_cancellations", guestCancelled, nil},
		"a guest's order is retracted":      {"customer_orders", guestCancelled, nil},
		"an earlier version's cancellation": {"customer_orders", old, nil},
		"and its lines":                     {"product_order_lines", old, nil},
		"and its pairs":                     {"basket_pairs", old, nil},
		"and itself":                        {"customer_cancellations", old, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := project(t, c.source, orderEvent(t, c.message)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
	if got := project(t, "product_order_lines", orderEvent(t, guest)); len(got) != 3 || got[0].Values[1].Kind != exact.Null {
		t.Errorf("a guest's lines are not those of the products: %+v", got)
	}
}

// TestBasketIsBounded: an order of many products gives a bounded number of facts, and its
// cancellation retracts each of them.
func TestBasketIsBounded(t *testing.T) {
	t.Parallel()
	p, c := placed(), cancelled()
	p.Lines, c.Lines = nil, nil
	sku := func(n int) string { return strings.Repeat("A", n+1) }
	for n := range 40 { // each product is in two lines
		p.Lines = append(p.Lines, line(uint32(2*n+1), sku(n), 1, gbp(1, 0)), line(uint32(2*n+2), sku(n), 1, gbp(1, 0)))
	}
	c.Lines = append(p.GetLines(), line(81, "ADDED", 1, gbp(1, 0)))
	facts := project(t, "basket_pairs", orderEvent(t, p))
	if want := basketSKUs * (basketSKUs - 1); len(facts) != want {
		t.Fatalf("%d facts, want %d", len(facts), want)
	}
	versions := facts
	for _, f := range project(t, "basket_pairs", orderEvent(t, c)) {
		f.Origin.Offset = 1
		versions = append(versions, f)
	}
	for n := range basketSKUs {
		var mine []features.Fact
		for _, f := range versions {
			if f.Entity == sku(n) {
				mine = append(mine, f)
			}
		}
		if left := features.Current(mine, time.Time{}); len(mine) != 2*(basketSKUs-1) || len(left) != 0 {
			t.Errorf("%d of %d pairs of product %d are left", len(left), len(mine), n)
		}
	}
	// The second part of the cancellation of a very large order.
	c.Lines = []*orderv1.OrderLine{line(4001, "MUG", 1, gbp(1, 0)), line(4002, "LAMP", 1, gbp(1, 0))}
	if facts := project(t, "basket_pairs", orderEvent(t, c)); facts != nil {
		t.Errorf("later lines are paired: %+v", facts)
	}
}

// TestStockFacts: the sums of the changes are what is on hand and reserved.
func TestStockFacts(t *testing.T) {
	t.Parallel()
	at := timestamppb.New(monday)
	for name, c := range map[string]struct {
		message          proto.Message
		events           *inventoryv1.StockEvent
		onHand, reserved int64
	}{
		"received":  stockCase(&inventoryv1.StockReceived{Sku: "MUG", Quantity: 9, ReceivedAt: at}, 9, 0),
		"adjusted":  stockCase(&inventoryv1.StockAdjusted{Sku: "MUG", Delta: -2, AdjustedAt: at}, -2, 0),
		"reserved":  stockCase(&inventoryv1.StockReserved{Sku: "MUG", Quantity: 3, ReservedAt: at}, 0, 3),
		"committed": stockCase(&inventoryv1.ReservationCommitted{Sku: "MUG", Quantity: 3, CommittedAt: at}, -3, -3),
		"released":  stockCase(&inventoryv1.ReservationReleased{Sku: "MUG", Quantity: 3, ReleasedAt: at}, 0, -3),
	} {
		want := []features.Fact{{
			Entity: "MUG", Key: "7", At: monday.Truncate(time.Microsecond),
			Values: []exact.Value{exact.TextValue(name), number(c.onHand), number(c.reserved)},
		}}
		if got := project(t, "stock_movements", envelope(t, event.Stock, "MUG", c.message, c.events)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func stockCase(m proto.Message, onHand, reserved int64) (c struct {
	message          proto.Message
	events           *inventoryv1.StockEvent
	onHand, reserved int64
}) {
	c.message, c.events, c.onHand, c.reserved = m, &inventoryv1.StockEvent{}, onHand, reserved
	switch v := m.(type) {
	case *inventoryv1.StockReceived:
		c.events.Event = &inventoryv1.StockEvent_Received{Received: v}
	case *inventoryv1.StockAdjusted:
		c.events.Event = &inventoryv1.StockEvent_Adjusted{Adjusted: v}
	case *inventoryv1.StockReserved:
		c.events.Event = &inventoryv1.StockEvent_Reserved{Reserved: v}
	case *inventoryv1.ReservationCommitted:
		c.events.Event = &inventoryv1.StockEvent_ReservationCommitted{ReservationCommitted: v}
	case *inventoryv1.ReservationReleased:
		c.events.Event = &inventoryv1.StockEvent_ReservationReleased{ReservationReleased: v}
	}
	return c
}

// visit returns an event of a visitor.
func visit(t testing.TB, change func(*behaviorv1.BehaviorEvent)) event.Event {
	t.Helper()
	m := &behaviorv1.BehaviorEvent{
		MessageId: "m1", Type: behavior.Track, AnonymousId: "a1", Source: "web",
		Timestamp: timestamppb.New(monday), ReceivedAt: timestamppb.New(tuesday),
	}
	change(m)
	e, err := behavior.Envelope(m)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestBehaviorFacts: which action, page and product an event of a visitor is about.
func TestBehaviorFacts(t *testing.T) {
	t.Parallel()
	type message = behaviorv1.BehaviorEvent
	for name, c := range map[string]struct {
		change                func(*message)
		action, page, product string
	}{
		"a page with a name":      {func(m *message) { m.Type, m.Name, m.Properties = "page", "Home", `{"path":"/"}` }, "page_view", "Home", ""},
		"a page with a path":      {func(m *message) { m.Type, m.Properties = "page", `{"path":"/café","sku":"MUG"}` }, "page_view", "/café", ""},
		"a page without either":   {func(m *message) { m.Type = "page" }, "page_view", "", ""},
		"a screen":                {func(m *message) { m.Type, m.Name = "screen", "Basket" }, "page_view", "Basket", ""},
		"a product by SKU":        {func(m *message) { m.Event, m.Properties = "Product Viewed", `{"sku":"MUG","product_id":"9"}` }, "product_view", "", "MUG"},
		"a product by id":         {func(m *message) { m.Event, m.Properties = "Product Viewed", `{"sku":null,"product_id":22423}` }, "product_view", "", "22423"},
		"a product without id":    {func(m *message) { m.Event = "Product Viewed" }, "product_view", "", ""},
		"into the cart":           {func(m *message) { m.Event, m.Properties = "Product Added", `{"sku":"MUG"}` }, "add_to_cart", "", "MUG"},
		"out of the cart":         {func(m *message) { m.Event, m.Properties = "Product Removed", `{"sku":"MUG"}` }, "remove_from_cart", "", "MUG"},
		"a search":                {func(m *message) { m.Event = "Products Searched" }, "search", "", ""},
		"a checkout":              {func(m *message) { m.Event = "Checkout Started" }, "checkout", "", ""},
		"a purchase":              {func(m *message) { m.Event = "Order Completed" }, "purchase", "", ""},
		"something else":          {func(m *message) { m.Event, m.Properties = "Video Played", `{"sku":{}}` }, "other", "", ""},
		"a user":                  {func(m *message) { m.Event, m.UserId = "Video Played", "u1" }, "other", "", ""},
		"a long path":             {func(m *message) { m.Type, m.Name = "page", strings.Repeat("é", 200) }, "page_view", strings.Repeat("é", 128), ""},
		"identify":                {change: func(m *message) { m.Type = "identify" }},
		"group":                   {change: func(m *message) { m.Type = "group" }},
		"alias":                   {change: func(m *message) { m.Type = "alias" }},
		"no consent to analytics": {change: func(m *message) { m.Event, m.ReducedFor = "Product Viewed", []string{"analytics"} }},
	} {
		e := visit(t, c.change)
		var want []features.Fact
		if c.action != "" {
			want = []features.Fact{{
				Entity: e.Stream, Key: e.ID.String(), At: monday.Truncate(time.Microsecond),
				Values: []exact.Value{exact.TextValue(c.action), text(c.page), text(c.product), exact.TextValue("web")},
			}}
		}
		if got := project(t, "visitor_actions", e); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

// TestBadValues: an event that cannot be read is an error that names the field.
func TestBadValues(t *testing.T) {
	t.Parallel()
	change := func(f func(*orderv1.OrderPlaced)) proto.Message {
		p := placed()
		f(p)
		return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: p}}
	}
	ended := cancelled()
	ended.CancelledAt = nil
	late := &timestamppb.Timestamp{Seconds: math.MaxInt64}
	visited := func(event, properties string) proto.Message {
		return &behaviorv1.BehaviorEvent{Type: "track", Event: event, Properties: properties}
	}
	for _, c := range []struct {
		want, source string
		payload      proto.Message
	}{
		{"order_id: missing", "customer_orders", change(func(p *orderv1.OrderPlaced) { p.OrderId = "" })},
		{"ordered_at: missing", "customer_orders", change(func(p *orderv1.OrderPlaced) { p.OrderedAt = nil })},
		{"ordered_at: ", "basket_pairs", change(func(p *orderv1.OrderPlaced) { p.OrderedAt = late })},
		{"total: ", "customer_orders", change(func(p *orderv1.OrderPlaced) { p.Total = nil })},
		{"total: ", "customer_orders", change(func(p *orderv1.OrderPlaced) { p.Total = gbp(1, -1) })},
		{`total: currency is "GBP", but the order's is "EUR"`, "customer_orders", change(func(p *orderv1.OrderPlaced) { p.Currency = "EUR" })},
		{"lines[1].sku: missing", "customer_orders", change(func(p *orderv1.OrderPlaced) { p.Lines[1].Sku = "" })},
		{"lines[2].number: 2, want more than 2", "product_order_lines", change(func(p *orderv1.OrderPlaced) { p.Lines[2].Number = 2 })},
		{"lines[0].number: 0, want more than 0", "basket_pairs", change(func(p *orderv1.OrderPlaced) { p.Lines[0].Number = 0 })},
		{"lines[1].unit_price: ", "customer_order_lines", change(func(p *orderv1.OrderPlaced) { p.Lines[1].UnitPrice = nil })},
		{"lines[0].quantity: 9223372036854775807 times the price", "product_order_lines", change(func(p *orderv1.OrderPlaced) {
			p.Lines[0].Quantity = math.MaxInt64
		})},
		{"lines[0].quantity: -9223372036854775808 times the price", "product_order_lines", change(func(p *orderv1.OrderPlaced) {
			p.Lines[0].Quantity = math.MinInt64
		})},
		{"cancelled_at: missing", "customer_cancellations", &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: ended}}},
		{"received_at: missing", "stock_movements", &inventoryv1.StockEvent{
			Event: &inventoryv1.StockEvent_Received{Received: &inventoryv1.StockReceived{}},
		}},
		{"timestamp: missing", "visitor_actions", visited("Video Played", "")},
		{"properties: ", "visitor_actions", visited("Video Played", "[]")},
		{"properties.sku: want a text or a number", "visitor_actions", visited("Product Viewed", `{"sku":["MUG"]}`)},
		{"properties.product_id: want a text or a number", "visitor_actions", visited("Product Added", `{"product_id":true}`)},
		{"properties.sku: occurs twice", "visitor_actions", visited("Product Viewed", `{"sku":"MUG","s\u006bu":"CUP"}`)},
		{"properties: ", "visitor_actions", visited("Product Viewed", `{"sku":"MUG"`)},
	} {
		data, err := proto.Marshal(c.payload)
		if err != nil {
			t.Fatal(err)
		}
		facts, err := sources()[c.source].Project(event.Event{Stream: "s", Data: data})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || facts != nil {
			t.Errorf("%s: got %v, %d facts; want an error about %s", c.source, err, len(facts), c.want)
		}
	}
	nameless := envelope(t, event.Stock, "", &inventoryv1.StockReceived{}, &inventoryv1.StockEvent{
		Event: &inventoryv1.StockEvent_Received{Received: &inventoryv1.StockReceived{ReceivedAt: timestamppb.New(monday)}},
	})
	if _, err := sources()["stock_movements"].Project(nameless); err == nil || err.Error() != "sku: missing" {
		t.Errorf("a product without a name: %v", err)
	}
	for name, s := range sources() {
		if _, err := s.Project(event.Event{Data: []byte{0xff}}); err == nil || !strings.Contains(err.Error(), "decode payload") {
			t.Errorf("%s: bytes that are no message: %v", name, err)
		}
	}
}
