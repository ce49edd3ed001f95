package columnar

import (
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Structs is a column of structs. The fields of a null struct are null. They are added lazily,
// before the next struct or when the children are read, so the cost of a null struct does not
// depend on the number of its fields.
type Structs struct {
	children []Column
	n        int
	filled   int // number of values in the children
	valid    validity
}

// Append begins a struct. Each child must then get one value.
func (c *Structs) Append() {
	if c.filled < c.n {
		c.fill()
	}
	if c.valid.some {
		c.valid.set(c.n)
	}
	c.n++
	c.filled++
}

// AppendNull implements Column. Nothing must be appended to the children.
func (c *Structs) AppendNull() { c.pad(c.n + 1) }

// fill appends the missing nulls to the children.
func (c *Structs) fill() {
	for _, child := range c.children {
		child.pad(c.n)
	}
	c.filled = c.n
}

// Child returns the column of field i for appending. To read it, use Children.
func (c *Structs) Child(i int) Column { return c.children[i] }

// Children returns the columns of the fields with the same length as this one. They are for reading
// and must be called between structs.
func (c *Structs) Children() []Column {
	if c.filled < c.n {
		c.fill()
	}
	return c.children
}

// Len implements Column.
func (c *Structs) Len() int { return c.n }

// Validity implements Column.
func (c *Structs) Validity() []byte { return c.valid.of(c.n) }

// Nulls implements Column.
func (c *Structs) Nulls() int { return c.valid.nulls(c.n) }

// Truncate implements Column.
func (c *Structs) Truncate(n int) {
	if n >= c.n {
		return
	}
	c.n = n
	c.valid.truncate(n)
	if c.filled > n {
		c.filled = n
		for _, child := range c.children {
			child.Truncate(n)
		}
	}
}

func (c *Structs) pad(n int) {
	c.valid.clear(c.n, n-c.n)
	c.n = n
}

func (c *Structs) size() int {
	n := c.valid.size(c.n)
	for _, child := range c.children {
		n += child.size()
	}
	return n
}

func (c *Structs) data(t arrow.DataType) arrow.ArrayData {
	valid, nulls := c.valid.buffer(c.n)
	return groupData(t.(*arrow.StructType), c.n, valid, nulls, c.Children())
}

// groupData returns children as Arrow struct data.
func groupData(t *arrow.StructType, n int, valid *memory.Buffer, nulls int, children []Column) arrow.ArrayData {
	inner := make([]arrow.ArrayData, len(children))
	for i, child := range children {
		if child.Len() != n {
			panic("columnar: field " + t.Field(i).Name + " has not got a value in every group")
		}
		inner[i] = child.data(t.Field(i).Type)
	}
	data := array.NewData(t, n, []*memory.Buffer{valid}, inner, nulls, 0)
	for _, d := range inner {
		d.Release()
	}
	return data
}

// runs divides the values of another column into runs: run i has the values from offsets[i] to
// offsets[i+1].
type runs struct {
	offsets []int32
	valid   validity
	full    *bool
}

// Len implements Column.
func (r *runs) Len() int { return len(r.offsets) - 1 }

// Offsets returns the bounds of the runs. There is one more offset than runs. The slice is valid
// until Truncate and must not be modified.
func (r *runs) Offsets() []int32 { return r.offsets }

// Start returns the offset of the current run.
func (r *runs) Start() int { return int(r.offsets[len(r.offsets)-1]) }

// Validity implements Column.
func (r *runs) Validity() []byte { return r.valid.of(r.Len()) }

// Nulls implements Column.
func (r *runs) Nulls() int { return r.valid.nulls(r.Len()) }

// AppendNull implements Column.
func (r *runs) AppendNull() { r.pad(r.Len() + 1) }

// append ends a run before value n of the other column.
func (r *runs) append(n int) {
	if r.valid.some {
		r.valid.set(r.Len())
	}
	if n > math.MaxInt32 {
		*r.full, n = true, r.Start()
	}
	r.offsets = append(r.offsets, int32(n))
}

// truncate keeps the first n runs and returns the number of their values.
func (r *runs) truncate(n int) int {
	if n < r.Len() {
		r.offsets = r.offsets[:n+1]
		r.valid.truncate(n)
	}
	return r.Start()
}

func (r *runs) pad(n int) {
	r.valid.clear(r.Len(), n-r.Len())
	r.offsets = repeatLast(r.offsets, n-r.Len())
}

func (r *runs) size() int { return 4*r.Len() + r.valid.size(r.Len()) }

// of returns Arrow list data with the given child data, which it releases.
func (r *runs) of(t arrow.DataType, child arrow.ArrayData) arrow.ArrayData {
	defer child.Release()
	valid, nulls := r.valid.buffer(r.Len())
	return array.NewData(t, r.Len(), []*memory.Buffer{valid, bufferOf(r.offsets)}, []arrow.ArrayData{child}, nulls, 0)
}

// Lists is a column of lists.
type Lists struct {
	runs
	element Column
}

// Append ends a list. Its elements are those appended to the element column since the previous
// list.
func (c *Lists) Append() { c.append(c.element.Len()) }

// Element returns the column of the elements of all lists.
func (c *Lists) Element() Column { return c.element }

// Truncate implements Column.
func (c *Lists) Truncate(n int) { c.element.Truncate(c.truncate(n)) }

func (c *Lists) size() int { return c.runs.size() + c.element.size() }

func (c *Lists) data(t arrow.DataType) arrow.ArrayData {
	return c.of(t, c.element.data(t.(*arrow.ListType).Elem()))
}

// Maps is a column of maps. Pairs are stored as appended: duplicate keys are kept.
type Maps struct {
	runs
	keys, values Column
}

// Append ends a map. Its pairs are those appended to the columns of keys and values since the
// previous map.
func (c *Maps) Append() { c.append(c.keys.Len()) }

// Keys returns the column of the keys of all maps.
func (c *Maps) Keys() Column { return c.keys }

// Values returns the column of the values of all maps.
func (c *Maps) Values() Column { return c.values }

// Truncate implements Column.
func (c *Maps) Truncate(n int) {
	pairs := c.truncate(n)
	c.keys.Truncate(pairs)
	c.values.Truncate(pairs)
}

func (c *Maps) size() int { return c.runs.size() + c.keys.size() + c.values.size() }

func (c *Maps) data(t arrow.DataType) arrow.ArrayData {
	entries := t.(*arrow.MapType).Elem().(*arrow.StructType)
	return c.of(t, groupData(entries, c.keys.Len(), nil, 0, []Column{c.keys, c.values}))
}
