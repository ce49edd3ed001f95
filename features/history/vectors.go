package history

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// Reflected is what the vectors of an answer contain of a topic: the records before Next.
type Reflected struct {
	Topic, TopicID string
	Batch          uint64
	Next           map[int32]int64 // by partition
}

// Vectors computes the vectors of entities at a time, in the order of the entities, and returns
// what they contain by source, the identity graph among them if the group follows it. group is the
// name of a group, whose live version counts, or the ID of a version. Vectors contain what was
// known at the time known, merges included; the zero time means everything that the tables have.
func (h *History) Vectors(ctx context.Context, group string, entities []string, at, known time.Time) (
	[]features.Vector, map[string]Reflected, error) {
	all, reflected, err := h.VectorsAt(ctx, group, entities, []time.Time{at}, known)
	if err != nil {
		return nil, nil, err
	}
	return all[0], reflected, nil
}

// VectorsAt is Vectors at several times, in their order. It costs much less than a call for each time,
// because the tables are read once for many times.
func (h *History) VectorsAt(ctx context.Context, group string, entities []string, times []time.Time,
	known time.Time) ([][]features.Vector, map[string]Reflected, error) {
	if len(h.versionsNamed(group)) > 0 {
		g, err := h.Live(ctx, group)
		if err != nil {
			return nil, nil, err
		}
		group = g.ID()
	}
	var mine []*tiles
	for _, t := range h.tiles {
		if t.group.ID() == group {
			mine = append(mine, t)
		}
	}
	if len(mine) == 0 {
		return nil, nil, fmt.Errorf("history: no feature group %q", group)
	}
	g := mine[0].group
	reflected := map[string]Reflected{}
	for _, t := range mine {
		batch, err := h.position(ctx, t.source, t.table)
		if err == nil {
			reflected[t.source.Name], err = h.reflectedAt(ctx, t.source, batch)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	members, err := h.members(ctx, g, entities, known, reflected)
	if err != nil {
		return nil, nil, fmt.Errorf("vectors of %s: %w", group, err)
	}
	var vectors [][]features.Vector
	for some := range slices.Chunk(times, maxTimes) {
		moments := make([]*moment, len(some))
		for i, at := range some {
			moments[i] = momentOf(g, event.Time(at)) // of a finer time, the fraction has no effect
		}
		part := make([][]features.Vector, len(some))
		for chunk := range members.chunks(entities, min(maxEntities, max(1, maxVectors/len(some)))) {
			var err error
			if known.IsZero() {
				err = h.fromTiles(ctx, g, mine, reflected, chunk, members, moments, part)
			} else {
				err = h.fromFacts(ctx, g, mine, reflected, chunk, members, moments, event.Time(known), part)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("vectors of %s: %w", group, err)
			}
		}
		vectors = append(vectors, part...)
	}
	return vectors, reflected, nil
}

// reflectedAt returns what the tables of a source have after a batch.
func (h *History) reflectedAt(ctx context.Context, s *source, batch uint64) (Reflected, error) {
	c, err := h.positionsAt(ctx, s, batch)
	if err != nil {
		return Reflected{}, err
	}
	r := Reflected{Topic: s.Topic, TopicID: c.topicID, Batch: batch, Next: map[int32]int64{}}
	for p, after := range c.after {
		r.Next[p] = after.Next
	}
	return r, nil
}

// Limits of what is computed by one query of each table.
const (
	maxEntities = 200
	maxTimes    = 100
	maxVectors  = 2000
)

// fromFacts appends vectors that it computes from facts alone. Which facts were known at a time is not
// in the tiles.
func (h *History) fromFacts(ctx context.Context, g *features.Group, all []*tiles, reflected map[string]Reflected,
	entities []string, members members, moments []*moment, known time.Time, vectors [][]features.Vector) error {
	current := map[string]map[string][]features.Fact{} // by entity and source
	for _, e := range entities {
		current[e] = map[string][]features.Fact{}
	}
	for _, t := range all {
		versions := map[string][]features.Fact{}
		query := fmt.Sprintf("SELECT %s FROM %s WHERE entity IN (%s) AND batch <= %d AND known_at <= %s",
			t.source.selectFacts(), t.source.facts.FullName(), literals(members.ofAll(entities)), reflected[t.source.Name].Batch,
			instantOf(known.UnixMicro()))
		err := h.readFacts(ctx, t.source, query, func(f features.Fact, _ uint64) error {
			versions[f.Entity] = append(versions[f.Entity], f)
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range entities {
			current[e][t.source.Name] = features.CurrentOf(versions, members.of(e), known)
		}
	}
	for i, m := range moments {
		for _, e := range entities {
			vectors[i] = append(vectors[i], g.Vector(current[e], e, m.at))
		}
	}
	return nil
}

// sums are the aggregates of one entity and source at a time, by segment.
type sums struct {
	facts  int64
	states [][]exact.State // by segment and part
}

// fromTiles appends vectors that it computes from tiles, and from facts at the edges of windows, where
// facts were corrected, and where tiles have later batches.
func (h *History) fromTiles(ctx context.Context, g *features.Group, all []*tiles, reflected map[string]Reflected,
	entities []string, members members, moments []*moment, vectors [][]features.Vector) error {
	bySource, tilesOf := map[string]map[string][]*sums{}, map[string]*tiles{}
	for _, t := range all {
		r := reader{History: h, tiles: t, moments: moments, upto: reflected[t.source.Name].Batch,
			entities: members.ofAll(entities)}
		have, err := r.read(ctx)
		if err != nil {
			return err
		}
		bySource[t.source.Name], tilesOf[t.source.Name] = have, t
	}
	for i, m := range moments {
		at := m.at.UnixMicro()
		for _, e := range entities {
			v := features.Vector{Entity: e, At: m.at}
			mine := members.of(e)
			for _, have := range bySource {
				v.Found = v.Found || slices.ContainsFunc(mine, func(m string) bool { return have[m][i].facts > 0 })
			}
			for _, o := range g.Outputs() {
				states := g.States(o)
				lower := beginning
				if o.Window != features.Lifetime {
					lower = at - time.Duration(o.Window).Microseconds() + 1
				}
				for n := range states {
					f := features.Part(o.Feature, n)
					for _, member := range mine {
						have := bySource[f.Source][member][i]
						for j, cut := range m.cuts {
							if cut.lo >= lower {
								states[n].Merge(ofMember(have.states[j][tilesOf[f.Source].of[f]], member, mine))
							}
						}
					}
				}
				v.Values = append(v.Values, g.Result(o, states, m.at))
			}
			vectors[i] = append(vectors[i], v)
		}
	}
	return nil
}

// reader reads what the tables of a source have of some entities.
type reader struct {
	*History
	*tiles
	moments  []*moment
	upto     uint64 // the last batch to read
	entities []string

	gaps map[string]*gaps   // by entity
	out  map[string][]*sums // by entity and moment
}

// read returns the sums of each entity and moment.
func (r *reader) read(ctx context.Context) (map[string][]*sums, error) {
	r.gaps, r.out = map[string]*gaps{}, map[string][]*sums{}
	corrected, err := r.corrected(ctx)
	if err != nil {
		return nil, err
	}
	edges := newPlaces(nil)
	for _, m := range r.moments {
		edges.add(0, &m.edges)
	}
	p := newPlaces(edges)
	for _, e := range r.entities {
		if r.out[e] != nil {
			continue // asked for twice
		}
		for _, m := range r.moments {
			s := &sums{states: make([][]exact.State, len(m.cuts))}
			for i := range s.states {
				s.states[i] = r.newTile(tileKey{}).states
			}
			r.out[e] = append(r.out[e], s)
		}
		r.gaps[e] = gapsAround(corrected[e])
		p.addEntity(e, r.gaps[e])
		if p.full() {
			if err := r.readPart(ctx, p); err != nil {
				return nil, err
			}
			p = newPlaces(edges)
		}
	}
	return r.out, r.readPart(ctx, p)
}

// readPart adds what the tables have of some entities.
func (r *reader) readPart(ctx context.Context, p *places) error {
	if len(p.entities) == 0 {
		return nil
	}
	if err := r.readTiles(ctx, p); err != nil {
		return err
	}
	return r.readEdges(ctx, p)
}

// corrected returns the times of corrected facts, by entity.
func (r *reader) corrected(ctx context.Context) (map[string][]int64, error) {
	rows, err := r.cfg.Store.Query(ctx, fmt.Sprintf("SELECT entity, toUnixTimestamp64Micro(at) FROM %s WHERE entity IN (%s)",
		r.source.corrections.FullName(), literals(r.entities)))
	if err != nil {
		return nil, fmt.Errorf("read corrections: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	all := map[string][]int64{}
	for rows.Next() {
		var entity string
		var at int64
		if err := rows.Scan(&entity, &at); err != nil {
			return nil, fmt.Errorf("read corrections: %w", err)
		}
		all[entity] = append(all[entity], at)
	}
	return all, rows.Err()
}

// latest returns the time of the latest vector.
func (r *reader) latest() int64 {
	last := slices.MaxFunc(r.moments, func(a, b *moment) int { return a.at.Compare(b.at) })
	return last.at.UnixMicro()
}

// readTiles adds tiles. Where a tile has facts of later batches, its facts are to be read instead.
func (r *reader) readTiles(ctx context.Context, p *places) error {
	byKey := map[tileKey]*tile{}
	query := fmt.Sprintf("SELECT %s FROM %s WHERE entity IN (%s) AND tile <= %s AND (%s)", r.selectTiles(),
		r.table.FullName(), literals(p.entities), instantOf(r.latest()), p.tiles())
	err := r.History.readTiles(ctx, r.tiles, query, func(one *tile) error {
		have := byKey[one.key]
		if have == nil {
			byKey[one.key] = one
			return nil
		}
		have.facts, have.upto = have.facts+one.facts, max(have.upto, one.upto)
		for i := range have.states {
			have.states[i].Merge(one.states[i])
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, one := range byKey {
		late := one.upto > r.upto
		for i, m := range r.moments {
			segment, ok := m.segment(key.start)
			if !ok || !m.usesTile(r.gaps[key.entity], key.level, key.start) {
				continue
			}
			if late {
				p.late[lateTile{key, i}] = true
				continue
			}
			to := r.out[key.entity][i]
			to.facts += one.facts
			for n := range one.states {
				to.states[segment][n].Merge(one.states[n])
			}
		}
	}
	return nil
}

// readEdges adds facts.
func (r *reader) readEdges(ctx context.Context, p *places) error {
	versions := map[string][]features.Fact{}
	for _, in := range p.facts() {
		query := fmt.Sprintf("SELECT %s FROM %s WHERE batch <= %d AND entity IN (%s) AND (%s)", r.source.selectFacts(),
			r.source.facts.FullName(), r.upto, literals(p.entities), in)
		err := r.readFacts(ctx, r.source, query, func(f features.Fact, _ uint64) error {
			versions[f.Entity] = append(versions[f.Entity], f)
			return nil
		})
		if err != nil {
			return err
		}
	}
	for e, all := range versions {
		for _, f := range features.Current(all, time.Time{}) {
			at := f.At.UnixMicro()
			for i, m := range r.moments {
				// Facts after the time of the vector were read as other versions only.
				segment, ok := m.segment(at)
				if !ok || !m.usesFacts(r.gaps[e], at) && !p.isLate(e, at, i) {
					continue
				}
				to := r.out[e][i]
				to.facts++
				r.add(to.states[segment], f)
			}
		}
	}
	return nil
}
