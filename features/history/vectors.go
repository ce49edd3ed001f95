package history

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// Vectors computes the vectors of entities at a time, in the order of the entities, and returns what
// they contain by source. They contain what was known at the time known; the zero time means
// everything that the tables have.
func (h *History) Vectors(ctx context.Context, group string, entities []string, at, known time.Time) (
	[]features.Vector, map[string]Reflected, error) {
	var mine []*tiles
	for _, t := range h.tiles {
		if t.group.ID() == group {
			mine = append(mine, t)
		}
	}
	if len(mine) == 0 {
		return nil, nil, fmt.Errorf("history: no feature group %q", group)
	}
	at, known = event.Time(at), event.Time(known) // of a finer time, the fraction has no effect
	g := mine[0].group
	reflected := map[string]Reflected{}
	for _, t := range mine {
		batch, err := h.position(ctx, t.source, t.table)
		if err != nil {
			return nil, nil, err
		}
		c, err := h.positionsAt(ctx, t.source, batch)
		if err != nil {
			return nil, nil, err
		}
		r := Reflected{Topic: t.source.Topic, TopicID: c.topicID, Batch: batch, Next: map[int32]int64{}}
		for p, after := range c.after {
			r.Next[p] = after.Next
		}
		reflected[t.source.Name] = r
	}
	vectors := make([]features.Vector, 0, len(entities))
	for chunk := range slices.Chunk(entities, maxEntities) {
		var part []features.Vector
		var err error
		if known.IsZero() {
			part, err = h.fromTiles(ctx, g, mine, reflected, chunk, at)
		} else {
			part, err = h.fromFacts(ctx, g, mine, reflected, chunk, at, known)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("vectors of %s: %w", group, err)
		}
		vectors = append(vectors, part...)
	}
	return vectors, reflected, nil
}

// maxEntities is the number of entities of one query.
const maxEntities = 200

// fromFacts computes vectors from facts alone. Which facts were known at a time is not in the tiles.
func (h *History) fromFacts(ctx context.Context, g *features.Group, all []*tiles, reflected map[string]Reflected,
	entities []string, at, known time.Time) ([]features.Vector, error) {
	current := map[string]map[string][]features.Fact{} // by entity and source
	for _, e := range entities {
		current[e] = map[string][]features.Fact{}
	}
	for _, t := range all {
		versions := map[string][]features.Fact{}
		query := fmt.Sprintf("SELECT %s FROM %s WHERE entity IN (%s) AND batch <= %d AND known_at <= %s",
			t.source.selectFacts(), t.source.facts.FullName(), literals(entities), reflected[t.source.Name].Batch,
			instantOf(known.UnixMicro()))
		err := h.readFacts(ctx, t.source, query, func(f features.Fact, _ uint64) error {
			versions[f.Entity] = append(versions[f.Entity], f)
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, e := range entities {
			current[e][t.source.Name] = features.Current(versions[e], known)
		}
	}
	vectors := make([]features.Vector, len(entities))
	for i, e := range entities {
		vectors[i] = g.Vector(current[e], e, at)
	}
	return vectors, nil
}

// sums are the aggregates of one entity and source, by segment.
type sums struct {
	facts  int64
	states [][]exact.State // by segment and part
}

// fromTiles computes vectors from tiles, and from facts at the edges of windows, where facts were
// corrected, and where tiles have later batches.
func (h *History) fromTiles(ctx context.Context, g *features.Group, all []*tiles, reflected map[string]Reflected,
	entities []string, at time.Time) ([]features.Vector, error) {
	cuts := segments(g, at.UnixMicro())
	bySource := map[string]map[string]*sums{}
	for _, t := range all {
		r := reader{History: h, tiles: t, cuts: cuts, upto: reflected[t.source.Name].Batch, entities: entities}
		have, err := r.read(ctx)
		if err != nil {
			return nil, err
		}
		bySource[t.source.Name] = have
	}
	tilesOf := map[string]*tiles{}
	for _, t := range all {
		tilesOf[t.source.Name] = t
	}
	vectors := make([]features.Vector, len(entities))
	for i, e := range entities {
		v := features.Vector{Entity: e, At: at}
		for _, have := range bySource {
			v.Found = v.Found || have[e].facts > 0
		}
		for _, o := range g.Outputs() {
			states := g.States(o)
			lower := beginning
			if o.Window != features.Lifetime {
				lower = at.UnixMicro() - time.Duration(o.Window).Microseconds() + 1
			}
			for n := range states {
				f := features.Part(o.Feature, n)
				have := bySource[f.Source][e]
				for i, cut := range cuts {
					if cut.lo >= lower {
						states[n].Merge(have.states[i][tilesOf[f.Source].of[f]])
					}
				}
			}
			v.Values = append(v.Values, g.Result(o, states, at))
		}
		vectors[i] = v
	}
	return vectors, nil
}

// reader reads what the tables of a source have of some entities.
type reader struct {
	*History
	*tiles
	cuts     []span // the segments
	upto     uint64 // the last batch to read
	entities []string

	out map[string]*sums // by entity
	// facts to read, besides those that all entities have in common
	extra map[string][]span // by entity
	also  map[string][]int64
}

// read returns the sums of each entity.
func (r *reader) read(ctx context.Context) (map[string]*sums, error) {
	r.out, r.extra, r.also = map[string]*sums{}, map[string][]span{}, map[string][]int64{}
	for _, e := range r.entities {
		s := &sums{states: make([][]exact.State, len(r.cuts))}
		for i := range s.states {
			s.states[i] = r.newTile(tileKey{}).states
		}
		r.out[e] = s
	}
	corrected, err := r.corrected(ctx)
	if err != nil {
		return nil, err
	}
	// Entities without corrections need the same tiles and facts.
	var plain []string
	var common []run
	for _, cut := range r.cuts {
		common = append(common, cover(cut, day)...)
	}
	conditions, facts := []string(nil), []string(nil)
	for e := range r.out {
		times, has := corrected[e]
		if !has {
			plain = append(plain, e)
			continue
		}
		gaps := holes(times)
		var runs []run
		for _, cut := range r.cuts {
			runs = append(runs, coverAround(cut, gaps)...)
		}
		for _, hole := range gaps { // other versions of facts may have other times
			runs = append(runs, run{raw, hole})
		}
		add(&conditions, &facts, []string{e}, runs)
	}
	add(&conditions, &facts, plain, common)
	if err := r.readTiles(ctx, conditions); err != nil {
		return nil, err
	}
	for e, spans := range r.extra {
		runs := make([]run, len(spans))
		for i, s := range spans {
			runs[i] = run{raw, s}
		}
		add(&conditions, &facts, []string{e}, runs)
	}
	return r.out, r.readEdges(ctx, facts)
}

// add appends the conditions for the tiles and the facts of some entities.
func add(tiles, facts *[]string, entities []string, runs []run) {
	if len(entities) == 0 {
		return
	}
	of := "entity IN (" + literals(entities) + ")"
	var inTiles, inFacts []string
	for _, r := range runs {
		if r.level == raw {
			inFacts = append(inFacts, fmt.Sprintf("at >= %s AND at < %s", instantOf(r.lo), instantOf(r.hi)))
		} else {
			inTiles = append(inTiles, fmt.Sprintf("level = '%s' AND tile >= %s AND tile < %s",
				names[r.level], instantOf(r.lo), instantOf(r.hi)))
		}
	}
	for to, in := range map[*[]string][]string{tiles: inTiles, facts: inFacts} {
		if len(in) > 0 {
			*to = append(*to, "("+of+" AND ("+strings.Join(in, " OR ")+"))")
		}
	}
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

// segment returns the segment that contains a time; ok is false if none does.
func (r *reader) segment(at int64) (i int, ok bool) {
	i = slices.IndexFunc(r.cuts, func(s span) bool { return s.lo <= at && at < s.hi })
	return i, i >= 0
}

// readTiles adds tiles. Where a tile has facts of later batches, its facts are read instead.
func (r *reader) readTiles(ctx context.Context, conditions []string) error {
	if len(conditions) == 0 {
		return nil
	}
	byKey := map[tileKey]*tile{}
	query := fmt.Sprintf("SELECT %s FROM %s WHERE %s", r.selectTiles(), r.table.FullName(), strings.Join(conditions, " OR "))
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
		if one.upto > r.upto {
			r.extra[key.entity] = append(r.extra[key.entity], span{key.start, key.start + length[key.level]})
			continue
		}
		if i, ok := r.segment(key.start); ok {
			to := r.out[key.entity]
			to.facts += one.facts
			for p := range one.states {
				to.states[i][p].Merge(one.states[p])
			}
		}
	}
	return nil
}

// readEdges adds facts.
func (r *reader) readEdges(ctx context.Context, conditions []string) error {
	if len(conditions) == 0 {
		return nil
	}
	versions := map[string][]features.Fact{}
	query := fmt.Sprintf("SELECT %s FROM %s WHERE batch <= %d AND (%s)", r.source.selectFacts(),
		r.source.facts.FullName(), r.upto, strings.Join(conditions, " OR "))
	err := r.readFacts(ctx, r.source, query, func(f features.Fact, _ uint64) error {
		versions[f.Entity] = append(versions[f.Entity], f)
		return nil
	})
	if err != nil {
		return err
	}
	for e, all := range versions {
		to := r.out[e]
		for _, f := range features.Current(all, time.Time{}) {
			// Facts after the time of the vector were read as other versions only.
			if i, ok := r.segment(f.At.UnixMicro()); ok {
				to.facts++
				r.add(to.states[i], f)
			}
		}
	}
	return nil
}
