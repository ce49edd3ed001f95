package pages

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/apache/arrow-go/v18/arrow/bitutil"

	"github.com/millrace/millrace/lake/columnar"
)

// levels has the nesting depth of a field in Parquet's terms: the maximum definition and repetition
// levels of its values, and the minimum definition level at which the innermost list around it has
// an element.
type levels struct {
	definition, repetition, element uint8
}

// node is a field of the schema with its buffers.
type node struct {
	name     string
	levels              // maximum levels of the field's values
	optional bool       // the field is nullable
	children []*node    // of a struct, list or map
	chunk    *chunk     // of any other field
	within   levels     // levels of the children
	own      []uint8    // buffer for the definition levels of the field
	elements [2][]uint8 // buffers for the levels of list elements
}

// slots are the level entries of a page. Entries at which the innermost list has an element
// correspond to the values of the column, in order. The other entries represent empty or null
// lists.
type slots struct {
	n                      int
	definition, repetition []uint8 // nil if all are 0
}

// at returns the levels of a slot.
func (s slots) at(i int) (definition, repetition uint8) {
	if s.definition != nil {
		definition = s.definition[i]
	}
	if s.repetition != nil {
		repetition = s.repetition[i]
	}
	return definition, repetition
}

// tree builds the nodes of a schema.
type tree struct{ writer *Writer }

// maxLevel limits the nesting. No message descriptor is nested deeper.
const maxLevel = 250

// node returns the node of a field within enclosing levels, and adds a chunk for each leaf. It
// checks the levels against arrow-go's schema.
func (t *tree) node(f columnar.Field, around levels) (*node, error) {
	n := &node{name: f.Name, levels: around, optional: !f.Required}
	if n.optional {
		n.definition++
	}
	n.within = n.levels
	// A list or map adds a definition level, for having elements, and a repetition level.
	inner, parts := &n.within, slices.Clone(columnar.Parts(f.Type))
	switch f.Type.(type) {
	case columnar.Struct:
	case columnar.List, columnar.Map:
		inner.definition++
		inner.repetition++
		inner.element = inner.definition
	default:
		w := t.writer
		if len(w.chunks) >= w.schema.NumColumns() {
			return nil, errors.New("missing in the Parquet schema")
		}
		c, err := newChunk(f, w.schema.Column(len(w.chunks)))
		if err != nil {
			return nil, err
		}
		// Guard against a disagreement with arrow-go's mapping of the schema.
		if c.column.MaxDefinitionLevel() != int16(n.definition) ||
			c.column.MaxRepetitionLevel() != int16(n.repetition) {
			return nil, errors.New("levels differ from the Parquet schema")
		}
		n.chunk, w.chunks = c, append(w.chunks, c)
		return n, nil
	}
	if inner.definition > maxLevel {
		return nil, fmt.Errorf("nested more than %d levels deep", maxLevel)
	}
	// Keys of a map are never null in Parquet.
	if _, pairs := f.Type.(columnar.Map); pairs {
		parts[0].Required = true
	}
	for _, part := range parts {
		child, err := t.node(part, *inner)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part.Name, err)
		}
		n.children = append(n.children, child)
	}
	return n, nil
}

// write writes a page of every leaf below the node.
func (n *node) write(s *shared, col columnar.Column, in slots) error {
	// Only leaves have pages.
	if n.chunk != nil {
		return n.leaf(s, col, in)
	}
	// The slots of the children are those of this field, with its own nulls.
	in, err := n.defined(in, col.Validity())
	if err != nil {
		return err
	}
	switch col := col.(type) {
	case *columnar.Structs:
		return n.each(s, in, col.Children()...)
	case *columnar.Lists:
		return n.each(s, n.unfold(in, col.Offsets()), col.Element())
	case *columnar.Maps:
		return n.each(s, n.unfold(in, col.Offsets()), col.Keys(), col.Values())
	}
	return fmt.Errorf("unexpected column type %T", col)
}

// each writes the children of a node.
func (n *node) each(s *shared, in slots, columns ...columnar.Column) error {
	for i, child := range n.children {
		if err := child.write(s, columns[i], in); err != nil { //nolint:gosec // a column has as many parts as its field
			return fmt.Errorf("%s: %w", child.name, err)
		}
	}
	return nil
}

// leaf writes the page of a leaf.
func (n *node) leaf(s *shared, col columnar.Column, in slots) error {
	valid, body := col.Validity(), s.body[:0]
	if in.definition == nil && n.optional { // the most common case
		body = withLength(body, func(b []byte) []byte { return appendBits(b, valid, in.n) })
	} else {
		var err error
		if in, err = n.defined(in, valid); err != nil {
			return err
		}
		// Repetition levels come before definition levels.
		if n.repetition > 0 {
			body = withLength(body, func(b []byte) []byte {
				return appendHybrid(b, in.repetition, bits.Len8(n.repetition))
			})
		}
		if n.definition > 0 {
			body = withLength(body, func(b []byte) []byte {
				return appendHybrid(b, in.definition, bits.Len8(n.definition))
			})
		}
	}
	s.body = body
	return n.chunk.page(s, in.n, col)
}

// errNull reports a null in a required column.
var errNull = errors.New("required value is null")

// defined returns the slots with the definition levels of the field: one level higher wherever its
// value is not null. For a required field it only checks that there are no nulls.
func (n *node) defined(in slots, valid []byte) (slots, error) {
	switch {
	case !n.optional && valid == nil:
		return in, nil
	case !n.optional:
		// i is the index of the slot's value in the column.
		i := 0
		for at := range in.n {
			d, _ := in.at(at)
			if d < n.element {
				continue
			}
			if d == n.definition && !bitutil.BitIsSet(valid, i) {
				return in, errNull
			}
			i++
		}
		return in, nil
	case in.definition != nil:
		n.own = append(n.own[:0], in.definition...)
	default:
		n.own = slices.Grow(n.own[:0], in.n)[:in.n]
		clear(n.own)
	}
	// A slot has a value of this field if everything around it is defined.
	around, i := n.definition-1, 0
	// Slots below the innermost list's level have no value in the column.
	for at, d := range n.own {
		if d < n.element {
			continue
		}
		if d == around && (valid == nil || bitutil.BitIsSet(valid, i)) {
			n.own[at] = n.definition
		}
		i++
	}
	return slots{in.n, n.own, in.repetition}, nil
}

// unfold returns the slots of list elements, given those of the lists.
func (n *node) unfold(lists slots, offsets []int32) slots {
	definition, repetition, i := n.elements[0][:0], n.elements[1][:0], 0
	for at := range lists.n {
		d, r := lists.at(at)
		// An empty or null list keeps one slot, without an element.
		elements := 0
		if d >= n.element {
			elements = int(offsets[i+1] - offsets[i])
			i++
		}
		// The first element starts a new list, the others repeat at this level.
		if elements > 0 {
			d = n.within.definition
		}
		definition, repetition = append(definition, d), append(repetition, r)
		for range elements - 1 {
			definition, repetition = append(definition, d), append(repetition, n.within.repetition)
		}
	}
	n.elements = [2][]uint8{definition, repetition}
	return slots{len(definition), definition, repetition}
}
