// Package columnar holds rows as columns in memory on their way from records to Parquet files.
//
// Columns is a batch of rows, with a Column of a concrete type per Field. Decoders append values to
// the columns, Mark and Rollback drop incomplete rows, and package pages writes the columns to
// files. Field and Type describe columns, and convert to Iceberg and Arrow schemas.
//
// The package replaces Arrow's builders for three reasons. A row that fails in the middle must
// leave no trace: here it is removed by truncating every column to its previous length. No marks
// are kept per value, and the lengths of nested columns follow from the offsets of their parents.
// Appending a value takes nanoseconds, because Append of a concrete column type is inlined. And a
// writer of Parquet pages can read the buffers directly.
//
// The buffers have Arrow's layout, so an Arrow record is a view of them.
package columnar

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// Field describes a column, or a part of one.
type Field struct {
	// Key identifies the field permanently, even if it is renamed, such as the number of a Protobuf
	// field. If it is empty, the Name does.
	Key      string
	Name     string
	Aliases  []string // former names, according to the schema
	Doc      string
	Required bool // never null
	ID       int  // Iceberg's field id; 0 until it is assigned
	Type     Type
}

// Identity returns the Key, or the Name if there is no Key.
func (f Field) Identity() string { return cmp.Or(f.Key, f.Name) }

// Type is one of Iceberg's primitive types (boolean, int, long, float, double, decimal, date, time,
// timestamp, timestamptz, string, binary, uuid, fixed), a Struct, a List or a Map.
type Type interface {
	String() string
}

// Struct is a group of fields.
type Struct struct{ Fields []Field }

// List is a sequence of elements.
type List struct{ Element Field }

// Map is a list of key-value pairs. Uniqueness of keys is up to the writer.
type Map struct{ Key, Value Field }

func (s Struct) String() string {
	var b strings.Builder
	for i, f := range s.Fields {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %s", f.Name, f.Type)
	}
	return "struct<" + b.String() + ">"
}

func (l List) String() string { return fmt.Sprintf("list<%s>", l.Element.Type) }
func (m Map) String() string  { return fmt.Sprintf("map<%s, %s>", m.Key.Type, m.Value.Type) }

// WithIDs assigns Iceberg ids to all fields. Existing ids are kept, and the others continue from
// the highest, in the order in which a new table numbers its fields. So fields without ids get
// those of a new table, from 1.
func WithIDs(fields []Field) []Field {
	n := numbering{last: HighestID(fields)}
	return n.all(fields)
}

// numbering assigns consecutive ids after last.
type numbering struct{ last int }

func (n *numbering) all(fields []Field) []Field {
	out := make([]Field, len(fields))
	for i, f := range fields {
		n.id(&f)
		n.inside(&f)
		out[i] = f
	}
	return out
}

func (n *numbering) id(f *Field) {
	if f.ID == 0 {
		n.last++
		f.ID = n.last
	}
}

// inside numbers the parts of a field. The key and value of a map are numbered before their own
// parts, as Iceberg does.
func (n *numbering) inside(f *Field) {
	switch t := f.Type.(type) {
	case Struct:
		f.Type = Struct{n.all(t.Fields)}
	case List:
		n.id(&t.Element)
		n.inside(&t.Element)
		f.Type = t
	case Map:
		n.id(&t.Key)
		n.id(&t.Value)
		n.inside(&t.Key)
		n.inside(&t.Value)
		f.Type = t
	}
}

// HighestID returns the highest id of the fields and their parts.
func HighestID(fields []Field) int {
	top := 0
	for _, f := range fields {
		top = max(top, f.ID, HighestID(Parts(f.Type)))
	}
	return top
}

// Parts returns the fields that a type consists of: the fields of a struct, the element of a list,
// the key and value of a map.
func Parts(t Type) []Field {
	switch t := t.(type) {
	case Struct:
		return t.Fields
	case List:
		return []Field{t.Element}
	case Map:
		return []Field{t.Key, t.Value}
	}
	return nil
}

// Schema returns the fields as an Iceberg schema. Missing ids are assigned by WithIDs.
func Schema(fields []Field) (*iceberg.Schema, error) {
	nested, err := nestedFields(WithIDs(fields))
	if err != nil {
		return nil, err
	}
	seen := map[int]string{}
	if err := uniqueIDs(seen, WithIDs(fields)); err != nil {
		return nil, err
	}
	return iceberg.NewSchema(0, nested...), nil
}

// uniqueIDs returns an error if two fields have the same id, for which iceberg.NewSchema would
// panic.
func uniqueIDs(seen map[int]string, fields []Field) error {
	for _, f := range fields {
		if other, twice := seen[f.ID]; twice {
			return fmt.Errorf("columns %s and %s have the same id %d", other, f.Name, f.ID)
		}
		seen[f.ID] = f.Name
		if err := uniqueIDs(seen, Parts(f.Type)); err != nil {
			return err
		}
	}
	return nil
}

func nestedFields(fields []Field) ([]iceberg.NestedField, error) {
	out := make([]iceberg.NestedField, len(fields))
	for i, f := range fields {
		t, err := icebergType(f.Type)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Name, err)
		}
		out[i] = iceberg.NestedField{ID: f.ID, Name: f.Name, Type: t, Required: f.Required, Doc: f.Doc}
	}
	return out, nil
}

func icebergType(t Type) (iceberg.Type, error) {
	inner, err := nestedFields(Parts(t))
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case Struct:
		return &iceberg.StructType{FieldList: inner}, nil
	case List:
		return &iceberg.ListType{
			ElementID: inner[0].ID, Element: inner[0].Type, ElementRequired: inner[0].Required,
		}, nil
	case Map:
		return &iceberg.MapType{
			KeyID: inner[0].ID, KeyType: inner[0].Type, ValueID: inner[1].ID, ValueType: inner[1].Type,
			ValueRequired: inner[1].Required,
		}, nil
	case iceberg.Type: // a table may have types that columns do not support
		return t, nil
	}
	return nil, fmt.Errorf("%v is not a column type", t)
}

// ArrowSchema returns the fields as an Arrow schema with Iceberg's field ids in its metadata, which
// Parquet files of a table must have.
func ArrowSchema(fields []Field) (*arrow.Schema, error) {
	s, err := Schema(fields)
	if err != nil {
		return nil, err
	}
	return table.SchemaToArrowSchema(s, nil, true, false)
}
