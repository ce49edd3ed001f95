package history

import (
	"context"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// maxMonths is the number of months that one insert may have rows of. ClickHouse refuses inserts into
// more than 100 partitions.
const maxMonths = 64

// month returns the partition of a time in microseconds, as toYYYYMM.
func month(at int64) int {
	year, month, _ := time.UnixMicro(at).UTC().Date()
	return year*100 + int(month)
}

// byMonths calls insert with parts of the items, which are sorted by month, such that no part has
// more than maxMonths. The parts depend on the items only.
func byMonths[T any](items []T, monthOf func(T) int, insert func(part int, items []T) error) error {
	begin, months, last := 0, 0, 0
	part := 0
	for i := range items {
		if month := monthOf(items[i]); i == 0 || month != last {
			last = month
			if months++; months > maxMonths {
				if err := insert(part, items[begin:i]); err != nil {
					return err
				}
				begin, months = i, 1
				part++
			}
		}
	}
	if begin == len(items) {
		return nil
	}
	return insert(part, items[begin:])
}

// insertFacts inserts the facts of a batch.
func (w *writer) insertFacts(ctx context.Context, batch uint64, facts []features.Fact) error {
	monthOf := func(f features.Fact) int { return month(f.At.UnixMicro()) }
	byMonth := func(a, b features.Fact) int { return monthOf(a) - monthOf(b) }
	if !slices.IsSortedFunc(facts, byMonth) { // the facts of most batches are of one month
		facts = slices.Clone(facts)
		slices.SortStableFunc(facts, byMonth)
	}
	err := byMonths(facts, monthOf, func(part int, facts []features.Fact) error {
		token := fmt.Sprintf("%d/%d", batch, part)
		if w.rows == nil {
			var err error
			if w.rows, err = w.cfg.Store.Batch(w.source.facts, token); err != nil {
				return err
			}
		} else {
			w.rows.Reset(token)
		}
		for i, values := range w.columns.fill(w.source, batch, facts) {
			if err := w.rows.Column(i).Append(values); err != nil {
				return err
			}
		}
		return w.rows.Send(ctx)
	})
	// Without a backlog, the memory is not needed soon. After an error, the client may still read it.
	if err != nil || len(facts) < w.cfg.CommitFacts {
		w.rows, w.columns = nil, factColumns{}
	}
	if err != nil {
		return fmt.Errorf("insert the facts of batch %d: %w", batch, err)
	}
	return nil
}

// factColumns are the columns of facts in their table. Inserting them column by column is several
// times faster than row by row. It keeps its memory for the next facts.
type factColumns struct {
	entities, keys      []string
	at, known           []time.Time
	retracted           []uint8
	partitions, indexes []int32
	offsets             []int64
	batches             []uint64
	// By column of the source: those of its kind. A nil is null.
	texts   [][]*string
	numbers [][]*big.Int
	small   [][]big.Int // what numbers point to, of numbers that fit an int64
}

// fill makes the columns those of the facts of a batch. It returns them in the order of the table,
// as slices.
func (c *factColumns) fill(s *source, batch uint64, facts []features.Fact) []any {
	n := len(facts)
	c.entities, c.keys, c.at, c.known = sized(c.entities, n), sized(c.keys, n), sized(c.at, n), sized(c.known, n)
	c.retracted, c.partitions, c.offsets = sized(c.retracted, n), sized(c.partitions, n), sized(c.offsets, n)
	c.indexes, c.batches = sized(c.indexes, n), sized(c.batches, n)
	for i := range facts {
		f := &facts[i]
		c.entities[i], c.keys[i], c.at[i], c.known[i], c.batches[i] = f.Entity, f.Key, f.At, f.Known, batch
		c.partitions[i], c.offsets[i], c.indexes[i] = f.Origin.Partition, f.Origin.Offset, f.Origin.Index
		c.retracted[i] = 0
		if f.Retracted {
			c.retracted[i] = 1
		}
	}
	all := []any{c.entities, c.keys, c.at, c.known, c.retracted, c.partitions, c.offsets, c.indexes, c.batches}
	c.texts, c.numbers, c.small = sized(c.texts, len(s.Columns)), sized(c.numbers, len(s.Columns)), sized(c.small, len(s.Columns))
	for at := range s.Columns {
		if s.Columns[at].Kind == exact.Text {
			c.texts[at] = sized(c.texts[at], n)
			for i := range facts {
				c.texts[at][i] = nil
				if v := &facts[i].Values[at]; v.Kind == exact.Text {
					c.texts[at][i] = &v.Text
				}
			}
			all = append(all, c.texts[at])
			continue
		}
		c.numbers[at], c.small[at] = sized(c.numbers[at], n), sized(c.small[at], n)
		for i := range facts {
			c.numbers[at][i] = nil
			if v := &facts[i].Values[at]; v.Kind == exact.Number {
				if small, ok := v.Int.Int64(); ok { // almost always
					c.numbers[at][i] = c.small[at][i].SetInt64(small)
				} else {
					c.numbers[at][i] = v.Int.Big()
				}
			}
		}
		all = append(all, c.numbers[at])
	}
	return all
}

// sized returns a slice of n elements, in the memory of s if that is enough. The elements may have
// any values.
func sized[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }

// selectFacts are the columns that readFacts reads.
func (s *source) selectFacts() string {
	var b strings.Builder
	b.WriteString("entity, fact_key, toUnixTimestamp64Micro(at), toUnixTimestamp64Micro(known_at), retracted, " +
		"log_partition, log_offset, log_index, batch")
	for _, c := range s.Columns {
		b.WriteString(", `" + columnName(c) + "`")
	}
	return b.String()
}

// readFacts calls each with the facts that a query returns, and the batch of each.
func (h *History) readFacts(ctx context.Context, s *source, query string,
	each func(f features.Fact, batch uint64) error) error {
	rows, err := h.cfg.Store.Query(ctx, query)
	if err != nil {
		return fmt.Errorf("read facts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	var f features.Fact
	var at, known int64
	var retracted uint8
	var batch uint64
	numbers, texts := make([]*big.Int, len(s.Columns)), make([]*string, len(s.Columns))
	into := []any{&f.Entity, &f.Key, &at, &known, &retracted, &f.Origin.Partition, &f.Origin.Offset, &f.Origin.Index, &batch}
	for i, c := range s.Columns {
		if c.Kind == exact.Text {
			into = append(into, &texts[i])
		} else {
			into = append(into, &numbers[i])
		}
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("read facts: %w", err)
		}
		f.At, f.Known, f.Retracted = time.UnixMicro(at).UTC(), time.UnixMicro(known).UTC(), retracted != 0
		f.Origin.Topic = s.Topic
		f.Values = make([]exact.Value, len(s.Columns))
		for i, c := range s.Columns {
			switch {
			case c.Kind == exact.Text && texts[i] != nil:
				f.Values[i] = exact.TextValue(*texts[i])
			case c.Kind == exact.Number && numbers[i] != nil:
				n, err := exact.FromBig(numbers[i])
				if err != nil {
					return fmt.Errorf("column %s: %w", c.Name, err)
				}
				f.Values[i] = exact.IntValue(n)
			}
		}
		if err := each(f, batch); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read facts: %w", err)
	}
	return nil
}

// tileKey names a tile.
type tileKey struct {
	entity string
	level  level
	start  int64 // microseconds since 1970
}

// tile is the states of a group's aggregates over the facts in a tile.
type tile struct {
	key    tileKey
	upto   uint64 // the last batch that it has facts of
	facts  int64
	states []exact.State // of the parts
}

// newTile returns an empty tile.
func (t *tiles) newTile(key tileKey) *tile {
	out := &tile{key: key, states: make([]exact.State, len(t.parts))}
	for i, p := range t.parts {
		out.states[i].Aggregate = p.feature.Aggregate
	}
	return out
}

// add adds a fact. Retractions are not in tiles: they are corrections, so that the tile is not used
// for the entity any more.
func (t *tiles) add(to []exact.State, f features.Fact) {
	for i, p := range t.parts {
		if p.feature.Matches(&t.source.Source, f.Values) {
			p.feature.Add(&to[i], p.column, f)
		}
	}
}

// aggregate returns the tiles of some facts, sorted by month.
func (t *tiles) aggregate(facts []features.Fact, batch uint64, levels ...level) []*tile {
	byKey := map[tileKey]*tile{}
	for _, f := range facts {
		if f.Retracted {
			continue
		}
		for _, l := range levels {
			key := tileKey{f.Entity, l, l.floor(f.At.UnixMicro())}
			to := byKey[key]
			if to == nil {
				to = t.newTile(key)
				to.upto = batch
				byKey[key] = to
			}
			to.facts++
			t.add(to.states, f)
		}
	}
	all := make([]*tile, 0, len(byKey))
	for _, one := range byKey {
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b *tile) int { return month(a.key.start) - month(b.key.start) })
	return all
}

// insertTiles inserts the tiles of a batch, or of a part of the facts, under a token.
func (h *History) insertTiles(ctx context.Context, t *tiles, token string, all []*tile) error {
	return byMonths(all, func(one *tile) int { return month(one.key.start) }, func(part int, all []*tile) error {
		b, err := h.cfg.Store.Batch(t.table, fmt.Sprintf("%s/%d", token, part))
		if err != nil {
			return err
		}
		for _, one := range all {
			if err := b.Append(t.row(one)...); err != nil {
				return err
			}
		}
		if err := b.Send(ctx); err != nil {
			return fmt.Errorf("insert tiles: %w", err)
		}
		return nil
	})
}

// row returns the values of a tile's row.
func (t *tiles) row(one *tile) []any {
	row := []any{one.key.entity, names[one.key.level], time.UnixMicro(one.key.start).UTC(), one.upto, one.facts}
	for i, p := range t.parts {
		row = append(row, p.values(&one.states[i])...)
	}
	return row
}

// The neutral elements of min and max: an empty state has them, and merging changes nothing.
var (
	lowest  = new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 254))
	highest = new(big.Int).Lsh(big.NewInt(1), 254)
)

// values returns the values of a part's columns.
func (p part) values(s *exact.State) []any {
	values := []any{s.Count}
	switch s.Aggregate {
	case exact.Sum, exact.Mean:
		values = append(values, s.Sum.Big())
	case exact.StdDev:
		values = append(values, s.Sum.Big(), s.Squares.Big())
	case exact.Min:
		if s.Count == 0 {
			return append(values, highest)
		}
		values = append(values, s.Min.Big())
	case exact.Max:
		if s.Count == 0 {
			return append(values, lowest)
		}
		values = append(values, s.Max.Big())
	case exact.First, exact.Last:
		at := s.Pick.Stamp.At
		if s.Count == 0 {
			if at = math.MaxInt64; s.Aggregate == exact.Last {
				at = math.MinInt64
			}
		}
		if p.text {
			return append(values, []any{at, s.Pick.Stamp.Key, s.Pick.Value.Text})
		}
		values = append(values, []any{at, s.Pick.Stamp.Key, s.Pick.Value.Int.Big()})
	case exact.Distinct:
		values = append(values, orEmpty(s.Registers))
	case exact.Top:
		values = append(values, orEmpty(s.Items))
	case exact.Quantile:
		values = append(values, orEmpty(s.Buckets))
	}
	return values
}

// orEmpty returns an empty map for nil, which the driver would refuse.
func orEmpty[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return m
}

// selectTiles are the columns that readTiles reads.
func (t *tiles) selectTiles() string {
	var b strings.Builder
	b.WriteString("entity, toInt8(level), toUnixTimestamp64Micro(tile), upto, facts")
	for _, p := range t.parts {
		for _, c := range p.columns() {
			switch {
			case strings.HasPrefix(c.kind, "Tuple"): // the driver cannot scan an Int256 in a tuple
				fmt.Fprintf(&b, ", `%[1]s`.1, `%[1]s`.2, `%[1]s`.3", c.name)
			default:
				fmt.Fprintf(&b, ", `%s`", c.name)
			}
		}
	}
	return b.String()
}

// scanned are the values of a part's columns.
type scanned struct {
	count      int64
	one, other big.Int
	at         int64
	key, text  string
	registers  map[uint16]uint8
	items      map[string]int64
	buckets    map[int32]int64
}

// into returns where to scan the values of a part's columns.
func (p part) into(v *scanned) []any {
	into := []any{&v.count}
	switch p.feature.Aggregate {
	case exact.Sum, exact.Mean, exact.Min, exact.Max:
		into = append(into, &v.one)
	case exact.StdDev:
		into = append(into, &v.one, &v.other)
	case exact.First, exact.Last:
		if into = append(into, &v.at, &v.key, &v.one); p.text {
			into[3] = &v.text
		}
	case exact.Distinct:
		into = append(into, &v.registers)
	case exact.Top:
		into = append(into, &v.items)
	case exact.Quantile:
		into = append(into, &v.buckets)
	}
	return into
}

// state returns the state that a part's columns have.
func (p part) state(v *scanned) (exact.State, error) {
	s := exact.State{Aggregate: p.feature.Aggregate, Count: v.count}
	if v.count == 0 {
		return s, nil
	}
	one, err := exact.FromBig(&v.one)
	if err != nil {
		return s, fmt.Errorf("%s: %w", p.name, err)
	}
	switch s.Aggregate {
	case exact.Sum, exact.Mean:
		s.Sum = one
	case exact.StdDev:
		s.Sum = one
		if s.Squares, err = exact.FromBig(&v.other); err != nil {
			return s, fmt.Errorf("%s: %w", p.name, err)
		}
	case exact.Min:
		s.Min = one
	case exact.Max:
		s.Max = one
	case exact.First, exact.Last:
		s.Pick = exact.Pick{Stamp: exact.Stamp{At: v.at, Key: v.key}, Value: exact.IntValue(one)}
		if p.text {
			s.Pick.Value = exact.TextValue(v.text)
		}
	case exact.Distinct:
		s.Registers = v.registers
	case exact.Top:
		s.Items = v.items
	case exact.Quantile:
		s.Buckets = v.buckets
	}
	return s, nil
}

// readTiles calls each with the tiles that a query returns. Rows of the same tile are merged by the
// caller.
func (h *History) readTiles(ctx context.Context, t *tiles, query string, each func(*tile) error) error {
	rows, err := h.cfg.Store.Query(ctx, query)
	if err != nil {
		return fmt.Errorf("read tiles: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	for rows.Next() {
		one := t.newTile(tileKey{})
		var at int8
		values := make([]scanned, len(t.parts))
		into := []any{&one.key.entity, &at, &one.key.start, &one.upto, &one.facts}
		for i, p := range t.parts {
			into = append(into, p.into(&values[i])...)
		}
		if err := rows.Scan(into...); err != nil {
			return fmt.Errorf("read tiles: %w", err)
		}
		one.key.level = level(at)
		for i, p := range t.parts {
			if one.states[i], err = p.state(&values[i]); err != nil {
				return fmt.Errorf("read tiles: %w", err)
			}
		}
		if err := each(one); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read tiles: %w", err)
	}
	return nil
}

// literal returns a text as a literal of SQL.
func literal(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// literals returns a list of literals.
func literals(all []string) string {
	var b strings.Builder
	for i, s := range all {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(literal(s))
	}
	return b.String()
}

// instantOf returns a time in microseconds as an expression of SQL.
func instantOf(at int64) string { return fmt.Sprintf("fromUnixTimestamp64Micro(%d, 'UTC')", at) }
