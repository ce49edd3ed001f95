package identity_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/identity"
	graph "github.com/millrace/millrace/event/identity"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

const (
	anonymousID = identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID
	emailHash   = identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH
	externalID  = identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID
)

var monday = time.Date(2010, 12, 6, 8, 26, 0, 0, time.UTC)

func customer(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

func anonymous(n int) graph.Node { return graph.Node(fmt.Sprintf("anonymous_id:browser-%d", n)) }

func external(n int) graph.Node { return graph.Node(fmt.Sprintf("external_id:till-%d", n)) }

func link(n int, nodes ...graph.Node) identity.Command {
	return identity.Link{CustomerID: customer(n), Identifiers: nodes, At: monday}
}

func unlink(n int, nodes ...graph.Node) identity.Command {
	return identity.Unlink{CustomerID: customer(n), Identifiers: nodes, At: monday}
}

func merge(a, b int) identity.Command {
	return identity.Merge{CustomerID: customer(a), OtherID: customer(b), Reason: "same card", At: monday}
}

func unmerge(a, b int) identity.Command {
	return identity.Unmerge{CustomerID: customer(a), OtherID: customer(b), At: monday}
}

// world is all streams of the service, as a store has them.
type world map[string]identity.State

// send decides a command and applies its events. It returns how many there were.
func (w world) send(t interface{ Fatalf(string, ...any) }, c identity.Command) (int, error) {
	var states []identity.State
	for _, stream := range c.Streams() {
		states = append(states, w[stream])
	}
	before, _ := json.Marshal(states)
	decided, err := identity.Decide(states, c)
	if after, _ := json.Marshal(states); string(after) != string(before) {
		t.Fatalf("Decide changed the state from %s to %s", before, after)
	}
	n := 0
	for i, events := range decided {
		for _, e := range events {
			// What is stored names its own stream.
			if change, ok := graph.ChangeOf(e); !ok || string(change.Subject) != c.Streams()[i] {
				t.Fatalf("event %v in the stream %s", e, c.Streams()[i])
			}
			w[c.Streams()[i]] = identity.Evolve(w[c.Streams()[i]], e)
			n++
		}
	}
	return n, err
}

// Each example is a history, a command, and the number of events or the rule that follows.
func TestDecisions(t *testing.T) {
	t.Parallel()
	links := func(from, to int) (history []identity.Command) {
		for n := from; n <= to; n++ {
			history = append(history, link(1, anonymous(n)))
		}
		return history
	}
	var merges []identity.Command
	for n := 2; n < 2+graph.MaxMerges; n++ {
		merges = append(merges, merge(n, 1))
	}
	type list = []identity.Command
	for name, c := range map[string]struct {
		given  []identity.Command
		when   identity.Command
		events int
		rule   string
		field  string
	}{
		"an identifier is linked in both streams":    {nil, link(1, anonymous(1)), 2, "", ""},
		"several are linked together":                {nil, link(1, anonymous(1), external(1), external(2)), 6, "", ""},
		"a link that exists is nothing":              {list{link(1, anonymous(1))}, link(1, anonymous(1)), 0, "", ""},
		"only the new ones are stored":               {list{link(1, anonymous(1))}, link(1, anonymous(1), anonymous(2)), 2, "", ""},
		"a link is taken back":                       {list{link(1, anonymous(1))}, unlink(1, anonymous(1)), 2, "", ""},
		"a link that never was is not taken back":    {nil, unlink(1, anonymous(1)), 0, "", ""},
		"and linked again":                           {list{link(1, anonymous(1)), unlink(1, anonymous(1))}, link(1, anonymous(1)), 2, "", ""},
		"a browser joins nobody":                     {list{link(1, anonymous(1))}, link(2, anonymous(2), anonymous(1)), 0, "identifier_shared", "identifiers[1]"},
		"a browser that is free again":               {list{link(1, anonymous(1)), unlink(1, anonymous(1))}, link(2, anonymous(1)), 2, "", ""},
		"a number joins three":                       {list{link(1, external(1)), link(2, external(1))}, link(3, external(1)), 2, "", ""},
		"and not four":                               {list{link(1, external(1)), link(2, external(1)), link(3, external(1))}, link(4, external(1)), 0, "identifier_shared", "identifiers[0]"},
		"as many browsers as the limit":              {links(1, 99), link(1, anonymous(100)), 2, "", ""},
		"and not one more":                           {links(1, 100), link(1, anonymous(101)), 0, "identifiers_too_many", "identifiers[0]"},
		"the limit counts within a command":          {links(1, 99), link(1, anonymous(100), anonymous(101)), 0, "identifiers_too_many", "identifiers[1]"},
		"the limit is of a kind":                     {links(1, 100), link(1, external(1)), 2, "", ""},
		"two customers are merged":                   {nil, merge(1, 2), 2, "", ""},
		"in either order, which is nothing new":      {list{merge(1, 2)}, merge(2, 1), 0, "", ""},
		"a merge is taken back":                      {list{merge(1, 2)}, unmerge(2, 1), 2, "", ""},
		"once":                                       {list{merge(1, 2), unmerge(1, 2)}, unmerge(1, 2), 0, "", ""},
		"a merge that never was cannot be":           {list{merge(1, 2), merge(2, 3)}, unmerge(1, 3), 0, "customers_not_merged", "other_customer_id"},
		"too many merges of the first":               {merges, merge(1, 99), 0, "merges_too_many", "customer_id"},
		"too many merges of the second":              {merges, merge(99, 1), 0, "merges_too_many", "other_customer_id"},
		"a merge that is taken back makes room":      {append(slices.Clone(merges), unmerge(1, 2)), merge(1, 99), 2, "", ""},
		"a merge at the limit is still nothing new":  {merges, merge(1, 2), 0, "", ""},
		"identifiers do not count as merges":         {links(1, 20), merge(1, 2), 2, "", ""},
		"customers do not count as identifiers":      {merges, link(1, external(1)), 2, "", ""},
		"taking back one of two links keeps another": {list{link(1, external(1)), link(2, external(1))}, unlink(1, external(1)), 2, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := world{}
			for _, before := range c.given {
				if n, err := w.send(t, before); err != nil || n == 0 {
					t.Fatalf("history: %d events, %v", n, err)
				}
			}
			n, err := w.send(t, c.when)
			var refused *commands.RejectedError
			errors.As(err, &refused)
			if refused == nil {
				refused = &commands.RejectedError{}
			}
			if n != c.events || refused.Rule != c.rule || refused.Field != c.field || (err == nil) != (c.rule == "") {
				t.Errorf("got %d events, %v; want %d and the rule %q of %q", n, err, c.events, c.rule, c.field)
			}
		})
	}
}

// draw draws any command.
func draw(t *rapid.T) identity.Command {
	n, m := rapid.IntRange(1, 8).Draw(t, "customer"), rapid.IntRange(1, 8).Draw(t, "other")
	nodes := rapid.SliceOfNDistinct(rapid.SampledFrom([]graph.Node{
		anonymous(1), anonymous(2), external(1), external(2), external(3), external(4), external(5), external(6),
		external(7), external(8), external(9), external(10), external(11), external(12),
	}), 1, 12, rapid.ID).Draw(t, "identifiers")
	if n == m {
		return link(n, nodes...)
	}
	return rapid.SampledFrom([]identity.Command{
		link(n, nodes...), unlink(n, nodes...), merge(n, m), unmerge(n, m),
	}).Draw(t, "command")
}

// TestLimitsAreNeverExceeded sends random commands, and checks after each that no node is beyond a
// limit, that both ends of each edge agree, and that all of it survives a snapshot.
func TestLimitsAreNeverExceeded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := world{}
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			_, _ = w.send(t, draw(t))
			for stream, s := range w {
				check(t, w, graph.Node(stream), s)
			}
		}
		for stream, s := range w {
			content, err := json.Marshal(s)
			var restored identity.State
			if err := errors.Join(err, json.Unmarshal(content, &restored)); err != nil || !reflect.DeepEqual(s, restored) {
				t.Fatalf("%s: %v became %v, %v", stream, s, restored, err)
			}
		}
	})
}

func check(t *rapid.T, w world, n graph.Node, s identity.State) {
	if _, isCustomer := n.CustomerID(); isCustomer {
		for kind := range identityv1.IdentifierKind_name {
			most := graph.MaxMerges
			if kind := identityv1.IdentifierKind(kind); kind != 0 {
				most = graph.Limits(kind).Identifiers
			}
			if have := s.Edges.Count(identityv1.IdentifierKind(kind)); have > most {
				t.Fatalf("%s has %d edges of kind %d, the limit is %d", n, have, kind, most)
			}
		}
	} else if have := s.Edges.Count(0); have > graph.Limits(n.Kind()).Customers {
		t.Fatalf("%s joins %d customers", n, have)
	}
	for other, edge := range s.Edges {
		if back := w[string(other)].Edges[n]; back != edge {
			t.Fatalf("the edge of %s and %s is %v there and %v here", n, other, back, edge)
		}
	}
}

// TestStreamsTellTheGraph checks that the graph that readers fold from the events is the one that
// the service decides on.
func TestStreamsTellTheGraph(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, g := world{}, graph.Graph{}
		for range rapid.IntRange(1, 30).Draw(t, "commands") {
			c := draw(t)
			var states []identity.State
			for _, stream := range c.Streams() {
				states = append(states, w[stream])
			}
			decided, _ := identity.Decide(states, c)
			for i, events := range decided {
				for _, e := range events {
					// Through the wire, as readers get them.
					data, err := proto.Marshal(e)
					if err != nil {
						t.Fatal(err)
					}
					var read identityv1.IdentityEvent
					if err := proto.Unmarshal(data, &read); err != nil {
						t.Fatal(err)
					}
					g.Add(&read)
					w[c.Streams()[i]] = identity.Evolve(w[c.Streams()[i]], e)
				}
			}
		}
		for stream, s := range w {
			if !maps.Equal(g[graph.Node(stream)], s.Edges) {
				t.Fatalf("%s: readers have %v, the service %v", stream, g[graph.Node(stream)], s.Edges)
			}
		}
	})
}
