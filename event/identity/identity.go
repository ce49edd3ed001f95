// Package identity is the identity graph: which identifiers are a customer's, and which customers
// are one person. It is pure, so that commands and views resolve the graph in one way.
//
// A Node is a customer or an identifier, and has one stream of events. Edges are the edges of one
// node, folded from its stream. Graph is the whole graph in memory. Walk finds the Person that a
// node belongs to: everything that is connected with it.
//
// One stream per node, not one per person and not one per edge: a change of an edge is stored in
// the streams of both of its ends, in one transaction. The limits of Limits and MaxMerges concern
// one node each, so each is decided on a stream that no concurrent command can change unnoticed. A
// stream per person would have to be rewritten by each merge, and could not be taken apart again. A
// stream per edge could not limit anything.
//
// Invariants:
//
//   - The result of a fold does not depend on the order of streams. Each edge counts its changes
//     (Edge.Revision), and the highest revision counts, whichever end it is read from.
//   - A merge that is taken back leaves nothing that Walk can see.
//   - The canonical customer of a person is the one with the smallest id. Ids are UUIDv7 unless a
//     client has chosen others, so it is the one that was made first.
package identity

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
)

// Node is a customer ("customer:<id>") or an identifier ("anonymous_id:<value>"). It is also the
// name of the node's stream.
type Node string

const customerPrefix = "customer:"

// Customer returns the node of a customer.
func Customer(id string) Node { return Node(customerPrefix + event.CanonicalID(id)) }

// kinds are the names of the kinds of identifiers in nodes.
var kinds = map[identityv1.IdentifierKind]string{
	identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID: "anonymous_id",
	identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH:   "email_hash",
	identityv1.IdentifierKind_IDENTIFIER_KIND_PHONE_HASH:   "phone_hash",
	identityv1.IdentifierKind_IDENTIFIER_KIND_DEVICE_ID:    "device_id",
	identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID:  "external_id",
}

// Kinds returns the kinds of identifiers by name, sorted by name.
func Kinds() []string {
	var names []string
	for _, name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Limit protects against merges by accident: identifiers that many people share, and customers that
// collect identifiers.
type Limit struct {
	Customers   int // customers that one identifier may join
	Identifiers int // identifiers of this kind that one customer may have
}

// Limits returns the limits of a kind of identifier. A browser or a device may be shared, so it
// joins nobody. Addresses, phone numbers and numbers in other systems belong to one person, who may
// have registered more than once.
func Limits(kind identityv1.IdentifierKind) Limit {
	switch kind {
	case identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID:
		return Limit{Customers: 1, Identifiers: 100}
	case identityv1.IdentifierKind_IDENTIFIER_KIND_DEVICE_ID:
		return Limit{Customers: 1, Identifiers: 20}
	case identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH:
		return Limit{Customers: 3, Identifiers: 5}
	case identityv1.IdentifierKind_IDENTIFIER_KIND_PHONE_HASH:
		return Limit{Customers: 2, Identifiers: 5}
	case identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID:
		return Limit{Customers: 3, Identifiers: 10}
	case identityv1.IdentifierKind_IDENTIFIER_KIND_UNSPECIFIED:
	}
	return Limit{}
}

// MaxMerges is the maximum number of customers that one customer may be merged with directly.
const MaxMerges = 10

// Errors of NodeOf. No error contains the value, which is personal.
var (
	ErrMalformed = errors.New("not an identifier of its kind")
	ErrBlocked   = errors.New("a placeholder, which would join strangers")
)

// maxValue is the maximum length of a value, in bytes. With the kind, it must fit a stream's name.
const maxValue = 160

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// NodeOf returns the node of an identifier in its canonical form. Hashes are lower-cased. Other
// values are case-sensitive, because the systems that make them may be. It returns ErrMalformed or
// ErrBlocked.
func NodeOf(kind identityv1.IdentifierKind, value string) (Node, error) {
	name := kinds[kind]
	value = event.CanonicalName(value)
	isHash := kind == identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH ||
		kind == identityv1.IdentifierKind_IDENTIFIER_KIND_PHONE_HASH
	if isHash {
		value = strings.ToLower(value)
	}
	switch {
	case name == "":
		return "", fmt.Errorf("%w: the kind is unknown", ErrMalformed)
	case isHash && !sha256Hex.MatchString(value):
		return "", fmt.Errorf("%w: want the 64 hexadecimal digits of a SHA-256", ErrMalformed)
	case event.CheckName(value) != nil:
		return "", fmt.Errorf("%w: %w", ErrMalformed, event.CheckName(value))
	case len(value) > maxValue:
		return "", fmt.Errorf("%w: it has more than %d bytes", ErrMalformed, maxValue)
	case blocked(value):
		return "", ErrBlocked
	}
	return Node(name + ":" + value), nil
}

// placeholders are what programs send if they know no identifier, in lower case.
var placeholders = []string{
	"", "null", "nil", "none", "undefined", "unknown", "anonymous", "anonymous_id", "guest", "n/a", "na", "nan",
	"true", "false", "-1", "-", "test", "default", "user", "id", "[object object]", "unset", "empty", "noone",
	"(null)", "<null>", "<nil>", "not_authenticated",
	"noreply@example.com", "test@test.com", "test@example.com",
	"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
}

// hashed are the SHA-256 of the placeholders.
var hashed = func() map[string]bool {
	all := map[string]bool{}
	for _, p := range append(placeholders, "0") {
		sum := sha256.Sum256([]byte(p))
		all[hex.EncodeToString(sum[:])] = true
	}
	return all
}()

// blocked reports whether a value is a placeholder: one of the list, its hash, or nothing but
// characters that fill a field, such as "0", "xxxx" and "--".
func blocked(value string) bool {
	lower := strings.ToLower(value)
	return slices.Contains(placeholders, lower) || hashed[lower] || strings.Trim(lower, "0x-_.*?#") == ""
}

// ParseNode returns the node that a string names: a customer's id, "customer:<id>", or
// "<kind>:<value>". The value is made canonical, so blocked ones are errors here, too.
func ParseNode(s string) (Node, error) {
	name, value, typed := strings.Cut(s, ":")
	if !typed {
		name, value = "customer", s
	}
	if name+":" == customerPrefix {
		if len(value) != 36 || uuid.Validate(value) != nil {
			return "", fmt.Errorf("%w: the id of a customer is a UUID", ErrMalformed)
		}
		return Customer(value), nil
	}
	for kind, known := range kinds {
		if known == name {
			return NodeOf(kind, value)
		}
	}
	return "", fmt.Errorf("unknown kind of identifier %q: want customer, or one of %s", name,
		strings.Join(Kinds(), ", "))
}

// CustomerID returns the id of a customer's node. ok is false for an identifier.
func (n Node) CustomerID() (id string, ok bool) { return strings.CutPrefix(string(n), customerPrefix) }

// Kind returns the kind of an identifier's node, and unspecified for a customer's.
func (n Node) Kind() identityv1.IdentifierKind {
	name, _, _ := strings.Cut(string(n), ":")
	for kind, known := range kinds {
		if known == name {
			return kind
		}
	}
	return identityv1.IdentifierKind_IDENTIFIER_KIND_UNSPECIFIED
}

// Identifier returns the identifier of a node. It is nil for a customer's.
func (n Node) Identifier() *identityv1.Identifier {
	if n.Kind() == identityv1.IdentifierKind_IDENTIFIER_KIND_UNSPECIFIED {
		return nil
	}
	_, value, _ := strings.Cut(string(n), ":")
	return &identityv1.Identifier{Kind: n.Kind(), Value: value}
}

// Edge is the state of an edge, as one of its ends has it.
type Edge struct {
	Revision uint64    // number of changes so far
	Joined   bool      // false after the edge was taken back
	At       time.Time // business time of the last change
}

// Edges are the edges of one node, by the other end.
type Edges map[Node]Edge

// Joined returns the other ends of the edges that are in force, sorted.
func (e Edges) Joined() []Node {
	var joined []Node
	for other, edge := range e {
		if edge.Joined {
			joined = append(joined, other)
		}
	}
	slices.Sort(joined)
	return joined
}

// Count returns the number of edges in force that lead to nodes of a kind: identifiers, or
// customers for unspecified.
func (e Edges) Count(kind identityv1.IdentifierKind) int {
	n := 0
	for other, edge := range e {
		if edge.Joined && other.Kind() == kind {
			n++
		}
	}
	return n
}

// Change is what an event says of an edge.
type Change struct {
	Subject Node // the end whose stream contains the event
	Other   Node
	Edge    Edge
}

// ChangeOf returns the change of an event. ok is false for a type that this program does not know,
// and for an event that does not name its ends.
func ChangeOf(m *identityv1.IdentityEvent) (c Change, ok bool) {
	var customer, other Node
	linked := func(id string, i *identityv1.Identifier) {
		customer = Customer(id)
		other = Node(kinds[i.GetKind()] + ":" + i.GetValue())
	}
	switch e := m.GetEvent().(type) {
	case *identityv1.IdentityEvent_Linked:
		linked(e.Linked.GetCustomerId(), e.Linked.GetIdentifier())
		c = Change{Node(e.Linked.GetSubject()), "", Edge{e.Linked.GetRevision(), true, e.Linked.GetLinkedAt().AsTime()}}
	case *identityv1.IdentityEvent_Unlinked:
		linked(e.Unlinked.GetCustomerId(), e.Unlinked.GetIdentifier())
		c = Change{Node(e.Unlinked.GetSubject()), "",
			Edge{e.Unlinked.GetRevision(), false, e.Unlinked.GetUnlinkedAt().AsTime()}}
	case *identityv1.IdentityEvent_Merged:
		customer, other = Customer(e.Merged.GetCustomerId()), Customer(e.Merged.GetOtherCustomerId())
		c = Change{Node(e.Merged.GetSubject()), "", Edge{e.Merged.GetRevision(), true, e.Merged.GetMergedAt().AsTime()}}
	case *identityv1.IdentityEvent_Unmerged:
		customer, other = Customer(e.Unmerged.GetCustomerId()), Customer(e.Unmerged.GetOtherCustomerId())
		c = Change{Node(e.Unmerged.GetSubject()), "",
			Edge{e.Unmerged.GetRevision(), false, e.Unmerged.GetUnmergedAt().AsTime()}}
	}
	switch c.Subject {
	case "":
		return c, false
	case customer:
		c.Other = other
	case other:
		c.Other = customer
	default:
		return c, false
	}
	return c, c.Other != c.Subject
}

// With returns the edges with a change of one of them. An older revision changes nothing.
func (e Edges) With(other Node, edge Edge) Edges {
	if e[other].Revision >= edge.Revision {
		return e
	}
	next := make(Edges, len(e)+1)
	for n, known := range e {
		next[n] = known
	}
	next[other] = edge
	return next
}

// Graph is the whole identity graph.
type Graph map[Node]Edges

// Add folds an event into the graph. Events may come in any order, and more than once.
func (g Graph) Add(m *identityv1.IdentityEvent) {
	if c, ok := ChangeOf(m); ok {
		g[c.Subject] = g[c.Subject].With(c.Other, c.Edge)
		g[c.Other] = g[c.Other].With(c.Subject, c.Edge)
	}
}

// Person returns the person that a node belongs to.
func (g Graph) Person(n Node) (Person, error) {
	return Walk([]Node{n}, func(nodes []Node) (map[Node]Edges, error) {
		found := make(map[Node]Edges, len(nodes))
		for _, n := range nodes {
			found[n] = g[n]
		}
		return found, nil
	})
}

// Person is everything that is connected in the graph.
type Person struct {
	Customers   []string // ids, sorted; the first is the canonical one
	Identifiers []Node   // sorted
}

// Canonical returns the id that stands for the person, or "" if no customer belongs to it.
func (p Person) Canonical() string {
	if len(p.Customers) == 0 {
		return ""
	}
	return p.Customers[0]
}

// MaxNodes is the maximum number of nodes that Walk visits. Limits make larger persons impossible,
// except for long chains of merges.
const MaxNodes = 2000

// ErrTooLarge means that more than MaxNodes nodes are connected: merges that should not have
// happened.
var ErrTooLarge = fmt.Errorf("more than %d customers and identifiers are connected: unmerge them", MaxNodes)

// Walk returns the person that consists of the given nodes and everything connected with them. load
// returns the edges of nodes; a node without any may be missing. An edge that one of its ends does
// not know yet counts as the other end has it. With ErrTooLarge, it returns the part that it has visited.
func Walk(from []Node, load func([]Node) (map[Node]Edges, error)) (Person, error) {
	known := map[Node]Edges{}    // of visited nodes, and of those that turned out not to be connected
	visited := map[Node]bool{}   // connected
	reached := map[Node][]Node{} // next nodes to visit, and from where
	for _, n := range from {
		reached[n] = nil
	}
	for len(reached) > 0 {
		var missing []Node
		for n := range reached {
			if _, loaded := known[n]; !loaded {
				missing = append(missing, n)
			}
		}
		slices.Sort(missing)
		if len(known)+len(missing) > MaxNodes {
			return personOf(visited), ErrTooLarge
		}
		loaded, err := load(missing)
		if err != nil {
			return Person{}, err
		}
		for _, n := range missing {
			known[n] = loaded[n]
		}
		next := map[Node][]Node{}
		for n, sources := range reached {
			// The node itself may have a newer state of the edge that led here.
			connected := len(sources) == 0 || slices.ContainsFunc(sources, func(source Node) bool {
				return latest(known[source][n], known[n][source]).Joined
			})
			if !connected || visited[n] {
				continue
			}
			visited[n] = true
			for _, other := range known[n].Joined() {
				if !visited[other] {
					next[other] = append(next[other], n)
				}
			}
		}
		reached = next
	}
	return personOf(visited), nil
}

// personOf returns the person that nodes are.
func personOf(visited map[Node]bool) (p Person) {
	for n := range visited {
		if id, ok := n.CustomerID(); ok {
			p.Customers = append(p.Customers, id)
		} else {
			p.Identifiers = append(p.Identifiers, n)
		}
	}
	slices.Sort(p.Customers)
	slices.Sort(p.Identifiers)
	return p
}

// latest returns the later state of an edge.
func latest(a, b Edge) Edge {
	if cmp.Less(a.Revision, b.Revision) {
		return b
	}
	return a
}
