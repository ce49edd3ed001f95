// Package persons says which entities of features are one person.
//
// Source is the identity graph as a source of facts: a fact for each change of an edge. So the graph
// is read, stored and positioned as all facts are. Graph folds the facts, and Members returns the
// entities that are one person with an entity, now or as it was known at an earlier time. event/identity
// has the graph's rules.
//
// Invariants:
//
//   - Members depends on the facts only, and not on their order.
//   - Being one person is an equivalence: each of the members has the same members.
//   - An edge that was taken back has no effect.
package persons

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// Source has two facts for each change of an edge, and a change is in the streams of both of its ends. The
// entities are the ends, so that an edge is found from either of them, whichever stream was read. The key
// has the other end and the number of the change, so no fact has a later version.
var Source = features.Source{
	Name: "identity_links", Topic: event.Identity.Topic,
	Columns: []features.Column{
		{Name: "other", Kind: exact.Text, Description: "the other end"},
		{Name: "revision", Kind: exact.Number, Description: "counts the changes of the edge; the highest one counts"},
		{Name: "joined", Kind: exact.Number, Description: "1, or 0 if the edge was taken back"},
	},
	Project: project,
}

// project implements Source.Project. Events that change no edge give no facts.
func project(e event.Event) ([]features.Fact, error) {
	var m identityv1.IdentityEvent
	if err := proto.Unmarshal(e.Data, &m); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Identity.Message, err)
	}
	c, ok := identity.ChangeOf(&m)
	if !ok {
		return nil, nil
	}
	if c.Edge.Revision == 0 || c.Edge.Revision > math.MaxInt64 {
		return nil, fmt.Errorf("revision: %d, want from 1 to %d", c.Edge.Revision, int64(math.MaxInt64))
	}
	joined := int64(0)
	if c.Edge.Joined {
		joined = 1
	}
	fact := func(end, other identity.Node, stream string) features.Fact {
		return features.Fact{
			Entity: string(end), Key: fmt.Sprintf("%s/%d/%s", other, c.Edge.Revision, stream), At: event.Time(c.Edge.At),
			Values: []exact.Value{exact.TextValue(string(other)),
				exact.IntValue(exact.FromInt64(int64(c.Edge.Revision))), exact.IntValue(exact.FromInt64(joined))},
		}
	}
	return []features.Fact{fact(c.Subject, c.Other, "own"), fact(c.Other, c.Subject, "other")}, nil
}

// Follow reports whether vectors of any of the groups follow the identity graph.
func Follow(groups ...*features.Group) bool {
	return slices.ContainsFunc(groups, func(g *features.Group) bool { return g.Identity != features.NoIdentity })
}

// Topics returns the topics whose records the vectors of a group reflect.
func Topics(g *features.Group) (topics []string) {
	for _, s := range g.Sources {
		if !slices.Contains(topics, s.Topic) {
			topics = append(topics, s.Topic)
		}
	}
	if Follow(g) && !slices.Contains(topics, Source.Topic) {
		topics = append(topics, Source.Topic)
	}
	return topics
}

// Change is a change of an edge.
type Change struct {
	Ends     [2]identity.Node
	Revision int64
	Joined   bool
	Known    int64 // when the log had it: microseconds since 1970
}

// ChangeOf returns the change that a fact of Source is.
func ChangeOf(f *features.Fact) (Change, error) {
	if len(f.Values) != len(Source.Columns) || f.Values[0].Kind != exact.Text || f.Values[1].Kind != exact.Number ||
		f.Values[2].Kind != exact.Number {
		return Change{}, fmt.Errorf("fact %q of %q is not one of the source %s", f.Key, f.Entity, Source.Name)
	}
	revision, _ := f.Values[1].Int.Int64()
	return Change{
		Ends: [2]identity.Node{identity.Node(f.Entity), identity.Node(f.Values[0].Text)}, Revision: revision,
		Joined: f.Values[2].Int.Sign() != 0, Known: f.Known.UnixMicro(),
	}, nil
}

// Graph is an identity graph with all changes of its edges. The zero Graph is empty. It is not safe for
// concurrent changes.
type Graph struct {
	ids   map[identity.Node]int32
	nodes []node
	edges []edge
	bytes int64
}

type node struct {
	name  identity.Node
	edges []int32
}

type edge struct {
	ends    [2]int32
	changes []change // by revision
}

type change struct {
	revision int64
	known    int64 // at either end, whichever was first
	joined   bool
}

// Now is a time at which everything is known.
const Now = int64(math.MaxInt64)

// KnownAt returns the time of a vector's knowledge for Members; a zero time is Now.
func KnownAt(known time.Time) int64 {
	if known.IsZero() {
		return Now
	}
	return known.UnixMicro()
}

// What a node, an edge and a change cost, in bytes, besides texts.
const nodeBytes, edgeBytes, changeBytes = 112, 48, 24

// Bytes returns about how many bytes the graph takes.
func (g *Graph) Bytes() int64 { return g.bytes }

// Add adds a change. Adding it again changes nothing.
func (g *Graph) Add(c Change) {
	e := g.edge(g.id(c.Ends[0]), g.id(c.Ends[1]))
	i, found := slices.BinarySearchFunc(e.changes, c.Revision, func(have change, revision int64) int {
		switch {
		case have.revision < revision:
			return -1
		case have.revision > revision:
			return 1
		}
		return 0
	})
	if found {
		e.changes[i].known = min(e.changes[i].known, c.Known)
		return
	}
	e.changes = slices.Insert(e.changes, i, change{c.Revision, c.Known, c.Joined})
	g.bytes += changeBytes
}

// id returns the number of a node, which it adds if necessary.
func (g *Graph) id(n identity.Node) int32 {
	if id, ok := g.ids[n]; ok {
		return id
	}
	if g.ids == nil {
		g.ids = map[identity.Node]int32{}
	}
	n = identity.Node(strings.Clone(string(n))) // it may be a part of a larger text
	id := int32(len(g.nodes))
	g.ids[n] = id
	g.nodes = append(g.nodes, node{name: n})
	g.bytes += nodeBytes + int64(len(n))
	return id
}

// edge returns the edge between two nodes, which it adds if necessary.
func (g *Graph) edge(a, b int32) *edge {
	if len(g.nodes[b].edges) < len(g.nodes[a].edges) {
		a, b = b, a
	}
	for _, i := range g.nodes[a].edges {
		if g.edges[i].other(a) == b {
			return &g.edges[i]
		}
	}
	i := int32(len(g.edges))
	g.edges = append(g.edges, edge{ends: [2]int32{a, b}})
	for _, n := range []int32{a, b} {
		g.nodes[n].edges = append(g.nodes[n].edges, i)
	}
	g.bytes += edgeBytes
	return &g.edges[i]
}

// other returns the other end of an edge.
func (e *edge) other(n int32) int32 {
	if e.ends[0] == n {
		return e.ends[1]
	}
	return e.ends[0]
}

// joined reports whether an edge joins its ends, as it was known at a time.
func (e *edge) joined(known int64) bool {
	for i := len(e.changes) - 1; i >= 0; i-- {
		if e.changes[i].known <= known {
			return e.changes[i].joined
		}
	}
	return false
}

// Changes returns all changes, in an order that depends on how they were added.
func (g *Graph) Changes() iter.Seq[Change] {
	return func(yield func(Change) bool) {
		for i := range g.edges {
			e := &g.edges[i]
			ends := [2]identity.Node{g.nodes[e.ends[0]].name, g.nodes[e.ends[1]].name}
			for _, c := range e.changes {
				if !yield(Change{ends, c.revision, c.joined, c.known}) {
					return
				}
			}
		}
	}
}
