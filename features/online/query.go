package online

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// Query is a prepared selection of the outputs of one group. It is immutable.
type Query struct {
	Group   *features.Group
	Outputs []features.Output

	space *space
	// sources are all sources of the group, because any of them can make an entity known.
	sources []sourceScan
	ratios  []ratio
	parts   int  // terms of ratios
	trimmed bool // facts of a source are dropped when they are old
}

// sourceScan is what is computed from the facts of one source.
type sourceScan struct {
	index   int // in the space
	layout  *layout
	windows []int64 // distinct lengths in microseconds, ascending; a lifetime is the last one
	cells   []cell
}

// lifetime is the length of the window without an end.
const lifetime = int64(1) << 62

// cell is an aggregate of a source over nested windows.
type cell struct {
	aggregate exact.Aggregate
	column    column
	index     int // of the column, -1 if there is none
	// A fact counts if flags & test == want: it meets the conditions, and its column is not null.
	test, want uint64
	age        bool
	finish     exact.Finish
	outs       []out // by window, ascending
}

// out is where the result over a window goes.
type out struct {
	window int // index in sourceScan.windows
	output int // index in Query.Outputs; of a term, index in the terms of ratios
}

// isTerm marks cells whose results are terms of ratios.
func (c *cell) isTerm() bool { return c.finish.K < 0 }

// ratio is an output that is a quotient of two terms.
type ratio struct{ output, dividend, divisor int }

// term is a count or a sum, and its decimals.
type term struct {
	number exact.Int
	scale  int
	count  int64
}

// Compile prepares a query for outputs of a group by their names. Without names, it is for all.
func (d *definitions) Compile(group string, outputs ...string) (*Query, error) {
	g := d.Group(group)
	if g == nil {
		return nil, fmt.Errorf("unknown feature group %q", group)
	}
	q := &Query{Group: g, space: d.space(g.Entity)}
	all := g.Outputs()
	if len(outputs) == 0 {
		q.Outputs = all
	}
	for _, name := range outputs {
		i := slices.IndexFunc(all, func(o features.Output) bool { return o.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("feature group %q has no feature %q", group, name)
		}
		q.Outputs = append(q.Outputs, all[i])
	}
	for i := range g.Sources {
		index := q.space.source(g.Sources[i].Name)
		l := q.space.sources[index]
		q.sources = append(q.sources, sourceScan{index: index, layout: l})
		q.trimmed = q.trimmed || l.keep > 0
	}
	for i := range q.Outputs {
		if err := q.add(i); err != nil {
			return nil, err
		}
	}
	for i := range q.sources {
		q.sources[i].sort()
	}
	return q, nil
}

// add adds the cells of an output.
func (q *Query) add(i int) error {
	o := q.Outputs[i]
	if o.Feature.Over == nil {
		return q.cell(o.Feature, o.Window, i, false)
	}
	r := ratio{i, q.parts, q.parts + 1}
	q.parts += 2
	q.ratios = append(q.ratios, r)
	if err := q.cell(o.Feature, o.Window, r.dividend, true); err != nil {
		return err
	}
	return q.cell(o.Feature.Over, o.Window, r.divisor, true)
}

// cell adds a window to the cell of a feature. Windows of one feature share a cell.
func (q *Query) cell(f *features.Feature, w features.Window, output int, isTerm bool) error {
	i := slices.IndexFunc(q.sources, func(s sourceScan) bool { return s.layout.source.Name == f.Source })
	s := &q.sources[i]
	c := cell{aggregate: f.Aggregate, index: s.layout.source.Index(f.Column), age: f.Age,
		finish: exact.Finish{K: f.K, Q: f.Q}}
	bit, err := s.layout.filter(f.Where)
	if err != nil {
		return err
	}
	c.test, c.want = bit, bit
	if c.index >= 0 {
		c.column = s.layout.columns[c.index]
		c.test |= c.column.null
		c.finish.Scale = s.layout.source.Columns[c.index].Scale
	}
	if isTerm {
		c.finish.K = -1
	}
	length := time.Duration(w).Microseconds()
	if w == features.Lifetime {
		length = lifetime
	}
	at := slices.Index(s.windows, length)
	if at < 0 {
		at = len(s.windows)
		s.windows = append(s.windows, length)
	}
	for j := range s.cells {
		if s.cells[j].same(&c) {
			s.cells[j].outs = append(s.cells[j].outs, out{at, output})
			return nil
		}
	}
	c.outs = []out{{at, output}}
	s.cells = append(s.cells, c)
	return nil
}

// same reports whether two cells differ in their windows at most.
func (c *cell) same(d *cell) bool {
	return c.aggregate == d.aggregate && c.index == d.index && c.test == d.test && c.want == d.want &&
		c.age == d.age && c.finish == d.finish
}

// sort orders the windows by length.
func (s *sourceScan) sort() {
	before := slices.Clone(s.windows)
	slices.Sort(s.windows)
	for i := range s.cells {
		outs := s.cells[i].outs
		for j := range outs {
			outs[j].window = slices.Index(s.windows, before[outs[j].window])
		}
		slices.SortStableFunc(outs, func(a, b out) int { return a.window - b.window })
	}
}

// Vector is the values of a query's outputs for one entity.
type Vector struct {
	Entity string
	// Members are all entities that are one person with Entity, or nil if it is alone. They must not be
	// changed.
	Members []string
	// Found reports whether the entity has any fact up to the time of the vector.
	Found bool
	// Newest is the time of the newest fact up to the time of the vector, in microseconds; 0 if there
	// is none, or it is older than all windows.
	Newest int64
	Values []exact.Result // one per output
	// Empty reports, by output, that no fact contributed to its value.
	Empty     []bool
	Positions *Positions
}

// Lookup computes the vectors of entities at a time and returns them in the order of the entities.
// It reuses the memory of a previous result, which may be nil. An entity that is named several times costs
// one vector: a caller cannot make a shard wait for the same facts again and again.
func (s *Store) Lookup(_ context.Context, q *Query, entities []string, at time.Time, reuse []Vector) (
	[]Vector, error,
) {
	t := at.UnixMicro()
	for len(reuse) < len(entities) {
		reuse = append(reuse, Vector{})
	}
	vectors := reuse[:len(entities)]
	w, _ := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	// Entities of one shard are answered under one lock, but for persons.
	w.order, w.persons, w.copies = w.order[:0], w.persons[:0], w.copies[:0]
	for i, e := range entities {
		w.order = append(w.order, place{shardOf(e), i})
	}
	if len(w.order) > 1 {
		slices.SortFunc(w.order, func(a, b place) int {
			return cmp.Or(a.shard-b.shard, strings.Compare(entities[a.index], entities[b.index]))
		})
	}
	for i := 0; i < len(w.order); {
		sh := &s.shards[w.order[i].shard]
		sh.mu.RLock()
		if q.trimmed && t < s.trimmed.Load() {
			sh.mu.RUnlock()
			return nil, s.tooOld()
		}
		all := s.texts.list()
		for shard := w.order[i].shard; i < len(w.order) && w.order[i].shard == shard; i++ {
			if i > 0 && entities[w.order[i].index] == entities[w.order[i-1].index] {
				w.copies = append(w.copies, copied{w.order[i-1].index, w.order[i].index})
				continue
			}
			v := &vectors[w.order[i].index]
			v.Entity, v.Members, v.Positions = entities[w.order[i].index], nil, sh.positions
			if sh.persons[q.space.index][v.Entity] != nil {
				w.persons = append(w.persons, w.order[i].index)
				continue
			}
			q.compute(w, sh.spaces[q.space.index][v.Entity], all, t, v)
		}
		sh.mu.RUnlock()
	}
	for _, i := range w.persons {
		if err := s.computePerson(q, w, t, &vectors[i]); err != nil {
			return nil, err
		}
	}
	for _, c := range w.copies {
		vectors[c.to].copy(&vectors[c.from])
	}
	return vectors, nil
}

// copied is a vector of a lookup that equals an earlier one, because its entity is the same.
type copied struct{ from, to int }

// copy makes v equal to another vector, and keeps its own memory.
func (v *Vector) copy(from *Vector) {
	values, empty := append(v.Values[:0], from.Values...), append(v.Empty[:0], from.Empty...)
	*v = *from
	v.Values, v.Empty = values, empty
}

func (s *Store) tooOld() error { return fmt.Errorf("%w of %s", ErrTooOld, s.options.Retention) }

// place is an entity of a lookup.
type place struct{ shard, index int }

// workspaces are reused, so that a lookup allocates nothing per fact.
var workspaces = sync.Pool{New: func() any { return newWorkspace() }}

// compute computes one vector. The lock of the entity's shard is held.
func (q *Query) compute(w *workspace, e entity, all []text, t int64, v *Vector) {
	n := len(q.Outputs)
	if cap(v.Values) < n {
		v.Values, v.Empty = make([]exact.Result, n), make([]bool, n)
	}
	v.Values, v.Empty = v.Values[:n], v.Empty[:n]
	v.Found, v.Newest = false, 0
	w.terms = slices.Grow(w.terms[:0], q.parts)[:q.parts]
	w.all, w.at, w.vector = all, t, v
	for i := range q.sources {
		s := &q.sources[i]
		facts := noFacts
		if e != nil && e[s.index] != nil {
			facts = e[s.index]
		}
		w.bind(s, facts)
		if w.end > 0 {
			v.Found = true
			v.Newest = max(v.Newest, int64(facts.rows[(w.end-1)*s.layout.stride+wordAt]))
		}
		if len(facts.gone) > 0 {
			v.Found = true // they are older than t, or the lookup would be refused
		}
		for j := range s.cells {
			w.scan(&s.cells[j])
		}
	}
	for _, r := range q.ratios {
		n, d := &w.terms[r.dividend], &w.terms[r.divisor]
		v.Empty[r.output] = n.count == 0
		if d.number.Sign() == 0 {
			v.Values[r.output] = exact.Result{}
			continue
		}
		// n / 10^a over d / 10^b is n × 10^b over d × 10^a.
		v.Values[r.output] = exact.Result{Kind: exact.FloatResult, Float: exact.Quotient(
			n.number.Mul(exact.Pow10(d.scale)), d.number.Mul(exact.Pow10(n.scale)))}
	}
}

// noFacts is the series of an entity without facts.
var noFacts = &series{}
