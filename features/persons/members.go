package persons

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// recorded are the kinds of identifiers under which behaviour is recorded, and which one counts if a
// value is linked as several of them. Addresses and phone numbers are hashes, which identify no visitor.
var recorded = []identityv1.IdentifierKind{
	identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID,
	identityv1.IdentifierKind_IDENTIFIER_KIND_DEVICE_ID,
}

// Nodes returns the nodes that an entity of a kind can be. It is the first one that has an edge.
func Nodes(kind features.Identity, entity string) []identity.Node {
	switch kind {
	case features.Customers:
		return []identity.Node{customer + identity.Node(entity)}
	case features.Visitors:
		nodes := []identity.Node{customer + identity.Node(entity)}
		for _, kind := range recorded {
			nodes = append(nodes, prefixes[kind]+identity.Node(entity))
		}
		return nodes
	case features.NoIdentity:
	}
	return nil
}

// customer is what precedes the id in a customer's node. Entities are not made canonical here: keys of
// callers were (features.Identity.Entity), and facts with another spelling are those of another entity.
const customer = identity.Node("customer:")

// prefixes are what precedes the value in the node of an identifier.
var prefixes = func() map[identityv1.IdentifierKind]identity.Node {
	all := map[identityv1.IdentifierKind]identity.Node{}
	for _, name := range identity.Kinds() {
		n := identity.Node(name + ":")
		all[n.Kind()] = n
	}
	return all
}()

// entityOf returns the entity of a kind that a node can be.
func entityOf(kind features.Identity, n identity.Node) (string, bool) {
	if id, ok := n.CustomerID(); ok {
		return id, kind != features.NoIdentity
	}
	if kind != features.Visitors || !slices.Contains(recorded, n.Kind()) {
		return "", false
	}
	_, value, _ := strings.Cut(string(n), ":")
	return value, true
}

// node returns the node that an entity is, as it was known at a time. ok is false if the entity has no
// edges.
func (g *Graph) node(kind features.Identity, entity string, known int64) (id int32, ok bool) {
	for _, n := range Nodes(kind, entity) {
		if id, exists := g.ids[n]; exists && slices.ContainsFunc(g.nodes[id].edges, func(i int32) bool {
			return g.edges[i].joined(known)
		}) {
			return id, true
		}
	}
	return 0, false
}

// Members returns all entities of a kind that are one person with an entity, itself included, sorted, as
// it was known at a time. It returns nil if the entity is alone. So is each entity of a person with more
// than identity.MaxNodes nodes, which is a mistake to be taken back and not a person.
func (g *Graph) Members(kind features.Identity, entity string, known int64) []string {
	from, ok := g.node(kind, entity, known)
	if !ok {
		return nil
	}
	nodes, ok := g.connected(from, known)
	if !ok {
		return nil
	}
	var members []string
	for _, n := range nodes {
		e, ok := entityOf(kind, g.nodes[n].name)
		if !ok {
			continue
		}
		// A value may be linked as identifiers of several kinds, to several persons.
		if is, _ := g.node(kind, e, known); is == n {
			members = append(members, e)
		}
	}
	if len(members) < 2 {
		return nil
	}
	slices.Sort(members)
	return members
}

// connected returns the nodes that are connected with a node, itself included. ok is false if they are too
// many.
func (g *Graph) connected(from int32, known int64) (nodes []int32, ok bool) {
	seen := map[int32]bool{from: true}
	nodes = []int32{from}
	for i := 0; i < len(nodes); i++ {
		for _, e := range g.nodes[nodes[i]].edges {
			other := g.edges[e].other(nodes[i])
			if seen[other] || !g.edges[e].joined(known) {
				continue
			}
			if seen[other] = true; len(seen) > identity.MaxNodes {
				return nil, false
			}
			nodes = append(nodes, other)
		}
	}
	return nodes, true
}

// Apply adds changes. It returns the entities whose members may have changed, by kind.
func (g *Graph) Apply(changes []Change, kinds ...features.Identity) map[features.Identity][]string {
	touched := map[identity.Node]bool{}
	for _, c := range changes {
		for _, end := range c.Ends {
			touched[end] = true
			// Which node a value is, can change for the other kinds of identifiers with this value.
			if value, ok := entityOf(features.Visitors, end); ok {
				for _, n := range Nodes(features.Visitors, value) {
					touched[n] = true
				}
			}
		}
	}
	near := map[int32]bool{}
	look := func() {
		found := map[int32]bool{}
		for n := range touched {
			id, ok := g.ids[n]
			if !ok || found[id] {
				continue
			}
			near[id] = true
			// Those of a person with too many nodes are alone. If that changes, the other look finds them.
			nodes, _ := g.connected(id, Now)
			for _, n := range nodes {
				found[n], near[n] = true, true
			}
		}
	}
	look()
	for _, c := range changes {
		g.Add(c)
	}
	look()
	return g.entities(maps.Keys(near), kinds)
}

// Entities returns all entities of the graph, by kind.
func (g *Graph) Entities(kinds ...features.Identity) map[features.Identity][]string {
	return g.entities(maps.Values(g.ids), kinds)
}

// entities returns the entities of nodes, by kind.
func (g *Graph) entities(nodes iter.Seq[int32], kinds []features.Identity) map[features.Identity][]string {
	all := map[features.Identity][]string{}
	for n := range nodes {
		for _, kind := range kinds {
			if e, ok := entityOf(kind, g.nodes[n].name); ok {
				all[kind] = append(all[kind], e)
			}
		}
	}
	return all
}

// Explore returns the part of a graph that Members needs for entities of a kind. load returns the changes
// that facts of Source about some nodes are.
func Explore(kind features.Identity, entities []string, load func([]identity.Node) ([]Change, error)) (*Graph, error) {
	g := &Graph{}
	loaded := map[identity.Node]bool{}
	var next []identity.Node
	reach := func(n identity.Node) {
		if !loaded[n] {
			loaded[n] = true
			next = append(next, n)
		}
	}
	for _, e := range entities {
		for _, n := range Nodes(kind, e) {
			reach(n)
		}
	}
	for len(next) > 0 {
		changes, err := load(next)
		if err != nil {
			return nil, err
		}
		for _, c := range changes {
			g.Add(c)
		}
		from := next
		next = nil
		for _, n := range from {
			id, known := g.ids[n]
			if !known {
				continue
			}
			nodes, ok := g.connected(id, Now)
			if !ok {
				continue // too many, whatever else there is
			}
			for _, n := range nodes {
				reach(g.nodes[n].name)
				if e, ok := entityOf(kind, g.nodes[n].name); ok {
					for _, n := range Nodes(kind, e) {
						reach(n)
					}
				}
			}
		}
	}
	return g, nil
}
