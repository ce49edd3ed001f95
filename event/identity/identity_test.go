package identity_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event/identity"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

const (
	anonymousID = identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID
	emailHash   = identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH
	externalID  = identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID
)

func customer(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// history writes the events of a graph as IdentityService does: two for each change of an edge.
type history struct {
	revisions map[[2]identity.Node]uint64
	events    []*identityv1.IdentityEvent
}

func (h *history) next(a, b identity.Node) uint64 {
	if h.revisions == nil {
		h.revisions = map[[2]identity.Node]uint64{}
	}
	key := [2]identity.Node{min(a, b), max(a, b)}
	h.revisions[key]++
	return h.revisions[key]
}

func (h *history) link(n int, value string, joined bool) {
	node, err := identity.NodeOf(externalID, value)
	if err != nil {
		panic(err)
	}
	revision := h.next(identity.Customer(customer(n)), node)
	for _, subject := range []identity.Node{identity.Customer(customer(n)), node} {
		if joined {
			h.events = append(h.events, &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Linked{
				Linked: &identityv1.IdentifierLinked{Subject: string(subject), CustomerId: customer(n), Identifier: node.Identifier(), Revision: revision, LinkedAt: timestamppb.Now()},
			}})
			continue
		}
		h.events = append(h.events, &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Unlinked{
			Unlinked: &identityv1.IdentifierUnlinked{Subject: string(subject), CustomerId: customer(n), Identifier: node.Identifier(), Revision: revision, UnlinkedAt: timestamppb.Now()},
		}})
	}
}

func (h *history) merge(a, b int, joined bool) {
	revision := h.next(identity.Customer(customer(a)), identity.Customer(customer(b)))
	for _, n := range []int{a, b} {
		subject := string(identity.Customer(customer(n)))
		if joined {
			h.events = append(h.events, &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Merged{
				Merged: &identityv1.CustomersMerged{Subject: subject, CustomerId: customer(a), OtherCustomerId: customer(b), Revision: revision, MergedAt: timestamppb.Now()},
			}})
			continue
		}
		h.events = append(h.events, &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Unmerged{
			Unmerged: &identityv1.CustomersUnmerged{Subject: subject, CustomerId: customer(a), OtherCustomerId: customer(b), Revision: revision, UnmergedAt: timestamppb.Now()},
		}})
	}
}

// draw adds a random change.
func (h *history) draw(t *rapid.T) {
	joined := rapid.IntRange(0, 3).Draw(t, "joined") > 0
	a := rapid.IntRange(1, 6).Draw(t, "customer")
	if rapid.Bool().Draw(t, "merge") {
		h.merge(a, 1+a%6, joined)
	} else {
		h.link(a, fmt.Sprintf("id-%d", rapid.IntRange(1, 6).Draw(t, "identifier")), joined)
	}
}

// people returns the persons of a graph, each once.
func people(t interface{ Fatal(...any) }, events []*identityv1.IdentityEvent) []identity.Person {
	g := identity.Graph{}
	for _, e := range events {
		g.Add(e)
	}
	var all []identity.Person
	for n := range g {
		p, err := g.Person(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Customers)+len(p.Identifiers) == 1 { // alone, as before its first edge
			continue
		}
		if !slices.ContainsFunc(all, func(q identity.Person) bool { return reflect.DeepEqual(p, q) }) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b identity.Person) int { return slices.Compare(a.Customers, b.Customers) })
	return all
}

// TestAnyOrderGivesTheSameGraph checks that the persons do not depend on the order in which events
// arrive, nor on repeated ones. Even the order within a stream does not matter.
func TestAnyOrderGivesTheSameGraph(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var h history
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			h.draw(t)
		}
		want := people(t, h.events)
		shuffled := slices.Concat(h.events, h.events[:len(h.events)/2])
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if got := people(t, shuffled); !reflect.DeepEqual(got, want) {
			t.Fatalf("in another order: %v\nwant %v", got, want)
		}
	})
}

// TestMergeAndUnmergeLeaveNothing checks that a merge that is taken back changes no person, whatever
// happens before and in between.
func TestMergeAndUnmergeLeaveNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var never, merged history
		both := func() {
			for range rapid.IntRange(0, 10).Draw(t, "changes") {
				n := len(never.events)
				never.draw(t)
				merged.events = append(merged.events, never.events[n:]...)
			}
		}
		both()
		// Customers 101 and 102 have no other merge with each other.
		never.link(101, "a", true)
		never.link(102, "b", true)
		merged.events = append(merged.events, never.events[len(never.events)-4:]...)
		never.merge(101, 1, true)
		merged.events = append(merged.events, never.events[len(never.events)-2:]...)
		merged.merge(101, 102, true)
		both()
		if p := people(t, merged.events); !slices.ContainsFunc(p, func(p identity.Person) bool {
			return slices.Contains(p.Customers, customer(101)) && slices.Contains(p.Customers, customer(102))
		}) {
			t.Fatal("the two are not one person")
		}
		merged.merge(101, 102, false)
		if got, want := people(t, merged.events), people(t, never.events); !reflect.DeepEqual(got, want) {
			t.Fatalf("after the merge was taken back: %v\nnever merged: %v", got, want)
		}
	})
}

// TestOneEndSuffices checks that an edge counts as the end with the higher revision has it, because
// the two streams are on different partitions.
func TestOneEndSuffices(t *testing.T) {
	t.Parallel()
	a, b := identity.Customer(customer(1)), identity.Customer(customer(2))
	edges := map[identity.Node]identity.Edges{
		a: {b: {Revision: 1, Joined: true}},
		b: {a: {Revision: 2, Joined: false}},
	}
	load := func([]identity.Node) (map[identity.Node]identity.Edges, error) { return edges, nil }
	for _, n := range []identity.Node{a, b} {
		if p, err := identity.Walk([]identity.Node{n}, load); err != nil || len(p.Customers) != 1 {
			t.Errorf("from %s after the merge was taken back: %v, %v", n, p, err)
		}
	}
	delete(edges, b) // has not arrived yet
	if p, err := identity.Walk([]identity.Node{a}, load); err != nil || len(p.Customers) != 2 ||
		p.Canonical() != customer(1) {
		t.Errorf("from the end that knows the merge: %v, %v", p, err)
	}
}

// TestWalkIsBounded checks that a chain of merges without end is an error, not an endless walk.
func TestWalkIsBounded(t *testing.T) {
	t.Parallel()
	next := 0
	_, err := identity.Walk([]identity.Node{identity.Customer(customer(0))},
		func(nodes []identity.Node) (map[identity.Node]identity.Edges, error) {
			next++
			return map[identity.Node]identity.Edges{
				nodes[0]: {identity.Customer(customer(next)): {Revision: 1, Joined: true}},
			}, nil
		})
	if !errors.Is(err, identity.ErrTooLarge) || next > identity.MaxNodes {
		t.Errorf("after %d loads: %v", next, err)
	}
}

func TestNodeOf(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		kind  identityv1.IdentifierKind
		value string
		want  identity.Node
		err   error
	}{
		"as it is":             {anonymousID, "Ab-9f", "anonymous_id:Ab-9f", nil},
		"a colon":              {externalID, "till:7", "external_id:till:7", nil},
		"composed":             {externalID, "cafe\u0301", "external_id:caf\u00e9", nil},
		"a hash in capitals":   {emailHash, strings.ToUpper(hash), identity.Node("email_hash:" + hash), nil},
		"an address":           {emailHash, "alice@example.com", "", identity.ErrMalformed},
		"a short hash":         {emailHash, hash[1:], "", identity.ErrMalformed},
		"no kind":              {0, "a", "", identity.ErrMalformed},
		"a space at the end":   {externalID, "a ", "", identity.ErrMalformed},
		"too long":             {externalID, strings.Repeat("a", 161), "", identity.ErrMalformed},
		"not UTF-8":            {externalID, "a\xff", "", identity.ErrMalformed},
		"empty":                {externalID, "", "", identity.ErrBlocked},
		"null":                 {externalID, "NULL", "", identity.ErrBlocked},
		"null of Apple":        {externalID, "(null)", "", identity.ErrBlocked},
		"null of Go":           {anonymousID, "<nil>", "", identity.ErrBlocked},
		"unknown":              {anonymousID, "Unknown", "", identity.ErrBlocked},
		"zero":                 {externalID, "0", "", identity.ErrBlocked},
		"zeros":                {externalID, "0000-0000", "", identity.ErrBlocked},
		"the zero UUID":        {anonymousID, "00000000-0000-0000-0000-000000000000", "", identity.ErrBlocked},
		"the hash of nothing":  {emailHash, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "", identity.ErrBlocked},
		"the hash of zero":     {emailHash, "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9", "", identity.ErrBlocked},
		"the hash of null":     {emailHash, "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b", "", identity.ErrBlocked},
		"a small number is no": {externalID, "7", "external_id:7", nil},
	} {
		if got, err := identity.NodeOf(c.kind, c.value); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
}

// FuzzParseNode checks that a node's text is read back as the same node, that its stream fits every
// store, and that no input is accepted in two forms.
func FuzzParseNode(f *testing.F) {
	for _, s := range []string{customer(1), "customer:" + customer(1), "anonymous_id:a", "email_hash:" + strings.Repeat("A", 64), "external_id:a:b", "x:y", "anonymous_id:\u212b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := identity.ParseNode(s)
		if err != nil {
			return
		}
		again, err := identity.ParseNode(string(n))
		if err != nil || again != n {
			t.Fatalf("%q became %q, which became %q, %v", s, n, again, err)
		}
		i := n.Identifier()
		if id, isCustomer := n.CustomerID(); isCustomer == (i != nil) {
			t.Fatalf("%q is customer %q and identifier %v", n, id, i)
		}
		if i == nil {
			return
		}
		if node, err := identity.NodeOf(i.GetKind(), i.GetValue()); err != nil || node != n || len(n) > 200 {
			t.Fatalf("%q has the identifier %v, whose node is %q, %v", n, i, node, err)
		}
	})
}
