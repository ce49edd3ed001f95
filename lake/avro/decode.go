package avro

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"

	"github.com/apache/arrow-go/v18/arrow/decimal128"

	"github.com/millrace/millrace/internal/avro"
	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

// Decoder appends values of one schema to columns. It must not be used by several goroutines at
// once.
type Decoder struct {
	columns *columnar.Columns
	root    *target
	first   columnar.Column // a column that every row fills; nil if the schema has no columns
}

// Bind returns a decoder that appends to the plan's columns, which it finds by name. A column may
// have a wider type than planned. The caller must fill the other columns.
func (p *Plan) Bind(columns *columnar.Columns) (*Decoder, error) {
	d := &Decoder{columns: columns}
	var fields []columnar.Field
	var mine []columnar.Column
	// Match also finds renamed columns by their aliases.
	for n, i := range evolution.Match(columns.Fields(), p.fields) {
		if i < 0 {
			return nil, fmt.Errorf("%s: missing column in the table", p.fields[n].Name)
		}
		fields, mine = append(fields, columns.Fields()[i]), append(mine, columns.Column(i))
	}
	var err error
	d.root, err = p.root.bindGroup(fields, mine, "")
	// Any column of the plan has the number of complete rows.
	if len(mine) > 0 {
		d.first = mine[0]
	}
	return d, err
}

// Append appends a row, or fails and appends nothing. After a failure, values of the same row in
// other columns are gone, too. Errors identify the field and the problem, except for
// columnar.ErrFull.
func (d *Decoder) Append(value []byte) error {
	mark := d.columns.Mark()
	if d.first != nil { // the caller's columns may already be longer
		mark = d.first.Len()
	}
	// The reader stops at its first error, and later reads return zero values.
	s := source{Reader: avro.Reader{Rest: value}}
	// A failed read leaves the columns unequal, which the rollback repairs.
	d.root.fields(&s)
	err := s.Err
	// Trailing bytes mean that the value was written with another schema.
	if err == nil && len(s.Rest) > 0 {
		err = fmt.Errorf("%d bytes follow its end", len(s.Rest))
	}
	if err == nil {
		err = d.columns.Err()
	}
	if err != nil {
		d.columns.Rollback(mark)
	}
	return err
}

// target is a node with the column of its values.
type target struct {
	*node
	column   columnar.Column // nil for null
	children []*target
	others   []columnar.Column // columns of a struct that the schema lacks
	present  *columnar.Bools
}

// bindGroup binds a record or a union to the columns of its struct.
func (n *node) bindGroup(fields []columnar.Field, columns []columnar.Column, path string) (*target, error) {
	t := &target{node: n}
	// empty reports that no field has a column, so that the marker column is used.
	taken, empty := make([]bool, len(fields)), true
	want := make([]columnar.Field, len(n.children))
	for i, child := range n.children {
		want[i].Name = child.name
	}
	// Columns may be in any order, and more than the schema has.
	at := evolution.Match(fields, want)
	// Nulls take part, because a union counts its branches by index.
	for n, child := range n.children {
		if child.kind == nullKind {
			t.children = append(t.children, &target{node: child})
			continue
		}
		i := at[n]
		if i < 0 {
			return nil, fmt.Errorf("%s: missing column in the table", join(path, child.name))
		}
		taken[i], empty = true, false
		bound, err := child.bind(fields[i], columns[i], join(path, child.name))
		if err != nil {
			return nil, err
		}
		t.children = append(t.children, bound)
	}
	// The remaining columns are null in every row of this schema.
	for i, col := range columns {
		if present, ok := col.(*columnar.Bools); ok && !taken[i] && fields[i].Name == presentColumn && empty {
			t.present = present
		} else if !taken[i] {
			t.others = append(t.others, col)
		}
	}
	return t, nil
}

// bind binds a node to its column.
func (n *node) bind(f columnar.Field, col columnar.Column, path string) (*target, error) {
	mismatch := fmt.Errorf("%s: a column of type %s cannot store it", path, f.Type)
	t := &target{node: n, column: col}
	// A null could not be stored.
	if n.nullable && f.Required {
		return nil, fmt.Errorf("%s: the column must be nullable", path)
	}
	var err error
	// Nested types bind their parts to the parts of the column.
	switch n.kind {
	case recordKind, unionKind:
		group, ok := col.(*columnar.Structs)
		if !ok {
			return nil, mismatch
		}
		fields := f.Type.(columnar.Struct).Fields
		columns := make([]columnar.Column, len(fields))
		for i := range columns {
			columns[i] = group.Child(i)
		}
		if t, err = n.bindGroup(fields, columns, path); err != nil {
			return nil, err
		}
		t.column = col
		return t, nil
	case arrayKind:
		lists, ok := col.(*columnar.Lists)
		if !ok {
			return nil, mismatch
		}
		item, err := n.children[0].bind(f.Type.(columnar.List).Element, lists.Element(), join(path, "element"))
		t.children = []*target{item}
		return t, err
	case mapKind:
		maps, ok := col.(*columnar.Maps)
		if !ok {
			return nil, mismatch
		}
		item, err := n.children[0].bind(f.Type.(columnar.Map).Value, maps.Values(), join(path, "value"))
		t.children = []*target{item}
		return t, err
	}
	if !holds(n, col) {
		return nil, mismatch
	}
	return t, nil
}

// holds reports whether a column can store values of a node. evolution.Union has already checked
// that the types are compatible in meaning.
func holds(n *node, col columnar.Column) bool {
	// Iceberg allows widening int to long and float to double.
	ok, wider := false, false
	switch n.kind {
	case boolKind:
		_, ok = col.(*columnar.Bools)
	case intKind:
		_, ok = col.(*columnar.Int32s)
		_, wider = col.(*columnar.Int64s)
	case longKind, millisKind, microsKind, dayMillisKind:
		_, ok = col.(*columnar.Int64s)
	case dateKind:
		_, ok = col.(*columnar.Int32s)
	case floatKind:
		_, ok = col.(*columnar.Float32s)
		_, wider = col.(*columnar.Float64s)
	case doubleKind:
		_, ok = col.(*columnar.Float64s)
	case decimalKind:
		_, ok = col.(*columnar.Decimals)
	case stringKind, bytesKind, enumKind, opaqueKind:
		_, ok = col.(*columnar.Bytes)
	case uuidKind, fixedKind:
		fixed, isFixed := col.(*columnar.Fixed)
		ok = isFixed && (n.kind == uuidKind && fixed.Width() == 16 ||
			n.kind == fixedKind && fixed.Width() == n.size)
	}
	return ok || wider
}

// source is the encoded value being read.
type source struct {
	avro.Reader
	emptyItems int // number of items that took no bytes
}

// maxEmptyItems limits items without bytes, such as records without fields. A few bytes could
// otherwise claim any number of them.
const maxEmptyItems = 100_000

// items reads an array or a map. It calls read for each item.
func (s *source) items(read func()) {
	// An array is a sequence of blocks, ended by an empty one.
	for n := s.Block(); n > 0; n = s.Block() {
		for ; n > 0 && s.Err == nil; n-- {
			before := len(s.Rest)
			if read(); len(s.Rest) == before && s.Err == nil {
				if s.emptyItems++; s.emptyItems > maxEmptyItems {
					s.Fail(fmt.Errorf("more than %d empty items", maxEmptyItems))
				}
			}
		}
	}
}

// fields appends a record's fields.
func (t *target) fields(s *source) {
	// Fields have no tags in Avro: they are read in the order of the writer's schema.
	for _, child := range t.children {
		if child.append(s); s.Err != nil {
			s.Err = inField(child.name, s.Err)
			return
		}
	}
	if t.present != nil {
		t.present.Append(true)
	}
	for _, col := range t.others {
		col.AppendNull()
	}
}

// fieldError is an error with the path to its field.
type fieldError struct {
	path string
	err  error
}

// Error returns the path and the reason.
func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }

// Unwrap returns the reason.
func (e *fieldError) Unwrap() error { return e.err }

// inField adds the field in which an error occurred to its path.
func inField(name string, err error) error {
	// Enclosing fields are added on the way out.
	if e := (*fieldError)(nil); errors.As(err, &e) {
		return &fieldError{join(name, e.path), e.err}
	}
	return &fieldError{name, err}
}

// append appends one value.
func (t *target) append(s *source) {
	// A nullable value begins with the index of its branch.
	if t.nullable && !s.Present(int64(t.nullAt)) {
		if s.Err == nil {
			t.column.AppendNull()
		}
		return
	}
	switch t.kind {
	case nullKind:
	case recordKind:
		t.column.(*columnar.Structs).Append()
		t.fields(s)
	case unionKind:
		t.union(s)
	case arrayKind:
		s.items(func() { t.children[0].append(s) })
		t.column.(*columnar.Lists).Append()
	case mapKind:
		// Duplicate keys are kept, as in other formats.
		maps := t.column.(*columnar.Maps)
		keys := maps.Keys().(*columnar.Bytes)
		s.items(func() {
			keys.Append(s.Text())
			t.children[0].append(s)
		})
		maps.Append()
	case opaqueKind:
		t.opaqueValue(s)
	default:
		t.scalar(s)
	}
}

// union appends a value of a union: a struct with one field set.
func (t *target) union(s *source) {
	branch := s.Long()
	if s.Err != nil {
		return
	}
	if branch < 0 || branch >= int64(len(t.children)) {
		s.Fail(fmt.Errorf("branch %d of a union of %d", branch, len(t.children)))
		return
	}
	if t.children[branch].kind == nullKind {
		t.column.AppendNull()
		return
	}
	t.column.(*columnar.Structs).Append()
	for i, child := range t.children {
		switch {
		case int64(i) == branch:
			if child.append(s); s.Err != nil {
				s.Err = inField(child.name, s.Err)
				return
			}
		// Branches that do not apply are null. Null itself has no column.
		case child.column != nil:
			child.column.AppendNull()
		}
	}
	for _, col := range t.others {
		col.AppendNull()
	}
}

// opaqueValue appends a value of a recursive type as JSON. This uses the Avro library, since the
// value has no fixed set of columns.
func (t *target) opaqueValue(s *source) {
	var v any
	// Decode and encode again: the JSON form must be Avro's own.
	rest, err := t.opaque.Decode(s.Rest, &v)
	if err != nil {
		s.Fail(err)
		return
	}
	text, err := t.opaque.AppendEncodeJSON(nil, v)
	if err != nil {
		s.Fail(err)
		return
	}
	s.Rest = rest
	t.column.(*columnar.Bytes).Append(text)
}

// scalar appends a value without parts.
func (t *target) scalar(s *source) {
	switch t.kind {
	case boolKind:
		if v := s.Bool(); s.Err == nil {
			t.column.(*columnar.Bools).Append(v)
		}
	case intKind, longKind, dateKind, millisKind, microsKind, dayMillisKind:
		t.integer(s)
	case floatKind:
		if b := s.Take(4); b != nil {
			v := math.Float32frombits(binary.LittleEndian.Uint32(b))
			// The column may have been widened by a newer schema.
			if wide, ok := t.column.(*columnar.Float64s); ok {
				wide.Append(float64(v))
			} else {
				t.column.(*columnar.Float32s).Append(v)
			}
		}
	case doubleKind:
		if b := s.Take(8); b != nil {
			t.column.(*columnar.Float64s).Append(math.Float64frombits(binary.LittleEndian.Uint64(b)))
		}
	case stringKind:
		t.column.(*columnar.Bytes).Append(s.Text())
	case bytesKind:
		t.column.(*columnar.Bytes).Append(s.Bytes())
	case fixedKind:
		if b := s.Take(int64(t.size)); s.Err == nil {
			t.column.(*columnar.Fixed).Append(b)
		}
	case enumKind:
		i := s.Long()
		if i < 0 || i >= int64(len(t.symbols)) {
			s.Fail(fmt.Errorf("symbol %d of an enum of %d", i, len(t.symbols)))
			return
		}
		t.column.(*columnar.Bytes).AppendString(t.symbols[i])
	case uuidKind:
		t.uuid(s)
	case decimalKind:
		t.decimal(s)
	}
}

// integer appends an int or a long, after conversion to the column's unit.
func (t *target) integer(s *source) {
	v := s.Long()
	// Times of day and local times have a valid range, but no conversion.
	if by := t.within; by != nil && s.Err == nil && (v < by.least || v > by.most) {
		s.Fail(fmt.Errorf("%d is out of range for %s", v, by.of))
		return
	}
	// ok is set to false for times that the column cannot have.
	ok := true
	switch t.kind {
	case intKind, dateKind, dayMillisKind:
		if int64(int32(v)) != v {
			s.Fail(fmt.Errorf("%d exceeds 32 bits", v))
			return
		}
		if t.kind == dateKind && !timeunit.OfDay(int32(v)) {
			s.Fail(fmt.Errorf("%d days since 1970 are outside of the years 1 to 9999", v))
			return
		}
		// The column may have been widened to long.
		if narrow, ok := t.column.(*columnar.Int32s); ok {
			narrow.Append(int32(v))
			return
		}
		if t.kind == dayMillisKind {
			v *= 1000 // of 32 bits
		}
	case millisKind:
		at, isTime := timeunit.OfMillis(v)
		if ok = isTime; ok {
			v = at
		}
	case microsKind:
		_, ok = timeunit.OfMicros(v)
	}
	if !ok {
		s.Fail(fmt.Errorf("%d %s since 1970 are outside of the years 1 to 9999", v, units[t.kind]))
		return
	}
	t.column.(*columnar.Int64s).Append(v)
}

// units are the units of longs that are times, for errors.
var units = map[kind]string{millisKind: "milliseconds", microsKind: "microseconds"}

// uuid appends a UUID, which is 16 bytes or text in the canonical form with hyphens.
func (t *target) uuid(s *source) {
	col := t.column.(*columnar.Fixed)
	// A fixed of 16 bytes is the UUID itself.
	if t.size == 16 {
		if b := s.Take(16); s.Err == nil {
			col.Append(b)
		}
		return
	}
	b := s.Bytes()
	var id [16]byte
	// Hyphens are only accepted at their four positions.
	compact := make([]byte, 0, 32)
	// Collect the digits.
	for i, c := range b {
		if c == '-' && (i == 8 || i == 13 || i == 18 || i == 23) {
			continue
		}
		compact = append(compact, c)
	}
	if _, err := hex.Decode(id[:], compact[:min(32, len(compact))]); err != nil || len(compact) != 32 || len(b) != 36 {
		s.Fail(fmt.Errorf("%.40q is not a UUID", b))
		return
	}
	col.Append(id[:])
}

// decimal appends a decimal, which is a big-endian two's complement number.
func (t *target) decimal(s *source) {
	// Decimals in bytes are preceded by their length, those in fixed are not.
	n := int64(t.size)
	if n == 0 {
		n = s.Long()
	}
	b := s.Take(n)
	if s.Err != nil {
		return
	}
	// SetBytes reads an unsigned number.
	v := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] >= 0x80 { // two's complement
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	// 32 bytes hold any supported decimal; longer ones must not be computed.
	limit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(t.digits)), nil)
	if len(b) > 32 || new(big.Int).Abs(v).Cmp(limit) >= 0 {
		s.Fail(fmt.Errorf("decimal of more than %d digits", t.digits))
		return
	}
	t.column.(*columnar.Decimals).Append(decimal128.FromBigInt(v))
}
