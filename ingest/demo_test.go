package ingest_test

import (
	"maps"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/ingest/demo"
)

// TestSecondDemoRunChangesNothing checks that a repeated demo replays all commands.
func TestSecondDemoRunChangesNothing(t *testing.T) {
	t.Parallel()
	s := startServices(t, unwrapped)
	var done, total int
	cfg := demo.Config{BaseURL: s.url, Progress: func(d, n int) { done, total = d, n }}
	first, err := demo.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, n := range first.Commands {
		sum += n
	}
	t.Logf("%d commands: %v", sum, first.Commands)
	if sum < 300 || sum > 450 || done != sum || total != sum || first.Refused != 0 || first.Replayed != 0 {
		t.Errorf("first run: %d commands, progress %d of %d, %d refused, %d replayed",
			sum, done, total, first.Refused, first.Replayed)
	}
	for _, name := range []string{
		"RegisterCustomer", "ChangeAddress", "SetConsent", "LinkIdentifiers", "ListProduct", "SetPrice", "ReceiveStock",
		"ReserveStock", "CommitReservation", "ReleaseReservation", "PlaceOrder", "ConfirmOrder", "CancelOrder",
	} {
		if first.Commands[name] == 0 {
			t.Errorf("the demo has no accepted %s", name)
		}
	}
	before := s.count(t)
	again, err := demo.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.Replayed != sum || !maps.Equal(before, s.count(t)) {
		t.Errorf("the second run replayed %d of %d commands; events before %v, after %v",
			again.Replayed, sum, before, s.count(t))
	}
	if again.OrderID != first.OrderID || again.Token != first.Token ||
		again.Reference != first.Reference || again.SKU != first.SKU {
		t.Errorf("the second run returned order %+v, want %+v", again, first)
	}
}

// TestDemoReturnsExistingOrder checks that the store has the order that the demo returns.
func TestDemoReturnsExistingOrder(t *testing.T) {
	t.Parallel()
	s := startServices(t, unwrapped)
	got, err := demo.Run(t.Context(), demo.Config{BaseURL: s.url, Orders: 3, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.stores[event.Order].Load(t.Context(), got.OrderID, 0)
	if err != nil || len(events) != 2 {
		t.Fatalf("the order has %d events (%v), want placed and confirmed", len(events), err)
	}
	var placed orderv1.OrderEvent
	if err := proto.Unmarshal(events[0].Data, &placed); err != nil {
		t.Fatal(err)
	}
	if p := placed.GetPlaced(); p.GetReference() != got.Reference || p.GetLines()[0].GetSku() != got.SKU {
		t.Errorf("the stored order is %v, but the demo returned %+v", p, got)
	}
	token, err := event.ParseToken(got.Token)
	if err != nil || token.Stream != got.OrderID || token.Version != 2 {
		t.Errorf("token is %+v (%v), want version 2 of %s", token, err, got.OrderID)
	}
}
