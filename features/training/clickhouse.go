package training

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	Store  *clickhouse.Store
	Layout Layout
	// Timeout bounds each query. 0 means readTimeout.
	Timeout time.Duration

	mu   sync.Mutex
	wide map[string]bool // columns, by source and name, with numbers that are not an int64
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

// Count implements Facts. It also finds the columns whose numbers are not all int64.
func (c *ClickHouse) Count(ctx context.Context, r Request) (int64, error) {
	counts := []string{"toInt64(count())"}
	var numbers []features.Column
	for _, i := range r.Columns {
		if column := r.Source.Columns[i]; column.Kind == exact.Number {
			name := c.Layout.FactsColumn(column)
			counts = append(counts, fmt.Sprintf("toInt64(countIf(%s != toInt64(%s)))", name, name))
			numbers = append(numbers, column)
		}
	}
	values := make([][]int64, len(counts))
	columns := make([]any, len(counts))
	for i := range values {
		columns[i] = &values[i]
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	count := int64(0)
	err := c.Store.Columns(ctx, "SELECT "+strings.Join(counts, ", ")+c.from(r), columns, func(int) error {
		count = values[0][0]
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.wide == nil {
			c.wide = map[string]bool{}
		}
		for i, column := range numbers {
			c.wide[r.Source.Name+"."+column.Name] = values[i+1][0] > 0
		}
		return nil
	})
	return count, err
}

func (c *ClickHouse) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return readTimeout
}

// from returns the clauses that select the facts of a request.
func (c *ClickHouse) from(r Request) string {
	var partitions, offsets []string
	for p := range r.Upto {
		partitions = append(partitions, fmt.Sprint(p))
	}
	slices.Sort(partitions)
	for _, p := range partitions {
		var partition int32
		_, _ = fmt.Sscan(p, &partition) // it was printed above
		offsets = append(offsets, fmt.Sprintf("toInt64(%d)", r.Upto[partition]))
	}
	var where []string
	if len(partitions) == 0 {
		where = append(where, "0")
	} else {
		where = append(where, fmt.Sprintf("log_offset < transform(toInt64(log_partition), [%s], [%s], toInt64(0))",
			"toInt64("+strings.Join(partitions, "), toInt64(")+")", strings.Join(offsets, ", ")))
	}
	if r.Range.Of > 1 {
		where = append(where, fmt.Sprintf("bitAnd(xxHash64(entity), %d) = %d", r.Range.Of-1, r.Range.Part))
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

// The range of DateTime64(6).
var (
	firstInstant = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	lastInstant  = time.Date(2299, 12, 31, 23, 59, 59, 0, time.UTC).UnixMicro()
)

// Read implements Facts.
func (c *ClickHouse) Read(ctx context.Context, r Request, each func(*Batch) error) error {
	names := []string{"entity", "fact_key", "toUnixTimestamp64Micro(at)", "toUnixTimestamp64Micro(known_at)",
		"log_offset", "log_index", "retracted"}
	var entity, key clickhouse.Texts
	var retracted []uint8
	var b Batch
	b.reset(len(r.Columns))
	columns := []any{&entity, &key, &b.At, &b.Known, &b.Offset, &b.Index, &retracted}
	nulls := make([][]uint8, len(r.Columns))
	texts := make([]clickhouse.Texts, len(r.Columns))
	wides := make([][][4]uint64, len(r.Columns))
	for i, index := range r.Columns {
		column := r.Source.Columns[index]
		name := c.Layout.FactsColumn(column)
		names = append(names, "isNull("+name+")")
		columns = append(columns, &nulls[i])
		switch {
		case column.Kind == exact.Text:
			names, columns = append(names, "ifNull("+name+", '')"), append(columns, &texts[i])
		case c.isWide(r, column):
			names, columns = append(names, "ifNull("+name+", toInt256(0))"), append(columns, &wides[i])
		default: // 8 bytes instead of 32
			names, columns = append(names, "ifNull(toInt64("+name+"), toInt64(0))"), append(columns, &b.Values[i].Int)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	return c.Store.Columns(ctx, "SELECT "+strings.Join(names, ", ")+c.from(r), columns, func(rows int) error {
		b.Rows = rows
		b.Entity, b.Key, b.Retracted = b.Entity[:0], b.Key[:0], b.Retracted[:0]
		for i := range rows {
			b.Entity, b.Key = append(b.Entity, entity.At(i)), append(b.Key, key.At(i))
		}
		b.Retracted = flags(b.Retracted, retracted)
		for i, index := range r.Columns {
			v := &b.Values[i]
			v.Null = flags(v.Null[:0], nulls[i])
			switch column := r.Source.Columns[index]; {
			case column.Kind == exact.Text:
				v.Text = v.Text[:0]
				for row := range rows {
					v.Text = append(v.Text, texts[i].At(row))
				}
			case c.isWide(r, column):
				v.Int, v.Wide = v.Int[:0], nil
				for row, words := range wides[i] {
					n, fits := exact.Int(words).Int64()
					if v.Int = append(v.Int, n); !fits {
						if v.Wide == nil {
							v.Wide = map[int]exact.Int{}
						}
						v.Wide[row] = exact.Int(words)
					}
				}
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

// isWide reports whether a column has numbers that are not an int64. A column that was not counted
// may have.
func (c *ClickHouse) isWide(r Request, column features.Column) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	wide, counted := c.wide[r.Source.Name+"."+column.Name]
	return wide || !counted
}
