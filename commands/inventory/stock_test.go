package inventory_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/inventory"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

const (
	sku       = "85123A"
	requested = inventoryv1.ReleaseCause_RELEASE_CAUSE_REQUESTED
	expired   = inventoryv1.ReleaseCause_RELEASE_CAUSE_EXPIRED
	quarter   = 15 * time.Minute
)

var noon = time.Date(2010, 12, 6, 12, 0, 0, 0, time.UTC)

func at(t time.Time) inventory.On { return inventory.On{SKU: sku, Now: t} }

func receive(quantity int64) inventory.Receive {
	return inventory.Receive{On: at(noon), Quantity: quantity, Reference: "PO 1", At: noon.AddDate(0, 0, -1)}
}

func received(quantity int64) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Received{Received: &inventoryv1.StockReceived{
		Sku: sku, Quantity: quantity, Reference: "PO 1", ReceivedAt: timestamppb.New(noon.AddDate(0, 0, -1)),
	}}}
}

func adjust(now time.Time, delta int64) inventory.Adjust {
	return inventory.Adjust{On: at(now), Delta: delta, Reason: "counted", At: now}
}

func adjusted(now time.Time, delta int64) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Adjusted{Adjusted: &inventoryv1.StockAdjusted{
		Sku: sku, Delta: delta, Reason: "counted", AdjustedAt: timestamppb.New(now),
	}}}
}

func reserve(now time.Time, id string, quantity int64) inventory.Reserve {
	return inventory.Reserve{On: at(now), ReservationID: id, Quantity: quantity, TimeToLive: quarter}
}

func reserved(now time.Time, id string, quantity int64) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_Reserved{Reserved: &inventoryv1.StockReserved{
		Sku: sku, ReservationId: id, Quantity: quantity, ReservedAt: timestamppb.New(now), ExpiresAt: timestamppb.New(now.Add(quarter)),
	}}}
}

func commit(now time.Time, id string) inventory.Commit {
	return inventory.Commit{On: at(now), ReservationID: id}
}

func committed(now time.Time, id string, quantity int64) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationCommitted{ReservationCommitted: &inventoryv1.ReservationCommitted{
		Sku: sku, ReservationId: id, Quantity: quantity, CommittedAt: timestamppb.New(now),
	}}}
}

func release(now time.Time, id string) inventory.Release {
	return inventory.Release{On: at(now), ReservationID: id}
}

func released(now time.Time, id string, quantity int64, cause inventoryv1.ReleaseCause) *inventoryv1.StockEvent {
	return &inventoryv1.StockEvent{Event: &inventoryv1.StockEvent_ReservationReleased{ReservationReleased: &inventoryv1.ReservationReleased{
		Sku: sku, ReservationId: id, Quantity: quantity, Cause: cause, ReleasedAt: timestamppb.New(now),
	}}}
}

func refused(rule, field, onHand, held, available string) *commands.RejectedError {
	return &commands.RejectedError{Code: commands.Refused, Rule: rule, Field: field,
		Facts: map[string]string{"on_hand": onHand, "reserved": held, "available": available}}
}

// Each spec is a history, a command, and the events or the rejection that follow.
func TestStockLifecycle(t *testing.T) {
	t.Parallel()
	type events = []*inventoryv1.StockEvent
	var (
		ten        = received(10)
		later      = noon.Add(time.Minute)
		over       = noon.Add(quarter) // when a reservation made at noon expires
		held       = events{ten, reserved(noon, "a", 4)}
		unknown    = &commands.RejectedError{Code: commands.NotFound, Rule: "reservation_unknown", Field: "reservation_id"}
		expiration = func(id string, quantity int64) *inventoryv1.StockEvent { return released(over, id, quantity, expired) }
	)
	commandstest.Check(t, inventory.Decider(), map[string]commandstest.Spec[inventory.Command, *inventoryv1.StockEvent]{
		"goods are received":                      {When: receive(10), Then: events{ten}},
		"the books are corrected upwards":         {Given: events{ten}, When: adjust(noon, 2), Then: events{adjusted(noon, 2)}},
		"the books are corrected down to nothing": {Given: events{ten}, When: adjust(noon, -10), Then: events{adjusted(noon, -10)}},
		"what was found is the first stock":       {When: adjust(noon, 3), Then: events{adjusted(noon, 3)}},
		"goods are reserved":                      {Given: events{ten}, When: reserve(noon, "a", 4), Then: events{reserved(noon, "a", 4)}},
		"all that is left is reserved":            {Given: held, When: reserve(later, "b", 6), Then: events{reserved(later, "b", 6)}},
		"the same reservation again is nothing":   {Given: held, When: reserve(later, "a", 4)},
		"a reservation is committed":              {Given: held, When: commit(later, "a"), Then: events{committed(later, "a", 4)}},
		"a reservation is released":               {Given: held, When: release(later, "a"), Then: events{released(later, "a", 4, requested)}},
		"released goods can be reserved":          {Given: append(held, released(later, "a", 4, requested)), When: reserve(later, "b", 10), Then: events{reserved(later, "b", 10)}},
		"a released reservation's id is free":     {Given: append(held, released(later, "a", 4, requested)), When: reserve(later, "a", 5), Then: events{reserved(later, "a", 5)}},

		"no correction below nothing":          {Given: events{ten}, When: adjust(noon, -11), Refused: refused("stock_negative", "delta", "10", "0", "10")},
		"no correction below what is reserved": {Given: held, When: adjust(later, -7), Refused: refused("stock_reserved", "delta", "10", "4", "6")},
		"no reservation of what was never had": {When: reserve(noon, "a", 1), Refused: refused("stock_insufficient", "quantity", "0", "0", "0")},
		"no reservation beyond what is left":   {Given: held, When: reserve(later, "b", 7), Refused: refused("stock_insufficient", "quantity", "10", "4", "6")},
		"no reservation of what was sold":      {Given: append(held, committed(later, "a", 4)), When: reserve(later, "b", 7), Refused: refused("stock_insufficient", "quantity", "6", "0", "6")},
		"no other quantity for a reservation":  {Given: held, When: reserve(later, "a", 5), Refused: refused("reservation_differs", "quantity", "10", "4", "6")},
		"no commit of an unknown reservation":  {Given: held, When: commit(later, "b"), Refused: unknown},
		"no commit twice":                      {Given: append(held, committed(later, "a", 4)), When: commit(later, "a"), Refused: unknown},
		"no release of an unknown reservation": {Given: held, When: release(later, "b"), Refused: unknown},

		"an instant before its time a reservation holds": {Given: held, When: commit(over.Add(-time.Microsecond), "a"), Then: events{committed(over.Add(-time.Microsecond), "a", 4)}},
		"no commit once its time is over":                {Given: held, When: commit(over, "a"), Refused: refused("reservation_expired", "reservation_id", "10", "0", "10")},
		"expired goods can be reserved":                  {Given: held, When: reserve(over, "b", 10), Then: events{expiration("a", 4), reserved(over, "b", 10)}},
		"an expired reservation can be made again":       {Given: held, When: reserve(over, "a", 4), Then: events{expiration("a", 4), reserved(over, "a", 4)}},
		"expired goods can be written off":               {Given: held, When: adjust(over, -10), Then: events{expiration("a", 4), adjusted(over, -10)}},
		"an expired reservation is not released again":   {Given: held, When: release(over, "a"), Then: events{expiration("a", 4)}},
		"reservations expire in the order of their ends": {
			Given: events{ten, reserved(later, "a", 1), reserved(noon, "c", 2), reserved(noon, "b", 3)},
			When:  reserve(later.Add(quarter), "d", 10),
			Then: events{
				released(over, "b", 3, expired), released(over, "c", 2, expired), released(later.Add(quarter), "a", 1, expired),
				reserved(later.Add(quarter), "d", 10),
			},
		},
		"a backdated delivery expires reservations by the service's clock": {Given: held, When: inventory.Receive{On: at(over), Quantity: 10, Reference: "PO 1", At: noon.AddDate(0, 0, -1)}, Then: events{expiration("a", 4), ten}},
	})
}

// The state survives its encoding in a snapshot.
func TestStockSnapshots(t *testing.T) {
	t.Parallel()
	commandstest.Snapshots(t, inventory.Decider(), func(t *rapid.T, _ inventory.State) inventory.Command {
		return drawCommand(t, noon.Add(time.Duration(rapid.IntRange(0, 120).Draw(t, "minutes"))*time.Minute))
	})
}

// TestNeverOversells checks for any sequence of commands at any times that reservations never
// exceed the stock on hand, that the reserved quantity is the sum of the active reservations, and
// that goods leave only through a commit or a correction.
func TestNeverOversells(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s inventory.State
		var total, sold int64      // received goods and corrections, and committed goods
		held := map[string]int64{} // an independent, simpler account
		now := noon
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			now = now.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "minutes")) * time.Minute)
			events, err := inventory.Decide(s, drawCommand(t, now))
			if err != nil {
				continue
			}
			for _, e := range events {
				s = inventory.Evolve(s, e)
				total += e.GetReceived().GetQuantity() + e.GetAdjusted().GetDelta()
				switch {
				case e.GetReserved() != nil:
					held[e.GetReserved().GetReservationId()] += e.GetReserved().GetQuantity()
				case e.GetReservationCommitted() != nil:
					c := e.GetReservationCommitted()
					if held[c.GetReservationId()] != c.GetQuantity() {
						t.Fatalf("commit of %v, held are %d", c, held[c.GetReservationId()])
					}
					sold += c.GetQuantity()
					delete(held, c.GetReservationId())
				case e.GetReservationReleased() != nil:
					r := e.GetReservationReleased()
					if held[r.GetReservationId()] != r.GetQuantity() {
						t.Fatalf("release of %v, held are %d", r, held[r.GetReservationId()])
					}
					delete(held, r.GetReservationId())
				}
				var sum int64
				for _, q := range held {
					sum += q
				}
				if s.Reserved != sum || len(s.Reservations) != len(held) || s.OnHand != total-sold || s.Reserved < 0 ||
					s.Available() < 0 {
					t.Fatalf("after %v: %+v; held are %v, %d were received, sold are %d", e, s, held, total, sold)
				}
			}
			for id, r := range s.Reservations {
				if !r.ExpiresAt.After(now) {
					t.Fatalf("reservation %s expired at %v and is still held at %v", id, r.ExpiresAt, now)
				}
			}
		}
	})
}

// drawCommand draws a command with few ids and small quantities, so that commands often collide.
func drawCommand(t *rapid.T, now time.Time) inventory.Command {
	id := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "reservation")
	quantity := rapid.Int64Range(1, 10).Draw(t, "quantity")
	switch rapid.SampledFrom([]string{"receive", "adjust", "reserve", "reserve", "commit", "release"}).Draw(t, "command") {
	case "receive":
		return inventory.Receive{On: at(now), Quantity: quantity, At: noon}
	case "adjust":
		return adjust(now, rapid.Int64Range(-10, 10).Draw(t, "delta"))
	case "reserve":
		r := reserve(now, id, quantity)
		r.TimeToLive = time.Duration(rapid.IntRange(1, 60).Draw(t, "time to live")) * time.Minute
		return r
	case "commit":
		return commit(now, id)
	}
	return release(now, id)
}

func BenchmarkDecideReserve(b *testing.B) {
	s := inventory.State{OnHand: 1 << 40, Reservations: map[string]inventory.Reservation{}}
	for i := range 1000 {
		id := noon.Add(time.Duration(i)).String()
		s.Reservations[id] = inventory.Reservation{Quantity: 1, ExpiresAt: noon.Add(quarter)}
		s.Reserved++
	}
	b.Run("held=1000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := inventory.Decide(s, reserve(noon, "x", 1)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
