package training

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// plan is what to compute, compiled once for all ranges: only the columns that an output needs are
// read, and outputs share the work that they have in common.
type plan struct {
	sources []*sourcePlan
	outputs []outputPlan
}

// sourcePlan is what to compute of the facts of one source.
type sourcePlan struct {
	source     *features.Source
	columns    []int   // of the source, those that are needed
	aggregated []int   // of columns, those that a slot aggregates
	windows    []int64 // distinct lengths in microseconds; 0 is a lifetime
	where      []where // distinct conditions
	slots      []*slot
}

// where is the conditions of a feature.
type where struct {
	conditions []features.Condition
	columns    []int // of the source plan, by condition
}

// slot is one aggregate of one column under one condition, over one or more windows.
type slot struct {
	feature   *features.Feature // a feature with this aggregate; windows, K and Q may differ
	aggregate exact.Aggregate   // Sum for means, too: the states are the same
	column    int               // index in sourcePlan.columns, or -1
	where     int               // index in sourcePlan.where, or -1 without a condition
	windows   []int             // indexes in sourcePlan.windows
}

// outputPlan says where the states of an output are.
type outputPlan struct {
	groupOutput
	parts []part
}

// part is one state of an output.
type part struct {
	source, slot, window int // window is an index in slot.windows
	aggregate            exact.Aggregate
}

// compile returns the plan for outputs. Sources of the same name are the same.
func compile(outputs []groupOutput) (*plan, error) {
	p := &plan{}
	for _, o := range outputs {
		op := outputPlan{groupOutput: o}
		for i := range o.group.States(o.output) {
			f := features.Part(o.output.Feature, i)
			source, err := p.source(o.group.Source(f.Source))
			if err != nil {
				return nil, err
			}
			s := p.sources[source]
			n := s.slot(f)
			op.parts = append(op.parts, part{
				source, n, index(&s.slots[n].windows, index(&s.windows, microseconds(o.output.Window))), f.Aggregate})
		}
		p.outputs = append(p.outputs, op)
	}
	return p, nil
}

// source returns the index of a source.
func (p *plan) source(s *features.Source) (int, error) {
	for i, have := range p.sources {
		if have.source.Name == s.Name {
			if have.source.Topic != s.Topic || !slices.Equal(have.source.Columns, s.Columns) {
				return 0, fail("two groups define source %s differently", s.Name)
			}
			return i, nil
		}
	}
	p.sources = append(p.sources, &sourcePlan{source: s})
	return len(p.sources) - 1, nil
}

// slot returns the index of the slot of a feature.
func (s *sourcePlan) slot(f *features.Feature) int {
	n := &slot{feature: f, aggregate: f.Aggregate, column: -1, where: -1}
	if n.aggregate == exact.Mean {
		n.aggregate = exact.Sum
	}
	if f.Column != "" {
		n.column = index(&s.columns, s.source.Index(f.Column))
		index(&s.aggregated, n.column)
	}
	if len(f.Where) > 0 {
		w := where{conditions: f.Where}
		for _, c := range f.Where {
			w.columns = append(w.columns, index(&s.columns, s.source.Index(c.Column)))
		}
		same := func(have where) bool { return fmt.Sprint(have.conditions) == fmt.Sprint(f.Where) }
		if n.where = slices.IndexFunc(s.where, same); n.where < 0 {
			n.where = len(s.where)
			s.where = append(s.where, w)
		}
	}
	for i, have := range s.slots {
		if have.aggregate == n.aggregate && have.column == n.column && have.where == n.where &&
			have.feature.Age == f.Age {
			return i
		}
	}
	s.slots = append(s.slots, n)
	return len(s.slots) - 1
}

// index returns the index of a value, which it appends if it is missing.
func index[T comparable](all *[]T, value T) int {
	i := slices.Index(*all, value)
	if i < 0 {
		i = len(*all)
		*all = append(*all, value)
	}
	return i
}

func microseconds(w features.Window) int64 { return time.Duration(w).Microseconds() }

// request returns a request for the facts that rows from first to last need.
func (s *sourcePlan) request(r Range, upto map[int32]int64, first, last int64) Request {
	req := Request{Source: s.source, Columns: s.columns, Range: r, Upto: upto, After: math.MinInt64, Until: last}
	longest := slices.Max(s.windows)
	if !slices.Contains(s.windows, 0) && first > math.MinInt64+longest {
		req.After = first - longest
	}
	return req
}

// matches reports whether row i of a table meets the conditions.
func (w where) matches(t *table, row uint32) bool {
	for i, c := range w.conditions {
		if !c.Holds(t.value(w.columns[i], row)) {
			return false
		}
	}
	return true
}
