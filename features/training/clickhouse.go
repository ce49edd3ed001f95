package training

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
)

// Layout says where features/history keeps the facts of sources in ClickHouse.
type Layout interface {
	// FactsTable returns the quoted name of the table of a source.
	FactsTable(source string) string
	// FactsColumn returns the quoted name of the column that has a column of a source.
	FactsColumn(c features.Column) string
	// FactsPositions returns the next offset of each partition up to which the table has the facts.
	FactsPositions(ctx context.Context, source string) (map[int32]int64, error)
}

// ClickHouse is Facts in the tables of features/history. The tables are ordered by entity, so blocks
// have the facts of an entity beside each other; the join groups them anyway, so no query sorts.
type ClickHouse struct {
	Store  Columns
	Layout Layout
	// Timeout bounds each query. 0 means readTimeout.
	Timeout time.Duration
}

// Columns runs queries, such as a clickhouse.Store.
type Columns interface {
	// Columns passes the answer to each, block by block; see clickhouse.Store.
	Columns(ctx context.Context, sql string, columns []any, each func(rows int) error) error
}

// readTimeout bounds the query that reads the facts of a range.
const readTimeout = time.Hour

// Positions implements Facts. Sources of one topic are filled independently, so a topic's positions
// are those that all of them have reached.
func (c *ClickHouse) Positions(ctx context.Context, sources []*features.Source) (Positions, error) {
	p := Positions{}
	for _, s := range sources {
		next, err := c.Layout.FactsPositions(ctx, s.Name)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", s.Name, err)
		}
		have, ok := p[s.Topic]
		if !ok {
			p[s.Topic] = next
			continue
		}
		both := map[int32]int64{}
		for partition, n := range have {
			both[partition] = min(n, next[partition])
		}
		p[s.Topic] = both
	}
	return p, nil
}

// Count implements Facts. It counts all rows of the table, which ClickHouse knows without reading them.
func (c *ClickHouse) Count(ctx context.Context, r Request) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	var count []int64
	total := int64(0)
	err := c.Store.Columns(ctx, "SELECT toInt64(count()) FROM "+c.Layout.FactsTable(r.Source.Name), []any{&count},
		func(int) error {
			total += count[0]
			return nil
		})
	return total, err
}

func (c *ClickHouse) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return readTimeout
}

// from returns the clauses that select the facts of a request.
func (c *ClickHouse) from(r Request) string {
	var below []string
	for _, p := range slices.Sorted(maps.Keys(r.Upto)) {
		below = append(below, fmt.Sprintf("log_partition = %d AND log_offset < %d", p, r.Upto[p]))
	}
	where := []string{"0"}
	if len(below) > 0 {
		where[0] = "(" + strings.Join(below, " OR ") + ")"
	}
	if r.Range.From != "" {
		where = append(where, "entity >= "+bytesOf(r.Range.From))
	}
	if r.Range.Before != "" {
		where = append(where, "entity < "+bytesOf(r.Range.Before))
	}
	if r.Entities != nil {
		entities := make([]string, len(r.Entities))
		for i, e := range r.Entities {
			entities[i] = bytesOf(e)
		}
		where = append(where, "entity IN ("+strings.Join(entities, ", ")+")")
	}
	// Times that the column cannot have need no condition.
	if r.After > firstInstant {
		where = append(where, fmt.Sprintf("at > fromUnixTimestamp64Micro(toInt64(%d), 'UTC')", min(r.After, lastInstant)))
	}
	if r.Until < lastInstant {
		where = append(where, fmt.Sprintf("at <= fromUnixTimestamp64Micro(toInt64(%d), 'UTC')", max(r.Until, firstInstant)))
	}
	return " FROM " + c.Layout.FactsTable(r.Source.Name) + " WHERE " + strings.Join(where, " AND ")
}

// bytesOf returns an expression for a text, which may have any bytes.
func bytesOf(text string) string { return fmt.Sprintf("unhex('%x')", text) }

// The range of DateTime64(6).
var (
	firstInstant = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastInstant  = time.Date(2299, 12, 31, 23, 59, 59, 0, time.UTC).UnixMicro()
)

// numbers is how the numbers of a column are read: most fit into an int64, and the others are texts.
type numbers struct {
	name string
	text clickhouse.Texts
}

// wide returns the numbers of a block that are not an int64.
func (n *numbers) wide(rows int) (wide map[int]exact.Int, err error) {
	if n.text.Empty() {
		return nil, nil
	}
	for i := range rows {
		text := n.text.At(i)
		if text == "" {
			continue
		}
		number, ok := new(big.Int).SetString(text, 10)
		if !ok {
			return nil, fmt.Errorf("column %s has %q, want an integer", n.name, text)
		}
		if wide == nil {
			wide = map[int]exact.Int{}
		}
		if wide[i], err = exact.FromBig(number); err != nil {
			return nil, fmt.Errorf("column %s: %w", n.name, err)
		}
	}
	return wide, nil
}

// Read implements Facts.
func (c *ClickHouse) Read(ctx context.Context, r Request, each func(*Batch) error) error {
	names := []string{"entity", "fact_key", "toUnixTimestamp64Micro(at)", "toUnixTimestamp64Micro(known_at)",
		"log_offset", "log_index", "retracted"}
	var retracted []uint8
	var b Batch
	b.reset(len(r.Columns))
	columns := []any{&b.Entity, &b.Key, &b.At, &b.Known, &b.Offset, &b.Index, &retracted}
	nulls := make([][]uint8, len(r.Columns))
	wides := make([]numbers, len(r.Columns))
	for i, index := range r.Columns {
		column := r.Source.Columns[index]
		name := c.Layout.FactsColumn(column)
		names, columns = append(names, "isNull("+name+")"), append(columns, &nulls[i])
		if column.Kind == exact.Text {
			names, columns = append(names, "ifNull("+name+", '')"), append(columns, &b.Values[i].Text)
			continue
		}
		// 9 bytes instead of 32
		wides[i].name, name = name, "assumeNotNull("+name+")"
		names = append(names, "toInt64("+name+")", "if("+name+" = toInt64("+name+"), '', toString("+name+"))")
		columns = append(columns, &b.Values[i].Int, &wides[i].text)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	return c.Store.Columns(ctx, "SELECT "+strings.Join(names, ", ")+c.from(r), columns, func(rows int) error {
		b.Rows = rows
		b.Retracted = flags(b.Retracted[:0], retracted)
		for i, index := range r.Columns {
			v := &b.Values[i]
			v.Null = flags(v.Null[:0], nulls[i])
			if r.Source.Columns[index].Kind == exact.Text {
				continue
			}
			var err error
			if v.Wide, err = wides[i].wide(rows); err != nil {
				return err
			}
		}
		return each(&b)
	})
}

// flags sets to to the flags, or to nothing if none is set.
func flags(to []bool, flags []uint8) []bool {
	if !slices.ContainsFunc(flags, func(f uint8) bool { return f != 0 }) {
		return to
	}
	for _, f := range flags {
		to = append(to, f != 0)
	}
	return to
}
