package load

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/compute"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/internal/datafile"
)

// schemaOf returns the columns of the table for those of a file.
func schemaOf(file *arrow.Schema) (*iceberg.Schema, error) {
	fields := make([]arrow.Field, file.NumFields())
	for i, f := range file.Fields() {
		fields[i] = arrow.Field{Name: f.Name, Type: column(f.Type), Nullable: f.Nullable}
		if !plain(f.Type) {
			return nil, fmt.Errorf("column %s has the type %s, with values that Iceberg lacks", f.Name, f.Type)
		}
		// One by one, so that an error names the column.
		if _, err := table.ArrowSchemaToIcebergWithFreshIDs(arrow.NewSchema(fields[i:i+1], nil), false); err != nil {
			return nil, fmt.Errorf("column %s has the type %s, which Iceberg lacks: %w", f.Name, f.Type, err)
		}
	}
	return table.ArrowSchemaToIcebergWithFreshIDs(arrow.NewSchema(fields, nil), false)
}

// column returns the type of a column of the table for that of the file. Iceberg has no unsigned and
// no small integers, and times in microseconds.
func column(t arrow.DataType) arrow.DataType {
	switch t := t.(type) {
	case *arrow.Uint8Type, *arrow.Uint16Type, *arrow.Int8Type, *arrow.Int16Type:
		return arrow.PrimitiveTypes.Int32
	case *arrow.Uint32Type, *arrow.Uint64Type:
		return arrow.PrimitiveTypes.Int64
	case *arrow.Float16Type:
		return arrow.PrimitiveTypes.Float32
	case *arrow.TimestampType:
		return &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: t.TimeZone}
	case *arrow.Time32Type, *arrow.Time64Type:
		return arrow.FixedWidthTypes.Time64us
	}
	return t
}

// plain reports whether the values in a nested type are as the table has them. They are not converted.
func plain(t arrow.DataType) bool {
	nested, ok := t.(arrow.NestedType)
	if !ok {
		return true
	}
	for _, f := range nested.Fields() {
		if !arrow.TypeEqual(column(f.Type), f.Type) || !plain(f.Type) {
			return false
		}
	}
	return true
}

// sameColumns returns an error if two schemas differ in more than the ids of fields.
func sameColumns(have, want *iceberg.Schema) error {
	if len(have.Fields()) != len(want.Fields()) {
		return fmt.Errorf("it has %d columns, and the file %d", len(have.Fields()), len(want.Fields()))
	}
	for i, f := range have.Fields() {
		w := want.Fields()[i]
		// Texts of types have no ids.
		if f.Name != w.Name || f.Required && !w.Required || shape(f.Type) != shape(w.Type) {
			return fmt.Errorf("column %d is %s %s, and in the file %s %s", i+1, f.Name, f.Type, w.Name, w.Type)
		}
	}
	return nil
}

// shape returns the text of a type without the ids of its fields.
func shape(t iceberg.Type) string {
	nested, ok := t.(iceberg.NestedType)
	if !ok {
		return t.String()
	}
	text := nested.Type() + "("
	for _, f := range nested.Fields() {
		text += f.Name + " " + shape(f.Type) + ","
	}
	return text + ")"
}

// converted returns a batch with the columns of the table. The caller must release it.
func converted(ctx context.Context, to *arrow.Schema, from arrow.RecordBatch) (arrow.RecordBatch, error) {
	columns := make([]arrow.Array, from.NumCols())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i, c := range from.Columns() {
		want := to.Field(i).Type
		if _, nested := want.(arrow.NestedType); nested || arrow.TypeEqual(want, c.DataType()) {
			c.Retain()
			columns[i] = c
			continue
		}
		var err error
		// Nanoseconds are cut, as everywhere in this system. A number that does not fit is an error.
		options := compute.SafeCastOptions(want)
		options.AllowTimeTruncate = true
		if columns[i], err = compute.CastArray(ctx, c, options); err != nil {
			return nil, fmt.Errorf("column %s: %w", to.Field(i).Name, err)
		}
	}
	return datafile.Labelled(to, columns, from.NumRows()), nil
}
