package columnar

import (
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
)

// ErrFull reports that a column is full, because its offsets have 32 bits. The row that did not fit
// is valid and fits after Reset.
var ErrFull = errors.New("a column holds 2 GiB or more: write the rows and reset the columns earlier")

// Columns holds rows. A row is complete when every column has its value; between rows, all columns
// have the same length. Values are appended to the columns, which have these types:
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
// A Columns must not be used by several goroutines at once.
type Columns struct {
	fields  []Field
	schema  *arrow.Schema
	columns []Column
	full    *bool // set when a value does not fit; shared with the columns that have offsets
}

// Column is the common interface of all columns.
type Column interface {
	// Len returns the number of values, including nulls.
	Len() int
	AppendNull()
	// Truncate keeps the first n values and drops everything after them, including an unfinished
	// value.
	Truncate(n int)
	// Validity returns Arrow's validity bitmap, in which a set bit is a value that is not null, or
	// nil if there are no nulls. It is valid until the next value is appended.
	Validity() []byte
	// Nulls returns the number of nulls.
	Nulls() int

	// pad appends nulls until there are n values.
	pad(n int)
	// size returns the memory of the values in bytes.
	size() int
	// data returns the values as Arrow data, without copying them.
	data(arrow.DataType) arrow.ArrayData
}

// New returns empty columns for the fields.
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

// makeAll returns a column for each field.
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

// makeColumn returns a column for a type, or an error if the type is not supported.
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
			return nil, errors.New("a struct has no fields, which Parquet cannot store")
		}
		return &Structs{children: inner}, nil
	case List:
		return &Lists{element: inner[0], runs: runs{offsets: make([]int32, 1), full: c.full}}, nil
	case Map:
		return &Maps{keys: inner[0], values: inner[1], runs: runs{offsets: make([]int32, 1), full: c.full}}, nil
	}
	return nil, fmt.Errorf("type %s is not supported", t)
}

// Storable returns the fields that columns can hold. It omits fields of types that New refuses, and
// nested fields without any supported part. In files, omitted fields read as null.
func Storable(fields []Field) []Field {
	var out []Field
	for _, f := range fields {
		if f.Type = storable(f.Type); f.Type != nil {
			out = append(out, f)
		}
	}
	return out
}

// storable returns the supported part of a type, or nil.
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

// Fields returns the fields that were passed to New.
func (c *Columns) Fields() []Field { return c.fields }

// Schema returns the Arrow schema of the records.
func (c *Columns) Schema() *arrow.Schema { return c.schema }

// Column returns the column of field i.
func (c *Columns) Column(i int) Column { return c.columns[i] }

// Rows returns the number of rows, which is the length of the first column.
func (c *Columns) Rows() int {
	if len(c.columns) == 0 {
		return 0
	}
	return c.columns[0].Len()
}

// Bytes returns the approximate memory of the rows, without spare capacity.
func (c *Columns) Bytes() int {
	n := 0
	for _, col := range c.columns {
		n += col.size()
	}
	return n
}

// Mark returns the current position between two rows, for Rollback. It is free.
func (c *Columns) Mark() int { return c.Rows() }

// Rollback drops all rows after the mark, and any unfinished one.
func (c *Columns) Rollback(mark int) {
	for _, col := range c.columns {
		col.Truncate(mark)
	}
	*c.full = false
}

// Reset drops all rows. It keeps the memory for the next ones.
func (c *Columns) Reset() { c.Rollback(0) }

// Err returns ErrFull after a value did not fit, until its row is rolled back.
func (c *Columns) Err() error {
	if *c.full {
		return ErrFull
	}
	return nil
}

// Record returns a view of all rows without copying them. The record and its slices are valid until
// Reset or a Rollback of any of its rows; more rows may be appended meanwhile. A writer is done
// with a record when its call returns, since pqarrow retains nothing of it.
//
// Record panics if a row is incomplete or did not fit.
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
