package pages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/parquet"

	"github.com/millrace/millrace/lake/columnar"
)

// appendPlain appends the non-null values in PLAIN encoding.
func (c *chunk) appendPlain(b []byte, col columnar.Column) ([]byte, error) {
	at, n, valid := len(b), col.Len(), col.Validity()
	switch col := col.(type) {
	// Booleans are bits, so nulls are dropped while they are copied.
	case *columnar.Bools:
		return appendBools(b, col.Values(), valid, n), nil
	case *columnar.Fixed:
		b = append(b, col.Values()...)
	case *columnar.Int32s:
		b = slices.Grow(b, 4*n)[:at+4*n]
		for i, v := range col.Values() {
			binary.LittleEndian.PutUint32(b[at+4*i:], uint32(v))
		}
	case *columnar.Int64s:
		b = slices.Grow(b, 8*n)[:at+8*n]
		for i, v := range col.Values() {
			binary.LittleEndian.PutUint64(b[at+8*i:], uint64(v))
		}
	case *columnar.Float32s:
		b = slices.Grow(b, 4*n)[:at+4*n]
		for i, v := range col.Values() {
			binary.LittleEndian.PutUint32(b[at+4*i:], math.Float32bits(v))
		}
	case *columnar.Float64s:
		b = slices.Grow(b, 8*n)[:at+8*n]
		for i, v := range col.Values() {
			binary.LittleEndian.PutUint64(b[at+8*i:], math.Float64bits(v))
		}
	case *columnar.Decimals:
		var err error
		if b, err = c.appendDecimals(b, col.Values()); err != nil {
			return b, err
		}
	default:
		return b, fmt.Errorf("unexpected column type %T", col)
	}
	// PLAIN has no place for nulls: the levels represent them.
	if valid != nil {
		b = b[:at+len(dropNulls(b[at:], c.width, valid))]
	}
	return b, nil
}

// dropNulls moves the non-null values to the front and returns them.
func dropNulls(values []byte, width int, valid []byte) []byte {
	to := 0
	for i := range len(values) / width {
		if bitutil.BitIsSet(valid, i) {
			to += copy(values[to:], values[i*width:(i+1)*width])
		}
	}
	return values[:to]
}

// appendBools appends booleans as bits, without those that are null.
func appendBools(b, values, valid []byte, n int) []byte {
	at := len(b)
	b = append(b, values...)
	if valid != nil {
		clear(b[at:])
		to := 0
		for i := range n {
			if bitutil.BitIsSet(valid, i) {
				bitutil.SetBitTo(b[at:], to, bitutil.BitIsSet(values, i))
				to++
			}
		}
		n = to
	}
	b = b[:at+(n+7)/8]
	if n%8 > 0 {
		b[len(b)-1] &= 1<<(n%8) - 1
	}
	return b
}

// appendStrings appends each non-null value, preceded by its length.
func appendStrings(b []byte, col *columnar.Bytes, valid []byte) []byte {
	offsets, content := col.Offsets(), col.Content()
	b = slices.Grow(b, len(content)+4*len(offsets)+copySize)
	begin := int(offsets[0])
	for i, offset := range offsets[1:] {
		if valid != nil && !bitutil.BitIsSet(valid, i) {
			continue // nulls have no content
		}
		end := int(offset)
		b = binary.LittleEndian.AppendUint32(b, uint32(end-begin))
		if at := len(b); end-begin <= copySize && begin+copySize <= len(content) {
			// Most values are short. Copying a fixed size and truncating is faster than copying the
			// exact length.
			b = append(b, content[begin:begin+copySize]...)[:at+end-begin]
		} else {
			b = append(b, content[begin:end]...)
		}
		begin = end
	}
	return b
}

// copySize is the number of bytes that appendStrings copies for short values.
const copySize = 16

// errDecimal reports a decimal that does not fit the column's physical type.
var errDecimal = errors.New("decimal exceeds the precision of the column")

// appendDecimals appends decimals in the column's physical type: little-endian integers, or
// big-endian bytes.
func (c *chunk) appendDecimals(b []byte, values []decimal128.Num) ([]byte, error) {
	for _, v := range values {
		low, high := int64(v.LowBits()), v.HighBits()
		switch c.column.PhysicalType() {
		case parquet.Types.Int32:
			if low != int64(int32(low)) || high != low>>63 {
				return b, errDecimal
			}
			b = binary.LittleEndian.AppendUint32(b, uint32(low))
		case parquet.Types.Int64:
			if high != low>>63 {
				return b, errDecimal
			}
			b = binary.LittleEndian.AppendUint64(b, uint64(low))
		default:
			var all [16]byte
			binary.BigEndian.PutUint64(all[:], uint64(high))
			binary.BigEndian.PutUint64(all[8:], uint64(low))
			cut, rest := all[:16-c.width], all[16-c.width:]
			for _, extension := range cut {
				if extension != byte(int8(rest[0])>>7) {
					return b, errDecimal
				}
			}
			b = append(b, rest...)
		}
	}
	return b, nil
}
