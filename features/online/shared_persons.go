package online

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/internal/backoff"
)

// The identity graph is in Redis as facts are. Those of a node are beside the facts of the entity that
// has its value, in the shard of that entity: one read says whether an entity is alone. For one that is
// not, the graph is read from node to node, with the facts of what the nodes stand for. A vector is
// computed once all that it needs is known, and was read at the same positions.

// nodeSpace is the name of the space of the identity graph's nodes.
const nodeSpace = "identity node"

// addNodes adds the space of the identity graph's nodes.
func (s *Shared) addNodes() error {
	l, err := newLayout(&persons.Source)
	if err != nil {
		return err
	}
	s.nodes = s.space(nodeSpace)
	s.nodes.sources = []*layout{l}
	return nil
}

// valueOf returns what a node has behind its kind: the entity that it can be.
func valueOf(n identity.Node) string {
	_, value, _ := strings.Cut(string(n), ":")
	return value
}

// nodeFacts returns facts of the identity graph as they are stored: of the values of both ends, with the
// node in the key. Each change is on the log twice, and both times it is stored in the same way.
func nodeFacts(facts []features.Fact) ([]features.Fact, error) {
	all := make([]features.Fact, 0, 2*len(facts))
	for i := range facts {
		c, err := persons.ChangeOf(&facts[i])
		if err != nil {
			return nil, err
		}
		for end, node := range c.Ends {
			f, other := facts[i], string(c.Ends[1-end])
			f.Entity, f.Key = valueOf(node), fmt.Sprintf("%s\x00%s/%d", node, other, c.Revision)
			f.Values = append([]exact.Value{exact.TextValue(other)}, facts[i].Values[1:]...)
			all = append(all, f)
		}
	}
	return all, nil
}

// changes appends the changes of edges that are stored for a value.
func (s *Shared) changes(all []persons.Change, fields []string) ([]persons.Change, error) {
	l := s.nodes.sources[0]
	for i := 0; i+1 < len(fields); i += 2 {
		f, err := s.nodes.parseField(fields[i])
		if err != nil {
			return nil, err
		}
		values, err := l.parseValues(nil, fields[i+1])
		if err != nil {
			return nil, err
		}
		node, _, _ := strings.Cut(string(unpackKey(nil, []byte(f.key))), "\x00")
		c, err := persons.ChangeOf(&features.Fact{Entity: node, At: time.UnixMicro(f.at), Values: values})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errFact, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// sharedValue is what was read of an entity and of the nodes with its value.
type sharedValue struct {
	facts  []string
	edges  []persons.Change
	moment *moment
}

// Bounds of persons: how many reads at different positions are followed by another one, after a pause.
const (
	momentAttempts = 100
	momentPause    = 2 * time.Millisecond
)

// persons computes the vectors of entities that have edges.
func (l *sharedLookup) persons(ctx context.Context, indexes []int) error {
	wanted := map[string]bool{}
	for _, i := range indexes {
		wanted[l.entities[i]] = true
	}
	for attempt := 0; len(indexes) > 0; {
		got, err := l.values(ctx, slices.Sorted(maps.Keys(wanted)))
		if err != nil {
			return err
		}
		before := len(wanted)
		indexes, err = l.settle(indexes, got, wanted)
		switch {
		case err != nil:
			return err
		case len(indexes) == 0 || len(wanted) > before:
			continue
		case attempt == momentAttempts:
			return fmt.Errorf("%w: the entities of one person (%s) are at different positions", ErrUnavailable,
				l.entities[indexes[0]])
		}
		attempt++
		if !backoff.Sleep(ctx, momentPause) {
			return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
		}
	}
	return nil
}

// settle computes those vectors whose person was read as a whole and at one moment. It adds what else is
// wanted, and returns the rest.
func (l *sharedLookup) settle(indexes []int, got map[string]*sharedValue, wanted map[string]bool) (rest []int, err error) {
	kind := l.query.space.identity
	for _, i := range indexes {
		v := &l.vectors[i]
		home := got[l.entities[i]]
		one := true // everything was read, at one moment
		graph, err := persons.Explore(kind, l.entities[i:i+1], func(nodes []identity.Node) ([]persons.Change, error) {
			var changes []persons.Change
			for _, n := range nodes {
				value := got[valueOf(n)]
				if value == nil {
					wanted[valueOf(n)], one = true, false
					continue
				}
				one = one && value.moment.positions.equal(home.moment.positions)
				changes = append(changes, value.edges...)
			}
			return changes, nil
		})
		if err != nil {
			return nil, err
		}
		if !one {
			rest = append(rest, i)
			continue
		}
		v.Entity, v.Members, v.Positions = l.entities[i], graph.Members(kind, l.entities[i], persons.Now), home.moment.positions
		if err := l.merge(v, got); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// merge computes the vector of a person.
func (l *sharedLookup) merge(v *Vector, got map[string]*sharedValue) error {
	members := v.Members
	if members == nil {
		members = []string{v.Entity}
	}
	a := newAssembler() // the facts of all members are needed at once
	w, _ := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.members = w.members[:0]
	for _, m := range members {
		if l.query.trimmed && l.at < got[m].moment.trimmed {
			return l.store.tooOld()
		}
		a.series = nil
		e, err := a.next(l.query.space, got[m].facts)
		if err != nil {
			return fmt.Errorf("facts of %s in Redis: %w", m, err)
		}
		w.members = append(w.members, e)
	}
	l.query.compute(w, l.query.merge(w, l.at), a.texts.list(), l.at, v)
	return nil
}

// values reads entities and the nodes with their values.
func (l *sharedLookup) values(ctx context.Context, values []string) (map[string]*sharedValue, error) {
	got := make(map[string]*sharedValue, len(values))
	order := make([]place, len(values))
	for i, value := range values {
		order[i] = place{sharedShard(value), i}
	}
	slices.SortStableFunc(order, func(a, b place) int { return a.shard - b.shard })
	for len(order) > 0 {
		order = l.plan(order, values)
		err := l.read(ctx, func(i int, m *moment, facts, edges []string) error {
			changes, err := l.store.changes(nil, edges)
			got[values[i]] = &sharedValue{facts, changes, m}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// keys returns the keys of an entity that a lookup reads.
func (l *sharedLookup) keys(entity string) []string {
	keys := []string{l.query.space.entityKey(entity)}
	if l.follows() {
		keys = append(keys, l.store.nodes.entityKey(entity))
	}
	return keys
}

// follows reports whether entities of the query can be one person with others.
func (l *sharedLookup) follows() bool { return l.query.space.identity != features.NoIdentity }
