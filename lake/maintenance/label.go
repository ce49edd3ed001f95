package maintenance

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// labelled returns a batch of columns whose types are the schema's to the letter. What is read from
// Parquet has the types' forms, but may say otherwise what can be null inside a map, and a batch
// does not take that.
func labelled(schema *arrow.Schema, columns []arrow.Array, rows int64) arrow.RecordBatch {
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

func relabel(to arrow.DataType, d arrow.ArrayData) arrow.ArrayData {
	nested, ok := to.(arrow.NestedType)
	if !ok || arrow.TypeEqual(to, d.DataType()) || to.ID() != d.DataType().ID() || len(nested.Fields()) != len(d.Children()) {
		d.Retain() // what does not fit at all is for the batch to refuse
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
