package inventory_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	"github.com/millrace/millrace/gen/millrace/inventory/v1/inventoryv1connect"
)

// All procedures, over gRPC, with a clock that the test moves past the end of a reservation.
func TestStockOverTheWire(t *testing.T) {
	t.Parallel()
	now := noon
	store := commandstest.OpenStore(t, event.Stock)
	s := commandstest.Serve(t, store, inventory.NewHandler, commands.WithClock(func() time.Time { return now }))
	client := inventoryv1connect.NewInventoryServiceClient(s.HTTP2, s.URL, connect.WithGRPC())
	ctx := t.Context()
	check := func(onHand, held int64, version uint64) {
		t.Helper()
		res, err := client.GetStock(ctx, connect.NewRequest(&inventoryv1.GetStockRequest{Sku: sku}))
		want := &inventoryv1.GetStockResponse{
			OnHand: onHand, Reserved: held, Available: onHand - held, Version: version,
		}
		if err != nil || !proto.Equal(res.Msg, want) {
			t.Errorf("stock is %v, %v; want %v", res, err, want)
		}
	}

	_, err := client.GetStock(ctx, connect.NewRequest(&inventoryv1.GetStockRequest{Sku: sku}))
	if r := commandstest.Rejection(t, err, connect.CodeNotFound); r.GetRule() != "stock_unknown" {
		t.Errorf("nothing: %v", r)
	}
	if _, err := client.ReceiveStock(ctx, connect.NewRequest(&inventoryv1.ReceiveStockRequest{
		Sku: sku, Quantity: 10, ReceivedAt: timestamppb.New(noon.AddDate(-1, 0, 0)),
	})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AdjustStock(ctx, connect.NewRequest(&inventoryv1.AdjustStockRequest{Sku: sku, Delta: -1, Reason: "broken"})); err != nil {
		t.Fatal(err)
	}
	check(9, 0, 2)

	held, err := client.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
		Sku: sku, ReservationId: "a", Quantity: 4,
	}))
	if err != nil || !held.Msg.GetExpiresAt().AsTime().Equal(noon.Add(15*time.Minute)) {
		t.Fatalf("reserve for the default time: %v, %v", held, err)
	}
	now = noon.Add(time.Minute)
	again, err := client.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
		Sku: sku, ReservationId: "a", Quantity: 4, TimeToLive: durationpb.New(time.Hour),
	}))
	if err != nil || !proto.Equal(again.Msg, held.Msg) {
		t.Errorf("the same reservation again: %v, %v; want %v", again, err, held)
	}
	_, err = client.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
		Sku: sku, ReservationId: "b", Quantity: 6,
	}))
	if r := commandstest.Rejection(t, err, connect.CodeFailedPrecondition); r.GetRule() != "stock_insufficient" ||
		r.GetFacts()["available"] != "5" {
		t.Errorf("more than is available: %v", r)
	}
	check(9, 4, 3)

	now = noon.Add(15 * time.Minute)
	check(9, 0, 3) // expired, though no event has happened
	if _, err := client.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
		Sku: sku, ReservationId: "b", Quantity: 9, TimeToLive: durationpb.New(time.Hour),
	})); err != nil {
		t.Fatal(err)
	}
	check(9, 9, 5)
	if _, err := client.CommitReservation(ctx, connect.NewRequest(&inventoryv1.CommitReservationRequest{Sku: sku, ReservationId: "b"})); err != nil {
		t.Fatal(err)
	}
	check(0, 0, 6)
	_, err = client.ReleaseReservation(ctx, connect.NewRequest(&inventoryv1.ReleaseReservationRequest{Sku: sku, ReservationId: "b"}))
	if r := commandstest.Rejection(t, err, connect.CodeNotFound); r.GetRule() != "reservation_unknown" {
		t.Errorf("release of sold goods: %v", r)
	}

	expiration := commandstest.Events(t, store)[3]
	if expiration.Type != "millrace.inventory.v1.ReservationReleased" || !expiration.OccurredAt.Equal(noon.Add(15*time.Minute)) {
		t.Errorf("the expiration is %s at %v", expiration.Type, expiration.OccurredAt)
	}
}

// TestReusedKeyWithAnotherProcedure checks that a key distinguishes procedures, because commits and
// releases have identical requests.
func TestReusedKeyWithAnotherProcedure(t *testing.T) {
	t.Parallel()
	s := commandstest.Serve(t, commandstest.OpenStore(t, event.Stock), inventory.NewHandler)
	client := inventoryv1connect.NewInventoryServiceClient(s.HTTP1, s.URL)
	ctx := t.Context()
	if _, err := client.ReceiveStock(ctx, connect.NewRequest(&inventoryv1.ReceiveStockRequest{Sku: sku, Quantity: 10})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ReserveStock(ctx, connect.NewRequest(&inventoryv1.ReserveStockRequest{
		Sku: sku, ReservationId: "a", Quantity: 4,
	})); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CommitReservation(ctx, connect.NewRequest(&inventoryv1.CommitReservationRequest{
		Sku: sku, ReservationId: "a", IdempotencyKey: "key",
	})); err != nil {
		t.Fatal(err)
	}
	_, err := client.ReleaseReservation(ctx, connect.NewRequest(&inventoryv1.ReleaseReservationRequest{
		Sku: sku, ReservationId: "a", IdempotencyKey: "key",
	}))
	if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != "idempotency_key_reused" {
		t.Errorf("%v", r)
	}
	again, err := client.CommitReservation(ctx, connect.NewRequest(&inventoryv1.CommitReservationRequest{
		Sku: sku, ReservationId: "a", IdempotencyKey: "key",
	}))
	if err != nil || !again.Msg.GetReceipt().GetReplayed() {
		t.Errorf("the same again: %v, %v", again, err)
	}
}

// TestNeverOversellsConcurrently runs many clients of two processes on one store. They want more
// than there is, and some release their reservations. Reservations must never exceed the stock.
func TestNeverOversellsConcurrently(t *testing.T) {
	t.Parallel()
	const have, clients, each = 20, 12, 6
	store := commandstest.OpenStore(t, event.Stock)
	processes := make([]inventoryv1connect.InventoryServiceClient, 2)
	for i := range processes {
		s := commandstest.Serve(t, store, inventory.NewHandler, commands.WithSnapshotEvery(7))
		processes[i] = inventoryv1connect.NewInventoryServiceClient(s.HTTP1, s.URL)
	}
	client := processes[0]
	if _, err := client.ReceiveStock(t.Context(), connect.NewRequest(&inventoryv1.ReceiveStockRequest{Sku: sku, Quantity: have})); err != nil {
		t.Fatal(err)
	}
	var sold, refusals atomic.Int64
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			client := processes[c%len(processes)]
			for i := range each {
				id := fmt.Sprintf("client %d, line %d", c, i)
				retry := func(call func() error) error {
					for {
						if err := call(); connect.CodeOf(err) != connect.CodeAborted {
							return err
						}
					}
				}
				err := retry(func() error {
					_, err := client.ReserveStock(t.Context(), connect.NewRequest(&inventoryv1.ReserveStockRequest{
						Sku: sku, ReservationId: id, Quantity: 1,
					}))
					return err
				})
				if connect.CodeOf(err) == connect.CodeFailedPrecondition {
					refusals.Add(1)
					continue
				}
				if err == nil && i%3 == 0 {
					err = retry(func() error {
						_, err := client.ReleaseReservation(t.Context(), connect.NewRequest(&inventoryv1.ReleaseReservationRequest{Sku: sku, ReservationId: id}))
						return err
					})
				} else if err == nil {
					err = retry(func() error {
						_, err := client.CommitReservation(t.Context(), connect.NewRequest(&inventoryv1.CommitReservationRequest{Sku: sku, ReservationId: id}))
						return err
					})
					sold.Add(1)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	res, err := client.GetStock(t.Context(), connect.NewRequest(&inventoryv1.GetStockRequest{Sku: sku}))
	if err != nil || res.Msg.GetOnHand() != have-sold.Load() || res.Msg.GetReserved() != 0 || refusals.Load() == 0 {
		t.Errorf("sold %d of %d, refused %d: %v, %v", sold.Load(), have, refusals.Load(), res, err)
	}
	var st inventory.State
	for _, e := range commandstest.Events(t, store) {
		var message inventoryv1.StockEvent
		if err := proto.Unmarshal(e.Data, &message); err != nil {
			t.Fatal(err)
		}
		if st = inventory.Evolve(st, &message); st.Reserved < 0 || st.Available() < 0 {
			t.Fatalf("at version %d: %+v", e.Version, st)
		}
	}
}
