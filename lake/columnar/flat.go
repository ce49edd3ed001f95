package columnar

import (
	"math"
	"slices"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Numbers is a column of fixed-size values.
type Numbers[T int32 | int64 | float32 | float64 | decimal128.Num] struct {
	values []T
	valid  validity
}

// Int32s is a column of int or of date, in days since 1970.
type Int32s = Numbers[int32]

// Int64s is a column of long or of timestamptz, in microseconds since 1970.
type Int64s = Numbers[int64]

// Float32s is a column of float.
type Float32s = Numbers[float32]

// Float64s is a column of double.
type Float64s = Numbers[float64]

// Decimals is a column of decimal. It holds unscaled values; the type has the scale.
type Decimals = Numbers[decimal128.Num]

// Append appends a value.
func (c *Numbers[T]) Append(v T) {
	if c.valid.some {
		c.valid.set(len(c.values))
	}
	c.values = append(c.values, v)
}

// AppendNull implements Column.
func (c *Numbers[T]) AppendNull() { c.pad(len(c.values) + 1) }

// Values returns all values, with zero for nulls. The slice is valid until Truncate and must not be
// modified.
func (c *Numbers[T]) Values() []T { return c.values }

// Len implements Column.
func (c *Numbers[T]) Len() int { return len(c.values) }

// Validity implements Column.
func (c *Numbers[T]) Validity() []byte { return c.valid.of(len(c.values)) }

// Nulls implements Column.
func (c *Numbers[T]) Nulls() int { return c.valid.nulls(len(c.values)) }

// Truncate implements Column.
func (c *Numbers[T]) Truncate(n int) {
	if n < len(c.values) {
		c.values = c.values[:n]
		c.valid.truncate(n)
	}
}

func (c *Numbers[T]) pad(n int) {
	have := len(c.values)
	c.valid.clear(have, n-have)
	c.values = slices.Grow(c.values, n-have)[:n]
	clear(c.values[have:])
}

func (c *Numbers[T]) size() int {
	return len(c.values)*int(unsafe.Sizeof(*new(T))) + c.valid.size(len(c.values))
}

func (c *Numbers[T]) data(t arrow.DataType) arrow.ArrayData {
	valid, nulls := c.valid.buffer(len(c.values))
	return array.NewData(t, len(c.values), []*memory.Buffer{valid, bufferOf(c.values)}, nil, nulls, 0)
}

// bufferOf returns the memory of a slice as an Arrow buffer, without copying it.
func bufferOf[T any](values []T) *memory.Buffer {
	if len(values) == 0 {
		return memory.NewBufferBytes(nil)
	}
	size := len(values) * int(unsafe.Sizeof(values[0]))
	first := (*byte)(unsafe.Pointer(unsafe.SliceData(values))) //nolint:gosec // Arrow reads the numbers in place
	return memory.NewBufferBytes(unsafe.Slice(first, size))    //nolint:gosec // size is that of the slice
}

// Bools is a column of booleans in a bitmap.
type Bools struct {
	bits  []byte
	n     int
	valid validity
}

// Append appends a value.
func (c *Bools) Append(v bool) {
	if c.valid.some {
		c.valid.set(c.n)
	}
	if c.n>>3 >= len(c.bits) {
		c.bits = append(c.bits, 0)
	}
	var bit byte // branch-free, because branches on random values are mispredicted
	if v {
		bit = 1
	}
	at, of := c.n&7, &c.bits[c.n>>3]
	*of = *of&^(1<<at) | bit<<at
	c.n++
}

// AppendNull implements Column.
func (c *Bools) AppendNull() { c.pad(c.n + 1) }

// Values returns the bitmap of all values, with false for nulls. It is valid until Truncate and
// must not be modified.
func (c *Bools) Values() []byte { return c.bits[:(c.n+7)>>3] }

// Len implements Column.
func (c *Bools) Len() int { return c.n }

// Validity implements Column.
func (c *Bools) Validity() []byte { return c.valid.of(c.n) }

// Nulls implements Column.
func (c *Bools) Nulls() int { return c.valid.nulls(c.n) }

// Truncate implements Column.
func (c *Bools) Truncate(n int) {
	if n < c.n {
		c.n = n
		c.bits = c.bits[:(n+7)>>3]
		c.valid.truncate(n)
	}
}

func (c *Bools) pad(n int) {
	c.valid.clear(c.n, n-c.n)
	if more := (n+7)>>3 - len(c.bits); more > 0 {
		c.bits = append(c.bits, make([]byte, more)...)
	}
	bitutil.SetBitsTo(c.bits, int64(c.n), int64(n-c.n), false)
	c.n = n
}

func (c *Bools) size() int { return c.n>>3 + c.valid.size(c.n) }

func (c *Bools) data(t arrow.DataType) arrow.ArrayData {
	valid, nulls := c.valid.buffer(c.n)
	return array.NewData(t, c.n, []*memory.Buffer{valid, memory.NewBufferBytes(c.Values())}, nil, nulls, 0)
}

// Bytes is a column of strings or byte strings. Strings must be valid UTF-8.
type Bytes struct {
	offsets []int32 // value i is content[offsets[i]:offsets[i+1]]
	content []byte
	valid   validity
	full    *bool // see Columns.full
}

// Append appends a value.
func (c *Bytes) Append(v []byte) {
	if c.valid.some {
		c.valid.set(c.Len())
	}
	if len(c.content)+len(v) > math.MaxInt32 {
		*c.full, v = true, nil
	}
	c.content = append(c.content, v...)
	c.offsets = append(c.offsets, int32(len(c.content)))
}

// atOnce is the number of bytes that AppendFirst copies. Most values are short, and copying a fixed
// number of bytes is faster than copying a variable one.
const atOnce = 16

// AppendFirst appends the first n bytes of b as a value. It is faster than Append if b is longer
// than the value.
func (c *Bytes) AppendFirst(b []byte, n int) {
	if n > atOnce || len(b) < atOnce || len(c.content) > math.MaxInt32-atOnce {
		c.Append(b[:n])
		return
	}
	if c.valid.some {
		c.valid.set(c.Len())
	}
	end := len(c.content) + n
	// Copy a fixed size and drop the excess. The next value overwrites it.
	c.content = append(c.content, b[:atOnce]...)[:end]
	c.offsets = append(c.offsets, int32(end))
}

// AppendString appends a value.
func (c *Bytes) AppendString(v string) {
	if c.valid.some {
		c.valid.set(c.Len())
	}
	if len(c.content)+len(v) > math.MaxInt32 {
		*c.full, v = true, ""
	}
	c.content = append(c.content, v...)
	c.offsets = append(c.offsets, int32(len(c.content)))
}

// AppendNull implements Column.
func (c *Bytes) AppendNull() {
	c.valid.clear(c.Len(), 1)
	c.offsets = append(c.offsets, c.offsets[len(c.offsets)-1])
}

// Value returns value i, which is empty for null. It is valid until Truncate and must not be
// modified.
func (c *Bytes) Value(i int) []byte { return c.content[c.offsets[i]:c.offsets[i+1]] }

// Offsets returns the offsets of values in Content: value i is between offsets i and i+1. The same
// rules as for Value apply.
func (c *Bytes) Offsets() []int32 { return c.offsets }

// Content returns the concatenation of all values. The same rules as for Value apply.
func (c *Bytes) Content() []byte { return c.content }

// Len implements Column.
func (c *Bytes) Len() int { return len(c.offsets) - 1 }

// Validity implements Column.
func (c *Bytes) Validity() []byte { return c.valid.of(c.Len()) }

// Nulls implements Column.
func (c *Bytes) Nulls() int { return c.valid.nulls(c.Len()) }

// Truncate implements Column.
func (c *Bytes) Truncate(n int) {
	if n < c.Len() {
		c.offsets = c.offsets[:n+1]
		c.content = c.content[:c.offsets[n]]
		c.valid.truncate(n)
	}
}

func (c *Bytes) pad(n int) {
	c.valid.clear(c.Len(), n-c.Len())
	c.offsets = repeatLast(c.offsets, n-c.Len())
}

// repeatLast appends the last offset n times, which adds n empty values.
func repeatLast(offsets []int32, n int) []int32 {
	end := offsets[len(offsets)-1]
	for range n {
		offsets = append(offsets, end)
	}
	return offsets
}

func (c *Bytes) size() int { return len(c.content) + 4*c.Len() + c.valid.size(c.Len()) }

func (c *Bytes) data(t arrow.DataType) arrow.ArrayData {
	valid, nulls := c.valid.buffer(c.Len())
	return array.NewData(t, c.Len(), []*memory.Buffer{valid, bufferOf(c.offsets), memory.NewBufferBytes(c.content)},
		nil, nulls, 0)
}

// Fixed is a column of byte strings with equal lengths.
type Fixed struct {
	width   int
	n       int
	content []byte
	valid   validity
}

// Append appends a value. It panics if the value has another length.
func (c *Fixed) Append(v []byte) {
	if len(v) != c.width {
		panic("columnar: a value of another length than its column's")
	}
	if c.valid.some {
		c.valid.set(c.n)
	}
	c.content = append(c.content, v...)
	c.n++
}

// AppendNull implements Column.
func (c *Fixed) AppendNull() { c.pad(c.n + 1) }

// Values returns the concatenation of all values, with zero bytes for nulls. It is valid until
// Truncate and must not be modified.
func (c *Fixed) Values() []byte { return c.content }

// Width returns the length of a value in bytes.
func (c *Fixed) Width() int { return c.width }

// Len implements Column.
func (c *Fixed) Len() int { return c.n }

// Validity implements Column.
func (c *Fixed) Validity() []byte { return c.valid.of(c.n) }

// Nulls implements Column.
func (c *Fixed) Nulls() int { return c.valid.nulls(c.n) }

// Truncate implements Column.
func (c *Fixed) Truncate(n int) {
	if n < c.n {
		c.n, c.content = n, c.content[:n*c.width]
		c.valid.truncate(n)
	}
}

func (c *Fixed) pad(n int) {
	c.valid.clear(c.n, n-c.n)
	c.content = append(c.content, make([]byte, (n-c.n)*c.width)...)
	c.n = n
}

func (c *Fixed) size() int { return len(c.content) + c.valid.size(c.n) }

func (c *Fixed) data(t arrow.DataType) arrow.ArrayData {
	valid, nulls := c.valid.buffer(c.n)
	return array.NewData(t, c.n, []*memory.Buffer{valid, memory.NewBufferBytes(c.content)}, nil, nulls, 0)
}
