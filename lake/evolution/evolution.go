// Package evolution changes the columns of an existing table to those that a program writes,
// without rewriting the table's files. A new field or event type in a contract becomes a new
// column. A change that would make old rows unreadable, or change their meaning, is refused with
// the reason.
//
// Files identify columns by Iceberg id, and a column keeps its id forever, so nothing has to be
// rewritten. A field is matched to a column by its key, such as the number of a Protobuf field,
// which the table keeps in a property. So a field with a new name is a renamed column, not a
// dropped and an added one. Fields without a key are matched by name.
//
// Of computes the Step from a table's schema to the columns of a program. Union computes columns
// that hold rows of several schemas at a time.
package evolution

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/columnar"
)

// Property is the table property with the keys of columns, as JSON: {"id": "key"}. Columns that are
// not listed are matched by name.
const Property = "millrace.field-keys"

// Keys has the keys of columns by id.
type Keys map[int]string

// ParseKeys parses the value of Property. An empty value has no keys.
func ParseKeys(property string) (Keys, error) {
	byID := map[string]string{}
	if property != "" {
		if err := json.Unmarshal([]byte(property), &byID); err != nil {
			return nil, fmt.Errorf("table property %s: %w", Property, err)
		}
	}
	keys := Keys{}
	for id, key := range byID {
		n, err := strconv.Atoi(id)
		if err != nil {
			return nil, fmt.Errorf("table property %s: %w", Property, err)
		}
		keys[n] = key
	}
	return keys, nil
}

// String returns the value of Property.
func (k Keys) String() string {
	// The keys of JSON objects are strings.
	byID := map[string]string{}
	for id, key := range k {
		byID[strconv.Itoa(id)] = key
	}
	b, err := json.Marshal(byID) // sorted by name
	if err != nil {
		panic(err) // cannot happen for strings
	}
	return string(b)
}

// Step is the change that gives a table the columns that a program writes.
type Step struct {
	// Columns are the program's columns with their ids in the table. Files are written with them.
	// Other columns of the table are null in these files.
	Columns []columnar.Field
	Schema  *iceberg.Schema // new schema of the table; unchanged if Changes is empty
	LastID  int             // highest id that any schema of the table has used
	Keys    Keys
	Changes []string // for logs, such as "column total is new"
}

// RefusedError reports that a table's columns cannot be changed to what the program writes.
type RefusedError struct {
	Column string // path, such as "placed.lines.element.quantity"
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("column %s: %s", e.Column, e.Reason)
}

// New returns the step for a table that does not exist yet. The columns in key together identify a
// row; they must be required.
func New(want []columnar.Field, key []string) (Step, error) {
	s := Step{Columns: columnar.WithIDs(want), Keys: Keys{}}
	built, err := columnar.Schema(s.Columns)
	if err != nil {
		return Step{}, err
	}
	ids, err := identify(built, key)
	if err != nil {
		return Step{}, err
	}
	s.Schema = iceberg.NewSchemaWithIdentifiers(0, ids, built.Fields()...)
	s.LastID = built.HighestFieldID()
	s.Keys.record(s.Columns)
	return s, nil
}

// identify returns the ids of the key columns.
func identify(s *iceberg.Schema, key []string) ([]int, error) {
	var ids []int
	for _, name := range key {
		f, ok := s.FindFieldByName(name)
		if !ok || !f.Required {
			return nil, fmt.Errorf("%s is not a required column, so it cannot be part of a key", name)
		}
		ids = append(ids, f.ID)
	}
	return ids, nil
}

// record stores the keys of fields by their ids.
func (k Keys) record(fields []columnar.Field) {
	for _, f := range fields {
		if f.Key != "" {
			k[f.ID] = f.Key
		}
		k.record(columnar.Parts(f.Type))
	}
}

// Of returns the step from a table's schema to the wanted columns. lastID is the highest id that
// the table has ever used; ids are never reused. The error is a *RefusedError if the columns are
// incompatible.
//
// New columns are added and are null in existing rows. Columns that are no longer wanted stay and
// are null in new rows. Types may widen as Iceberg allows: int to long, float to double, and
// decimals to a higher precision.
func Of(have *iceberg.Schema, lastID int, keys Keys, want []columnar.Field) (Step, error) {
	there, err := fieldsOf(have.Fields())
	if err != nil {
		return Step{}, err
	}
	c := change{last: max(lastID, have.HighestFieldID()), keys: maps.Clone(keys)}
	if c.keys == nil {
		c.keys = Keys{}
	}
	table, columns, err := c.merge("", there, want)
	if err != nil {
		return Step{}, err
	}
	s := Step{Columns: columns, Schema: have, LastID: c.last, Keys: c.keys, Changes: c.changes}
	if len(c.changes) == 0 {
		return s, nil
	}
	built, err := columnar.Schema(table)
	if err != nil {
		return Step{}, err
	}
	// Fields that identify a row are kept.
	s.Schema = iceberg.NewSchemaWithIdentifiers(have.ID+1, have.IdentifierFieldIDs, built.Fields()...)
	return s, nil
}

// Columns returns the current columns of a table with their keys.
func Columns(s *iceberg.Schema, keys Keys) ([]columnar.Field, error) {
	fields, err := fieldsOf(s.Fields())
	if err != nil {
		return nil, err
	}
	keys.assign(fields)
	return fields, nil
}

// assign sets the keys of fields from their ids.
func (k Keys) assign(fields []columnar.Field) {
	for i, f := range fields {
		fields[i].Key = k[f.ID]
		k.assign(columnar.Parts(f.Type)) // struct fields share memory with f.Type; parts of lists and maps have no keys
	}
}

// change collects the changes of a step.
type change struct {
	last    int
	keys    Keys
	changes []string
}

// log adds a change to the description of the step.
func (c *change) log(format string, args ...any) {
	c.changes = append(c.changes, fmt.Sprintf(format, args...))
}

// merge returns the new fields of the table, and the wanted fields with their ids.
func (c *change) merge(at string, have, want []columnar.Field) (table, columns []columnar.Field, err error) {
	table, columns = slices.Clone(have), make([]columnar.Field, len(want))
	taken := make([]bool, len(have))
	// First, wanted fields that match a column change it in place.
	for i, w := range want {
		n := c.find(have, w)
		if n < 0 {
			continue
		}
		if taken[n] {
			return nil, nil, &RefusedError{join(at, w.Name),
				fmt.Sprintf("two fields match the table's column %s", have[n].Name)}
		}
		taken[n] = true
		if table[n], columns[i], err = c.field(at, have[n], w); err != nil {
			return nil, nil, err
		}
	}
	// Columns that are no longer written must be nullable.
	for n, h := range have {
		if !taken[n] && h.Required {
			table[n].Required = false
			c.log("column %s is no longer written and becomes nullable", join(at, h.Name))
		}
	}
	// The remaining wanted fields are new.
	for i, w := range want {
		if columns[i].ID != 0 {
			continue
		}
		added := c.number(w)
		table = append(table, added)
		columns[i] = added
		c.log("column %s is new: %s", join(at, w.Name), w.Type)
	}
	// Names must stay unique: a new field may have the name of a column that is no longer written.
	byName := map[string]columnar.Field{}
	for _, f := range table {
		if other, twice := byName[f.Name]; twice {
			return nil, nil, &RefusedError{join(at, f.Name), fmt.Sprintf(
				"the table already has a column of that name, for a field that was removed (%s); rename the new field",
				c.identity(other))}
		}
		byName[f.Name] = f
	}
	return table, columns, nil
}

// find returns the index of the column that a field matches, or -1. A field with a column's id is
// that column (see Union). Otherwise keys are compared, and finally names of columns without keys.
func (c *change) find(have []columnar.Field, w columnar.Field) int {
	if w.ID != 0 {
		if n := slices.IndexFunc(have, func(h columnar.Field) bool { return h.ID == w.ID }); n >= 0 {
			return n
		}
	}
	if w.Key != "" {
		if n := slices.IndexFunc(have, func(h columnar.Field) bool { return c.keys[h.ID] == w.Key }); n >= 0 {
			return n
		}
	}
	return slices.IndexFunc(have, func(h columnar.Field) bool { return c.keys[h.ID] == "" && h.Name == w.Name })
}

// identity describes how a column is identified, for errors.
func (c *change) identity(f columnar.Field) string {
	if key := c.keys[f.ID]; key != "" {
		return "key " + key
	}
	return "no key"
}

// number assigns ids to a new field and its parts. Existing rows lack it, so it is optional.
func (c *change) number(w columnar.Field) columnar.Field {
	w.Required = false
	w.ID = c.last + 1
	numbered := columnar.WithIDs([]columnar.Field{w}) // parts get the ids after the field's own
	c.last = columnar.HighestID(numbered)
	c.keys.record(numbered)
	return numbered[0]
}

// field changes one column to what is wanted.
func (c *change) field(at string, h, w columnar.Field) (table, column columnar.Field, err error) {
	table, column = h, w
	column.ID = h.ID
	path := join(at, w.Name)
	// From now on the key identifies the column, even if a later contract renames the field.
	if c.keys[h.ID] != w.Key && w.Key != "" {
		c.keys[h.ID] = w.Key
		c.log("column %s gets the key %s", path, w.Key)
	}
	if h.Name != w.Name {
		table.Name = w.Name
		c.log("column %s is renamed to %s", join(at, h.Name), w.Name)
	}
	if w.Doc != "" && w.Doc != h.Doc {
		table.Doc = w.Doc
		c.log("column %s gets a new description", path)
	}
	switch {
	case h.Required && !w.Required:
		table.Required = false
		c.log("column %s becomes nullable", path)
	case w.Required && !h.Required:
		column.Required = false // existing rows may lack it
	}
	table.Type, column.Type, err = c.retype(path, h.Type, w.Type)
	return table, column, err
}

// retype changes a column's type to what is wanted.
func (c *change) retype(path string, h, w columnar.Type) (table, column columnar.Type, err error) {
	refused := &RefusedError{path, fmt.Sprintf(
		"the table has %s and this program writes %s, to which existing rows cannot be widened; "+
			"give the field a new number and name", h, w)}
	switch h := h.(type) {
	case columnar.Struct:
		w, ok := w.(columnar.Struct)
		if !ok {
			return nil, nil, refused
		}
		// Fields of a struct follow the same rules as columns.
		inTable, inColumn, err := c.merge(path, h.Fields, w.Fields)
		return columnar.Struct{Fields: inTable}, columnar.Struct{Fields: inColumn}, err
	case columnar.List:
		w, ok := w.(columnar.List)
		if !ok {
			return nil, nil, refused
		}
		inTable, inColumn, err := c.field(path, h.Element, named(w.Element, h.Element))
		return columnar.List{Element: inTable}, columnar.List{Element: inColumn}, err
	case columnar.Map:
		w, ok := w.(columnar.Map)
		if !ok {
			return nil, nil, refused
		}
		keyTable, keyColumn, err := c.field(path, h.Key, named(w.Key, h.Key))
		if err != nil {
			return nil, nil, err
		}
		if len(columnar.Parts(h.Key.Type)) == 0 && h.Key.Type.String() != keyTable.Type.String() {
			return nil, nil, refused // the key type of a map may not change
		}
		valueTable, valueColumn, err := c.field(path, h.Value, named(w.Value, h.Value))
		return columnar.Map{Key: keyTable, Value: valueTable}, columnar.Map{Key: keyColumn, Value: valueColumn}, err
	}
	switch {
	case h.String() == w.String():
	case widens(h, w):
		c.log("column %s is widened from %s to %s", path, h, w)
	default:
		return nil, nil, refused
	}
	// Equal or wider: existing files are read with the wider type.
	return w, w, nil
}

// named gives a part of a list or map the table's name for it, which Iceberg fixes.
func named(w, h columnar.Field) columnar.Field {
	w.Name, w.Key, w.Doc = h.Name, "", ""
	return w
}

// widens reports whether Iceberg allows a column's type to widen from one to the other.
func widens(from, to columnar.Type) bool {
	// Only changes after which every existing value keeps its meaning.
	switch from := from.(type) {
	case iceberg.Int32Type:
		_, ok := to.(iceberg.Int64Type)
		return ok
	case iceberg.Float32Type:
		_, ok := to.(iceberg.Float64Type)
		return ok
	case iceberg.DecimalType:
		to, ok := to.(iceberg.DecimalType)
		// Files store unscaled values, so the scale may not change.
		return ok && to.Scale() == from.Scale() && to.Precision() > from.Precision()
	}
	return false
}

// fieldsOf converts Iceberg fields to this package's columns.
func fieldsOf(fields []iceberg.NestedField) ([]columnar.Field, error) {
	out := make([]columnar.Field, len(fields))
	for i, f := range fields {
		t, err := typeOf(f.Type)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Name, err)
		}
		out[i] = columnar.Field{Name: f.Name, Doc: f.Doc, Required: f.Required, ID: f.ID, Type: t}
	}
	return out, nil
}

// typeOf converts an Iceberg type to this package's types.
func typeOf(t iceberg.Type) (columnar.Type, error) {
	switch t := t.(type) {
	case *iceberg.StructType:
		fields, err := fieldsOf(t.FieldList)
		return columnar.Struct{Fields: fields}, err
	case *iceberg.ListType:
		element, err := fieldsOf([]iceberg.NestedField{t.ElementField()})
		if err != nil {
			return nil, err
		}
		return columnar.List{Element: element[0]}, nil
	case *iceberg.MapType:
		pair, err := fieldsOf([]iceberg.NestedField{t.KeyField(), t.ValueField()})
		if err != nil {
			return nil, err
		}
		return columnar.Map{Key: pair[0], Value: pair[1]}, nil
	}
	return t, nil
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}
