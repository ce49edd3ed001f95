package orderstatus_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/readmodels/orderstatus"
)

var (
	day      = time.Date(2011, 12, 9, 12, 50, 0, 0, time.UTC)
	recorded = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
)

func pounds(units int64) *money.Money { return &money.Money{CurrencyCode: "GBP", Units: units} }

func line(n uint32) *orderv1.OrderLine {
	return &orderv1.OrderLine{Number: n, Sku: "85123A", Description: "WHITE HANGING HEART T-LIGHT HOLDER",
		Quantity: int64(n), UnitPrice: pounds(2)}
}

func placed(reference string, lines ...*orderv1.OrderLine) *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		CustomerId: proto.String("c-1"), Reference: reference, Currency: "GBP", Country: "France", Lines: lines,
		Total: pounds(9), OrderedAt: timestamppb.New(day),
	}}}
}

func linesAdded(lines ...*orderv1.OrderLine) *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_LinesAdded{LinesAdded: &orderv1.LinesAdded{
		Currency: "GBP", Lines: lines, Total: pounds(20), AddedAt: timestamppb.New(day),
		OrderedAt: timestamppb.New(day),
	}}}
}

func confirmed() *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Confirmed{Confirmed: &orderv1.OrderConfirmed{ConfirmedAt: timestamppb.New(day)}}}
}

func cancelled() *orderv1.OrderEvent {
	return &orderv1.OrderEvent{Event: &orderv1.OrderEvent_Cancelled{Cancelled: &orderv1.OrderCancelled{
		Reason: "changed her mind", CancelledAt: timestamppb.New(day),
	}}}
}

// TestProjectionNumber fails if the projection makes other documents of the same events than the last
// time, so that a change raises Projection.
func TestProjectionNumber(t *testing.T) {
	t.Parallel()
	digests := map[int]string{1: "5db691c99141cd867ae85fe985badfff"} // by projection
	var events []event.Event
	for stream, history := range map[string][]*orderv1.OrderEvent{
		"o-1": {placed("R-1", line(1)), linesAdded(line(2)), confirmed()},
		"o-2": {placed("", line(1), line(2)), cancelled()},
	} {
		for i, m := range history {
			events = append(events, event.Event{Aggregate: event.Order.Name, Stream: stream, Version: uint64(i + 1),
				RecordedAt: recorded, Data: marshal(t, m)})
		}
	}
	d, err := orderstatus.ExpectedDigest(func(yield func(event.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Total().Hash(), digests[orderstatus.Projection]; got != want {
		t.Errorf("the documents have the digest %s, and projection %d had %s: raise Projection, and add the digest here",
			got, orderstatus.Projection, want)
	}
}

func marshal(t testing.TB, m *orderv1.OrderEvent) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProject(t *testing.T) {
	t.Parallel()
	base := &orderv1.OrderStatus{
		OrderId: "o-1", CustomerId: proto.String("c-1"), Reference: "536365", Country: "France",
		Stage: orderv1.OrderStage_ORDER_STAGE_PLACED,
		Lines: []*orderv1.OrderLine{line(1), line(2)}, Total: pounds(9), OrderedAt: timestamppb.New(day),
		Version: 1, RecordedAt: timestamppb.New(recorded),
	}
	with := func(change func(*orderv1.OrderStatus)) *orderv1.OrderStatus {
		doc := proto.CloneOf(base)
		doc.Version = 2
		change(doc)
		return doc
	}
	// An event of a later schema, unknown to this view.
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("OrderTeleported"))
	for name, c := range map[string]struct {
		doc        *orderv1.OrderStatus
		data       []byte
		want       *orderv1.OrderStatus
		unreadable bool
	}{
		"placed":      {nil, marshal(t, placed("536365", line(1), line(2))), base, false},
		"lines added": {base, marshal(t, linesAdded(line(3))), with(func(d *orderv1.OrderStatus) { d.Lines = append(d.Lines, line(3)); d.Total = pounds(20) }), false},
		"confirmed": {base, marshal(t, confirmed()), with(func(d *orderv1.OrderStatus) {
			d.Stage, d.ConfirmedAt = orderv1.OrderStage_ORDER_STAGE_CONFIRMED, timestamppb.New(day)
		}), false},
		"cancelled": {base, marshal(t, cancelled()), with(func(d *orderv1.OrderStatus) {
			d.Stage, d.CancelledAt, d.CancelReason = orderv1.OrderStage_ORDER_STAGE_CANCELLED, timestamppb.New(day),
				"changed her mind"
		}), false},
		"not known":        {base, unknown, with(func(*orderv1.OrderStatus) {}), false},
		"rubbish":          {base, []byte{0xff}, nil, true},
		"rubbish at first": {nil, []byte{0xff}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var before *orderv1.OrderStatus
			if c.doc != nil {
				before = proto.CloneOf(c.doc)
			}
			got, err := orderstatus.Project(c.doc, event.Event{
				Stream: "o-1", Version: c.doc.GetVersion() + 1, Data: c.data, RecordedAt: recorded,
			})
			if (err != nil) != c.unreadable {
				t.Errorf("error %v", err)
			}
			if !proto.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			if !proto.Equal(before, c.doc) {
				t.Errorf("the document that was passed in is now %v", c.doc)
			}
		})
	}
}

// randomData returns random event data that may follow a version of an order.
func randomData(t testing.TB, version uint64, reference string) []byte {
	if version == 0 {
		return marshal(t, placed(reference, line(1), line(2)))
	}
	switch rand.IntN(4) {
	case 0:
		return marshal(t, confirmed())
	case 1:
		return marshal(t, cancelled())
	default:
		return marshal(t, linesAdded(line(uint32(version)+2)))
	}
}
