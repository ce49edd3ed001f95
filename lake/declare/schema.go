package declare

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
)

// Schema binds the columns of a table to the fields of a Go value. The same list writes values as
// rows, reads rows back, and computes their content for digests.
type Schema[T any] []Column[T]

// Column binds one column to a field. The field's type determines the column's type:
//
//	*string            string       null for "", unless required
//	*int32             int          required
//	*int64             long         required
//	*time.Time         timestamptz  null for the zero time, unless required
//	*Amount            decimal      null if unknown
//	*decimal128.Num    decimal      required
//	*[]string          list         required
//	*map[string]Amount map          required
type Column[T any] struct {
	Name, Doc string
	Of        func(*T) any // a pointer to the field
	Required  bool
}

// Amount is a monetary value without its currency. Known is false if there is none.
type Amount struct {
	Value decimal128.Num
	Known bool
}

// fields returns the columns to declare.
func (s Schema[T]) fields() []columnar.Field {
	var zero T
	out := make([]columnar.Field, len(s))
	for i, a := range s {
		f := columnar.Field{Name: a.Name, Doc: a.Doc, Required: true}
		switch a.Of(&zero).(type) {
		case *string:
			f.Type, f.Required = iceberg.PrimitiveTypes.String, a.Required
		case *int32:
			f.Type = iceberg.PrimitiveTypes.Int32
		case *int64:
			f.Type = iceberg.PrimitiveTypes.Int64
		case *time.Time:
			f.Type, f.Required = iceberg.PrimitiveTypes.TimestampTz, a.Required
		case *Amount:
			f.Type, f.Required = moneyType(), false
		case *decimal128.Num:
			f.Type = moneyType()
		case *[]string:
			f.Type = columnar.List{
				Element: columnar.Field{Name: "element", Type: iceberg.PrimitiveTypes.String, Required: true},
			}
		case *map[string]Amount:
			f.Type = columnar.Map{
				Key:   columnar.Field{Name: "key", Type: iceberg.PrimitiveTypes.String, Required: true},
				Value: columnar.Field{Name: "value", Type: moneyType(), Required: true},
			}
		default:
			panic(fmt.Sprintf("column %s: fields of type %T are not supported", a.Name, a.Of(&zero)))
		}
		out[i] = f
	}
	return out
}

// moneyType is the type of all money columns.
func moneyType() iceberg.Type { return iceberg.DecimalTypeOf(pricePrecision, priceScale) }

// names returns the column names.
func (s Schema[T]) names() []string {
	out := make([]string, len(s))
	for i, a := range s {
		out[i] = a.Name
	}
	return out
}

// write binds the schema to the columns of a table from the first one on. It returns a function
// that writes a value as the next row of these columns. Binding resolves the type of each column
// once instead of once per value.
func (s Schema[T]) write(to *columnar.Columns, first int) func(v *T) {
	var zero T
	writers := make([]func(v *T), len(s))
	for i, a := range s {
		column, of := to.Column(first+i), a.Of
		switch of(&zero).(type) {
		case *string:
			c, required := column.(*columnar.Bytes), a.Required
			writers[i] = func(v *T) {
				if p := of(v).(*string); *p != "" || required {
					c.AppendString(*p)
				} else {
					c.AppendNull()
				}
			}
		case *int32:
			c := column.(*columnar.Int32s)
			writers[i] = func(v *T) { c.Append(*of(v).(*int32)) }
		case *int64:
			c := column.(*columnar.Int64s)
			writers[i] = func(v *T) { c.Append(*of(v).(*int64)) }
		case *time.Time:
			c, required := column.(*columnar.Int64s), a.Required
			writers[i] = func(v *T) {
				if p := of(v).(*time.Time); required || !p.IsZero() {
					c.Append(p.UnixMicro())
				} else {
					c.AppendNull()
				}
			}
		case *Amount:
			c := column.(*columnar.Decimals)
			writers[i] = func(v *T) {
				if p := of(v).(*Amount); p.Known {
					c.Append(p.Value)
				} else {
					c.AppendNull()
				}
			}
		case *decimal128.Num:
			c := column.(*columnar.Decimals)
			writers[i] = func(v *T) { c.Append(*of(v).(*decimal128.Num)) }
		case *[]string:
			c := column.(*columnar.Lists)
			writers[i] = func(v *T) {
				for _, element := range *of(v).(*[]string) {
					c.Element().(*columnar.Bytes).AppendString(element)
				}
				c.Append()
			}
		case *map[string]Amount:
			c := column.(*columnar.Maps)
			writers[i] = func(v *T) {
				amounts := *of(v).(*map[string]Amount)
				for _, key := range slices.Sorted(maps.Keys(amounts)) {
					c.Keys().(*columnar.Bytes).AppendString(key)
					c.Values().(*columnar.Decimals).Append(amounts[key].Value)
				}
				c.Append()
			}
		}
	}
	return func(v *T) {
		for _, write := range writers {
			write(v)
		}
	}
}

// Content appends the canonical form of a value for digests. The encoding is unambiguous: strings
// carry their lengths and optional values a marker, so different values have different content.
func (s Schema[T]) Content(b []byte, v *T) []byte {
	number := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	decimal := func(n decimal128.Num) { number(uint64(n.HighBits())); number(n.LowBits()) }
	for _, a := range s {
		switch p := a.Of(v).(type) {
		case *string:
			b = digest.AppendString(b, *p)
		case *int32:
			number(uint64(*p))
		case *int64:
			number(uint64(*p))
		case *time.Time:
			b = append(b, marker(!p.IsZero()))
			number(uint64(p.UnixMicro()))
		case *Amount:
			b = append(b, marker(p.Known))
			decimal(p.Value)
		case *decimal128.Num:
			decimal(*p)
		case *[]string:
			number(uint64(len(*p)))
			for _, element := range *p {
				b = digest.AppendString(b, element)
			}
		case *map[string]Amount:
			number(uint64(len(*p)))
			for _, key := range slices.Sorted(maps.Keys(*p)) {
				b = digest.AppendString(b, key)
				decimal((*p)[key].Value)
			}
		}
	}
	return b
}

// marker distinguishes an optional value that is set from a zero value.
func marker(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// bind looks up the columns in a batch by the given names, and returns a function that reads row i
// into v. The values read do not alias the batch. v must be new: see reads.
func (s Schema[T]) bind(rec arrow.RecordBatch, names []string) (func(i int, v *T), error) {
	var zero T
	readers := make([]func(i int, p any), len(s))
	for at, a := range s {
		var err error
		switch a.Of(&zero).(type) {
		case *string:
			readers[at], err = reads(rec, names[at],
				func(c *array.String, i int, p *string) { *p = strings.Clone(c.Value(i)) })
		case *int32:
			readers[at], err = reads(rec, names[at], func(c *array.Int32, i int, p *int32) { *p = c.Value(i) })
		case *int64:
			readers[at], err = reads(rec, names[at], func(c *array.Int64, i int, p *int64) { *p = c.Value(i) })
		case *time.Time:
			readers[at], err = reads(rec, names[at],
				func(c *array.Timestamp, i int, p *time.Time) { *p = time.UnixMicro(int64(c.Value(i))).UTC() })
		case *Amount:
			readers[at], err = reads(rec, names[at],
				func(c *array.Decimal128, i int, p *Amount) { *p = Amount{c.Value(i), true} })
		case *decimal128.Num:
			readers[at], err = reads(rec, names[at],
				func(c *array.Decimal128, i int, p *decimal128.Num) { *p = c.Value(i) })
		case *[]string:
			readers[at], err = reads(rec, names[at], readList)
		case *map[string]Amount:
			readers[at], err = reads(rec, names[at], readMap)
		}
		if err != nil {
			return nil, err
		}
	}
	return func(i int, v *T) {
		for at, a := range s {
			readers[at](i, a.Of(v))
		}
	}, nil
}

// reads returns a reader of one column into a field. A null leaves the field unchanged, so a new
// value has the zero value there.
func reads[A arrow.Array, P any](
	rec arrow.RecordBatch, name string, read func(c A, i int, p *P),
) (func(i int, p any), error) {
	c, err := ColumnOf[A](rec, name)
	if err != nil {
		return nil, err
	}
	return func(i int, p any) {
		if !c.IsNull(i) {
			read(c, i, p.(*P))
		}
	}, nil
}

// readList and readMap copy the strings, since the batch is released after it has been read.
func readList(c *array.List, i int, p *[]string) {
	elements := c.ListValues().(*array.String)
	begin, end := c.ValueOffsets(i)
	for at := begin; at < end; at++ {
		*p = append(*p, strings.Clone(elements.Value(int(at))))
	}
}

func readMap(c *array.Map, i int, p *map[string]Amount) {
	keys, values := c.Keys().(*array.String), c.Items().(*array.Decimal128)
	begin, end := c.ValueOffsets(i)
	if begin == end {
		return
	}
	*p = make(map[string]Amount, end-begin)
	for at := begin; at < end; at++ {
		(*p)[strings.Clone(keys.Value(int(at)))] = Amount{values.Value(int(at)), true}
	}
}

// within lifts the columns of a part of T to columns of T.
func within[T, Part any](s Schema[Part], of func(*T) *Part) Schema[T] {
	out := make(Schema[T], len(s))
	for i, a := range s {
		out[i] = Column[T]{Name: a.Name, Doc: a.Doc, Required: a.Required, Of: func(v *T) any { return a.Of(of(v)) }}
	}
	return out
}

// Precision and scale of money columns: nine decimal places.
const (
	pricePrecision = 38
	priceScale     = 9
)

// addRows adds the rows of a batch to a digest, under the name that stream returns.
func addRows[T any](to *digest.Digest, rec arrow.RecordBatch, s Schema[T], stream func(*T) string) error {
	read, err := s.bind(rec, s.names())
	if err != nil {
		return err
	}
	var content []byte
	for i := range int(rec.NumRows()) {
		var v T
		read(i, &v)
		content = s.Content(content[:0], &v)
		to.Add(stream(&v), content)
	}
	return nil
}

// ColumnOf returns the column of a batch with the given name. It fails if the column is missing or
// of another type.
func ColumnOf[A arrow.Array](rec arrow.RecordBatch, name string) (A, error) {
	var none A
	at := rec.Schema().FieldIndices(name)
	if len(at) != 1 {
		return none, fmt.Errorf("column %s is missing", name)
	}
	c, ok := rec.Column(at[0]).(A)
	if !ok {
		return none, fmt.Errorf("column %s is %s", name, rec.Column(at[0]).DataType())
	}
	return c, nil
}
