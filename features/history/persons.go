package history

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
)

// members are the entities of the persons that entities are. Those that are alone are missing.
type members map[string][]string

// of returns the entities whose facts the vector of an entity has.
func (m members) of(entity string) []string {
	if all := m[entity]; all != nil {
		return all
	}
	return []string{entity}
}

// ofAll returns the entities whose facts the vectors of some entities have, each once.
func (m members) ofAll(entities []string) []string {
	if len(m) == 0 {
		return entities
	}
	var all []string
	for _, e := range entities {
		all = append(all, m.of(e)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// chunks returns parts of entities with at most n members, or one entity with more.
func (m members) chunks(entities []string, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for begin := 0; begin < len(entities); {
			end, size := begin, 0
			for end < len(entities) && (end == begin || size+len(m.of(entities[end])) <= n) {
				size += len(m.of(entities[end]))
				end++
			}
			if !yield(entities[begin:end]) {
				return
			}
			begin = end
		}
	}
}

// ofMember returns the state of a member's facts as a part of that of all members.
func ofMember(s exact.State, member string, all []string) exact.State {
	if len(all) > 1 && (s.Aggregate == exact.First || s.Aggregate == exact.Last) {
		s.Pick.Stamp.Key = features.MemberKey(s.Pick.Stamp.Key, member)
	}
	return s
}

// maxNodes is the number of nodes whose links one query reads. ClickHouse limits its text to 256 KiB.
const maxNodes = 500

// members returns the members of the persons that entities are, as it was known at a time, and adds what
// the table of links has to reflected.
func (h *History) members(ctx context.Context, g *features.Group, entities []string, known time.Time,
	reflected map[string]Reflected) (members, error) {
	if g.Identity == features.NoIdentity {
		return nil, nil
	}
	batch, err := h.position(ctx, h.links, h.links.facts)
	if err != nil {
		return nil, err
	}
	if reflected[h.links.Name], err = h.reflectedAt(ctx, h.links, batch); err != nil {
		return nil, err
	}
	where := fmt.Sprintf("batch <= %d", batch)
	if !known.IsZero() {
		where += " AND known_at <= " + instantOf(event.Time(known).UnixMicro())
	}
	graph, err := persons.Explore(g.Identity, entities, func(nodes []identity.Node) (changes []persons.Change, err error) {
		for some := range slices.Chunk(nodes, maxNodes) {
			names := make([]string, len(some))
			for i, n := range some {
				names[i] = string(n)
			}
			query := fmt.Sprintf("SELECT %s FROM %s WHERE entity IN (%s) AND %s", h.links.selectFacts(),
				h.links.facts.FullName(), literals(names), where)
			err := h.readFacts(ctx, h.links, query, func(f features.Fact, _ uint64) error {
				c, err := persons.ChangeOf(&f)
				changes = append(changes, c)
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		return changes, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the identity graph: %w", err)
	}
	all := members{}
	for _, e := range entities {
		if m := graph.Members(g.Identity, e, persons.Now); m != nil {
			all[e] = m
		}
	}
	return all, nil
}
