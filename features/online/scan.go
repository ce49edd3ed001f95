package online

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features/exact"
)

// workspace is the memory of one lookup. A cell is computed in one pass over the facts, from the
// newest to the oldest. The windows are nested, so the state of a window is that of the shorter one
// and the facts between the two edges, and a window that adds no fact has the same result.
type workspace struct {
	order   []place
	persons []int // indexes of entities that are one person with others
	copies  []copied
	terms   []term
	all     []text
	at      int64
	vector  *Vector

	// The source that is bound.
	layout *layout
	facts  *series
	end    int   // facts up to the time of the vector
	starts []int // by window: index of its first fact

	// Distinct: registers that are set, and their ranks.
	registers [exact.Registers]uint8
	touched   []uint16
	// Top: the place of a value in items.
	places map[uint64]int
	items  []item
	sorted []item
	// Quantile: how many values a bucket has, and the range of buckets that have any.
	buckets     [2*maxBucket + 1]int32
	first, last int32
	digits      []byte

	// The facts of a person: those of the members, the runs of one source, and the merged ones by source.
	shards          []int
	members         []entity
	runs            []*series
	merged          []series
	refs, otherRefs []ref
	ends            []int // of the runs in refs
	shifts          []shift
}

// item is a value and how often it occurs. A number is in bits.
type item struct {
	bits  uint64
	count int64
	text  string
}

// maxBucket is above the bucket of every number of 64 bits.
const maxBucket = 2500

func newWorkspace() *workspace { return &workspace{places: map[uint64]int{}} }

// bind selects the facts of a source and finds the edges of its windows.
func (w *workspace) bind(s *sourceScan, facts *series) {
	w.layout, w.facts = s.layout, facts
	w.end = w.after(w.at, len(facts.rows)/s.layout.stride)
	w.starts = w.starts[:0]
	before := w.end
	for _, length := range s.windows {
		if length == lifetime {
			before = 0
		} else {
			before = w.after(w.at-length, before)
		}
		w.starts = append(w.starts, before)
	}
}

// after returns the index of the first of n facts whose time is after t.
func (w *workspace) after(t int64, n int) int {
	lo, hi := 0, n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if int64(w.facts.rows[mid*w.layout.stride+wordAt]) <= t {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// set stores the result over a window.
func (w *workspace) set(c *cell, i int, r exact.Result, count int64) {
	w.vector.Values[c.outs[i].output] = r
	w.vector.Empty[c.outs[i].output] = count == 0
}

// same stores the result of the previous window over the i-th one.
func (w *workspace) same(c *cell, i int) {
	from, to := c.outs[i-1].output, c.outs[i].output
	if c.isTerm() {
		w.terms[to] = w.terms[from]
		return
	}
	w.vector.Values[to], w.vector.Empty[to] = w.vector.Values[from], w.vector.Empty[from]
}

// scan computes a cell over all of its windows.
func (w *workspace) scan(c *cell) {
	// Numbers of more than 64 bits are rare: their entities take the plain way.
	if len(w.facts.wide) > 0 {
		w.scanAny(c)
		return
	}
	switch c.aggregate {
	case exact.Count:
		w.scanCount(c)
	case exact.Sum, exact.Mean:
		w.scanSum(c)
	case exact.StdDev:
		w.scanDeviation(c)
	case exact.Min, exact.Max:
		w.scanExtreme(c)
	case exact.First, exact.Last:
		w.scanPick(c)
	case exact.Distinct:
		w.scanDistinct(c)
	case exact.Top:
		w.scanTop(c)
	case exact.Quantile:
		w.scanQuantile(c)
	}
}

// scanAny computes a cell with exact.State, for any values.
func (w *workspace) scanAny(c *cell) {
	state := exact.State{Aggregate: c.aggregate}
	i, stride := w.end, w.layout.stride
	for o := range c.outs {
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := w.facts.rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			// Rows are in the order of their stamps, so the place of a row stands for its key.
			stamp := exact.Stamp{At: int64(row[wordAt]), Key: string(binary.BigEndian.AppendUint64(nil, uint64(i)))}
			v := exact.IntValue(exact.FromInt64(stamp.At))
			if !c.age && c.index >= 0 {
				v = w.layout.value(row, c.index, w.all, w.facts.wide)
			}
			state.Add(stamp, v)
		}
		switch {
		case c.isTerm() && c.aggregate == exact.Count:
			w.terms[c.outs[o].output] = term{exact.FromInt64(state.Count), 0, state.Count}
		case c.isTerm():
			w.terms[c.outs[o].output] = term{state.Sum, c.finish.Scale, state.Count}
		case c.age && state.Count > 0:
			w.set(c, o, w.age(state.Pick.Stamp.At), state.Count)
		case c.age:
			w.set(c, o, exact.Result{}, 0)
		default:
			w.set(c, o, state.Result(c.finish), state.Count)
		}
	}
}

// age returns the seconds from a fact to the time of the vector.
func (w *workspace) age(at int64) exact.Result {
	const second = 1_000_000
	return exact.Result{Kind: exact.FloatResult,
		Float: exact.Quotient(exact.FromInt64(w.at-at), exact.FromInt64(second))}
}

func (w *workspace) scanCount(c *cell) {
	rows, stride := w.facts.rows, w.layout.stride
	i, count := w.end, int64(0)
	for o := range c.outs {
		start := w.starts[c.outs[o].window]
		if c.test == 0 {
			count, i = count+int64(i-start), start
		}
		for i > start {
			i--
			if rows[i*stride+wordFlags]&c.test == c.want {
				count++
			}
		}
		if c.isTerm() {
			w.terms[c.outs[o].output] = term{exact.FromInt64(count), 0, count}
			continue
		}
		w.set(c, o, exact.Result{Kind: exact.IntResult, Int: count}, count)
	}
}

func (w *workspace) scanSum(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i, count := w.end, int64(0)
	var lo, hi, carry uint64 // the sum in 128 bits
	for o := range c.outs {
		before := count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			v := row[word]
			lo, carry = bits.Add64(lo, v, 0)
			hi += uint64(int64(v)>>63) + carry
			count++
		}
		if o > 0 && count == before {
			w.same(c, o)
			continue
		}
		sign := uint64(int64(hi) >> 63)
		sum := exact.Int{lo, hi, sign, sign}
		if c.isTerm() {
			w.terms[c.outs[o].output] = term{sum, c.finish.Scale, count}
			continue
		}
		switch {
		case c.aggregate == exact.Sum:
			w.set(c, o, exact.Decimal(sum, c.finish.Scale), count)
		case count == 0:
			w.set(c, o, exact.Result{}, 0)
		default:
			w.set(c, o, exact.Average(sum, count, c.finish.Scale), count)
		}
	}
}

func (w *workspace) scanDeviation(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i := w.end
	state := exact.State{Aggregate: c.aggregate}
	var squares exact.Int
	for o := range c.outs {
		before := state.Count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			v := int64(row[word])
			size := uint64(v)
			if v < 0 {
				size = -size
			}
			hi, lo := bits.Mul64(size, size)
			var carry uint64
			squares[0], carry = bits.Add64(squares[0], lo, 0)
			squares[1], carry = bits.Add64(squares[1], hi, carry)
			squares[2] += carry
			state.Sum = state.Sum.Add(exact.FromInt64(v))
			state.Count++
		}
		if o > 0 && state.Count == before {
			w.same(c, o)
			continue
		}
		state.Squares = squares
		w.set(c, o, state.Result(c.finish), state.Count)
	}
}

func (w *workspace) scanExtreme(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i, count := w.end, int64(0)
	var best int64
	for o := range c.outs {
		before := count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			v := int64(row[word])
			if count == 0 || c.aggregate == exact.Min && v < best || c.aggregate == exact.Max && v > best {
				best = v
			}
			count++
		}
		if o > 0 && count == before {
			w.same(c, o)
			continue
		}
		if count == 0 {
			w.set(c, o, exact.Result{}, 0)
			continue
		}
		w.set(c, o, exact.Decimal(exact.FromInt64(best), c.finish.Scale), count)
	}
}

func (w *workspace) scanPick(c *cell) {
	rows, stride := w.facts.rows, w.layout.stride
	i, picked := w.end, -1
	for o := range c.outs {
		before := picked
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			if rows[i*stride+wordFlags]&c.test != c.want {
				continue
			}
			picked = i
			if c.aggregate == exact.Last {
				// Every older fact is behind the newest one, in longer windows, too.
				i = 0
			}
		}
		if o > 0 && picked == before {
			w.same(c, o)
			continue
		}
		if picked < 0 {
			w.set(c, o, exact.Result{}, 0)
			continue
		}
		row := rows[picked*stride : (picked+1)*stride]
		if c.age {
			w.set(c, o, w.age(int64(row[wordAt])), 1)
			continue
		}
		state := exact.State{Aggregate: c.aggregate, Count: 1,
			Pick: exact.Pick{Value: w.layout.value(row, c.index, w.all, nil)}}
		w.set(c, o, state.Result(c.finish), 1)
	}
}

func (w *workspace) scanDistinct(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i, count := w.end, int64(0)
	ranks := exact.EmptyRanks
	for o := range c.outs {
		before := count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			count++
			var hash uint64
			if c.column.text {
				hash = w.all[uint32(row[word]>>c.column.shift)].hash
			} else {
				w.digits = strconv.AppendInt(w.digits[:0], int64(row[word]), 10)
				hash = xxhash.Sum64(w.digits)
			}
			register, rank := exact.Register(hash)
			have := w.registers[register]
			if rank <= have {
				continue
			}
			if have == 0 {
				w.touched = append(w.touched, register)
			}
			w.registers[register] = rank
			ranks[have]--
			ranks[rank]++
		}
		if o > 0 && count == before {
			w.same(c, o)
			continue
		}
		r := exact.Result{Kind: exact.IntResult}
		if count > 0 {
			r.Int = ranks.Estimate()
		}
		w.set(c, o, r, count)
	}
	for _, register := range w.touched {
		w.registers[register] = 0
	}
	w.touched = w.touched[:0]
}

func (w *workspace) scanTop(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i, count := w.end, int64(0)
	for o := range c.outs {
		before := count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			count++
			bits := row[word]
			if c.column.text {
				bits = uint64(uint32(bits >> c.column.shift))
			}
			at, known := w.places[bits]
			if !known {
				at = len(w.items)
				w.places[bits] = at
				text := ""
				if c.column.text {
					text = w.all[bits].text
				} else {
					text = strconv.FormatInt(int64(bits), 10)
				}
				w.items = append(w.items, item{bits, 0, text})
			}
			w.items[at].count++
		}
		if o > 0 && count == before {
			w.same(c, o)
			continue
		}
		w.sorted = append(w.sorted[:0], w.items...)
		slices.SortFunc(w.sorted, func(a, b item) int {
			return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.text, b.text))
		})
		top := make([]string, min(c.finish.K, len(w.sorted)))
		for j := range top {
			top[j] = w.sorted[j].text
		}
		w.set(c, o, exact.Result{Kind: exact.TextsResult, Texts: top}, count)
	}
	clear(w.places)
	w.items = w.items[:0]
}

func (w *workspace) scanQuantile(c *cell) {
	rows, stride, word := w.facts.rows, w.layout.stride, c.column.word
	i, count := w.end, int64(0)
	w.first, w.last = maxBucket, -maxBucket
	for o := range c.outs {
		before := count
		for start := w.starts[c.outs[o].window]; i > start; {
			i--
			row := rows[i*stride : (i+1)*stride]
			if row[wordFlags]&c.test != c.want {
				continue
			}
			count++
			b := exact.Bucket(exact.FromInt64(int64(row[word])))
			w.buckets[b+maxBucket]++
			w.first, w.last = min(w.first, b), max(w.last, b)
		}
		switch {
		case o > 0 && count == before:
			w.same(c, o)
		case count == 0:
			w.set(c, o, exact.Result{}, 0)
		default:
			w.set(c, o, exact.Result{Kind: exact.FloatResult, Float: w.quantile(c, count)}, count)
		}
	}
	for b := w.first; b <= w.last; b++ {
		w.buckets[b+maxBucket] = 0
	}
}

// quantile returns the value of the bucket that contains the quantile of count values.
func (w *workspace) quantile(c *cell, count int64) float64 {
	rank := exact.QuantileRank(c.finish.Q, count)
	for b := w.first; b <= w.last; b++ {
		if rank -= int64(w.buckets[b+maxBucket]); rank < 0 {
			return exact.Middle(b) / exact.Float10(c.finish.Scale)
		}
	}
	return 0
}
