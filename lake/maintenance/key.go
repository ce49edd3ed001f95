package maintenance

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// keyField is one field of a sort order, located in the columns of a batch. Sort keys are byte
// strings whose bytewise order is the sort order, so sorting and merging only compare bytes.
type keyField struct {
	path       []int // column index, then field indices of nested structs
	transform  iceberg.Transform
	identity   bool
	descending bool
	nullsLast  bool
}

// sortKeys locates the fields of a sort order. It fails if sorting by one of them is not supported.
func sortKeys(order table.SortOrder, schema *iceberg.Schema) ([]keyField, error) {
	var keys []keyField
	// All fields must be supported: a partly sorted file must not claim the table's order.
	for _, f := range order.Fields() {
		if len(f.SourceIDs) != 1 {
			return nil, fmt.Errorf("sort order %d: %v has several source columns", order.OrderID(), f)
		}
		path, typ, ok := findField(schema.Fields(), f.SourceID())
		if !ok {
			return nil, fmt.Errorf("sort order %d: column %d is not in the schema, or is within a list or map",
				order.OrderID(), f.SourceID())
		}
		// Structs, lists and maps have no order in Iceberg.
		if _, ok := typ.(iceberg.PrimitiveType); !ok {
			return nil, fmt.Errorf("sort order %d: column %d has type %s, which cannot be sorted",
				order.OrderID(), f.SourceID(), typ)
		}
		_, identity := f.Transform.(iceberg.IdentityTransform)
		keys = append(keys, keyField{
			path: path, transform: f.Transform, identity: identity,
			descending: f.Direction == table.SortDESC, nullsLast: f.NullOrder == table.NullsLast,
		})
	}
	return keys, nil
}

// findField returns the path to a field, which may be nested in structs.
func findField(fields []iceberg.NestedField, id int) (path []int, typ iceberg.Type, ok bool) {
	for i, f := range fields {
		if f.ID == id {
			return []int{i}, f.Type, true
		}
		if s, isStruct := f.Type.(*iceberg.StructType); isStruct {
			if path, typ, ok := findField(s.FieldList, id); ok {
				return append([]int{i}, path...), typ, true
			}
		}
	}
	return nil, nil, false
}

// rowKeys are the sort keys of a batch's rows, in one buffer.
type rowKeys struct {
	bytes []byte
	// ends has the end of each row's key in bytes.
	ends []int
}

// at returns the key of row i.
func (k rowKeys) at(i int) []byte {
	begin := 0
	if i > 0 {
		begin = k.ends[i-1]
	}
	return k.bytes[begin:k.ends[i]]
}

// len returns the number of rows.
func (k rowKeys) len() int { return len(k.ends) }

// keysOf computes the sort keys of a batch.
func keysOf(fields []keyField, rec arrow.RecordBatch) (rowKeys, error) {
	rows := int(rec.NumRows())
	k := rowKeys{ends: make([]int, rows)}
	// Choosing the conversion per column, not per value, keeps the inner loop fast.
	appenders := make([]func([]byte, int) ([]byte, error), len(fields))
	for i, f := range fields {
		var err error
		if appenders[i], err = f.appender(rec); err != nil {
			return rowKeys{}, err
		}
	}
	var err error
	for row := range rows {
		for _, add := range appenders {
			if k.bytes, err = add(k.bytes, row); err != nil {
				return rowKeys{}, err
			}
		}
		k.ends[row] = len(k.bytes)
	}
	return k, nil
}

// appender returns a function that appends a row's value to its key. Each value has a first byte
// for null: 0 sorts before a value (1), and 2 after it.
func (f keyField) appender(rec arrow.RecordBatch) (func([]byte, int) ([]byte, error), error) {
	column := rec.Column(f.path[0])
	above := []arrow.Array{} // parents; if one is null, so is the value
	for _, i := range f.path[1:] {
		s, ok := column.(*array.Struct)
		if !ok {
			return nil, fmt.Errorf("column %s is %s, not a struct", rec.ColumnName(f.path[0]), column.DataType())
		}
		above = append(above, s)
		column = s.Field(i)
	}
	// Extension types, such as UUIDs, sort by their storage.
	if x, ok := column.(array.ExtensionArray); ok {
		above = append(above, column)
		column = x.Storage()
	}
	value, err := f.value(column)
	if err != nil {
		return nil, fmt.Errorf("sort by column %s: %w", rec.ColumnName(f.path[0]), err)
	}
	null := byte(0)
	if f.nullsLast {
		null = 2
	}
	return func(dst []byte, row int) ([]byte, error) {
		// A null parent makes the value null, whatever the child column contains.
		for _, a := range above {
			if a.IsNull(row) {
				return append(dst, null), nil
			}
		}
		if column.IsNull(row) {
			return append(dst, null), nil
		}
		dst = append(dst, 1)
		begin := len(dst)
		dst, some, err := value(dst, row)
		if err != nil {
			return nil, err
		}
		// The transform returned null: replace the first byte.
		if !some {
			dst[begin-1] = null
			return dst[:begin], nil
		}
		// Inverting all bytes reverses the order. The null byte is not inverted, because the null
		// order is independent of the direction.
		if f.descending {
			for i := begin; i < len(dst); i++ {
				dst[i] = ^dst[i]
			}
		}
		return dst, nil
	}, nil
}

// value returns a function that appends a transformed value. some is false if the transform yields
// null.
func (f keyField) value(column arrow.Array) (func(dst []byte, row int) (_ []byte, some bool, err error), error) {
	if !f.identity {
		// A transformed field sorts by the transformed value.
		literal, err := literals(column)
		if err != nil {
			return nil, err
		}
		return func(dst []byte, row int) ([]byte, bool, error) {
			v := f.transform.Apply(iceberg.Optional[iceberg.Literal]{Valid: true, Val: literal(row)})
			if !v.Valid {
				return dst, false, nil
			}
			dst, err := appendLiteral(dst, v.Val)
			return dst, true, err
		}, nil
	}
	plain := func(add func(dst []byte, row int) []byte) (func([]byte, int) ([]byte, bool, error), error) {
		return func(dst []byte, row int) ([]byte, bool, error) { return add(dst, row), true, nil }, nil
	}
	switch a := column.(type) {
	case *array.Boolean:
		return plain(func(dst []byte, row int) []byte { return appendBool(dst, a.Value(row)) })
	case *array.Int32:
		return plain(func(dst []byte, row int) []byte { return appendInt(dst, int64(a.Value(row))) })
	case *array.Int64:
		return plain(func(dst []byte, row int) []byte { return appendInt(dst, a.Value(row)) })
	case *array.Date32:
		return plain(func(dst []byte, row int) []byte { return appendInt(dst, int64(a.Value(row))) })
	case *array.Time64:
		return plain(func(dst []byte, row int) []byte { return appendInt(dst, int64(a.Value(row))) })
	case *array.Timestamp:
		return plain(func(dst []byte, row int) []byte { return appendInt(dst, int64(a.Value(row))) })
	case *array.Float32:
		return plain(func(dst []byte, row int) []byte { return appendFloat(dst, float64(a.Value(row))) })
	case *array.Float64:
		return plain(func(dst []byte, row int) []byte { return appendFloat(dst, a.Value(row)) })
	case *array.Decimal128:
		return plain(func(dst []byte, row int) []byte { return appendDecimal(dst, a.Value(row)) })
	case *array.String:
		return plain(func(dst []byte, row int) []byte { return appendText(dst, a.Value(row)) })
	case *array.LargeString:
		return plain(func(dst []byte, row int) []byte { return appendText(dst, a.Value(row)) })
	case *array.Binary:
		return plain(func(dst []byte, row int) []byte { return appendText(dst, a.Value(row)) })
	case *array.LargeBinary:
		return plain(func(dst []byte, row int) []byte { return appendText(dst, a.Value(row)) })
	case *array.FixedSizeBinary:
		return plain(func(dst []byte, row int) []byte { return append(dst, a.Value(row)...) })
	}
	return nil, fmt.Errorf("sorting by type %s is not supported", column.DataType())
}

// literals returns a function that converts a value to the form that transforms need.
func literals(column arrow.Array) (func(row int) iceberg.Literal, error) {
	switch a := column.(type) {
	case *array.Int32:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(a.Value(row)) }, nil
	case *array.Int64:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(a.Value(row)) }, nil
	case *array.Date32:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(iceberg.Date(a.Value(row))) }, nil
	case *array.Time64:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(iceberg.Time(a.Value(row))) }, nil
	case *array.Timestamp:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(iceberg.Timestamp(a.Value(row))) }, nil
	case *array.Decimal128:
		scale := int(a.DataType().(*arrow.Decimal128Type).Scale)
		return func(row int) iceberg.Literal {
			return iceberg.NewLiteral(iceberg.Decimal{Val: a.Value(row), Scale: scale})
		}, nil
	case *array.String:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(a.Value(row)) }, nil
	case *array.Binary:
		return func(row int) iceberg.Literal { return iceberg.NewLiteral(a.Value(row)) }, nil
	case *array.FixedSizeBinary:
		return func(row int) iceberg.Literal { return iceberg.FixedLiteral(a.Value(row)) }, nil
	}
	return nil, fmt.Errorf("transforming type %s is not supported", column.DataType())
}

// appendLiteral appends the result of a transform.
func appendLiteral(dst []byte, v iceberg.Literal) ([]byte, error) {
	// Same encodings as in keyField.value, by the type of the result.
	switch v := v.(type) {
	case iceberg.BoolLiteral:
		return appendBool(dst, bool(v)), nil
	case iceberg.Int32Literal:
		return appendInt(dst, int64(v)), nil
	case iceberg.Int64Literal:
		return appendInt(dst, int64(v)), nil
	case iceberg.DateLiteral:
		return appendInt(dst, int64(v)), nil
	case iceberg.TimeLiteral:
		return appendInt(dst, int64(v)), nil
	case iceberg.TimestampLiteral:
		return appendInt(dst, int64(v)), nil
	case iceberg.DecimalLiteral:
		return appendDecimal(dst, v.Val), nil
	case iceberg.StringLiteral:
		return appendText(dst, string(v)), nil
	case iceberg.BinaryLiteral:
		return appendText(dst, []byte(v)), nil
	case iceberg.FixedLiteral:
		return append(dst, v...), nil
	}
	return nil, fmt.Errorf("sorting by a value of type %s is not supported", v.Type())
}

// appendBool sorts false before true.
func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// appendInt flips the sign bit, so that negative numbers sort first.
func appendInt(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(v)^1<<63)
}

// appendFloat uses Iceberg's order: -0 before +0, and NaN last.
func appendFloat(dst []byte, v float64) []byte {
	bits := math.Float64bits(v)
	switch {
	case math.IsNaN(v):
		bits = math.MaxUint64
	case bits>>63 == 1: // negative: a larger magnitude sorts first
		bits = ^bits
	default:
		bits |= 1 << 63
	}
	return binary.BigEndian.AppendUint64(dst, bits)
}

// appendDecimal appends the signed high half and the unsigned low half.
func appendDecimal(dst []byte, v decimal128.Num) []byte {
	dst = appendInt(dst, v.HighBits())
	return binary.BigEndian.AppendUint64(dst, v.LowBits())
}

// appendText terminates a text with two zeros and escapes a zero within it as 0x00ff. So no key is
// a prefix of another, and shorter texts sort first.
func appendText[T string | []byte](dst []byte, v T) []byte {
	for i := range len(v) {
		dst = append(dst, v[i])
		if v[i] == 0 {
			dst = append(dst, 0xff)
		}
	}
	return append(dst, 0, 0)
}
