package history

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/digest"
)

// ClickHouse computes the digests of tiles, because there may be millions of them: that of a table,
// and that of the tiles it should have, which it aggregates from the facts. It shares no code with
// the Go functions that filled the table, so the comparison also checks these.
//
// Both sides are rows of entity, level, start (microseconds since 1970), facts and the columns of
// the states, and have the same hash of a row. Tiles with corrected facts are left out, which nothing
// reads: neither all versions of a fact nor which of two is the first one have a meaning there.

// tilesDigest returns the digest of a table of tiles.
func (h *History) tilesDigest(ctx context.Context, t *tiles, edge int64) (*digest.Digest, error) {
	columns := []string{"entity", "toUInt8(level) AS tile_level", "toUnixTimestamp64Micro(tile) AS start", "facts"}
	for _, p := range t.parts {
		for _, c := range p.columns() {
			columns = append(columns, quoted(c.name))
		}
	}
	return h.readDigest(ctx, t.hashes(fmt.Sprintf("SELECT %s FROM %s FINAL", // merges the rows of a tile
		strings.Join(columns, ", "), t.table.FullName()), edge))
}

// expectedTiles returns the digest of the tiles that a table should have, from the facts of its
// batches.
func (h *History) expectedTiles(ctx context.Context, t *tiles, edge int64) (*digest.Digest, error) {
	batch, err := h.position(ctx, t.source, t.table)
	if err != nil {
		return nil, err
	}
	return h.readDigest(ctx, t.hashes(t.fromFacts(batch), edge))
}

// hashes returns the query of the hashes of tiles from a time on.
func (t *tiles) hashes(tiles string, edge int64) string {
	var of strings.Builder
	of.WriteString("tile_level, start, toInt64(facts)")
	for _, p := range t.parts {
		for _, column := range p.columns() {
			of.WriteString(", " + p.canonical(column))
		}
	}
	return fmt.Sprintf("SELECT entity, reinterpretAsUInt128(sipHash128(%s)) AS hash FROM (%s) "+
		"WHERE start >= %d AND (entity, tile_level, start) NOT IN (SELECT entity, toUInt8(l.1), %s FROM "+
		"(SELECT entity, toUnixTimestamp64Micro(at) AS us FROM %s) ARRAY JOIN %s AS l)",
		of.String(), tiles, edge, floorOf("us", "l.2"), t.source.corrections.FullName(), levels())
}

// levels returns the array of the numbers of the levels and their lengths. The lengths have a sign, or
// floorOf would be wrong before 1970.
func levels() string {
	var all []string
	for l := minute; l <= day; l++ {
		all = append(all, fmt.Sprintf("(%d, %d)", l, length[l]))
	}
	return "CAST([" + strings.Join(all, ", ") + "] AS Array(Tuple(UInt8, Int64)))"
}

// floorOf returns the expression of the start of the tile that contains a time.
func floorOf(us, length string) string { return us + " - positiveModulo(" + us + ", " + length + ")" }

// canonical returns the expression of a column's content. An empty state has other values in a table
// than in an aggregation.
func (p part) canonical(c stateColumn) string {
	name := quoted(c.name)
	switch p.feature.Aggregate {
	case exact.Min, exact.Max:
		if c.function != "sum" {
			return fmt.Sprintf("if(%s = 0, toInt256(0), %s)", p.count(), name)
		}
	case exact.First, exact.Last:
		if c.function != "sum" {
			none := "toInt256(0)"
			if p.text {
				none = "''"
			}
			return fmt.Sprintf("if(%[1]s = 0, 0, %[2]s.1), if(%[1]s = 0, '', %[2]s.2), if(%[1]s = 0, %[3]s, %[2]s.3)",
				p.count(), name, none)
		}
	}
	if strings.HasPrefix(c.kind, "Map") {
		return "mapSort(CAST(" + name + ", '" + c.kind + "'))"
	}
	return "CAST(" + name + ", '" + c.kind + "')"
}

// count is the name of the column with the number of values.
func (p part) count() string { return quoted(p.name + "_count") }

func quoted(name string) string { return "`" + name + "`" }

// fromFacts returns the query of the tiles of the facts up to a batch. It aggregates the facts into
// tiles of a minute, and these into all levels.
func (t *tiles) fromFacts(batch uint64) string {
	minutes := []string{"entity", floorOf("us", strconv.FormatInt(length[minute], 10)) + " AS of_minute", "count() AS of_facts"}
	merged := []string{"entity", "toUInt8(l.1) AS tile_level", floorOf("of_minute", "l.2") + " AS start", "sum(of_facts) AS facts"}
	for _, p := range t.parts {
		for i, c := range p.columns() {
			of := quoted("of_" + c.name)
			minutes = append(minutes, t.aggregated(p, c)+" AS "+of)
			merge := fmt.Sprintf("%s(%s)", c.function, of)
			if (c.function == "min" || c.function == "max") && i > 0 { // an empty state has no value
				merge = fmt.Sprintf("%sIf(%s, %s > 0)", c.function, of, quoted("of_"+p.name+"_count"))
			}
			merged = append(merged, merge+" AS "+quoted(c.name))
		}
	}
	columns := []string{"entity", "fact_key", "toUnixTimestamp64Micro(at) AS us"}
	for _, c := range t.source.Columns {
		columns = append(columns, quoted(columnName(c))+" AS "+factColumn(c.Name))
	}
	with := ""
	if slices.ContainsFunc(t.parts, func(p part) bool { return p.feature.Aggregate == exact.Quantile }) {
		with = bucketBounds()
	}
	return fmt.Sprintf("SELECT %s FROM (%sSELECT %s FROM (SELECT %s FROM %s FINAL WHERE batch <= %d AND retracted = 0) "+
		"GROUP BY entity, of_minute) ARRAY JOIN %s AS l GROUP BY entity, tile_level, start",
		strings.Join(merged, ", "), with, strings.Join(minutes, ", "), strings.Join(columns, ", "),
		t.source.facts.FullName(), batch, levels())
}

// factColumn is the name of a source's column in fromFacts.
func factColumn(name string) string { return quoted("fact_" + name + "_value") }

// aggregated returns the expression that aggregates facts into a column of a part's state.
func (t *tiles) aggregated(p part, c stateColumn) string {
	f := p.feature
	conditions := []string{"1"}
	for _, w := range f.Where {
		conditions = append(conditions, "ifNull("+condition(w)+", 0)") // null meets no condition
	}
	value := "toInt256(us)" // of Age
	if p.column >= 0 {
		value = "assumeNotNull(" + factColumn(f.Column) + ")"
		conditions = append(conditions, "isNotNull("+factColumn(f.Column)+")")
	}
	counts := strings.Join(conditions, " AND ")
	switch suffix := strings.TrimPrefix(c.name, p.name+"_"); suffix {
	case "count":
		return "countIf(" + counts + ")"
	case "squares":
		value += " * " + value
	case "first", "last":
		value = "tuple(us, fact_key, " + value + ")"
	case "registers":
		hash := "xxHash64(toString(" + value + "))"
		rest := "bitShiftRight(" + hash + ", 12)"
		zeros := "bitCount(bitXor(" + rest + ", " + rest + " - 1)) - 1" // trailing ones
		value = fmt.Sprintf("map(toUInt16(bitAnd(%s, %d)), toUInt8(least(%s, 52) + 1))", hash, exact.Registers-1, zeros)
	case "items":
		value = "map(toString(" + value + "), toInt64(1))"
	case "buckets":
		value = "map(" + bucketOf(value) + ", toInt64(1))"
	}
	return fmt.Sprintf("%sIf(%s, %s)", c.function, value, counts)
}

// condition returns the expression of a condition.
func condition(c features.Condition) string {
	constant := func(v exact.Value) string {
		if v.Kind == exact.Text {
			return literal(v.Text)
		}
		return "toInt256(" + literal(v.String()) + ")"
	}
	ops := map[features.Op]string{features.Equal: "=", features.NotEqual: "!=", features.Less: "<", features.More: ">"}
	if c.Op != features.In {
		return factColumn(c.Column) + " " + ops[c.Op] + " " + constant(c.Value)
	}
	all := make([]string, len(c.Values))
	for i, v := range c.Values {
		all[i] = constant(v)
	}
	return factColumn(c.Column) + " IN (" + strings.Join(all, ", ") + ")"
}

// bucketOf returns the expression of exact.Bucket. ClickHouse's logarithm may differ from Go's in its
// last bits, so the bounds of the buckets decide.
func bucketOf(value string) string {
	bounds := exact.Bounds()
	number := "toFloat64(abs(" + value + "))"
	near := fmt.Sprintf("(toInt32(ceil(log(greatest(%s, 1)) / %s)) + 1)", number,
		strconv.FormatFloat(math.Log(bounds[len(bounds)-1])/float64(len(bounds)-1), 'g', -1, 64))
	bucket := fmt.Sprintf("%[1]s + (%[2]s > transform(%[1]s, buckets, bounds, inf)) - "+
		"(%[2]s <= transform(%[1]s - 1, buckets, bounds, -1.))", near, number)
	return fmt.Sprintf("toInt32(multiIf(%[1]s = 0, 0, %[1]s < 0, -(%[2]s), %[2]s))", value, bucket)
}

// bucketBounds returns the clause that defines the arrays of bucketOf.
func bucketBounds() string {
	var b strings.Builder
	for i, bound := range exact.Bounds() {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(strconv.FormatFloat(bound, 'e', -1, 64)) // with an exponent, so not an integer
	}
	return fmt.Sprintf("WITH [%s] AS bounds, range(toInt32(1), toInt32(%d)) AS buckets ",
		b.String(), len(exact.Bounds())+1)
}
