package training

import (
	"bytes"
	"cmp"
	"context"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/millrace/millrace/features/exact"
)

// row is a row of the spine, as the join sees it.
type row struct {
	number    int64 // in the file
	entity    int32
	at, known int64 // microseconds; known is forever for everything
}

// sweeper computes the vectors of the rows of one range. It keeps its memory from entity to entity.
type sweeper struct {
	plan   *plan
	tables []*table // by source
	emit   func(r row, values []exact.Result)

	used     []int64       // by source: versions of facts about entities of the range
	informed int64         // rows that know at least one fact
	facts    []entityFacts // by source: the current entity's
	states   [][][]windowStates
	rows     []row
	t, k     []int64 // times and known times of the rows, both ascending
	values   []exact.Result
	scratch
}

// entityFacts is the versions of one entity's facts that are ever current, in the order of their
// stamps (time, then key). Each is current from known times ks to ke, ke excluded.
type entityFacts struct {
	rows       []uint32
	at, ks, ke []int64
	values     []gathered // by column of the plan; only those that are aggregated
	match      [][]bool   // by condition of the source
	enter      []int32    // first row of the chain that has the fact, in any window
	leave      [][]int32  // by window: first row that no longer has it
}

// sweep computes the vectors of rows and passes them to emit. Tables must be grouped.
func (s *sweeper) sweep(ctx context.Context, rows []row) error {
	slices.SortFunc(rows, func(a, b row) int {
		switch { // cmp.Or would compare all of them
		case a.entity != b.entity:
			return cmp.Compare(a.entity, b.entity)
		case a.at != b.at:
			return cmp.Compare(a.at, b.at)
		}
		return cmp.Or(cmp.Compare(a.known, b.known), cmp.Compare(a.number, b.number))
	})
	s.used = make([]int64, len(s.plan.sources))
	s.facts = make([]entityFacts, len(s.plan.sources))
	s.states = make([][][]windowStates, len(s.plan.sources))
	for i, source := range s.plan.sources {
		s.facts[i].values = make([]gathered, len(source.columns))
		s.facts[i].match = make([][]bool, len(source.where))
		s.facts[i].leave = make([][]int32, len(source.windows))
		s.states[i] = make([][]windowStates, len(source.slots))
		for j, slot := range source.slots {
			s.states[i][j] = make([]windowStates, len(slot.windows))
		}
	}
	s.values = make([]exact.Result, len(s.plan.outputs))
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].entity == rows[0].entity {
			n++
		}
		s.entity(rows[:n])
		rows = rows[n:]
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// entity computes the vectors of one entity's rows.
func (s *sweeper) entity(rows []row) {
	for i, table := range s.tables {
		s.load(i, table, table.of(rows[0].entity))
	}
	// Along a chain, neither time nor known time falls, so that a version of a fact is in the vectors
	// of consecutive rows. Known times that are those of the rows, or all the same, are one chain.
	for len(rows) > 0 {
		s.rows, s.t, s.k = s.rows[:0], s.t[:0], s.k[:0]
		rest := rows[:0:0]
		for _, r := range rows {
			if n := len(s.k); n > 0 && r.known < s.k[n-1] {
				rest = append(rest, r)
				continue
			}
			s.rows, s.t, s.k = append(s.rows, r), append(s.t, r.at), append(s.k, r.known)
		}
		s.chain()
		rows = rest
	}
}

// timed is a row of a table and the time of its fact.
type timed struct {
	at  int64
	row uint32
}

// load prepares an entity's facts of one source.
func (s *sweeper) load(source int, t *table, rows []uint32) {
	f := &s.facts[source]
	s.used[source] += int64(len(rows))
	all, sorted := slices.Grow(s.timed[:0], len(rows)), true
	for i, r := range rows {
		all = append(all, timed{t.at(r), r})
		sorted = sorted && (i == 0 || all[i-1].at <= all[i].at)
	}
	s.timed = all
	if !sorted {
		slices.SortFunc(all, func(a, b timed) int { return cmp.Compare(a.at, b.at) })
	}
	f.rows, f.at, f.ks, f.ke = f.rows[:0], f.at[:0], f.ks[:0], f.ke[:0]
	for begin := 0; begin < len(all); {
		end := begin + 1
		for end < len(all) && all[end].at == all[begin].at {
			end++
		}
		// All versions of a fact have the same time. So a fact whose time nothing shares has one.
		if end == begin+1 {
			f.keep(t, all[begin], forever)
		} else {
			s.used[source] -= s.versions(f, t, all[begin:end])
		}
		begin = end
	}
	plan := s.plan.sources[source]
	for _, c := range plan.aggregated {
		f.values[c].gather(t, c, f.rows)
	}
	for i, where := range plan.where {
		f.match[i] = f.match[i][:0]
		for _, r := range f.rows {
			f.match[i] = append(f.match[i], where.matches(t, r))
		}
	}
}

// versions adds the versions of facts of one time that are ever current. It returns how many are copies,
// which a store may still have.
func (s *sweeper) versions(f *entityFacts, t *table, same []timed) (copies int64) {
	slices.SortFunc(same, func(a, b timed) int {
		if c := bytes.Compare(t.key(a.row), t.key(b.row)); c != 0 {
			return c
		}
		o, p := t.origin(a.row), t.origin(b.row)
		return cmp.Or(cmp.Compare(o.Offset, p.Offset), cmp.Compare(o.Index, p.Index))
	})
	// A version is current until a later one is known, however late or early that was recorded.
	s.until = slices.Grow(s.until[:0], len(same))[:len(same)]
	until := int64(forever)
	for i := len(same) - 1; i >= 0; i-- {
		switch {
		case i == len(same)-1 || !bytes.Equal(t.key(same[i+1].row), t.key(same[i].row)):
			until = forever
		case t.origin(same[i+1].row) == t.origin(same[i].row):
			copies++
		}
		s.until[i] = until
		until = min(until, t.known(same[i].row))
	}
	for i, v := range same {
		f.keep(t, v, s.until[i])
	}
	return copies
}

// keep adds a version of a fact that is current until a time, unless it never is.
func (f *entityFacts) keep(t *table, v timed, until int64) {
	if known := t.known(v.row); known < until && !t.retracted(v.row) {
		f.rows = append(f.rows, v.row)
		f.at, f.ks, f.ke = append(f.at, v.at), append(f.ks, known), append(f.ke, until)
	}
}

// chain computes the vectors of s.rows.
func (s *sweeper) chain() {
	enter := int32(len(s.rows)) // first row that knows a fact
	for i, source := range s.plan.sources {
		s.intervals(source, &s.facts[i])
		for _, first := range s.facts[i].enter {
			enter = min(enter, first)
		}
		for j, slot := range source.slots {
			for w, window := range slot.windows {
				s.aggregate(slot, &s.facts[i], s.facts[i].leave[window], &s.states[i][j][w])
			}
		}
	}
	s.informed += int64(len(s.rows)) - int64(enter)
	var states [2]exact.State
	for i, r := range s.rows {
		for n := range s.plan.outputs {
			o := &s.plan.outputs[n]
			for p, part := range o.parts {
				slot := s.plan.sources[part.source].slots[part.slot]
				s.states[part.source][part.slot][part.window].result(&states[p], slot, s.tables[part.source],
					&s.facts[part.source], i)
				states[p].Aggregate = part.aggregate
			}
			s.values[n] = o.group.Result(o.output, states[:len(o.parts)], time.UnixMicro(r.at))
		}
		s.emit(r, s.values)
	}
}

// intervals computes, for each version of a fact, the rows from which and until which it is in the
// vectors of the chain.
func (s *sweeper) intervals(source *sourcePlan, f *entityFacts) {
	n, m := len(f.rows), len(s.rows)
	f.enter = slices.Grow(f.enter[:0], n)[:n]
	next := s.next[:0] // by window: first row whose window is past the fact
	for w := range source.windows {
		f.leave[w] = slices.Grow(f.leave[w][:0], n)[:n]
		next = append(next, 0)
	}
	s.next = next
	first := 0 // row whose time is not before the fact's
	for i, at := range f.at {
		for first < m && s.t[first] < at {
			first++
		}
		enter := first
		if enter < m && s.k[enter] < f.ks[i] {
			enter += sort.Search(m-enter, func(j int) bool { return s.k[enter+j] >= f.ks[i] })
		}
		f.enter[i] = int32(enter)
		last := m
		if f.ke[i] != forever {
			last = sort.Search(m, func(j int) bool { return s.k[j] >= f.ke[i] })
		}
		for w, length := range source.windows {
			leave := last
			if length > 0 && at <= math.MaxInt64-length {
				for next[w] < m && s.t[next[w]] < at+length {
					next[w]++
				}
				leave = min(leave, next[w])
			}
			f.leave[w][i] = int32(leave)
		}
	}
}
