package wire_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// The events of our own orders.
func TestOrders(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	md := new(orderv1.OrderEvent).ProtoReflect().Descriptor()
	tab := newTable(t, md)
	var wires [][]byte
	for range 1000 {
		wires = append(wires, marshal(t, drawOrder(r)))
		if err := tab.Append(wires[len(wires)-1]); err != nil {
			t.Fatal(err)
		}
	}
	rec := tab.record(t)
	for row, b := range wires {
		want, err := parse(md, b)
		if err != nil {
			t.Fatal(err)
		}
		checkRow(t, want, rec, row)
	}
	bad := &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		Lines: []*orderv1.OrderLine{{}, {}, {UnitPrice: &money.Money{Units: 1, Nanos: -1}}},
	}}}
	if err := tab.Append(marshal(t, bad)); err == nil || err.Error() != "placed.lines[2].unit_price: 1 units and -1 nanos are not an amount" {
		t.Error(err)
	}
}

func drawOrder(r *rand.Rand) proto.Message {
	id := fmt.Sprintf("%08x-0000-7000-8000-%012x", r.Uint32(), r.Int64N(1<<40))
	now := &timestamppb.Timestamp{Seconds: 1_790_000_000 + r.Int64N(100_000), Nanos: r.Int32N(1e6) * 1000}
	price := func() *money.Money {
		return &money.Money{CurrencyCode: "EUR", Units: r.Int64N(100), Nanos: r.Int32N(100) * 1e7}
	}
	var lines []*orderv1.OrderLine
	for i := range 1 + r.IntN(4) {
		lines = append(lines, &orderv1.OrderLine{
			Number: uint32(i + 1), Sku: fmt.Sprint(10_000 + r.IntN(5_000)), Description: "WHITE HANGING HEART", Quantity: 1 + r.Int64N(9), UnitPrice: price(),
		})
	}
	switch r.IntN(4) {
	case 0:
		return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{OrderId: id, ConfirmedAt: now}}}
	case 1:
		return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{OrderId: id, Reason: "late", CancelledAt: now}}}
	case 2:
		return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
			OrderId: id, Lines: lines, Total: price(), AddedAt: now, Currency: "EUR", Country: "DE", OrderedAt: now,
		}}}
	}
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: id, CustomerId: &id, Currency: "EUR", Country: "GB", Lines: lines, Total: price(), OrderedAt: now,
	}}}
}
