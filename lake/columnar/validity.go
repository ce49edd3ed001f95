package columnar

import (
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// validity tells which values of a column are null, as a bitmap of Arrow's. There is none before
// the first null, so that a column without nulls pays one comparison per value. Bits are written
// both ways, so that cutting a column need not clear any.
type validity struct {
	some bool // there has been a null
	bits []byte
}

// set notes that value i, the next one, is not null. It may be left out where there is no null yet.
func (v *validity) set(i int) {
	if i>>3 >= len(v.bits) {
		v.bits = append(v.bits, 0)
	}
	v.bits[i>>3] |= 1 << (i & 7)
}

// clear notes that n values from i on, the next ones, are null.
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

// grow makes room for n bits.
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

// nulls counts those among n values.
func (v *validity) nulls(n int) int {
	if !v.some {
		return 0
	}
	return n - bitutil.CountSetBits(v.bits, 0, n)
}

// of returns the bitmap of n values; nil if none is null.
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

// buffer returns the bitmap for Arrow, and how many nulls it shows.
func (v *validity) buffer(n int) (*memory.Buffer, int) {
	nulls := v.nulls(n)
	if nulls == 0 {
		return nil, 0
	}
	return memory.NewBufferBytes(v.bits[:(n+7)>>3]), nulls
}
