package datafile

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// Labelled returns a batch whose column types are exactly those of the schema. Columns read from
// Parquet have the same layout, but may differ in the nullability of nested map fields, which a
// record batch refuses.
func Labelled(schema *arrow.Schema, columns []arrow.Array, rows int64) arrow.RecordBatch {
	out := make([]arrow.Array, len(columns))
	for i, c := range columns {
		data := relabel(schema.Field(i).Type, c.Data())
		out[i] = array.MakeFromData(data)
		data.Release()
	}
	rec := array.NewRecordBatch(schema, out, rows)
	for _, c := range out {
		c.Release()
	}
	return rec
}

// relabel returns the data with type to, sharing its buffers. It must be released.
func relabel(to arrow.DataType, d arrow.ArrayData) arrow.ArrayData {
	nested, ok := to.(arrow.NestedType)
	if !ok || arrow.TypeEqual(to, d.DataType()) || to.ID() != d.DataType().ID() ||
		len(nested.Fields()) != len(d.Children()) {
		d.Retain() // NewRecordBatch rejects other differences
		return d
	}
	children := make([]arrow.ArrayData, len(d.Children()))
	for i, child := range d.Children() {
		children[i] = relabel(nested.Fields()[i].Type, child)
	}
	out := array.NewData(to, d.Len(), d.Buffers(), children, d.NullN(), d.Offset())
	for _, child := range children {
		child.Release()
	}
	return out
}
