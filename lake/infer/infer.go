// Package infer derives columns from JSON objects without a schema. The columns follow from the
// objects that arrive and grow with them. So a topic of JSON can be queried immediately, and
// nothing is lost if its objects disagree. Parse reads an object, Options.Grow returns the columns
// that objects need, and a Decoder appends objects to columns.
//
//	true, false       boolean
//	a whole number    long, if it has neither point nor exponent and fits into 64 bits
//	another number    double, if the double's shortest form has the same digits
//	a string          string; with the option Times, timestamptz if it is an RFC 3339 time with at
//	                  most microseconds
//	an object         struct
//	an array          list, if its elements have a common type
//	null              null, like an absent name
//
// An existing column keeps its type, and is filled with values that its type represents exactly.
// Numbers fill int, float and decimal (a decimal also accepts a number in a string). Strings fill
// date, time, timestamp and uuid, in forms such as 2024-01-01, 10:00:00, 2024-01-01T10:00:00 and
// 6ba7b810-9dad-11d1-80b4-00c04fd430c8. Base64 fills binary and fixed.
//
// A field without a column of its name fills a column whose name differs only in case. If the
// object has several such fields, the one with exactly the column's name is used, or else the
// first.
//
// A value that does not fit is stored in a second column. A number with a fraction goes to x_double
// if x is a long. Anything else goes to x_json as its JSON: a string if x is a number, a number
// that x cannot represent exactly, an array of mixed types. If the first objects already disagree,
// x itself is a string with JSON. At most one of x, x_double and x_json has a value, so coalesce
// returns it.
//
// What still has no column is preserved verbatim in one more column, as a JSON object with the same
// enclosing names. This applies to empty arrays and objects without any other occurrence, to values
// that are nested too deep or exceed the number of columns, and to names that a table cannot have.
// In arrays, null replaces elements that have a column.
//
// Dots in names become underscores, because dots have a meaning in SQL.
package infer

import (
	"slices"
	"strings"
	"unicode"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/columnar"
)

// Options are limits and settings for inferred columns.
type Options struct {
	Extra    string   // name of the column for everything without a column
	Reserved []string // names of the table's other columns
	Times    bool     // strings that are RFC 3339 times become timestamptz
	Columns  int      // maximum number of columns, including nested ones; 0 means 1000
	Depth    int      // maximum nesting of objects and arrays, including the outermost; 0 means 8
}

// columns returns the maximum number of columns.
func (o Options) columns() int {
	if o.Columns <= 0 {
		return 1000
	}
	return o.Columns
}

// depth returns the maximum nesting.
func (o Options) depth() int {
	if o.Depth <= 0 {
		return 8
	}
	return o.Depth
}

// ExtraField returns the column for everything without a column.
func (o Options) ExtraField() columnar.Field {
	return columnar.Field{Name: o.Extra, Type: text, Doc: "what has no column of its own, as a JSON object"}
}

// Key prefixes of columns that are not simply the field of their name. The field's name follows.
const (
	renamedKey = "name:"   // the column's name differs from the field's
	doubleKey  = "double:" // numbers that the field's long column cannot hold
	jsonKey    = "json:"   // values that the field's other columns cannot hold, as JSON
)

var (
	// Types of inferred columns.
	text    = iceberg.PrimitiveTypes.String
	long    = iceberg.PrimitiveTypes.Int64
	double  = iceberg.PrimitiveTypes.Float64
	boolean = iceberg.PrimitiveTypes.Bool
	instant = iceberg.PrimitiveTypes.TimestampTz
)

// Grow returns the columns that a table needs for objects, given those that it has, and reports
// whether they differ. Columns with an id exist in the table and keep their types.
func (o Options) Grow(have []columnar.Field, objects ...*Object) (want []columnar.Field, changed bool) {
	var mine []columnar.Field
	for _, f := range have {
		if !o.reserves(f.Name) {
			mine = append(mine, f)
		}
	}
	// Existing columns count against the limit.
	g := grower{o: o, columns: count(mine)}
	for again := true; again; { // a column that became JSON may have freed room for another one
		g.changed = false
		for _, object := range objects {
			mine = g.object(mine, object.root, 1)
		}
		again = g.changed
		changed = changed || again
	}
	for _, f := range have { // in their original order
		if !o.reserves(f.Name) {
			f, mine = mine[0], mine[1:]
		}
		want = append(want, f)
	}
	return append(want, mine...), changed
}

// reserves reports whether fields cannot have a column of that name.
func (o Options) reserves(name string) bool {
	taken := func(other string) bool { return strings.EqualFold(other, name) }
	return taken(o.Extra) || slices.ContainsFunc(o.Reserved, taken)
}

// count returns the number of fields, including nested ones.
func count(fields []columnar.Field) int {
	n := len(fields)
	for _, f := range fields {
		n += count(columnar.Parts(f.Type))
	}
	return n
}

// grower is the state of Grow.
type grower struct {
	o       Options
	columns int
	changed bool
}

// object returns the fields of the struct for an object.
func (g *grower) object(fields []columnar.Field, v *value, depth int) []columnar.Field {
	for i := range v.children {
		// A null gives no type. A name that cannot be decoded cannot be a column.
		if m := &v.children[i]; m.kind != kindNull && !m.unnamed {
			fields = g.member(fields, field(fields, v.children, i), m, depth)
		}
	}
	return fields
}

// field returns the field that an object's member belongs to: the one with its own name, or an
// existing one whose name differs only in case.
func field(fields []columnar.Field, members []value, i int) string {
	name, like := string(members[i].name), ""
	for _, f := range fields {
		switch of := fieldOf(f); {
		case of == name:
			return name
		case strings.EqualFold(of, name) && like != "" && like != of:
			return name // ambiguous
		case strings.EqualFold(of, name):
			like = of
		}
	}
	if like != "" && claims(members, i, like) {
		return like
	}
	return name
}

// member returns the fields of the enclosing struct after adding a member to field name.
func (g *grower) member(fields []columnar.Field, name string, m *value, depth int) []columnar.Field {
	// Restored if the value does not fit after all, so that its columns are not counted.
	before := *g
	// A field has up to three columns: its own, one for doubles, and one for JSON.
	primary, doubles, json := find(fields, name)
	switch {
	// A JSON column takes any value.
	case primary < 0 && json >= 0:
		return fields
	case primary < 0:
		t := g.typeOf(m, depth)
		// The field is new: its first value determines the type.
		key := ""
		// An array of mixed types becomes a JSON column from the start.
		if t == (mixed{}) {
			*g, key, t = before, jsonKey+name, text
		}
		f, ok := g.named(fields, key, name, t, depth)
		if t == nil || !ok {
			*g = before
			return fields
		}
		if key != "" {
			f.Key = key
			return g.add(fields, f)
		}
		return g.member(g.add(fields, f), name, m, depth) // check that it holds the value
	}
	was := fields[primary]
	if t, ok := g.fit(was.Type, m, was.ID != 0, depth); ok {
		if g.changed { // otherwise it is unchanged
			fields = slices.Clone(fields)
			fields[primary].Type = t
		}
		return fields
	}
	*g = before
	// The field's own column cannot hold the value. Choose or add another one.
	numeric := m.kind == kindNumber || m.kind == kindInteger
	switch {
	case json >= 0 || doubles >= 0 && m.kind == kindNumber && exact(m.raw):
	case was.ID == 0 && (!numeric || !same(was.Type, double)): // it does not exist in the table yet, so it may change
		g.changed = true
		// The parts of the old type no longer count.
		g.columns += 1 - count([]columnar.Field{was})
		fields = slices.Clone(fields)
		fields[primary].Key, fields[primary].Type = jsonKey+name, text
	case m.kind == kindNumber && (same(was.Type, long) || same(was.Type, iceberg.PrimitiveTypes.Int32)) && exact(m.raw):
		fields = g.beside(fields, doubleKey, name, "_double", double, depth)
	default:
		fields = g.beside(fields, jsonKey, name, "_json", text, depth)
	}
	return fields
}

// mixed is the type of an array whose elements have no common type.
type mixed struct{}

// String implements columnar.Type.
func (mixed) String() string { return "mixed" }

// same reports whether two types are equal.
func same(a, b columnar.Type) bool { return a.String() == b.String() }

// find returns the indices of a field's columns, or -1 for those that do not exist.
func find(fields []columnar.Field, name string) (primary, doubles, json int) {
	primary, doubles, json = -1, -1, -1
	for i, f := range fields {
		switch {
		case f.Key == "" && f.Name == name, strings.HasPrefix(f.Key, renamedKey) && f.Key[len(renamedKey):] == name:
			primary = i
		case strings.HasPrefix(f.Key, doubleKey) && f.Key[len(doubleKey):] == name:
			doubles = i
		case strings.HasPrefix(f.Key, jsonKey) && f.Key[len(jsonKey):] == name:
			json = i
		}
	}
	return primary, doubles, json
}

// add adds a column.
func (g *grower) add(fields []columnar.Field, f columnar.Field) []columnar.Field {
	g.changed = true
	g.columns++ // its parts have already been counted
	return append(slices.Clone(fields), f)
}

// beside adds a column for values that the field's own column cannot hold.
func (g *grower) beside(
	fields []columnar.Field, key, name, suffix string, t columnar.Type, depth int,
) []columnar.Field {
	if f, ok := g.named(fields, key, name+suffix, t, depth); ok {
		f.Key = key + name
		return g.add(fields, f)
	}
	return fields
}

// maxName is the maximum length of a name that becomes a column, in bytes.
const maxName = 128

// named returns a column, unless its name is not possible or there are too many columns.
func (g *grower) named(
	fields []columnar.Field, key, name string, t columnar.Type, depth int,
) (f columnar.Field, ok bool) {
	column := strings.Map(func(r rune) rune {
		if r == '.' || !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '_'
		}
		return r
	}, name)
	// The key keeps the field's name, by which later objects find the column.
	if column != name && key == "" {
		f.Key = renamedKey + name
	}
	f.Name, f.Type = column, t
	// Many engines ignore case, so names must differ in more than that.
	taken := func(other string) bool { return strings.EqualFold(other, column) }
	ok = name != "" && len(name) <= maxName && g.columns < g.o.columns() &&
		!slices.ContainsFunc(fields, func(f columnar.Field) bool { return taken(f.Name) }) &&
		(depth > 1 || !g.o.reserves(column))
	return f, ok
}

// typeOf returns the type for a first value, or nil if the value suggests none.
func (g *grower) typeOf(v *value, depth int) columnar.Type {
	switch v.kind {
	case kindBool:
		return boolean
	case kindInteger:
		return long
	case kindNumber:
		return double
	// A time is only recognised if the option is set: other strings may look like times by chance.
	case kindString:
		if g.o.Times && isTime(v) {
			return instant
		}
		return text
	}
	// Deeper values are preserved in the extra column.
	if depth >= g.o.depth() {
		return nil
	}
	// An object without usable members has no type yet: a struct needs at least one field.
	if v.kind == kindObject {
		if fields := g.object(nil, v, depth+1); len(fields) > 0 {
			return columnar.Struct{Fields: fields}
		}
		return nil
	}
	// The elements together determine the type, each widening that of the previous ones.
	var element columnar.Type
	for i := range v.children {
		switch item := &v.children[i]; {
		case item.kind == kindNull:
		case element == nil:
			element = g.typeOf(item, depth+1)
		default:
			var ok bool
			if element, ok = g.fit(element, item, false, depth+1); !ok {
				return mixed{}
			}
		}
		if element == (mixed{}) {
			return element
		}
	}
	if element == nil {
		return nil
	}
	g.columns++
	return columnar.List{Element: columnar.Field{Name: "element", Type: element}}
}

// fit reports whether a type can hold a value, and returns that type. It may have more fields than
// before, and if it is not fixed, it may be another type.
func (g *grower) fit(t columnar.Type, v *value, fixed bool, depth int) (columnar.Type, bool) {
	// Every column is optional.
	if v.kind == kindNull {
		return t, true
	}
	switch t := t.(type) {
	case columnar.Struct:
		if v.kind != kindObject {
			return t, false
		}
		return columnar.Struct{Fields: g.object(t.Fields, v, depth+1)}, true
	case columnar.List:
		if v.kind != kindArray {
			return t, false
		}
		// All elements must fit. Otherwise the whole array goes into another column.
		element := t.Element.Type
		for i := range v.children {
			var ok bool
			if element, ok = g.fit(element, &v.children[i], t.Element.ID != 0, depth+1); !ok {
				return t, false
			}
		}
		t.Element.Type = element
		return t, true
	case columnar.Map: // only in existing tables
		if v.kind != kindObject {
			return t, false
		}
		of := t.Value.Type
		for i := range v.children {
			m := &v.children[i]
			if _, ok := keyOf(t.Key.Type, m); !ok || m.kind == kindNull && t.Value.Required {
				return t, false
			}
			var ok bool
			if of, ok = g.fit(of, m, t.Value.ID != 0, depth+1); !ok {
				return t, false
			}
		}
		t.Value.Type = of
		return t, true
	}
	switch {
	case holds(t, v):
		return t, true
	// The column exists with this type, and files refer to it.
	case fixed:
		return t, false
	// Not in the table yet: a long may still become a double, and a time a string.
	case v.kind == kindNumber && same(t, long) && exact(v.raw):
		g.changed = true
		return double, true
	case v.kind == kindString && v.decoded && same(t, instant):
		g.changed = true
		return text, true
	}
	return t, false
}

// holds reports whether a type without parts can represent a value exactly.
func holds(t columnar.Type, v *value) bool {
	_, ok := convert(t, v)
	return ok
}
