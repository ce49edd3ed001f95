package pages_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/pages"
)

// one returns columns with a single field.
func one(tb testing.TB, f field) (*columnar.Columns, columnar.Column) {
	tb.Helper()
	c, err := columnar.New([]field{f})
	if err != nil {
		tb.Fatal(err)
	}
	return c, c.Column(0)
}

func begin(tb testing.TB, c *columnar.Columns, out io.Writer) *pages.Writer {
	tb.Helper()
	w, err := pages.New(c.Fields())
	if err != nil {
		tb.Fatal(err)
	}
	w.Begin(out)
	return w
}

func end(tb testing.TB, w *pages.Writer) pages.File {
	tb.Helper()
	f, err := w.End()
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func chunkOf(tb testing.TB, m *metadata.FileMetaData, group, column int) *metadata.ColumnChunkMetaData {
	tb.Helper()
	c, err := m.RowGroup(group).ColumnChunk(column)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Files without rows, and files with only nulls, are valid.
func TestEmptyFile(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{0, 3} {
		c, err := columnar.New(columnar.WithIDs(everything()))
		if err != nil {
			t.Fatal(err)
		}
		var ours, theirs bytes.Buffer
		w, arrows := begin(t, c, &ours), arrowWriter(t, c.Schema(), &theirs)
		for range rows {
			for i := range c.Fields() {
				c.Column(i).AppendNull()
			}
		}
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
		if rows > 0 {
			if err := arrows.WriteBuffered(c.Record()); err != nil {
				t.Fatal(err)
			}
		}
		end(t, w)
		if err := arrows.Close(); err != nil {
			t.Fatal(err)
		}
		same(t, c.Fields(), ours.Bytes(), theirs.Bytes())
	}
}

// everything has a column of each type, and nested types.
func everything() []field {
	var fields []field
	for i, t := range primitives {
		fields = append(fields, field{Name: fmt.Sprint("p", i), Type: t})
	}
	inner := columnar.Struct{Fields: fields}
	return append(fields,
		field{Name: "group", Type: inner},
		field{Name: "list", Type: columnar.List{Element: field{Name: "element", Type: inner}}},
		field{Name: "map", Type: columnar.Map{
			Key:   field{Name: "key", Required: true, Type: iceberg.PrimitiveTypes.String},
			Value: field{Name: "value", Type: columnar.List{Element: field{Name: "element", Type: iceberg.PrimitiveTypes.Int64}}},
		}})
}

// A dictionary is used if values recur, stops when it has become too large, and is not tried again
// if it did not pay.
func TestDictionary(t *testing.T) {
	t.Parallel()
	const few, many = 3_000, 30_000
	wide := strings.Repeat("x", 100)
	for _, test := range []struct {
		name  string
		of    columnar.Type
		rows  int
		value func(page, row int) int
		coded [3]bool // the pages
	}{
		{"a constant", iceberg.PrimitiveTypes.String, few, func(int, int) int { return 1 }, [3]bool{true, true, true}},
		{"many recur", iceberg.PrimitiveTypes.Int64, few, func(_, row int) int { return row / 4 }, [3]bool{true, true, true}},
		{"more are", iceberg.PrimitiveTypes.Int64, few, func(page, row int) int { return row / 2 * (1 - page) }, [3]bool{}},
		{"it gets too many", iceberg.PrimitiveTypes.Int64, many, func(page, row int) int { return page*many + row/(4-3*min(page, 1)) }, [3]bool{true, true, false}},
		{"it gets too large", iceberg.PrimitiveTypes.Binary, many, func(page, row int) int { return page*many + row%8_000 }, [3]bool{true, false, false}},
		{"numbers of 32 bits", iceberg.PrimitiveTypes.Date, few, func(page, row int) int { return page + row%100 }, [3]bool{true, true, true}},
		{"floats", iceberg.PrimitiveTypes.Float64, few, func(page, row int) int { return page + row%100 }, [3]bool{true, true, true}},
		{"ids", iceberg.PrimitiveTypes.UUID, few, func(page, row int) int { return page + row%100 }, [3]bool{true, true, true}},
		{"decimals", iceberg.DecimalTypeOf(38, 9), few, func(page, row int) int { return page - row%100 }, [3]bool{true, true, true}},
		{"long texts", iceberg.PrimitiveTypes.String, few, func(page, row int) int { return page + row%100 }, [3]bool{true, true, true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, col := one(t, field{Name: "a", Type: test.of, ID: 1})
			var ours, theirs bytes.Buffer
			w, arrows := begin(t, c, &ours), arrowWriter(t, c.Schema(), &theirs)
			var coded, plain int32
			for page, is := range test.coded {
				c.Reset()
				for row := range test.rows {
					v := test.value(page, row)
					switch col := col.(type) {
					case *columnar.Int32s:
						col.Append(int32(v))
					case *columnar.Int64s:
						col.Append(int64(v))
					case *columnar.Float64s:
						col.Append(float64(v))
					case *columnar.Decimals:
						col.Append(decimal128.FromI64(int64(v)))
					case *columnar.Fixed:
						col.Append(binary.BigEndian.AppendUint64(make([]byte, 8), uint64(v)))
					case *columnar.Bytes:
						col.AppendString(fmt.Sprint(v, wide))
					}
					if row%1000 == 999 { // nulls are not entries
						c.Rollback(row)
						col.AppendNull()
					}
				}
				if err := w.Write(c); err != nil {
					t.Fatal(err)
				}
				if err := arrows.WriteBuffered(c.Record()); err != nil {
					t.Fatal(err)
				}
				if is {
					coded++
				} else {
					plain++
				}
			}
			f := end(t, w)
			if err := arrows.Close(); err != nil {
				t.Fatal(err)
			}
			same(t, c.Fields(), ours.Bytes(), theirs.Bytes())
			chunk := chunkOf(t, f.Metadata, 0, 0)
			if chunk.HasDictionaryPage() != (coded > 0) {
				t.Errorf("there is a dictionary: %v", chunk.HasDictionaryPage())
			}
			have := map[parquet.Encoding]int32{}
			for _, s := range f.Metadata.RowGroups[0].Columns[0].MetaData.EncodingStats {
				if s.PageType == 0 { // a data page
					have[parquet.Encoding(s.Encoding)] += s.Count
				}
			}
			if have[parquet.Encodings.RLEDict] != coded || have[parquet.Encodings.Plain] != plain {
				t.Errorf("the pages are %v, not %d with the dictionary and %d without", have, coded, plain)
			}
		})
	}
}

// Row groups are bounded, and each has its own dictionary.
func TestRowGroups(t *testing.T) {
	t.Parallel()
	const pageRows, count = 30_000, 20
	c, err := columnar.New(columnar.WithIDs([]field{
		{Name: "a", Type: iceberg.PrimitiveTypes.Int64, Required: true}, {Name: "b", Type: iceberg.PrimitiveTypes.String},
	}))
	if err != nil {
		t.Fatal(err)
	}
	var ours bytes.Buffer
	w := begin(t, c, &ours)
	for page := range count {
		c.Reset()
		for row := range pageRows {
			c.Column(0).(*columnar.Int64s).Append(int64(page*pageRows + row))
			c.Column(1).(*columnar.Bytes).AppendString(fmt.Sprint(row % 10))
		}
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
	}
	f := end(t, w)
	if n := f.Metadata.NumRowGroups(); n != 3 || f.Metadata.NumRows != pageRows*count {
		t.Fatalf("%d row groups of %d rows", n, f.Metadata.NumRows)
	}
	rows := int64(0)
	for i := range f.Metadata.NumRowGroups() {
		group := f.Metadata.RowGroup(i)
		stats, err := chunkOf(t, f.Metadata, i, 0).Statistics()
		if err != nil {
			t.Fatal(err)
		}
		if low := int64(binary.LittleEndian.Uint64(stats.EncodeMin())); low != rows || !chunkOf(t, f.Metadata, i, 1).HasDictionaryPage() {
			t.Errorf("row group %d begins with %d, not %d", i, low, rows)
		}
		rows += group.NumRows()
	}
	text, _ := open(t, ours.Bytes())
	if !strings.Contains(text, fmt.Sprint(pageRows*count-2, " ", pageRows*count-1, "]")) {
		t.Error("the last rows are missing")
	}
	splits := described(t, c.Fields(), f.Metadata, ours.Len()).SplitOffsets()
	if len(splits) != 3 || splits[0] != 4 {
		t.Errorf("a reader may split the file at %v", splits)
	}
}

var errWriter = errors.New("the disk is full")

// full is a writer that accepts a limited number of bytes.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	n := min(len(b), f.room)
	f.room -= n
	if n < len(b) {
		return n, errWriter
	}
	return n, nil
}

// Whichever part of a file does not fit, the error is returned, now or by the next call, and the
// next file is complete.
func TestWriteErrors(t *testing.T) {
	t.Parallel()
	c := clicks(t, 0, 100)
	w := begin(t, c, io.Discard)
	if err := w.Write(c); err != nil {
		t.Fatal(err)
	}
	size := int(end(t, w).Size)
	for room := 0; room < size; room += 1 + room/50 {
		w.Begin(&full{room})
		err := w.Write(c)
		if _, at := w.End(); !errors.Is(at, errWriter) || err != nil && !errors.Is(err, errWriter) {
			t.Fatalf("with room for %d bytes: %v, and in the end %v", room, err, at)
		}
		if err := w.Write(c); err == nil {
			t.Fatal("a file that failed takes more rows")
		}
	}
	w.Begin(&full{size})
	if err := w.Write(c); err != nil {
		t.Fatal(err)
	}
	if f := end(t, w); int(f.Size) != size || f.Metadata.NumRows != 100 {
		t.Errorf("%d rows are %d bytes", f.Metadata.NumRows, f.Size)
	}
	if err := w.Write(c); err == nil {
		t.Error("a finished file accepts more rows")
	}
}

// Rows that do not fit the schema are refused with the name of the column.
func TestInvalidRows(t *testing.T) {
	t.Parallel()
	required := func(f field) field { f.Required = true; return f }
	number := field{Name: "number", Type: iceberg.PrimitiveTypes.Int64}
	for _, test := range []struct {
		of   field
		fill func(columnar.Column)
		want string
	}{
		{required(number), func(c columnar.Column) { c.AppendNull() }, "column number: required value is null"},
		{
			field{Name: "g", Type: columnar.Struct{Fields: []field{required(number)}}},
			func(c columnar.Column) { c.(*columnar.Structs).Append(); c.(*columnar.Structs).Child(0).AppendNull() },
			"column g: number: required value is null",
		},
		{
			required(field{Name: "l", Type: columnar.List{Element: required(number)}}),
			func(c columnar.Column) {
				c.(*columnar.Lists).Element().AppendNull()
				c.(*columnar.Lists).Append()
			},
			"column l: number: required value is null",
		},
		{required(field{Name: "l", Type: columnar.List{Element: number}}), func(c columnar.Column) { c.AppendNull() }, "column l: required value is null"},
		{
			field{Name: "d", Type: iceberg.DecimalTypeOf(9, 0)},
			func(c columnar.Column) { c.(*columnar.Decimals).Append(decimal128.FromI64(1 << 31)) },
			"column d: decimal exceeds the precision of the column",
		},
		{
			field{Name: "d", Type: iceberg.DecimalTypeOf(18, 0)},
			func(c columnar.Column) { c.(*columnar.Decimals).Append(decimal128.New(1, 0)) },
			"column d: decimal exceeds the precision of the column",
		},
		{
			field{Name: "d", Type: iceberg.DecimalTypeOf(20, 0)},
			func(c columnar.Column) { c.(*columnar.Decimals).Append(decimal128.New(1<<40, 0)) },
			"column d: decimal exceeds the precision of the column",
		},
	} {
		c, col := one(t, test.of)
		w := begin(t, c, io.Discard)
		test.fill(col)
		if err := w.Write(c); err == nil || err.Error() != test.want {
			t.Errorf("the error is %v, not %s", err, test.want)
		}
		if _, err := w.End(); err == nil {
			t.Error("End succeeded after an error")
		}
	}
	c, err := columnar.New([]field{number, {Name: "other", Type: iceberg.PrimitiveTypes.Bool}})
	if err != nil {
		t.Fatal(err)
	}
	c.Column(0).AppendNull()
	if err := begin(t, c, io.Discard).Write(c); err == nil || err.Error() != "column other: 0 values in 1 rows" {
		t.Error(err)
	}
}

// Once the buffers have grown, pages allocate no memory.
func TestPagesDoNotAllocate(t *testing.T) {
	c := clicks(t, 0, 4096)
	w := begin(t, c, io.Discard)
	write := func() {
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
	}
	for range 63 {
		write()
	}
	w.Begin(io.Discard)
	if n := testing.AllocsPerRun(20, write); n > 20 {
		t.Errorf("a page of 13 columns makes %v allocations", n)
	}
}
