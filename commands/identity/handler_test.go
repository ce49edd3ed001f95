package identity_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/identity"
	"github.com/millrace/millrace/event"
	graph "github.com/millrace/millrace/event/identity"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/gen/millrace/identity/v1/identityv1connect"
)

func key(kind identityv1.IdentifierKind, value string) *identityv1.IdentifierKey {
	return &identityv1.IdentifierKey{Kind: kind, Value: value}
}

// All procedures, over gRPC, with reads through snapshots.
func TestIdentityOverTheWire(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Identity)
	s := commandstest.Serve(t, store, identity.NewHandler, commands.WithSnapshotEvery(2))
	client := identityv1connect.NewIdentityServiceClient(s.HTTP2, s.URL, connect.WithGRPC())
	ctx := t.Context()
	hash := strings.Repeat("ab", 32)

	linked, err := client.LinkIdentifiers(ctx, connect.NewRequest(&identityv1.LinkIdentifiersRequest{
		CustomerId: customer(1), IdempotencyKey: "one",
		// The same identifier twice, in two forms, is one.
		Identifiers: []*identityv1.IdentifierKey{key(anonymousID, "browser"), key(emailHash, hash), key(emailHash, strings.ToUpper(hash))},
	}))
	if err != nil {
		t.Fatal(err)
	}
	// The token names the customer's stream, and the position of an event in it.
	token, err := event.ParseToken(linked.Msg.GetReceipt().GetToken())
	if err != nil || token.Stream != "customer:"+customer(1) || token.Version != 2 {
		t.Fatalf("token %v, %v", token, err)
	}
	events := commandstest.Events(t, store)
	if last := events[len(events)-1]; len(events) != 4 || last.Stream != token.Stream || last.Position != token.Position {
		t.Errorf("the token %v is not that of the last of %d events: %v", token, len(events), last.Position)
	}
	for _, e := range events {
		if err := event.Identity.Check(e); err != nil {
			t.Errorf("%s: %v", e.Stream, err)
		}
		if e.CorrelationID != events[0].CorrelationID || e.CausationID != "one" {
			t.Errorf("%s has the correlation id %q and the causation id %q", e.Stream, e.CorrelationID, e.CausationID)
		}
	}
	again, err := client.LinkIdentifiers(ctx, connect.NewRequest(&identityv1.LinkIdentifiersRequest{
		CustomerId: customer(1), IdempotencyKey: "one",
		Identifiers: []*identityv1.IdentifierKey{key(anonymousID, "browser"), key(emailHash, hash), key(emailHash, strings.ToUpper(hash))},
	}))
	if err != nil || !again.Msg.GetReceipt().GetReplayed() || again.Msg.GetReceipt().GetToken() != linked.Msg.GetReceipt().GetToken() {
		t.Errorf("repeated: %v, %v", again, err)
	}
	for _, joined := range []bool{true, false, true} {
		if joined {
			_, err = client.MergeCustomers(ctx, connect.NewRequest(&identityv1.MergeCustomersRequest{CustomerId: strings.ToUpper(customer(1)), OtherCustomerId: customer(2)}))
		} else {
			_, err = client.UnmergeCustomers(ctx, connect.NewRequest(&identityv1.UnmergeCustomersRequest{CustomerId: customer(2), OtherCustomerId: customer(1)}))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.UnlinkIdentifiers(ctx, connect.NewRequest(&identityv1.UnlinkIdentifiersRequest{
		CustomerId: customer(1), Identifiers: []*identityv1.IdentifierKey{key(anonymousID, "browser")},
	})); err != nil {
		t.Fatal(err)
	}
	got, err := client.GetLinks(ctx, connect.NewRequest(&identityv1.GetLinksRequest{CustomerId: customer(1)}))
	want := &identityv1.GetLinksResponse{
		CustomerId: customer(1), Identifiers: []*identityv1.Identifier{{Kind: emailHash, Value: hash}},
		MergedWith: []string{customer(2)}, Version: 6,
	}
	if err != nil || !proto.Equal(got.Msg, want) {
		t.Errorf("got %v, %v\nwant %v", got, err, want)
	}
}

// TestBadIdentifiers checks that an error names the field and does not contain the identifier.
func TestBadIdentifiers(t *testing.T) {
	t.Parallel()
	s := commandstest.Serve(t, commandstest.OpenStore(t, event.Identity), identity.NewHandler)
	client := identityv1connect.NewIdentityServiceClient(s.HTTP1, s.URL)
	for _, c := range []struct {
		key  *identityv1.IdentifierKey
		rule string
	}{
		{key(externalID, "undefined"), "identifier_blocked"},
		{key(externalID, "0000"), "identifier_blocked"},
		{key(emailHash, "alice@example.com"), "identifier_malformed"},
	} {
		_, err := client.LinkIdentifiers(t.Context(), connect.NewRequest(&identityv1.LinkIdentifiersRequest{
			CustomerId: customer(1), Identifiers: []*identityv1.IdentifierKey{key(externalID, "good"), c.key},
		}))
		r := commandstest.Rejection(t, err, connect.CodeInvalidArgument)
		if r.GetRule() != c.rule || r.GetField() != "identifiers[1].value" || strings.Contains(err.Error(), c.key.GetValue()) {
			t.Errorf("%v: %v, %v", c.key, r, err)
		}
	}
	_, err := client.MergeCustomers(t.Context(), connect.NewRequest(&identityv1.MergeCustomersRequest{
		CustomerId: customer(1), OtherCustomerId: customer(1),
	}))
	if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != "merge_with_itself" {
		t.Errorf("with itself: %v", r)
	}
}

// TestConcurrentLinksKeepTheLimits links one identifier to many customers, and many identifiers to
// one customer, from two servers on one store. Each limit is reached exactly.
func TestConcurrentLinksKeepTheLimits(t *testing.T) {
	t.Parallel()
	store := commandstest.OpenStore(t, event.Identity)
	var clients []identityv1connect.IdentityServiceClient
	for range 2 { // each has its own locks, so they conflict in the store
		s := commandstest.Serve(t, store, identity.NewHandler)
		clients = append(clients, identityv1connect.NewIdentityServiceClient(s.HTTP1, s.URL))
	}
	limit := graph.Limits(externalID)
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := map[string]int{}
	send := func(what string, n int, customerID, value string) {
		wg.Go(func() {
			for {
				_, err := clients[n%2].LinkIdentifiers(t.Context(), connect.NewRequest(&identityv1.LinkIdentifiersRequest{
					CustomerId: customerID, Identifiers: []*identityv1.IdentifierKey{key(externalID, value)},
				}))
				switch connect.CodeOf(err) {
				case connect.CodeAborted: // others kept appending first
					continue
				case connect.CodeFailedPrecondition:
				default:
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					accepted[what]++
					mu.Unlock()
				}
				return
			}
		})
	}
	for n := range 12 {
		send("customers of an identifier", n, customer(100+n), "shared")
		send("identifiers of a customer", n, customer(1), fmt.Sprintf("mine-%d", n))
	}
	wg.Wait()
	if accepted["customers of an identifier"] != limit.Customers || accepted["identifiers of a customer"] != limit.Identifiers {
		t.Errorf("accepted %v, want %v", accepted, limit)
	}
	// And the store has what was accepted, in both streams.
	streams := map[string]int{}
	for _, e := range commandstest.Events(t, store) {
		streams[e.Stream]++
	}
	if streams["external_id:shared"] != limit.Customers || streams["customer:"+customer(1)] != limit.Identifiers {
		t.Errorf("stored %v", streams)
	}
}
