package infer

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/millrace/millrace/lake/columnar"
)

// ErrGrow reports that an object needs columns that do not exist yet. Grow returns them.
var ErrGrow = errors.New("the object needs columns that do not exist yet")

// Decoder appends objects to columns.
type Decoder struct {
	o       Options
	columns *columnar.Columns
	fields  []columnar.Field // columns to fill, except for extra
	root    *group
	extra   *columnar.Bytes
}

// Bind returns a decoder that fills all columns except the reserved ones.
func (o Options) Bind(columns *columnar.Columns) (*Decoder, error) {
	d := &Decoder{o: o, columns: columns}
	var mine []columnar.Column
	for i, f := range columns.Fields() {
		switch {
		case f.Name == o.Extra:
			d.extra, _ = columns.Column(i).(*columnar.Bytes)
		// Other writers fill the reserved columns.
		case o.reserves(f.Name):
		default:
			d.fields, mine = append(d.fields, f), append(mine, columns.Column(i))
		}
	}
	if d.extra == nil {
		return nil, errors.New("column " + o.Extra + ", for content without a column, is missing or not a string")
	}
	// The whole row is treated like a struct.
	d.root = bindGroup(d.fields, mine)
	return d, nil
}

// Append appends a row. If it fails, the caller must roll back the unfinished row. The error is
// ErrGrow if the object needs more columns, or else columnar.ErrFull.
func (d *Decoder) Append(o *Object) error {
	// The row is filled first. If it turns out to need more columns, the caller rolls it back.
	left := d.root.append(o.root)
	if left == nil {
		d.extra.AppendNull()
		return d.columns.Err()
	}
	// Something has no column. Only ask for columns if the limits allow new ones: the rest belongs
	// in extra.
	if _, grows := d.o.Grow(d.fields, o); grows {
		return ErrGrow
	}
	d.extra.Append(left)
	return d.columns.Err()
}

// group is a struct or the whole row.
type group struct {
	members    map[string]*member
	folded     map[string]string // names by their case-folded form; empty if ambiguous
	columns    []*target
	generation uint64 // number of objects appended
}

// member is a field of objects with its columns. Columns that do not exist are nil.
type member struct{ primary, doubles, json *target }

// target is a column with its parts.
type target struct {
	column  columnar.Column
	group   *group  // of structs
	element *target // elements of a list or values of a map
	keys    *target // of maps
	of      columnar.Type
	filled  uint64 // generation in which it was last filled
}

// bindGroup binds the fields of a struct. The keys of fields show which member of an object they
// belong to.
func bindGroup(fields []columnar.Field, columns []columnar.Column) *group {
	g := &group{members: map[string]*member{}, folded: map[string]string{}}
	for i, f := range fields {
		t := bind(f.Type, columns[i])
		g.columns = append(g.columns, t)
		at := func(name string) *member {
			if g.members[name] == nil {
				g.members[name] = &member{}
			}
			return g.members[name]
		}
		kind, name, keyed := strings.Cut(f.Key, ":")
		switch {
		case f.Key == "":
			at(f.Name).primary = t
		case keyed && kind+":" == renamedKey:
			at(name).primary = t
		case keyed && kind+":" == doubleKey:
			at(name).doubles = t
		case keyed && kind+":" == jsonKey:
			at(name).json = t
		}
	}
	for name := range g.members {
		folded := fold(name)
		// Two columns differ only in case, so neither can be matched without regard to case.
		if _, twice := g.folded[folded]; twice {
			name = ""
		}
		g.folded[folded] = name
	}
	return g
}

// bind binds a type to its column, including its parts.
func bind(t columnar.Type, col columnar.Column) *target {
	out := &target{column: col, of: t}
	switch t := t.(type) {
	case columnar.Struct:
		columns := make([]columnar.Column, len(t.Fields))
		for i := range columns {
			columns[i] = col.(*columnar.Structs).Child(i)
		}
		out.group = bindGroup(t.Fields, columns)
	case columnar.List:
		out.element = bind(t.Element.Type, col.(*columnar.Lists).Element())
	case columnar.Map:
		maps := col.(*columnar.Maps)
		out.keys, out.element = bind(t.Key.Type, maps.Keys()), bind(t.Value.Type, maps.Values())
	}
	return out
}

// append appends an object's members. It returns the members without a column as a JSON object, or
// nil if there are none.
func (g *group) append(v *value) (left []byte) {
	g.generation++
	for i := range v.children {
		m := &v.children[i]
		// A null is the same as an absent member.
		if m.kind == kindNull && !m.unnamed {
			continue
		}
		rest, placed := m.raw, false
		// Members that have no column at all, or that their columns cannot hold, are collected in
		// left.
		if to := g.member(v.children, i); to != nil {
			rest, placed = to.append(m, g.generation)
		}
		if placed && rest == nil {
			continue
		}
		if left == nil {
			left = append(left, '{')
		} else {
			left = append(left, ',')
		}
		left = append(appendName(left, m), rest...)
	}
	// Columns that got no value from this object are null in its row.
	for _, c := range g.columns {
		if c.filled != g.generation {
			c.column.AppendNull()
		}
	}
	if left == nil {
		return nil
	}
	return append(left, '}')
}

// member returns the columns of an object's member, or nil.
func (g *group) member(members []value, i int) *member {
	m := &members[i]
	if m.unnamed {
		return nil
	}
	if to := g.members[string(m.name)]; to != nil {
		return to
	}
	// No column has exactly this name. Try one whose name differs only in case.
	if field := g.folded[fold(string(m.name))]; field != "" && claims(members, i, field) {
		return g.members[field]
	}
	return nil
}

// appendName appends a member's name and a colon.
func appendName(dst []byte, m *value) []byte {
	if m.unnamed {
		return append(append(dst, m.name...), ':') // as written
	}
	return append(appendString(dst, string(m.name)), ':')
}

// append appends a value to the first of the member's columns that can hold it.
func (to *member) append(v *value, generation uint64) (left []byte, placed bool) {
	if to.primary != nil {
		if left, placed = to.primary.append(v); placed {
			to.primary.filled = generation
			return left, true
		}
	}
	// The double column takes fractions, and the JSON column everything else.
	if to.doubles != nil && v.kind == kindNumber && exact(v.raw) {
		to.doubles.append(v)
		to.doubles.filled = generation
		return nil, true
	}
	if to.json != nil {
		if text, ok := to.json.column.(*columnar.Bytes); ok {
			text.Append(v.raw)
			to.json.filled = generation
			return nil, true
		}
	}
	return v.raw, false
}

// append appends one value, or nothing if the column cannot hold it. left is the part of the value
// without a column.
func (t *target) append(v *value) (left []byte, ok bool) {
	if v.kind == kindNull {
		t.column.AppendNull()
		return nil, true
	}
	switch col := t.column.(type) {
	case *columnar.Structs:
		if v.kind != kindObject {
			return nil, false
		}
		// A struct takes any object: what its fields cannot hold is returned.
		col.Append()
		return t.group.append(v), true
	case *columnar.Lists:
		return t.appendList(col, v)
	case *columnar.Maps:
		return t.appendMap(col, v)
	}
	converted, ok := convert(t.of, v)
	return nil, ok && put(t.column, converted)
}

// appendList appends an array. left is an array of the same length with the elements' remaining
// parts.
func (t *target) appendList(col *columnar.Lists, v *value) (left []byte, ok bool) {
	if v.kind != kindArray {
		return nil, false
	}
	begin := col.Start()
	// Elements are appended first. The list ends after the last one.
	for i := range v.children {
		rest, ok := t.element.append(&v.children[i])
		if !ok {
			// Undo the elements appended so far: the whole array goes elsewhere.
			t.element.column.Truncate(begin)
			return nil, false
		}
		// The first element with a rest. The earlier ones left nothing, so they are null in it.
		if left == nil && rest != nil {
			left = append(left, '[')
			for range i {
				left = append(left, "null,"...)
			}
		}
		switch {
		case left == nil:
		case rest == nil:
			left = append(left, "null,"...)
		default:
			left = append(append(left, rest...), ',')
		}
	}
	col.Append()
	if left != nil {
		// Replace the last comma.
		left[len(left)-1] = ']'
	}
	return left, true
}

// appendMap appends an object as pairs. left is an object with the values' remaining parts under
// the same names.
func (t *target) appendMap(col *columnar.Maps, v *value) (left []byte, ok bool) {
	if v.kind != kindObject {
		return nil, false
	}
	begin := col.Start()
	for i := range v.children {
		m := &v.children[i]
		// A map takes all pairs or none, so the first misfit undoes the others.
		key, ok := keyOf(t.keys.of, m)
		ok = ok && put(t.keys.column, key) && (m.kind != kindNull || !t.of.(columnar.Map).Value.Required)
		var rest []byte
		if ok {
			rest, ok = t.element.append(m)
		}
		if !ok {
			t.keys.column.Truncate(begin)
			t.element.column.Truncate(begin)
			return nil, false
		}
		if rest == nil {
			continue
		}
		if left == nil {
			left = append(left, '{')
		} else {
			left = append(left, ',')
		}
		left = append(appendName(left, m), rest...)
	}
	col.Append()
	if left != nil {
		left = append(left, '}')
	}
	return left, true
}

// appendString appends a JSON string.
func appendString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string
	}
	return append(dst, b...)
}
