package columnar_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/columnar"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type field = columnar.Field

// fields has every type, and nested types.
func fields() []field {
	inner := columnar.Struct{Fields: []field{
		{Name: "a", Type: iceberg.PrimitiveTypes.Int32},
		{Name: "b", Type: columnar.List{Element: field{Name: "element", Type: iceberg.PrimitiveTypes.String}}},
		{Name: "c", Type: columnar.Struct{Fields: []field{{Name: "d", Type: iceberg.PrimitiveTypes.Bool}}}},
	}}
	var out []field
	for i, t := range []columnar.Type{
		iceberg.PrimitiveTypes.Int64, iceberg.PrimitiveTypes.Bool, iceberg.PrimitiveTypes.Int32, iceberg.PrimitiveTypes.Float32,
		iceberg.PrimitiveTypes.Float64, iceberg.DecimalTypeOf(38, 9), iceberg.PrimitiveTypes.Date, iceberg.PrimitiveTypes.TimestampTz,
		iceberg.PrimitiveTypes.Time, iceberg.PrimitiveTypes.Timestamp,
		iceberg.PrimitiveTypes.String, iceberg.PrimitiveTypes.Binary, iceberg.PrimitiveTypes.UUID, iceberg.FixedTypeOf(3), inner,
		columnar.List{Element: field{Name: "element", Type: inner}},
		columnar.Map{
			Key:   field{Name: "key", Required: true, Type: iceberg.PrimitiveTypes.String},
			Value: field{Name: "value", Type: columnar.List{Element: field{Name: "element", Type: inner}}},
		},
	} {
		out = append(out, field{Name: fmt.Sprint("f", i), Doc: "of type " + t.String(), Type: t})
	}
	return out
}

// Ids are those that Iceberg assigns in a new table.
func TestIDsOfNewTable(t *testing.T) {
	t.Parallel()
	got, err := columnar.Schema(fields())
	if err != nil {
		t.Fatal(err)
	}
	want, err := iceberg.AssignFreshSchemaIDs(got, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equals(want) || got.HighestFieldID() != want.HighestFieldID() {
		t.Errorf("the schema is\n%v\nnot\n%v", got, want)
	}
}

// A new field of a table does not take another one's id.
func TestIDsOfNewFields(t *testing.T) {
	t.Parallel()
	have := []field{
		{Name: "a", ID: 1, Type: iceberg.PrimitiveTypes.Int32},
		{Name: "new", Type: columnar.List{Element: field{Name: "element", Type: iceberg.PrimitiveTypes.Int32}}},
		{Name: "b", ID: 7, Type: columnar.Struct{Fields: []field{{Name: "c", ID: 9, Type: iceberg.PrimitiveTypes.Int32}}}},
	}
	got := columnar.WithIDs(have)
	if got[0].ID != 1 || got[1].ID != 10 || got[1].Type.(columnar.List).Element.ID != 11 || got[2].ID != 7 {
		t.Errorf("the ids are %+v", got)
	}
	if have[1].ID != 0 {
		t.Error("the fields that were given have changed")
	}
	have[0].ID = 9
	if _, err := columnar.Schema(have); err == nil || err.Error() != "columns a and c have the same id 9" {
		t.Error(err)
	}
}

func TestUnsupportedTypes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		of   columnar.Type
		want string
	}{
		{iceberg.PrimitiveTypes.TimestampTzNs, "column a: type timestamptz_ns is not supported"},
		{columnar.List{Element: field{Name: "element", Type: iceberg.PrimitiveTypes.TimestampNs}}, "column a: column element: type timestamp_ns is not supported"},
		{columnar.Struct{}, "column a: a struct has no fields, which Parquet cannot store"},
		{nil, "column a: <nil> is not a column type"},
	} {
		if _, err := columnar.New([]field{{Name: "a", Type: c.of}}); err == nil || err.Error() != c.want {
			t.Errorf("%v: the error is %v, not %s", c.of, err, c.want)
		}
	}
}

// Columns have the same content as Arrow's own builders after the same rows, whatever was rolled
// back in between, and reuse the memory for the next rows.
func TestRowsAreThoseOfArrow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		columns, err := columnar.New(fields())
		if err != nil {
			r.Fatal(err)
		}
		builder := array.NewRecordBuilder(memory.DefaultAllocator, columns.Schema())
		defer builder.Release()
		for range rapid.IntRange(1, 3).Draw(r, "records") {
			for range rapid.IntRange(0, 20).Draw(r, "rows") {
				mark, broken := columns.Mark(), rapid.IntRange(0, 3).Draw(r, "broken") == 0
				for i, f := range fields() {
					if broken && rapid.IntRange(0, len(fields())).Draw(r, "at") == 0 {
						break
					}
					var to array.Builder
					if !broken {
						to = builder.Field(i)
					}
					value(r, f.Type, columns.Column(i), to, broken)
				}
				if broken {
					columns.Rollback(mark)
				}
			}
			got, want := columns.Record(), builder.NewRecordBatch()
			if columns.Rows() > 0 && columns.Bytes() <= 0 {
				r.Error("the rows take no memory")
			}
			if !array.RecordEqual(got, want) {
				r.Errorf("the record is\n%v\nnot\n%v", got, want)
			}
			for i := range columns.Fields() {
				if nulls := columns.Column(i).Nulls(); nulls != want.Column(i).NullN() || (nulls == 0) != (columns.Column(i).Validity() == nil) {
					r.Errorf("column %d has %d nulls, not %d", i, nulls, want.Column(i).NullN())
				}
			}
			want.Release()
			columns.Reset()
			if columns.Rows() != 0 || columns.Bytes() != 0 {
				r.Errorf("after the reset there are %d rows of %d bytes", columns.Rows(), columns.Bytes())
			}
		}
	})
}

// value appends the same value to a column and to an Arrow builder, or to the column only if there
// is no builder. A broken value may lack parts.
func value(r *rapid.T, t columnar.Type, col columnar.Column, to array.Builder, broken bool) {
	if rapid.IntRange(0, 2).Draw(r, "null") == 0 {
		col.AppendNull()
		if to != nil {
			to.AppendNull()
		}
		return
	}
	switch col := col.(type) {
	case *columnar.Bools:
		v := rapid.Bool().Draw(r, "bool")
		col.Append(v)
		if to != nil {
			to.(*array.BooleanBuilder).Append(v)
		}
	case *columnar.Int32s:
		v := rapid.Int32().Draw(r, "int32")
		col.Append(v)
		switch to := to.(type) {
		case *array.Int32Builder:
			to.Append(v)
		case *array.Date32Builder:
			to.Append(arrow.Date32(v))
		}
	case *columnar.Int64s:
		v := rapid.Int64().Draw(r, "int64")
		col.Append(v)
		switch to := to.(type) {
		case *array.Int64Builder:
			to.Append(v)
		case *array.TimestampBuilder:
			to.Append(arrow.Timestamp(v))
		case *array.Time64Builder:
			to.Append(arrow.Time64(v))
		}
	case *columnar.Float32s:
		v := rapid.Float32().Draw(r, "float")
		col.Append(v)
		if to != nil {
			to.(*array.Float32Builder).Append(v)
		}
	case *columnar.Float64s:
		v := rapid.Float64().Draw(r, "double")
		col.Append(v)
		if to != nil {
			to.(*array.Float64Builder).Append(v)
		}
	case *columnar.Decimals:
		v := decimal128.New(rapid.Int64().Draw(r, "high"), rapid.Uint64().Draw(r, "low"))
		col.Append(v)
		if to != nil {
			to.(*array.Decimal128Builder).Append(v)
		}
	case *columnar.Bytes:
		text := rapid.StringN(0, 20, -1).Draw(r, "text")
		switch rapid.IntRange(0, 2).Draw(r, "how") {
		case 0:
			col.AppendString(text)
		case 1:
			col.Append([]byte(text))
		default:
			col.AppendFirst([]byte(text+rapid.StringN(0, 20, -1).Draw(r, "more")), len(text))
		}
		switch to := to.(type) {
		case *array.StringBuilder:
			to.Append(text)
		case *array.BinaryBuilder:
			to.Append([]byte(text))
		}
	case *columnar.Fixed:
		v := rapid.SliceOfN(rapid.Byte(), col.Width(), col.Width()).Draw(r, "bytes")
		col.Append(v)
		switch to := to.(type) {
		case *array.FixedSizeBinaryBuilder:
			to.Append(v)
		case *array.ExtensionBuilder:
			to.StorageBuilder().(*array.FixedSizeBinaryBuilder).Append(v)
		case interface{ AppendBytes([16]byte) }:
			to.AppendBytes([16]byte(v))
		case nil:
		default:
			r.Fatalf("a builder of type %T", to)
		}
	case *columnar.Structs:
		col.Append()
		group, _ := to.(*array.StructBuilder)
		if group != nil {
			group.Append(true)
		}
		for i, f := range t.(columnar.Struct).Fields {
			if broken && rapid.IntRange(0, 5).Draw(r, "ends here") == 0 {
				return
			}
			value(r, f.Type, col.Child(i), builderOf(group != nil, func() array.Builder { return group.FieldBuilder(i) }), broken)
		}
	case *columnar.Lists:
		list, _ := to.(*array.ListBuilder)
		if list != nil {
			list.Append(true)
		}
		for range rapid.IntRange(0, 3).Draw(r, "elements") {
			value(r, t.(columnar.List).Element.Type, col.Element(), builderOf(list != nil, func() array.Builder { return list.ValueBuilder() }), broken)
		}
		if !broken {
			col.Append()
		}
	case *columnar.Maps:
		entries, _ := to.(*array.MapBuilder)
		if entries != nil {
			entries.Append(true)
		}
		for range rapid.IntRange(0, 3).Draw(r, "entries") {
			key := rapid.StringN(0, 3, -1).Draw(r, "key")
			col.Keys().(*columnar.Bytes).AppendString(key)
			if entries != nil {
				entries.KeyBuilder().(*array.StringBuilder).Append(key)
			}
			value(r, t.(columnar.Map).Value.Type, col.Values(), builderOf(entries != nil, func() array.Builder { return entries.ItemBuilder() }), broken)
		}
		if !broken {
			col.Append()
		}
	default:
		r.Fatalf("a column of type %T", col)
	}
}

func builderOf(some bool, of func() array.Builder) array.Builder {
	if !some {
		return nil
	}
	return of()
}

// A record is unchanged after more rows have been added, and after some of them have been rolled
// back.
func TestRecordOutlivesMoreRows(t *testing.T) {
	t.Parallel()
	columns, err := columnar.New([]field{{Name: "a", Type: iceberg.PrimitiveTypes.Int64}, {Name: "b", Type: iceberg.PrimitiveTypes.String}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := columns.Column(0).(*columnar.Int64s), columns.Column(1).(*columnar.Bytes)
	row := func(i int) {
		a.Append(int64(i))
		if i%3 == 0 {
			b.AppendNull()
		} else {
			b.AppendString(strings.Repeat("x", i))
		}
	}
	for i := range 13 {
		row(i)
	}
	rec := columns.Record()
	before := fmt.Sprint(rec)
	mark := columns.Mark()
	for i := range 1000 {
		row(i)
	}
	columns.Rollback(mark)
	for i := range 5 {
		row(i)
	}
	if after := fmt.Sprint(rec); after != before {
		t.Errorf("the record was\n%s\nand is\n%s", before, after)
	}
	if !slices.Equal(a.Values(), []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2, 3, 4}) {
		t.Errorf("the values are %v", a.Values())
	}
}

func TestIncompleteRows(t *testing.T) {
	t.Parallel()
	columns, err := columnar.New([]field{{Name: "a", Type: iceberg.PrimitiveTypes.Int64}, {Name: "b", Type: iceberg.PrimitiveTypes.String}})
	if err != nil {
		t.Fatal(err)
	}
	columns.Column(0).AppendNull()
	defer func() {
		if got := fmt.Sprint(recover()); got != "columnar: column b has 0 values in 1 rows" {
			t.Error(got)
		}
	}()
	columns.Record()
}

// Once the buffers have grown, rows allocate no memory.
func TestRowsDoNotAllocate(t *testing.T) {
	columns, err := columnar.New(fields())
	if err != nil {
		t.Fatal(err)
	}
	fill := func() {
		columns.Reset()
		for range 1000 {
			columns.Column(0).(*columnar.Int64s).Append(1)
			for i := range columns.Fields()[1:] {
				columns.Column(i + 1).AppendNull()
			}
		}
	}
	fill()
	if n := testing.AllocsPerRun(10, fill); n > 0 {
		t.Errorf("1000 rows make %v allocations", n)
	}
}
