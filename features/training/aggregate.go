package training

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"github.com/millrace/millrace/features/exact"
)

// windowStates is the states of one slot and window for the rows of a chain.
type windowStates struct {
	// Count, Sum, StdDev: sums up to each row of what enters and leaves there. The sums are in small if
	// the column is.
	count, small []int64
	sum, squares []exact.Int
	// Min, Max, First, Last: the index of a version of a fact, or -1.
	pick []int32
	// Distinct, Top, Quantile: the state at row at, which facts enter and leave as at moves on.
	state          exact.State
	at             int
	entering       []int32
	leaving        []int32
	enters, leaves []int32          // by fact
	ranks          map[uint32]int64 // Distinct: how many values have a register and a rank
}

// scratch is memory that the next slot uses again.
type scratch struct {
	timed  []timed
	until  []int64
	next   []int
	levels [][]int32
}

// aggregate computes the states of a slot and window for all rows. leave is that of the window.
func (s *sweeper) aggregate(slot *slot, f *entityFacts, leave []int32, to *windowStates) {
	match := []bool(nil)
	if slot.where >= 0 {
		match = f.match[slot.where]
	}
	switch slot.aggregate {
	case exact.Count, exact.Sum, exact.StdDev:
		to.sums(slot, f, match, leave, len(s.rows))
	case exact.Min, exact.Max, exact.First, exact.Last:
		s.picks(slot, f, match, leave, to)
	default:
		to.queue(slot, f, match, leave)
	}
}

// gathered is an entity's values of one column.
type gathered struct {
	null []bool // nil: none
	ints []int64
	wide []exact.Int // nil: all numbers are in ints
	// small means that the sum of any of the values is an int64.
	small bool
}

// gather collects the values of a column in the order of rows.
func (g *gathered) gather(t *table, column int, rows []uint32) {
	g.ints, g.null, g.wide = g.ints[:0], g.null[:0], g.wide[:0]
	nulls, wide := false, false
	least, most := int64(0), int64(0)
	for _, r := range rows {
		c := &t.chunks[r>>chunkBits].values[column]
		v := c.ints[r&(chunkRows-1)]
		g.ints = append(g.ints, v)
		least, most = min(least, v), max(most, v)
		nulls, wide = nulls || c.null != nil, wide || c.wide != nil
	}
	limit := math.MaxInt64 / int64(len(rows)+1)
	g.small = !wide && least >= -limit && most <= limit
	if nulls {
		for _, r := range rows {
			c := &t.chunks[r>>chunkBits].values[column]
			g.null = append(g.null, c.null != nil && c.null[r&(chunkRows-1)])
		}
	}
	if wide {
		for _, r := range rows {
			c, i := &t.chunks[r>>chunkBits].values[column], r&(chunkRows-1)
			if c.wide != nil {
				g.wide = append(g.wide, c.wide[i])
			} else {
				g.wide = append(g.wide, exact.FromInt64(c.ints[i]))
			}
		}
	}
}

// isNull reports whether value i is null.
func (g *gathered) isNull(i int) bool { return len(g.null) > 0 && g.null[i] }

// number returns value i.
func (g *gathered) number(i int) exact.Int {
	if len(g.wide) > 0 {
		return g.wide[i]
	}
	return exact.FromInt64(g.ints[i])
}

// square returns the square of value i.
func (g *gathered) square(i int) exact.Int {
	if len(g.wide) > 0 {
		return g.wide[i].Mul(g.wide[i])
	}
	v := uint64(g.ints[i])
	if g.ints[i] < 0 {
		v = -v
	}
	hi, lo := bits.Mul64(v, v)
	return exact.Int{lo, hi}
}

// compare compares two values.
func (g *gathered) compare(i, j int32) int {
	if len(g.wide) > 0 {
		return g.wide[i].Compare(g.wide[j])
	}
	return cmp.Compare(g.ints[i], g.ints[j])
}

// cleared returns a slice of n zeros, in the memory of s if it is large enough.
func cleared[T any](s []T, n int) []T {
	s = slices.Grow(s[:0], n)[:n]
	clear(s)
	return s
}

// sums computes counts and sums: each fact is added at its first row and subtracted after its last.
func (w *windowStates) sums(slot *slot, f *entityFacts, match []bool, leave []int32, rows int) {
	w.count = cleared(w.count, rows+1)
	if slot.column < 0 {
		for i, enter := range f.enter {
			if enter < leave[i] && (match == nil || match[i]) {
				w.count[enter]++
				w.count[leave[i]]--
			}
		}
		accumulate(w.count)
		return
	}
	values := &f.values[slot.column]
	if values.small {
		w.small = cleared(w.small, rows+1)
	} else {
		w.sum = cleared(w.sum, rows+1)
	}
	squares := slot.aggregate == exact.StdDev
	if squares {
		w.squares = cleared(w.squares, rows+1)
	}
	for i, enter := range f.enter {
		if enter >= leave[i] || match != nil && !match[i] || values.isNull(i) {
			continue
		}
		w.count[enter]++
		w.count[leave[i]]--
		if values.small {
			w.small[enter] += values.ints[i]
			w.small[leave[i]] -= values.ints[i]
		} else {
			v := values.number(i)
			w.sum[enter] = w.sum[enter].Add(v)
			w.sum[leave[i]] = w.sum[leave[i]].Sub(v)
		}
		if squares {
			v := values.square(i)
			w.squares[enter] = w.squares[enter].Add(v)
			w.squares[leave[i]] = w.squares[leave[i]].Sub(v)
		}
	}
	accumulate(w.count)
	if values.small {
		accumulate(w.small)
	} else {
		accumulateWide(w.sum)
	}
	if squares {
		accumulateWide(w.squares)
	}
}

// accumulate replaces each value by the sum up to it.
func accumulate(values []int64) {
	for i := 1; i < len(values); i++ {
		values[i] += values[i-1]
	}
}

// accumulateWide is accumulate for values of 256 bits.
func accumulateWide(values []exact.Int) {
	for i := 1; i < len(values); i++ {
		values[i] = values[i].Add(values[i-1])
	}
}

// picks computes which fact has the minimum, the maximum, or is first or last. An interval of rows is
// the union of two whose length is a power of two, and the best of a union is the better of both. So
// each fact is noted twice, and each noted pick is passed on to the halves of its interval.
func (s *sweeper) picks(slot *slot, f *entityFacts, match []bool, leave []int32, to *windowStates) {
	var values *gathered
	if slot.column >= 0 {
		values = &f.values[slot.column]
	}
	better := func(a, b int32) bool { return a > b } // Last: facts are in the order of their stamps
	switch slot.aggregate {
	case exact.First:
		better = func(a, b int32) bool { return a < b }
	case exact.Min:
		better = func(a, b int32) bool { return values.compare(a, b) < 0 }
	case exact.Max:
		better = func(a, b int32) bool { return values.compare(a, b) > 0 }
	}
	rows := len(s.rows)
	top := bits.Len(uint(rows)) - 1
	for len(s.levels) <= top {
		s.levels = append(s.levels, nil)
	}
	for j := range top + 1 {
		s.levels[j] = slices.Grow(s.levels[j][:0], rows)[:rows]
		for i := range s.levels[j] {
			s.levels[j][i] = -1
		}
	}
	note := func(at *int32, fact int32) {
		if *at < 0 || better(fact, *at) {
			*at = fact
		}
	}
	for i, enter := range f.enter {
		if enter >= leave[i] || match != nil && !match[i] || values != nil && values.isNull(i) {
			continue
		}
		j := bits.Len32(uint32(leave[i]-enter)) - 1
		note(&s.levels[j][enter], int32(i))
		note(&s.levels[j][leave[i]-1<<j], int32(i))
	}
	for j := top; j > 0; j-- {
		for i, fact := range s.levels[j] {
			if fact >= 0 {
				note(&s.levels[j-1][i], fact)
				note(&s.levels[j-1][i+1<<(j-1)], fact)
			}
		}
	}
	to.pick = append(to.pick[:0], s.levels[0]...)
}

// queue prepares the state of a multiset: facts in the orders in which they enter and leave.
func (w *windowStates) queue(slot *slot, f *entityFacts, match []bool, leave []int32) {
	w.at = -1
	w.entering, w.enters, w.leaves = w.entering[:0], f.enter, leave
	for i, enter := range f.enter {
		if enter < leave[i] && (match == nil || match[i]) && !f.values[slot.column].isNull(i) {
			w.entering = append(w.entering, int32(i))
		}
	}
	w.leaving = append(w.leaving[:0], w.entering...)
	for order, row := range map[*[]int32][]int32{&w.entering: f.enter, &w.leaving: leave} {
		less := func(a, b int32) int { return cmp.Compare(row[a], row[b]) }
		if !slices.IsSortedFunc(*order, less) {
			slices.SortStableFunc(*order, less)
		}
	}
	registers, items, buckets := w.state.Registers, w.state.Items, w.state.Buckets
	clear(registers)
	clear(items)
	clear(buckets)
	clear(w.ranks)
	w.state = exact.State{Aggregate: slot.aggregate, Registers: registers, Items: items, Buckets: buckets}
	if w.state.Registers == nil && slot.aggregate == exact.Distinct {
		w.state.Registers, w.ranks = map[uint16]uint8{}, map[uint32]int64{}
	}
	if w.state.Buckets == nil && slot.aggregate == exact.Quantile {
		w.state.Buckets = map[int32]int64{}
	}
	if w.state.Items == nil && slot.aggregate == exact.Top {
		w.state.Items = map[string]int64{}
	}
}

// advance moves the state of a multiset to a row.
func (w *windowStates) advance(t *table, slot *slot, f *entityFacts, row int) {
	for ; w.at < row; w.at++ {
		for len(w.leaving) > 0 && int(w.leaves[w.leaving[0]]) <= w.at+1 {
			// It has entered, because intervals are not empty.
			w.change(t.value(slot.column, f.rows[w.leaving[0]]), -1)
			w.leaving = w.leaving[1:]
		}
		for len(w.entering) > 0 && int(w.enters[w.entering[0]]) <= w.at+1 {
			w.change(t.value(slot.column, f.rows[w.entering[0]]), 1)
			w.entering = w.entering[1:]
		}
	}
}

// change adds a value (by 1) or subtracts it (by -1).
func (w *windowStates) change(v exact.Value, by int64) {
	w.state.Count += by
	switch w.state.Aggregate {
	case exact.Top:
		item := v.String()
		if w.state.Items[item] += by; w.state.Items[item] == 0 {
			delete(w.state.Items, item)
		}
	case exact.Quantile:
		b := exact.Bucket(v.Int)
		if w.state.Buckets[b] += by; w.state.Buckets[b] == 0 {
			delete(w.state.Buckets, b)
		}
	case exact.Distinct:
		register, rank := exact.Register(exact.Hash(v))
		id := func(rank uint8) uint32 { return uint32(register)<<8 | uint32(rank) }
		w.ranks[id(rank)] += by
		highest := max(w.state.Registers[register], rank)
		for highest > 0 && w.ranks[id(highest)] == 0 {
			delete(w.ranks, id(highest))
			highest--
		}
		if highest == 0 {
			delete(w.state.Registers, register)
		} else {
			w.state.Registers[register] = highest
		}
	}
}

// result sets to to the state for a row. Rows are asked for in their order.
func (w *windowStates) result(to *exact.State, slot *slot, t *table, f *entityFacts, row int) {
	switch slot.aggregate {
	case exact.Count, exact.Sum, exact.StdDev:
		*to = exact.State{Aggregate: slot.aggregate, Count: w.count[row]}
		switch {
		case slot.column < 0:
		case f.values[slot.column].small:
			to.Sum = exact.FromInt64(w.small[row])
		default:
			to.Sum = w.sum[row]
		}
		if slot.aggregate == exact.StdDev {
			to.Squares = w.squares[row]
		}
	case exact.Min, exact.Max, exact.First, exact.Last:
		*to = exact.State{Aggregate: slot.aggregate}
		i := w.pick[row]
		if i < 0 {
			return
		}
		to.Count = 1 // how many does not matter
		switch {
		case slot.aggregate == exact.Min:
			to.Min = f.values[slot.column].number(int(i))
		case slot.aggregate == exact.Max:
			to.Max = f.values[slot.column].number(int(i))
		case slot.column < 0: // an age
			to.Pick.Stamp.At = f.at[i]
		default:
			to.Pick = exact.Pick{Stamp: exact.Stamp{At: f.at[i]}, Value: t.value(slot.column, f.rows[i])}
		}
	default:
		w.advance(t, slot, f, row)
		*to = w.state
	}
}
