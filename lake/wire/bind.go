package wire

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/lake/columnar"
)

// checkColumns returns an error if the planned columns do not exist, matched by identity, or have
// other types. Structs may have more columns than the message, left from older versions of it.
// Those are null.
func checkColumns(planned, have []columnar.Field) error {
	// Columns are found by their identity, so their order does not matter.
	for _, p := range planned {
		i := indexOf(have, p.Identity())
		if i < 0 {
			return inField(p.Name, notInList, errors.New("missing column in the table"))
		}
		if have[i].Required && !p.Required {
			return inField(p.Name, notInList, errors.New("the column must be nullable"))
		}
		if err := checkType(p.Type, have[i].Type); err != nil {
			return inField(p.Name, notInList, err)
		}
	}
	return nil
}

// checkType returns an error unless a column has exactly the planned type, except that structs may
// have more fields.
func checkType(planned, have columnar.Type) error {
	switch p := planned.(type) {
	case columnar.Struct:
		if h, ok := have.(columnar.Struct); ok {
			return checkColumns(p.Fields, h.Fields)
		}
	case columnar.List:
		if h, ok := have.(columnar.List); ok {
			return checkColumns([]columnar.Field{p.Element}, []columnar.Field{h.Element})
		}
	case columnar.Map:
		if h, ok := have.(columnar.Map); ok {
			return checkColumns([]columnar.Field{p.Key, p.Value}, []columnar.Field{h.Key, h.Value})
		}
	default:
		if planned == have {
			return nil
		}
	}
	return fmt.Errorf("the column has type %s, want %s", have, planned)
}

// indexOf returns the index of the field with an identity, or -1.
func indexOf(fields []columnar.Field, identity string) int {
	for i, f := range fields {
		if f.Identity() == identity {
			return i
		}
	}
	return -1
}

// bind returns a copy of the message that appends to the given columns. checkColumns must have
// accepted the columns.
func (m *message) bind(fields []columnar.Field, columns []columnar.Column) *message {
	// The plan is shared, so its messages are copied before they get columns.
	b := &message{entry: m.entry, transparent: m.transparent, byNumber: map[protowire.Number]*field{}}
	// taken marks the columns of known fields.
	taken, oneofs := make([]bool, len(columns)), map[int]*uint64{}
	take := func(identity string) int {
		i := indexOf(fields, identity)
		taken[i] = true
		return i
	}
	// Fields of a map entry or a transparent message correspond to columns by position, all others
	// by their number.
	for n, planned := range m.fields {
		f := *planned
		i, key := n, strconv.Itoa(int(f.number))
		if !m.entry && !m.transparent {
			i = take(key)
		}
		f.bind(fields[i], columns[i])
		// Money has a second column for the currency.
		if f.kind == moneyKind && f.bytes == nil {
			f.bytes = columns[take(key+currencyKey)].(*columnar.Bytes)
		}
		// Members of a oneof share a generation, by which a second member is noticed.
		if f.oneofIndex > 0 {
			if oneofs[f.oneofIndex] == nil {
				oneofs[f.oneofIndex] = new(uint64)
			}
			f.oneof = oneofs[f.oneofIndex]
		}
		b.add(&f)
	}
	if m.entry || m.transparent {
		return b
	}
	// Remaining columns are the marker of an empty message, or belong to fields that the message no
	// longer has.
	for i, col := range columns {
		switch {
		case taken[i]:
		case len(m.fields) == 0 && fields[i].Identity() == presentColumn:
			b.present = col.(*columnar.Bools)
		default:
			b.others = append(b.others, col)
		}
	}
	return b
}

// add adds a bound field to the lookup tables.
func (m *message) add(f *field) {
	m.fields = append(m.fields, f)
	// Most tags have one byte, for which a table is faster than a map.
	m.byNumber[f.number] = f
	if tag := protowire.EncodeTag(f.number, f.typ); tag < uint64(len(m.bySmallTag)) {
		m.bySmallTag[tag] = f
	}
	if f.shape == single {
		f.bit = 1 << len(m.singles) // 0 from the 65th on: see Decoder.fillAbsent
		m.singles = append(m.singles, f)
	} else {
		m.repeated = append(m.repeated, f)
	}
}

// bind sets the column of a field.
func (f *field) bind(described columnar.Field, col columnar.Column) {
	// Kept for nulls, whatever the kind.
	f.column = col
	// Lists and maps have their values in inner columns.
	switch f.shape {
	case listed:
		f.lists = col.(*columnar.Lists)
		f.bindValue(described.Type.(columnar.List).Element, f.lists.Element())
	case mapped:
		f.maps = col.(*columnar.Maps)
		t := described.Type.(columnar.Map)
		f.message = f.message.bind([]columnar.Field{t.Key, t.Value}, []columnar.Column{f.maps.Keys(), f.maps.Values()})
	default:
		f.bindValue(described, col)
	}
}

// bindValue sets the column of a field's values.
func (f *field) bindValue(described columnar.Field, col columnar.Column) {
	if f.kind == messageKind && f.message.transparent {
		f.message = f.message.bind([]columnar.Field{described}, []columnar.Column{col})
		return
	}
	switch col := col.(type) {
	case *columnar.Bools:
		f.bools = col
	case *columnar.Int32s:
		f.int32s = col
	case *columnar.Int64s:
		f.int64s = col
	case *columnar.Float32s:
		f.float32s = col
	case *columnar.Float64s:
		f.float64s = col
	case *columnar.Decimals:
		f.decimals = col
	case *columnar.Bytes:
		f.bytes = col
	// A struct is a message, or money in a list or map.
	case *columnar.Structs:
		f.structs = col
		fields := described.Type.(columnar.Struct).Fields
		columns := make([]columnar.Column, len(fields))
		for i := range columns {
			columns[i] = col.Child(i)
		}
		if f.kind == messageKind {
			f.message = f.message.bind(fields, columns)
			return
		}
		f.decimals = columns[indexOf(fields, amountField)].(*columnar.Decimals)
		f.bytes = columns[indexOf(fields, currencyField)].(*columnar.Bytes)
	}
}
