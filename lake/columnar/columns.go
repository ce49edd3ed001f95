package columnar

import (
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
)

// ErrFull says that a column cannot hold more: its offsets have 32 bits. Nothing is wrong with the
// row that did not fit; it fits after Reset.
var ErrFull = errors.New("a column holds 2 GiB or more: write the rows and reset the columns earlier")

// Columns holds rows. A row is whole when every column has got its value; between rows all have the
// same length. Values are appended to the columns themselves, each of which is of a type of its
// own:
//
//	*Bools                boolean
//	*Int32s               int, date
//	*Int64s               long, timestamptz, timestamp, time
//	*Float32s, *Float64s  float, double
//	*Decimals             decimal
//	*Bytes                string, binary
//	*Fixed                uuid, fixed
//	*Structs, *Lists, *Maps
//
// Columns is for one goroutine at a time.
type Columns struct {
	fields  []Field
	schema  *arrow.Schema
	columns []Column
	full    *bool // shared with the columns that have offsets
}

// Column is what all columns have in common.
type Column interface {
	// Len is how many values there are, nulls included.
	Len() int
	AppendNull()
	// Truncate keeps the first n values, and nothing of one that was under way.
	Truncate(n int)
	// Validity is Arrow's bitmap, a set bit for every value that is not null; nil if there is no
	// null. It is valid until the next value.
	Validity() []byte
	// Nulls counts the nulls.
	Nulls() int

	// pad appends nulls until there are n values.
	pad(n int)
	// size is the memory that the values take.
	size() int
	data(arrow.DataType) arrow.ArrayData
}

// New makes empty columns.
func New(fields []Field) (*Columns, error) {
	schema, err := ArrowSchema(fields)
	if err != nil {
		return nil, err
	}
	c := &Columns{fields: fields, schema: schema, full: new(bool)}
	if c.columns, err = c.makeAll(fields); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Columns) makeAll(fields []Field) ([]Column, error) {
	out := make([]Column, len(fields))
	for i, f := range fields {
		col, err := c.makeColumn(f.Type)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Name, err)
		}
		out[i] = col
	}
	return out, nil
}

func (c *Columns) makeColumn(t Type) (Column, error) {
	inner, err := c.makeAll(Parts(t))
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case iceberg.BooleanType:
		return &Bools{}, nil
	case iceberg.Int32Type, iceberg.DateType:
		return &Int32s{}, nil
	case iceberg.Int64Type, iceberg.TimestampTzType, iceberg.TimestampType, iceberg.TimeType:
		return &Int64s{}, nil
	case iceberg.Float32Type:
		return &Float32s{}, nil
	case iceberg.Float64Type:
		return &Float64s{}, nil
	case iceberg.DecimalType:
		return &Decimals{}, nil
	case iceberg.StringType, iceberg.BinaryType:
		return &Bytes{offsets: make([]int32, 1), full: c.full}, nil
	case iceberg.UUIDType:
		return &Fixed{width: 16}, nil
	case iceberg.FixedType:
		return &Fixed{width: t.Len()}, nil
	case Struct:
		if len(inner) == 0 {
			return nil, errors.New("a struct has no fields, which Parquet cannot hold")
		}
		return &Structs{children: inner}, nil
	case List:
		return &Lists{element: inner[0], runs: runs{offsets: make([]int32, 1), full: c.full}}, nil
	case Map:
		return &Maps{keys: inner[0], values: inner[1], runs: runs{offsets: make([]int32, 1), full: c.full}}, nil
	}
	return nil, fmt.Errorf("there are no columns of type %s", t)
}

// Storable are those of the fields that there can be columns for: not those of a type that New
// refuses, nor what consists of such alone. A file without them is as one in which they are null.
func Storable(fields []Field) []Field {
	var out []Field
	for _, f := range fields {
		if f.Type = storable(f.Type); f.Type != nil {
			out = append(out, f)
		}
	}
	return out
}

func storable(t Type) Type {
	parts := Parts(t)
	kept := Storable(parts)
	switch t.(type) {
	case Struct:
		if len(kept) == 0 {
			return nil
		}
		return Struct{Fields: kept}
	case List:
		if len(kept) < len(parts) {
			return nil
		}
		return List{Element: kept[0]}
	case Map:
		if len(kept) < len(parts) {
			return nil
		}
		return Map{Key: kept[0], Value: kept[1]}
	}
	if _, err := new(Columns).makeColumn(t); err != nil {
		return nil
	}
	return t
}

// Fields returns the fields that New was given.
func (c *Columns) Fields() []Field { return c.fields }

// Schema is that of the records.
func (c *Columns) Schema() *arrow.Schema { return c.schema }

// Column returns the column of field i.
func (c *Columns) Column(i int) Column { return c.columns[i] }

// Rows counts the rows, by the first column.
func (c *Columns) Rows() int {
	if len(c.columns) == 0 {
		return 0
	}
	return c.columns[0].Len()
}

// Bytes is about how much memory the rows take; what the buffers keep in reserve is not counted.
func (c *Columns) Bytes() int {
	n := 0
	for _, col := range c.columns {
		n += col.size()
	}
	return n
}

// Mark names this moment, between two rows, for Rollback. It costs nothing.
func (c *Columns) Mark() int { return c.Rows() }

// Rollback drops every row, and every part of one, that came after the mark.
func (c *Columns) Rollback(mark int) {
	for _, col := range c.columns {
		col.Truncate(mark)
	}
	*c.full = false
}

// Reset drops all rows and keeps the memory for the next ones.
func (c *Columns) Reset() { c.Rollback(0) }

// Err is ErrFull once a value did not fit, until the row it belongs to has been rolled back.
func (c *Columns) Err() error {
	if *c.full {
		return ErrFull
	}
	return nil
}

// Record returns a view of all rows: nothing is copied. It and what is sliced from it are valid
// until Reset, or until a Rollback into its rows; rows may be appended meanwhile. A writer that has
// returned from writing it is done with it: pqarrow keeps nothing of a record.
//
// It panics where a row is not whole, or did not fit.
func (c *Columns) Record() arrow.RecordBatch {
	if err := c.Err(); err != nil {
		panic(err)
	}
	rows, arrays := c.Rows(), make([]arrow.Array, len(c.columns))
	for i, col := range c.columns {
		if col.Len() != rows {
			panic(fmt.Sprintf("columnar: column %s has %d values in %d rows", c.fields[i].Name, col.Len(), rows))
		}
		data := col.data(c.schema.Field(i).Type)
		arrays[i] = array.MakeFromData(data)
		data.Release()
	}
	rec := array.NewRecordBatch(c.schema, arrays, int64(rows))
	for _, a := range arrays {
		a.Release()
	}
	return rec
}
