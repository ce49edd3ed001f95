// Package columnar holds rows as columns in memory, on their way from records into Parquet.
//
// It is here in place of Arrow's builders for three reasons. A row that turns out bad in its middle
// must leave no trace, and here it is dropped by cutting every column to the length it had: no mark
// is kept per value, and lengths of what is nested follow from the offsets above it. A value costs
// nanoseconds, for its column is a concrete type whose Append is inlined. And a writer of Parquet
// pages can read the buffers as they are.
//
// The buffers are laid out as Arrow lays them out, so a record for Arrow is a view of them.
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
	// Key identifies the field for good, whatever it will be called: the number of a Protobuf
	// field. Empty stands for the Name.
	Key      string
	Name     string
	Aliases  []string // by which the schema says that it was called before
	Doc      string
	Required bool // never null
	ID       int  // Iceberg's; 0 until it is assigned
	Type     Type
}

// Identity returns the Key, or the Name where there is none.
func (f Field) Identity() string { return cmp.Or(f.Key, f.Name) }

// Type is one of Iceberg's primitive types (boolean, int, long, float, double, decimal, date, time,
// timestamp, timestamptz, string, binary, uuid, fixed) or a Struct, a List, a Map.
type Type interface {
	String() string
}

// Struct is a group of fields.
type Struct struct{ Fields []Field }

// List is any number of elements in their order.
type List struct{ Element Field }

// Map is a list of pairs; which keys it may have is its writer's affair.
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

// WithIDs gives every field its Iceberg id: those that have one keep it, the others count on from
// the highest, in the order in which a new table numbers its fields. So fields without any ids get
// those of a new table, from 1.
func WithIDs(fields []Field) []Field {
	n := numbering{last: HighestID(fields)}
	return n.all(fields)
}

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

// inside numbers what a field consists of; key and value of a map come before what they consist of.
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

// HighestID returns the highest id that the fields and their parts have.
func HighestID(fields []Field) int {
	top := 0
	for _, f := range fields {
		top = max(top, f.ID, HighestID(Parts(f.Type)))
	}
	return top
}

// Parts returns the fields that a type consists of.
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

// Schema returns the fields as an Iceberg schema. Ids that are missing are given by WithIDs.
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

// uniqueIDs is checked here because iceberg.NewSchema panics.
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
		return &iceberg.ListType{ElementID: inner[0].ID, Element: inner[0].Type, ElementRequired: inner[0].Required}, nil
	case Map:
		return &iceberg.MapType{
			KeyID: inner[0].ID, KeyType: inner[0].Type, ValueID: inner[1].ID, ValueType: inner[1].Type, ValueRequired: inner[1].Required,
		}, nil
	case iceberg.Type: // a table may have types that Millrace has no columns for
		return t, nil
	}
	return nil, fmt.Errorf("%v is no type of a column", t)
}

// ArrowSchema returns the fields as an Arrow schema that names Iceberg's field ids, as Parquet
// files of a table must.
func ArrowSchema(fields []Field) (*arrow.Schema, error) {
	s, err := Schema(fields)
	if err != nil {
		return nil, err
	}
	return table.SchemaToArrowSchema(s, nil, true, false)
}
