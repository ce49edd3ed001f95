package pages

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/schema"
)

// boundBytes is the maximum length of a bound. Longer ones are truncated.
const boundBytes = 256

// bounds collects the minimum and maximum of a column.
type bounds struct {
	of       *schema.Column
	some     bool   // at least one value was added
	min, max []byte // in PLAIN encoding, without a length
}

// reset forgets all values.
func (s *bounds) reset() { s.some = false }

// float reports whether the column has floating-point values.
func (s *bounds) float() bool {
	return s.of.PhysicalType() == parquet.Types.Float || s.of.PhysicalType() == parquet.Types.Double
}

// add adds n values in PLAIN encoding.
func (s *bounds) add(values []byte, n int) {
	if n == 0 {
		return
	}
	switch s.of.PhysicalType() {
	// False sorts before true.
	case parquet.Types.Boolean:
		low, high := boolBounds(values, n)
		s.extend([]byte{low}, []byte{high}, bytes.Compare)
	case parquet.Types.Int32:
		low, high := int32(math.MaxInt32), int32(math.MinInt32)
		for i := range n {
			v := int32(binary.LittleEndian.Uint32(values[4*i:]))
			low, high = min(low, v), max(high, v)
		}
		s.extend(littleEndian(uint64(low), 4), littleEndian(uint64(high), 4), compareInts)
	case parquet.Types.Int64:
		low, high := int64(math.MaxInt64), int64(math.MinInt64)
		for i := range n {
			v := int64(binary.LittleEndian.Uint64(values[8*i:]))
			low, high = min(low, v), max(high, v)
		}
		s.extend(littleEndian(uint64(low), 8), littleEndian(uint64(high), 8), compareInts)
	case parquet.Types.Float, parquet.Types.Double:
		s.addFloats(values)
	case parquet.Types.ByteArray:
		low, high := stringBounds(values)
		s.extend(low, high, bytes.Compare)
	case parquet.Types.FixedLenByteArray:
		s.addFixed(values)
	}
}

// extend widens the bounds.
func (s *bounds) extend(low, high []byte, compare func(a, b []byte) int) {
	// Bounds are copied, since the values are in buffers that are reused.
	if !s.some || compare(low, s.min) < 0 {
		s.min = append(s.min[:0], low...)
	}
	if !s.some || compare(high, s.max) > 0 {
		s.max = append(s.max[:0], high...)
	}
	s.some = true
}

// littleEndian returns the first size bytes of a number in PLAIN encoding.
func littleEndian(v uint64, size int) []byte {
	return binary.LittleEndian.AppendUint64(nil, v)[:size]
}

// compareInts compares encoded integers of four or eight bytes.
func compareInts(a, b []byte) int {
	if len(a) == 4 {
		return cmp.Compare(int32(binary.LittleEndian.Uint32(a)), int32(binary.LittleEndian.Uint32(b)))
	}
	return cmp.Compare(int64(binary.LittleEndian.Uint64(a)), int64(binary.LittleEndian.Uint64(b)))
}

// boolBounds returns the least and the greatest of n bits.
func boolBounds(values []byte, n int) (low, high byte) {
	low = 1
	for i := range n {
		v := values[i/8] >> (i % 8) & 1
		low, high = min(low, v), max(high, v)
	}
	return low, high
}

// addFloats ignores NaNs. A zero bound stands for both zeros: it is -0 as the minimum and +0 as the
// maximum, as Parquet demands.
func (s *bounds) addFloats(values []byte) {
	size := 8
	if s.of.PhysicalType() == parquet.Types.Float {
		size = 4
	}
	low, high := math.Inf(1), math.Inf(-1)
	some := false
	for ; len(values) > 0; values = values[size:] {
		v := floatOf(values[:size])
		some = some || v == v
		if v < low {
			low = v
		}
		if v > high {
			high = v
		}
	}
	if !some {
		return
	}
	if low == 0 {
		low = math.Copysign(0, -1)
	}
	if high == 0 {
		high = 0 // +0
	}
	if size == 4 {
		lowBits, highBits := math.Float32bits(float32(low)), math.Float32bits(float32(high))
		s.extend(littleEndian(uint64(lowBits), 4), littleEndian(uint64(highBits), 4), compareFloats)
		return
	}
	s.extend(littleEndian(math.Float64bits(low), 8), littleEndian(math.Float64bits(high), 8), compareFloats)
}

// floatOf decodes a float or a double.
func floatOf(v []byte) float64 {
	if len(v) == 4 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(v)))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(v))
}

// compareFloats compares encoded numbers that are not NaN.
func compareFloats(a, b []byte) int { return cmp.Compare(floatOf(a), floatOf(b)) }

// countNaNs returns the number of NaNs among encoded values.
func countNaNs(values []byte, size int) (n int64) {
	for ; len(values) > 0; values = values[size:] {
		if v := floatOf(values[:size]); v != v {
			n++
		}
	}
	return n
}

// stringBounds compares most values by their first eight bytes only.
func stringBounds(values []byte) (low, high []byte) {
	var lowBegin, highBegin uint64
	first := true
	for len(values) > 0 {
		size := 4 + int(binary.LittleEndian.Uint32(values))
		v := values[4:size]
		// Values are preceded by their length. Loads may run into the next value, which beginOf
		// masks.
		begin := beginOf(values[4:], len(v))
		if first || begin < lowBegin || begin == lowBegin && bytes.Compare(v, low) < 0 {
			low, lowBegin = v, begin
		}
		if first || begin > highBegin || begin == highBegin && bytes.Compare(v, high) > 0 {
			high, highBegin = v, begin
		}
		first = false
		values = values[size:]
	}
	return low, high
}

// beginOf returns the first eight of n bytes at the beginning of b as a big-endian number, padded
// with zeros.
func beginOf(b []byte, n int) uint64 {
	if len(b) >= 8 {
		v := binary.BigEndian.Uint64(b)
		if n < 8 {
			v &^= 1<<(64-8*n) - 1
		}
		return v
	}
	var v [8]byte
	copy(v[:], b[:n])
	return binary.BigEndian.Uint64(v[:])
}

// addFixed compares decimals as numbers, and other values as bytes.
func (s *bounds) addFixed(values []byte) {
	width := s.of.TypeLength()
	compare := bytes.Compare
	if s.of.SortOrder() == schema.SortSIGNED {
		compare = compareSigned
	}
	// Values are in big-endian order, so most comparisons are bytewise.
	low, high := values[:width], values[:width]
	for ; len(values) > 0; values = values[width:] {
		v := values[:width]
		if compare(v, low) < 0 {
			low = v
		} else if compare(v, high) > 0 {
			high = v
		}
	}
	s.extend(low, high, compare)
}

// compareSigned compares big-endian two's complement numbers of equal length.
func compareSigned(a, b []byte) int {
	if a[0] != b[0] {
		return cmp.Compare(int8(a[0]), int8(b[0]))
	}
	return bytes.Compare(a, b)
}

// lower returns the lower bound, truncated if it is long, and whether it is an actual value. It is
// never nil, which would mean no bound.
func (s *bounds) lower() (_ []byte, exact bool) {
	cut := s.cut(s.min)
	return append([]byte{}, cut...), len(cut) == len(s.min)
}

// upper returns the upper bound, truncated and rounded up if it is long, and whether it is an
// actual value. A bound that cannot be rounded up is not truncated. It is never nil.
func (s *bounds) upper() (_ []byte, exact bool) {
	cut := s.cut(s.max)
	if len(cut) < len(s.max) {
		if above := s.above(cut); above != nil {
			return above, false
		}
	}
	return append([]byte{}, s.max...), true
}

// text reports whether the values are UTF-8.
func (s *bounds) text() bool { return s.of.LogicalType().Equals(schema.StringLogicalType{}) }

// cut returns the beginning of a long bound. Text is cut between characters.
func (s *bounds) cut(v []byte) []byte {
	if len(v) <= boundBytes || s.of.PhysicalType() != parquet.Types.ByteArray {
		return v
	}
	n := boundBytes
	// Move back to the start of a character.
	for s.text() && n > boundBytes-utf8.UTFMax && !utf8.RuneStart(v[n]) {
		n--
	}
	return v[:n]
}

// above returns the smallest value, not longer than v, that is greater than everything that begins
// with v, or nil if there is none.
func (s *bounds) above(v []byte) []byte {
	v = slices.Clone(v)
	for len(v) > 0 {
		if !s.text() {
			if last := len(v) - 1; v[last] < math.MaxUint8 {
				v[last]++
				return v
			}
			v = v[:len(v)-1]
			continue
		}
		r, size := utf8.DecodeLastRune(v)
		v = v[:len(v)-size]
		// Surrogates are not characters: skip to the next one.
		if r++; r == surrogates {
			r = afterSurrogates
		}
		if r <= utf8.MaxRune {
			return utf8.AppendRune(v, r)
		}
	}
	return nil
}

// UTF-16 surrogates are code points that UTF-8 cannot encode.
const surrogates, afterSurrogates = 0xd800, 0xe000
