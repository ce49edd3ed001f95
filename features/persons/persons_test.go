package persons_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

var base = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// The customers and the values of identifiers of the tests. Values occur as several kinds.
var (
	customers = []string{
		"00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002",
		"00000000-0000-7000-8000-000000000003", "00000000-0000-7000-8000-000000000004",
	}
	values = []string{"a1", "a2", customers[3]}
)

// log is the events of a graph that changes at random.
type log struct {
	revisions map[[2]identity.Node]uint64
	events    []event.Event
	messages  []*identityv1.IdentityEvent
}

// change adds the events of a change of an edge between a customer and another node.
func (l *log) change(t rapid.TB, a, b identity.Node, joined bool, known time.Time) {
	if b < a {
		a, b = b, a
	}
	l.revisions[[2]identity.Node{a, b}]++
	revision := l.revisions[[2]identity.Node{a, b}]
	for _, subject := range []identity.Node{a, b} {
		customer, other := a, b
		if _, ok := customer.CustomerID(); !ok {
			customer, other = b, a
		}
		id, _ := customer.CustomerID()
		otherID, merge := other.CustomerID()
		at := timestamppb.New(known)
		var m identityv1.IdentityEvent
		switch {
		case merge && joined:
			m.Event = &identityv1.IdentityEvent_Merged{Merged: &identityv1.CustomersMerged{Subject: string(subject),
				CustomerId: id, OtherCustomerId: otherID, Revision: revision, MergedAt: at}}
		case merge:
			m.Event = &identityv1.IdentityEvent_Unmerged{Unmerged: &identityv1.CustomersUnmerged{Subject: string(subject),
				CustomerId: id, OtherCustomerId: otherID, Revision: revision, UnmergedAt: at}}
		case joined:
			m.Event = &identityv1.IdentityEvent_Linked{Linked: &identityv1.IdentifierLinked{Subject: string(subject),
				CustomerId: id, Identifier: other.Identifier(), Revision: revision, LinkedAt: at}}
		default:
			m.Event = &identityv1.IdentityEvent_Unlinked{Unlinked: &identityv1.IdentifierUnlinked{Subject: string(subject),
				CustomerId: id, Identifier: other.Identifier(), Revision: revision, UnlinkedAt: at}}
		}
		data, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		l.messages = append(l.messages, &m)
		l.events = append(l.events, event.Event{Aggregate: event.Identity.Name, Stream: string(subject), Data: data,
			OccurredAt: known, RecordedAt: known})
	}
}

// draw adds a random change.
func (l *log) draw(t *rapid.T, known time.Time) {
	customer := identity.Customer(rapid.SampledFrom(customers).Draw(t, "customer"))
	others := []identity.Node{}
	for _, id := range customers {
		if identity.Customer(id) != customer {
			others = append(others, identity.Customer(id))
		}
	}
	for _, v := range values {
		for _, kind := range []string{"anonymous_id:", "external_id:", "device_id:"} {
			others = append(others, identity.Node(kind+v))
		}
	}
	others = append(others, identity.Node(fmt.Sprintf("email_hash:%064d", 7)))
	l.change(t, customer, rapid.SampledFrom(others).Draw(t, "other"), rapid.IntRange(0, 2).Draw(t, "joined") > 0, known)
}

// changes returns the changes of the log's events, as the readers of the source have them.
func (l *log) changes(t rapid.TB) []persons.Change {
	var all []persons.Change
	for i, e := range l.events {
		facts, err := feed.Project(&persons.Source, e, features.Origin{Offset: int64(i)})
		if err != nil {
			t.Fatal(err)
		}
		for j := range facts {
			c, err := persons.ChangeOf(&facts[j])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
	}
	return all
}

// TestMembers: members are those that event/identity says, at every known time, in whatever order the
// changes arrive. Visitors are partitioned, and each has the keys of its own person only.
func TestMembers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := &log{revisions: map[[2]identity.Node]uint64{}}
		n := rapid.IntRange(1, 25).Draw(t, "changes")
		for i := range n {
			l.draw(t, base.Add(time.Duration(i)*time.Second))
		}
		changes := l.changes(t)
		g := &persons.Graph{}
		for _, c := range rapid.Permutation(changes).Draw(t, "order") {
			g.Add(c)
		}
		upto := rapid.IntRange(0, n).Draw(t, "known")
		known := base.Add(time.Duration(upto)*time.Second - time.Microsecond).UnixMicro()
		if upto == n {
			known = persons.Now
		}
		want := identity.Graph{}
		for _, m := range l.messages[:2*upto] {
			want.Add(m)
		}
		for _, id := range customers {
			person, err := want.Person(identity.Customer(id))
			if err != nil {
				t.Fatal(err)
			}
			members := g.Members(features.Customers, id, known)
			if len(person.Customers) == 1 && members == nil {
				continue
			}
			if !slices.Equal(members, person.Customers) {
				t.Fatalf("members of %s are %q, want %q", id, members, person.Customers)
			}
		}
		// The person of each visitor, by the rule: the first of the kinds that is linked.
		personOf := func(v string) string {
			for _, n := range persons.Nodes(features.Visitors, v) {
				if person, _ := want.Person(n); len(person.Customers)+len(person.Identifiers) > 1 {
					return person.Canonical()
				}
			}
			return v + " alone"
		}
		visitors := append([]string{"nobody", "a1", "a2"}, customers...)
		for _, v := range visitors {
			var together []string
			for _, other := range visitors {
				if personOf(other) == personOf(v) {
					together = append(together, other)
				}
			}
			slices.Sort(together)
			members := g.Members(features.Visitors, v, known)
			if len(together) == 1 && members == nil {
				continue
			}
			if !slices.Equal(members, together) {
				t.Fatalf("members of visitor %s are %q, want %q", v, members, together)
			}
		}
	})
}

// TestExplore: the part of the graph that is found from entities has their members.
func TestExplore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := &log{revisions: map[[2]identity.Node]uint64{}}
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			l.draw(t, base)
		}
		g, of := &persons.Graph{}, map[identity.Node][]persons.Change{}
		for _, c := range l.changes(t) {
			if rapid.IntRange(0, 4).Draw(t, "read") == 0 {
				continue // one end may be on a partition that was not read yet
			}
			g.Add(c)
			of[c.Ends[0]] = append(of[c.Ends[0]], c)
			of[c.Ends[1]] = append(of[c.Ends[1]], c)
		}
		kind := rapid.SampledFrom([]features.Identity{features.Customers, features.Visitors}).Draw(t, "kind")
		known := append([]string{"a1", "a2", "nobody"}, customers...)
		entities := rapid.SliceOfN(rapid.SampledFrom(known), 1, 3).Draw(t, "entities")
		part, err := persons.Explore(kind, entities, func(nodes []identity.Node) (all []persons.Change, err error) {
			for _, n := range nodes {
				all = append(all, of[n]...)
			}
			return all, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entities {
			have, want := part.Members(kind, e, persons.Now), g.Members(kind, e, persons.Now)
			if !slices.Equal(have, want) {
				t.Fatalf("members of %s are %q, want %q", e, have, want)
			}
		}
	})
}

// TestApply: entities that Apply does not name have the members that they had.
func TestApply(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := &log{revisions: map[[2]identity.Node]uint64{}}
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			l.draw(t, base)
		}
		changes := l.changes(t)
		kinds := []features.Identity{features.Customers, features.Visitors}
		g, all := &persons.Graph{}, append([]string{"a1", "a2"}, customers...)
		before := map[features.Identity]map[string][]string{features.Customers: {}, features.Visitors: {}}
		for len(changes) > 0 {
			n := rapid.IntRange(1, len(changes)).Draw(t, "batch")
			changed := g.Apply(changes[:n], kinds...)
			changes = changes[n:]
			for _, kind := range kinds {
				for _, e := range all {
					now := g.Members(kind, e, persons.Now)
					if !slices.Equal(now, before[kind][e]) && !slices.Contains(changed[kind], e) {
						t.Fatalf("the members of %s %s changed from %q to %q unnoticed", kind, e, before[kind][e], now)
					}
					before[kind][e] = now
				}
			}
		}
		again := &persons.Graph{}
		for c := range g.Changes() {
			again.Add(c)
		}
		for _, kind := range kinds {
			for _, e := range all {
				if now := again.Members(kind, e, persons.Now); !slices.Equal(now, before[kind][e]) {
					t.Fatalf("a copy of the graph has the members %q of %s %s, want %q", now, kind, e, before[kind][e])
				}
			}
		}
	})
}

// TestTooLarge: more nodes than a person can have are not one person, until enough are taken out.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	g := &persons.Graph{}
	link := func(i int, revision int64, joined bool) map[features.Identity][]string {
		return g.Apply([]persons.Change{{Ends: [2]identity.Node{
			identity.Customer(fmt.Sprintf("00000000-0000-7000-8000-%012x", i)),
			identity.Customer(fmt.Sprintf("00000000-0000-7000-8000-%012x", i+1)),
		}, Revision: revision, Joined: joined}}, features.Customers)
	}
	for i := range identity.MaxNodes - 1 {
		link(i, 1, true)
	}
	first := "00000000-0000-7000-8000-000000000000"
	if n := len(g.Members(features.Customers, first, persons.Now)); n != identity.MaxNodes {
		t.Fatalf("%d members, want %d", n, identity.MaxNodes)
	}
	changed := link(identity.MaxNodes-1, 1, true)
	if members := g.Members(features.Customers, first, persons.Now); members != nil ||
		!slices.Contains(changed[features.Customers], first) {
		t.Errorf("%d members are one person, want none", len(members))
	}
	changed = link(identity.MaxNodes-1, 2, false)
	if n := len(g.Members(features.Customers, first, persons.Now)); n != identity.MaxNodes ||
		!slices.Contains(changed[features.Customers], first) {
		t.Errorf("%d members after one was taken out, want %d", n, identity.MaxNodes)
	}
}

// TestProject: events that say nothing about edges give no facts, and malformed ones are errors.
func TestProject(t *testing.T) {
	t.Parallel()
	bytes := func(m *identityv1.IdentityEvent) []byte {
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	merged := &identityv1.CustomersMerged{Subject: "customer:" + customers[0], CustomerId: customers[0],
		OtherCustomerId: customers[1], Revision: 3, MergedAt: timestamppb.New(base)}
	stranger, unnumbered := proto.CloneOf(merged), proto.CloneOf(merged)
	stranger.Subject, unnumbered.Revision = "customer:"+customers[2], 0
	mergedEvent := func(m *identityv1.CustomersMerged) *identityv1.IdentityEvent {
		return &identityv1.IdentityEvent{Event: &identityv1.IdentityEvent_Merged{Merged: m}}
	}
	for name, c := range map[string]struct {
		data  []byte
		facts int
		fails bool
	}{
		"merge":        {bytes(mergedEvent(merged)), 2, false},
		"of others":    {bytes(mergedEvent(stranger)), 0, false},
		"revision":     {bytes(mergedEvent(unnumbered)), 0, true},
		"unknown type": {nil, 0, false},
		"damaged":      {[]byte{1}, 0, true},
	} {
		facts, err := feed.Project(&persons.Source, event.Event{Data: c.data, RecordedAt: base}, features.Origin{})
		if len(facts) != c.facts || (err != nil) != c.fails {
			t.Errorf("%s: %d facts, %v", name, len(facts), err)
		}
		for i := range facts {
			change, err := persons.ChangeOf(&facts[i])
			ends := [2]identity.Node{identity.Customer(customers[i]), identity.Customer(customers[1-i])}
			want := persons.Change{Ends: ends, Revision: 3, Joined: true, Known: base.UnixMicro()}
			if err != nil || change != want {
				t.Errorf("the change is %+v, %v, want %+v", change, err, want)
			}
		}
	}
	if _, err := persons.ChangeOf(&features.Fact{Values: []exact.Value{{}}}); err == nil {
		t.Error("a fact of another source is a change")
	}
}

// FuzzSource: no payload panics, and each fact is a change of its graph.
func FuzzSource(f *testing.F) {
	l := &log{revisions: map[[2]identity.Node]uint64{}}
	l.change(f, identity.Customer(customers[0]), "anonymous_id:a1", true, base)
	f.Add(l.events[0].Data)
	f.Fuzz(func(t *testing.T, data []byte) {
		facts, err := feed.Project(&persons.Source, event.Event{Data: data, RecordedAt: base}, features.Origin{})
		if err != nil {
			return
		}
		for i := range facts {
			c, err := persons.ChangeOf(&facts[i])
			if err != nil || c.Ends[0] == c.Ends[1] {
				t.Fatalf("%+v is %+v, %v", facts[i], c, err)
			}
		}
	})
}
