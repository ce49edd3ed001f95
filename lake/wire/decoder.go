package wire

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/lake/columnar"
)

// Decoder appends messages to columns. Like the columns, it must not be used by several goroutines
// at once.
type Decoder struct {
	plan    *Plan
	columns *columnar.Columns
	root    *message
	unknown *columnar.Bytes // nil if unknown fields are dropped
	scratch []byte

	// State of the current message.
	hasUnknown bool // it has unknown fields
	duplicate  bool // a singular field occurs twice, so the appended values are wrong
}

// Bind returns a decoder that appends to the plan's columns, which it finds by their keys. The
// caller must fill the other columns.
func (p *Plan) Bind(columns *columnar.Columns) (*Decoder, error) {
	if err := checkColumns(p.fields, columns.Fields()); err != nil {
		return nil, fmt.Errorf("columns of %s: %w", p.of.FullName(), err)
	}
	d := &Decoder{plan: p, columns: columns, root: &message{byNumber: map[protowire.Number]*field{}}}
	// The table's fields and columns, in the order of the plan.
	var fields []columnar.Field
	var mine []columnar.Column
	for _, f := range p.fields {
		i := indexOf(columns.Fields(), f.Identity())
		fields, mine = append(fields, columns.Fields()[i]), append(mine, columns.Column(i))
	}
	if p.unknown {
		last := len(mine) - 1
		d.unknown = mine[last].(*columnar.Bytes)
		fields, mine = fields[:last], mine[:last]
	}
	// Columns of the table that are not in the plan are the caller's.
	d.root = p.root.bind(fields, mine)
	return d, nil
}

// Append appends a row, or fails and appends nothing. After a failure, values of the same row that
// the caller has appended to other columns are gone, too. Errors identify the field and the
// problem, except for columnar.ErrFull, which is independent of the message.
//
// Append does not retain wire.
func (d *Decoder) Append(wire []byte) error {
	// The number of rows to return to after a failure.
	mark := d.rows()
	err := d.row(wire)
	// A singular field occurs twice. Merge the occurrences first, then decode again.
	if d.duplicate && !isFinal(err) {
		d.columns.Rollback(mark)
		wire = d.root.merged(nil, wire)
		err = d.row(wire)
	}
	if err == nil && d.unknown != nil {
		d.keepUnknown(wire)
	}
	if err == nil {
		err = d.columns.Err()
	}
	if err != nil {
		d.columns.Rollback(mark)
	}
	return err
}

// rows returns the number of rows in the plan's columns. The caller's columns may already be
// longer.
func (d *Decoder) rows() int {
	if d.unknown != nil {
		return d.unknown.Len()
	}
	return d.root.fields[0].column.Len()
}

// row decodes one message.
func (d *Decoder) row(wire []byte) error {
	d.hasUnknown, d.duplicate = false, false
	// Columns have 32-bit offsets.
	if len(wire) > math.MaxInt32 {
		return errors.New("the message has more than 2 GiB")
	}
	return d.message(d.root, wire)
}

// message decodes a message: it appends values for all fields, including absent ones. If values are
// refused in a well-formed message, it still reads everything before it returns the first error,
// because a duplicate field may resolve the problem.
func (d *Decoder) message(m *message, b []byte) error {
	// generation identifies this message. Fields that have occurred in it carry its number, so
	// nothing needs to be reset.
	m.generation++
	generation, present, have := m.generation, 0, uint64(0)
	var refused error
	for len(b) > 0 {
		var f *field
		size := 1
		// Tags of one byte are found without parsing them.
		if b[0] < 0x80 {
			f = m.bySmallTag[b[0]]
		}
		if f == nil {
			var err error
			if f, size, err = d.lookUp(m, b); err != nil {
				return err
			}
		}
		b = b[size:]
		if f == nil {
			continue
		}
		at := notInList // index of the value in its list, for errors
		switch f.shape {
		case single:
			// The field, or another member of its oneof, has occurred before.
			if f.seen == generation || f.oneof != nil && *f.oneof == generation {
				d.duplicate = true
			}
			f.seen = generation
			have |= f.bit
			present++
			if f.oneof != nil {
				*f.oneof = generation
			}
		case listed:
			at = f.lists.Element().Len() - f.lists.Start()
		}
		n, err := d.value(f, b)
		if err != nil {
			err = inField(f.name, at, err)
			if isFinal(err) {
				return err
			}
			refused = cmp.Or(refused, err)
		}
		// The size is valid even if the value was refused.
		b = b[n:]
	}
	// Append nulls or defaults for singular fields that did not occur.
	if present < len(m.singles) {
		refused = cmp.Or(refused, d.fillAbsent(m, have))
	}
	for _, f := range m.repeated {
		d.end(f)
	}
	if m.present != nil {
		m.present.Append(true)
	}
	for _, col := range m.others {
		col.AppendNull()
	}
	return refused
}

// fillAbsent appends values for the singular fields that the message lacks. The first 64 are
// identified by bits in have, the others by their generation.
func (d *Decoder) fillAbsent(m *message, have uint64) (refused error) {
	one := func(f *field) {
		if err := d.absent(f); err != nil {
			refused = cmp.Or(refused, inField(f.name, notInList, err))
		}
	}
	// missing &= missing - 1 clears the lowest bit.
	// Iterate over the bits of missing fields only: most fields are usually present.
	known := min(len(m.singles), 64)
	for missing := ^have & (math.MaxUint64 >> (64 - known)); missing != 0; missing &= missing - 1 {
		one(m.singles[bits.TrailingZeros64(missing)])
	}
	for _, f := range m.singles[known:] {
		if f.seen != m.generation {
			one(f)
		}
	}
	return refused
}

// lookUp finds the field for the tag at the start of b and returns the tag's size. It handles
// packed lists and unknown fields itself: then it returns no field and the size of the whole field.
func (d *Decoder) lookUp(m *message, b []byte) (f *field, size int, err error) {
	number, typ, tag := consumeTag(b)
	if tag < 0 {
		return nil, 0, malformed(tag)
	}
	// Tags of several bytes, and those with an unexpected wire type.
	f = m.byNumber[number]
	if f != nil && typ == f.typ {
		return f, tag, nil
	}
	// A repeated scalar may be packed or not, whatever the descriptor says.
	if f != nil && f.packable && typ == protowire.BytesType {
		n, err := d.packed(f, b[tag:])
		return nil, tag + n, err
	}
	n := protowire.ConsumeFieldValue(number, typ, b[tag:])
	if n < 0 {
		return nil, 0, inField(fmt.Sprintf("unknown field %d", number), notInList, malformed(n))
	}
	if !m.entry { // Protobuf drops unknown fields of map entries
		d.hasUnknown = true
	}
	return nil, tag + n, nil
}

// packed appends the elements of a packed list and returns the size of the list with its length.
func (d *Decoder) packed(f *field, b []byte) (int, error) {
	// The list is one length-delimited value with its elements in sequence.
	content, size := protowire.ConsumeBytes(b)
	if size < 0 {
		return 0, inField(f.name, notInList, malformed(size))
	}
	for at := f.lists.Element().Len() - f.lists.Start(); len(content) > 0; at++ {
		n, err := d.value(f, content)
		if err != nil {
			return 0, inField(f.name, at, err)
		}
		content = content[n:]
	}
	return size, nil
}

// end ends a list or a map.
func (d *Decoder) end(f *field) {
	// Elements have been appended as they occurred. This ends the row's list.
	if f.shape == listed {
		f.lists.Append()
		return
	}
	// A map with a duplicate key must be merged, as its last entry wins.
	if start := f.maps.Start(); f.maps.Keys().Len()-start > 1 && !d.duplicate {
		d.duplicate = hasDuplicates(f.maps.Keys(), start)
	}
	f.maps.Append()
}

// hasDuplicates reports whether any value from start on occurs twice.
func hasDuplicates(keys columnar.Column, start int) bool {
	switch keys := keys.(type) {
	case *columnar.Int32s:
		return duplicates(keys.Values()[start:])
	case *columnar.Int64s:
		return duplicates(keys.Values()[start:])
	case *columnar.Decimals:
		return duplicates(keys.Values()[start:])
	case *columnar.Bytes:
		return duplicateBytes(keys, start)
	}
	return true // two booleans may be equal, and more must be; merging is correct in any case
}

// few is the number of values up to which comparing all pairs is faster than a map.
const few = 16

// duplicates reports whether any value occurs twice.
func duplicates[T comparable](values []T) bool {
	if len(values) <= few {
		for i, v := range values {
			for _, other := range values[:i] {
				if v == other {
					return true
				}
			}
		}
		return false
	}
	seen := make(map[T]struct{}, len(values))
	for _, v := range values {
		seen[v] = struct{}{}
	}
	return len(seen) < len(values)
}

// duplicateBytes is duplicates for strings from index start on.
func duplicateBytes(keys *columnar.Bytes, start int) bool {
	n := keys.Len() - start
	if n <= few {
		for i := range n {
			for j := range i {
				if string(keys.Value(start+i)) == string(keys.Value(start+j)) {
					return true
				}
			}
		}
		return false
	}
	seen := make(map[string]struct{}, n)
	for i := range n {
		seen[string(keys.Value(start+i))] = struct{}{}
	}
	return len(seen) < n
}
