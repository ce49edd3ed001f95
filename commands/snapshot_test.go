package commands_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
)

func stock(t testing.TB, store eventstore.Store, opts ...commands.Option) inventoryv1connect.InventoryServiceClient {
	t.Helper()
	s := commandstest.Serve(t, store, inventory.NewHandler, opts...)
	return inventoryv1connect.NewInventoryServiceClient(s.HTTP1, s.URL)
}

func receive(ctx context.Context, c inventoryv1connect.InventoryServiceClient, quantity int64) error {
	_, err := c.ReceiveStock(ctx, connect.NewRequest(&inventoryv1.ReceiveStockRequest{Sku: "85123A", Quantity: quantity}))
	return err
}

// A long stream is loaded from its newest snapshot. Unreadable snapshots and those of another
// schema are ignored and replaced.
func TestLongStreamIsLoadedFromSnapshot(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: commandstest.OpenStore(t, event.Stock)}
	client := stock(t, store, commands.WithSnapshotEvery(10))
	for range 35 {
		if err := receive(t.Context(), client, 1); err != nil {
			t.Fatal(err)
		}
	}
	snap, ok, err := store.LoadSnapshot(t.Context(), "85123A")
	if err != nil || !ok || snap.Version != 30 || snap.Schema != inventory.Decider().Schema {
		t.Fatalf("snapshot %+v, %v, %v", snap, ok, err)
	}

	var read atomic.Int64
	store.load = func(stream string, after uint64) ([]event.Event, error) {
		events, err := store.Store.Load(t.Context(), stream, after)
		read.Store(int64(len(events)))
		return events, err
	}
	check := func(what string, wantRead int64) {
		t.Helper()
		res, err := client.GetStock(t.Context(), connect.NewRequest(&inventoryv1.GetStockRequest{Sku: "85123A"}))
		if err != nil || res.Msg.GetOnHand() != 35 || res.Msg.GetVersion() != 35 || read.Load() != wantRead {
			t.Errorf("%s: %v, %v after %d events, want %d events", what, res, err, read.Load(), wantRead)
		}
	}
	check("through the snapshot", 6) // five, and the snapshot's own event for its position

	replace := func(s eventstore.Snapshot) {
		t.Helper()
		if _, err := store.Store.Append(t.Context(), eventstore.Batch{Snapshots: []eventstore.Snapshot{s}}); err != nil {
			t.Fatal(err)
		}
	}
	unreadable, other := snap, snap
	unreadable.Version, unreadable.State = 31, []byte("no JSON")
	other.Version, other.Schema, other.State = 32, snap.Schema+1, []byte(`{"OnHand":-7}`)
	replace(unreadable)
	check("past an unreadable snapshot", 35)
	replace(other)
	check("past a snapshot of another schema", 35)
	if err := receive(t.Context(), client, 1); err != nil {
		t.Fatal(err)
	}
	if snap, _, err := store.LoadSnapshot(t.Context(), "85123A"); err != nil || snap.Version != 36 ||
		snap.Schema != inventory.Decider().Schema {
		t.Errorf("the snapshot of another schema was replaced by %+v, %v", snap, err)
	}
}

// TestDamagedSnapshots checks that a damaged snapshot never changes a decision and never fails a
// call. The stream's events are read instead.
func TestDamagedSnapshots(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(s *eventstore.Snapshot){
		"a flipped bit in a number": func(s *eventstore.Snapshot) {
			s.State = bytes.Replace(s.State, []byte(":30"), []byte(":31"), 1)
		},
		"truncated":                   func(s *eventstore.Snapshot) { s.State = s.State[:len(s.State)-4] },
		"cut in half":                 func(s *eventstore.Snapshot) { s.State = s.State[:len(s.State)/2] },
		"zeroes":                      func(s *eventstore.Snapshot) { s.State = make([]byte, len(s.State)) },
		"another version":             func(s *eventstore.Snapshot) { s.Version = 33 },
		"a version beyond the stream": func(s *eventstore.Snapshot) { s.Version, s.State = 99, []byte(`{"OnHand":7}`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := commandstest.OpenStore(t, event.Stock)
			client := stock(t, store, commands.WithSnapshotEvery(10))
			for range 35 {
				if err := receive(t.Context(), client, 1); err != nil {
					t.Fatal(err)
				}
			}
			snap, _, err := store.LoadSnapshot(t.Context(), "85123A")
			if err != nil {
				t.Fatal(err)
			}
			before := string(snap.State)
			snap.Version++ // stores keep the newest one
			if damage(&snap); string(snap.State) == before && snap.Version == 31 {
				t.Fatal("the snapshot is not damaged")
			}
			if _, err := store.Append(t.Context(), eventstore.Batch{Snapshots: []eventstore.Snapshot{snap}}); err != nil {
				t.Fatal(err)
			}
			res, err := client.GetStock(t.Context(), connect.NewRequest(&inventoryv1.GetStockRequest{Sku: "85123A"}))
			if err != nil || res.Msg.GetOnHand() != 35 || res.Msg.GetVersion() != 35 {
				t.Errorf("%v, %v", res, err)
			}
			if err := receive(t.Context(), client, 1); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSnapshotsDoNotChangeResults runs the same commands on two services, one with snapshots and
// one without. All answers must be equal.
func TestSnapshotsDoNotChangeResults(t *testing.T) {
	t.Parallel()
	noon := time.Date(2025, 12, 1, 12, 0, 0, 0, time.UTC)
	runner := func(every uint64) *commands.Runner[inventory.State, inventory.Command, *inventoryv1.StockEvent] {
		clock := func() time.Time { return noon }
		return commands.NewRunner(commandstest.OpenStore(t, event.Stock), event.Stock, inventory.Decider(),
			commands.WithSnapshotEvery(every), commands.WithClock(clock))
	}
	with, without := runner(3), runner(1<<40)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		sku := fmt.Sprintf("SKU %d", run)
		for i := range rapid.IntRange(1, 12).Draw(rt, "commands") {
			on := inventory.On{SKU: sku, Now: noon.Add(time.Duration(i) * time.Minute)}
			quantity := rapid.Int64Range(1, 5).Draw(rt, "quantity")
			id := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "reservation")
			command := rapid.SampledFrom([]inventory.Command{
				inventory.Receive{On: on, Quantity: quantity, At: noon},
				inventory.Adjust{On: on, Delta: -quantity, Reason: "counted", At: noon},
				inventory.Reserve{On: on, ReservationID: id, Quantity: quantity, TimeToLive: 2 * time.Minute},
				inventory.Commit{On: on, ReservationID: id}, inventory.Release{On: on, ReservationID: id},
			}).Draw(rt, "command")
			do := func(r *commands.Runner[inventory.State, inventory.Command, *inventoryv1.StockEvent]) (inventory.State, string) {
				res, err := commands.Do(t.Context(), connect.NewRequest(&inventoryv1.ReceiveStockRequest{}), r.On(sku, command),
					func(_ inventory.State, r *eventv1.Receipt) *inventoryv1.ReceiveStockResponse {
						return &inventoryv1.ReceiveStockResponse{Receipt: r}
					})
				s, version, loadErr := r.Load(t.Context(), sku)
				if loadErr != nil {
					rt.Fatal(loadErr)
				}
				return s, fmt.Sprint(res != nil && res.Msg.GetReceipt().GetVersion() == version, err, version)
			}
			a, resultA := do(with)
			b, resultB := do(without)
			if resultA != resultB || a.OnHand != b.OnHand || a.Reserved != b.Reserved ||
				!maps.EqualFunc(a.Reservations, b.Reservations, sameReservation) {
				rt.Fatalf("with snapshots %+v, %s\nwithout %+v, %s", a, resultA, b, resultB)
			}
		}
	})
}

func sameReservation(a, b inventory.Reservation) bool {
	return a.Quantity == b.Quantity && a.ExpiresAt.Equal(b.ExpiresAt)
}
