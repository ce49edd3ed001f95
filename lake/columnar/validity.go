package columnar

import (
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// validity is the null bitmap of a column, in Arrow's layout. It does not exist before the first
// null, so a column without nulls costs one comparison per value. Both set and clear bits are
// written explicitly, so truncating need not clear any.
type validity struct {
	some bool // there has been a null
	bits []byte
}

// set marks value i, the next one, as not null. It need not be called before the first null.
func (v *validity) set(i int) {
	if i>>3 >= len(v.bits) {
		v.bits = append(v.bits, 0)
	}
	v.bits[i>>3] |= 1 << (i & 7)
}

// clear marks the next n values, from i on, as null.
func (v *validity) clear(i, n int) {
	if n == 0 {
		return
	}
	if !v.some {
		v.some = true
		v.grow(i)
		bitutil.SetBitsTo(v.bits, 0, int64(i), true)
	}
	v.grow(i + n)
	if n == 1 {
		v.bits[i>>3] &^= 1 << (i & 7)
		return
	}
	bitutil.SetBitsTo(v.bits, int64(i), int64(n), false)
}

// grow extends the bitmap to n bits.
func (v *validity) grow(n int) {
	if more := (n+7)>>3 - len(v.bits); more > 0 {
		v.bits = append(v.bits, make([]byte, more)...)
	}
}

// truncate keeps the first n bits.
func (v *validity) truncate(n int) {
	if n == 0 {
		v.some = false
	}
}

// nulls returns the number of nulls among the first n values.
func (v *validity) nulls(n int) int {
	if !v.some {
		return 0
	}
	return n - bitutil.CountSetBits(v.bits, 0, n)
}

// of returns the bitmap of n values, or nil if none is null.
func (v *validity) of(n int) []byte {
	if v.nulls(n) == 0 {
		return nil
	}
	return v.bits[:(n+7)>>3]
}

func (v *validity) size(n int) int {
	if !v.some {
		return 0
	}
	return n >> 3
}

// buffer returns the bitmap for Arrow, and the number of nulls.
func (v *validity) buffer(n int) (*memory.Buffer, int) {
	nulls := v.nulls(n)
	if nulls == 0 {
		return nil, 0
	}
	return memory.NewBufferBytes(v.bits[:(n+7)>>3]), nulls
}
