package history

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
)

// instant is the type of a time to the microsecond.
const instant = "DateTime64(6, 'UTC')"

// reserved are the columns that every table of facts has. A column of a source with such a name gets
// the suffix _value.
var reserved = []string{"entity", "fact_key", "at", "known_at", "retracted", "log_partition", "log_offset",
	"log_index", "batch"}

// columnName returns the name of a source's column in its table of facts.
func columnName(c features.Column) string {
	if slices.Contains(reserved, c.Name) {
		return c.Name + "_value"
	}
	return c.Name
}

// newSource returns the tables of a source.
func newSource(s features.Source, retention time.Duration) *source {
	out := &source{Source: s}
	out.facts = clickhouse.Table{
		Database: clickhouse.Features, Name: "facts_" + s.Name,
		// A batch that is inserted again beyond the window of its token still changes nothing.
		Engine: "ReplacingMergeTree", PartitionBy: "toYYYYMM(at)", TTL: ttl("at", retention),
		OrderBy: []string{"entity", "at", "fact_key", "log_partition", "log_offset", "log_index"},
		Columns: []clickhouse.Column{
			{Name: "entity", Type: "String"},
			{Name: "fact_key", Type: "String"},
			{Name: "at", Type: instant},
			{Name: "known_at", Type: instant},
			{Name: "retracted", Type: "UInt8"},
			{Name: "log_partition", Type: "Int32"},
			{Name: "log_offset", Type: "Int64"},
			{Name: "log_index", Type: "Int32"},
			{Name: "batch", Type: "UInt64"},
		},
		Comment: "facts of " + s.Topic,
	}
	for _, c := range s.Columns {
		kind := "Nullable(Int256)"
		if c.Kind == exact.Text {
			kind = "Nullable(String)"
		}
		out.facts.Columns = append(out.facts.Columns, clickhouse.Column{Name: columnName(c), Type: kind})
	}
	out.corrections = clickhouse.Table{
		Database: clickhouse.Features, Name: "corrections_" + s.Name,
		Engine: "ReplacingMergeTree", OrderBy: []string{"entity", "fact_key", "at"},
		Columns: []clickhouse.Column{
			{Name: "entity", Type: "String"},
			{Name: "fact_key", Type: "String"},
			{Name: "at", Type: instant},
		},
		Comment: "facts that have several versions, or a retraction",
	}
	out.claims = clickhouse.Table{
		Database: clickhouse.Features, Name: "claims_" + s.Name, OrderBy: []string{"batch"},
		Columns: []clickhouse.Column{
			{Name: "batch", Type: "UInt64"},
			{Name: "topic_id", Type: "String"},
			{Name: "after", Type: "Map(Int32, String)"},
			{Name: "claim", Type: "String"},
			{Name: "claimed_at", Type: instant, Default: "DEFAULT now64(6)"},
		},
		Comment: "which records each batch has: those before the positions, and not in an earlier batch",
	}
	out.positions = clickhouse.Table{
		Database: clickhouse.Features, Name: "positions_" + s.Name,
		Engine: "ReplacingMergeTree", EngineArgs: []string{"batch"}, OrderBy: []string{"table_name"},
		Columns: []clickhouse.Column{
			{Name: "table_name", Type: "String"},
			{Name: "batch", Type: "UInt64"},
		},
		Comment: "the last batch that each table has",
	}
	return out
}

// ttl returns the time after which rows are removed, in the form in which ClickHouse returns it. The
// column has the range of instant; a DateTime would begin again in 2106, and end in 1970.
func ttl(column string, retention time.Duration) string {
	if retention <= 0 {
		return ""
	}
	return fmt.Sprintf("%s + toIntervalSecond(%d)", column, int64(retention.Seconds()))
}

// create creates a table. If it exists with another retention, the retention is changed.
func (h *History) create(ctx context.Context, t clickhouse.Table) error {
	if err := h.cfg.Store.CreateTable(ctx, t); err != nil {
		return err
	}
	rows, err := h.cfg.Store.Query(ctx, "SELECT extract(engine_full, ' TTL (.*) SETTINGS ') FROM system.tables "+
		"WHERE database = ? AND name = ?", t.Database, t.Name)
	if err != nil {
		return fmt.Errorf("read the retention of %s: %w", t.Name, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	for rows.Next() {
		var have string
		if err := rows.Scan(&have); err != nil {
			return fmt.Errorf("read the retention of %s: %w", t.Name, err)
		}
		if have == t.TTL {
			continue
		}
		change := " MODIFY TTL " + t.TTL
		if t.TTL == "" {
			change = " REMOVE TTL"
		}
		if err := h.cfg.Store.Exec(ctx, "ALTER TABLE "+t.FullName()+h.cfg.Store.OnCluster()+change); err != nil {
			return fmt.Errorf("change the retention of %s: %w", t.Name, err)
		}
		h.cfg.Logger.Info("features: changed the retention of a table", "table", t.Name, "before", have, "now", t.TTL)
	}
	return rows.Err()
}

// level is a length of tiles, as an index of levels.
type level int

// The levels, from the shortest. raw is below them: the facts themselves.
const (
	raw level = iota
	minute
	hour
	day
)

// length is the length of the tiles of a level in microseconds.
var length = [...]int64{minute: 60_000_000, hour: 3_600_000_000, day: 86_400_000_000}

// names are those of the levels in tables.
var names = [...]string{minute: "minute", hour: "hour", day: "day"}

// floor returns the start of the tile that contains a time.
func (l level) floor(at int64) int64 {
	rest := at % length[l]
	if rest < 0 {
		rest += length[l]
	}
	return at - rest
}

// ceil returns the first start of a tile that is not before a time.
func (l level) ceil(at int64) int64 { return l.floor(at + length[l] - 1) }

// tiles is the table of a group's tiles of a source.
type tiles struct {
	group  *features.Group
	source *source
	table  clickhouse.Table
	parts  []part
	// of has the index of a feature's part.
	of     map[*features.Feature]int
	health health
	wake   chan struct{} // there may be another batch
}

// part is an aggregate of which a tile has the state.
type part struct {
	feature *features.Feature
	column  int // of the source; -1 if the aggregate has none
	text    bool
	name    string // of its columns, which are name_count, name_sum and so on
}

// newTiles returns the table of a group's tiles of a source.
func newTiles(g *features.Group, s *source, retention time.Duration) *tiles {
	t := &tiles{group: g, source: s, of: map[*features.Feature]int{}, wake: make(chan struct{}, 1)}
	used := map[string]bool{}
	add := func(f *features.Feature, name string) {
		unique := name
		for n := 2; used[unique]; n++ { // features of different windows may have the same name
			unique = fmt.Sprintf("%s_%d", name, n)
		}
		used[unique] = true
		p := part{feature: f, column: s.Index(f.Column), name: unique}
		p.text = p.column >= 0 && s.Columns[p.column].Kind == exact.Text
		t.of[f] = len(t.parts)
		t.parts = append(t.parts, p)
	}
	for i := range g.Features {
		f := &g.Features[i]
		if f.Source == s.Name {
			add(f, f.Name)
		}
		if f.Over != nil && f.Over.Source == s.Name {
			add(f.Over, f.Name+"_over")
		}
	}
	t.table = clickhouse.Table{
		Database: clickhouse.Features, Name: TilesTable(g, s.Name),
		Engine: "AggregatingMergeTree", PartitionBy: "toYYYYMM(tile)", OrderBy: []string{"entity", "level", "tile"},
		TTL: ttl("tile", retention),
		Columns: []clickhouse.Column{
			{Name: "entity", Type: "String"},
			{Name: "level", Type: "Enum8('minute' = 1, 'hour' = 2, 'day' = 3)"},
			{Name: "tile", Type: instant},
			{Name: "upto", Type: "SimpleAggregateFunction(max, UInt64)"},
			{Name: "facts", Type: "SimpleAggregateFunction(sum, Int64)"},
		},
		Comment: "definition " + t.fingerprint(),
	}
	for _, p := range t.parts {
		for _, c := range p.columns() {
			t.table.Columns = append(t.table.Columns, clickhouse.Column{
				Name: c.name, Type: "SimpleAggregateFunction(" + c.function + ", " + c.kind + ")"})
		}
	}
	return t
}

// stateColumn is a column that has a part of a state.
type stateColumn struct{ name, function, kind string }

// columns returns the columns of a part's state.
func (p part) columns() []stateColumn {
	all := []stateColumn{{p.name + "_count", "sum", "Int64"}}
	add := func(suffix, function, kind string) {
		all = append(all, stateColumn{p.name + "_" + suffix, function, kind})
	}
	pick := "Tuple(at Int64, fact_key String, value Int256)"
	if p.text {
		pick = "Tuple(at Int64, fact_key String, value String)"
	}
	switch p.feature.Aggregate {
	case exact.Sum, exact.Mean:
		add("sum", "sum", "Int256")
	case exact.StdDev:
		add("sum", "sum", "Int256")
		add("squares", "sum", "Int256")
	case exact.Min:
		add("min", "min", "Int256")
	case exact.Max:
		add("max", "max", "Int256")
	case exact.First:
		add("first", "min", pick)
	case exact.Last:
		add("last", "max", pick)
	case exact.Distinct:
		add("registers", "maxMap", "Map(UInt16, UInt8)")
	case exact.Top:
		add("items", "sumMap", "Map(String, Int64)")
	case exact.Quantile:
		add("buckets", "sumMap", "Map(Int32, Int64)")
	}
	return all
}

// fingerprint returns a hash of what the tiles depend on. It changes with the definition.
func (t *tiles) fingerprint() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", t.source.Name, t.source.Topic)
	for _, c := range t.source.Columns {
		fmt.Fprintf(&b, "%s %d %d\n", c.Name, c.Kind, c.Scale)
	}
	for _, p := range t.parts {
		f := p.feature
		fmt.Fprintf(&b, "%s %d %d %v\n", p.name, f.Aggregate, p.column, f.Age)
		for _, c := range f.Where {
			fmt.Fprintf(&b, "%s %s %d %q", c.Column, c.Op, c.Value.Kind, c.Value)
			for _, v := range c.Values {
				fmt.Fprintf(&b, " %d %q", v.Kind, v)
			}
			b.WriteString("\n")
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:8])
}
