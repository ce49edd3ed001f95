package pages

import (
	"encoding/binary"
)

// appendHybrid appends numbers of width bits in Parquet's hybrid encoding of run-length and
// bit-packed groups of eight.
func appendHybrid[T uint8 | uint32](b []byte, values []T, width int) []byte {
	packed := 0 // first value that is not written yet
	// Alternate between runs and packed groups. The values from packed to i are not written yet.
	for i := 0; i < len(values); {
		run := 1
		for i+run < len(values) && values[i+run] == values[i] {
			run++
		}
		// Too short for a run: these values become part of the packed group. Advance by eight, so
		// that groups stay aligned.
		if run < shortestRun {
			i = min(i+8, len(values))
			continue
		}
		b = appendPacked(b, values[packed:i], width)
		b = binary.AppendUvarint(b, uint64(run)<<1)
		for bits := 0; bits < width; bits += 8 {
			b = append(b, byte(uint32(values[i])>>bits))
		}
		i += run
		packed = i
	}
	return appendPacked(b, values[packed:], width)
}

// shortestRun is the minimum length of a run. A shorter run costs more than packing its values,
// since it ends a packed group.
const shortestRun = 24

// appendPacked appends bit-packed groups of eight. Only the last call may have a number of values
// that is not a multiple of eight; zeros fill its last group.
func appendPacked[T uint8 | uint32](b []byte, values []T, width int) []byte {
	if len(values) == 0 {
		return b
	}
	groups := (len(values) + 7) / 8
	b = binary.AppendUvarint(b, uint64(groups)<<1|1)
	end := len(b) + groups*width
	// Bits are collected in held and written in steps of 32.
	var held uint64
	var bits int
	for _, v := range values {
		held |= uint64(v) << bits
		if bits += width; bits >= 32 {
			b = binary.LittleEndian.AppendUint32(b, uint32(held))
			held >>= 32
			bits -= 32
		}
	}
	for ; len(b) < end; held >>= 8 {
		b = append(b, byte(held))
	}
	return b
}

// appendBits appends the first n bits of a bitmap as 1-bit numbers. A nil bitmap means that all
// bits are set.
func appendBits(b, bitmap []byte, n int) []byte {
	// A single run of ones.
	if bitmap == nil {
		return append(binary.AppendUvarint(b, uint64(n)<<1), 1)
	}
	groups := (n + 7) / 8
	b = append(binary.AppendUvarint(b, uint64(groups)<<1|1), bitmap[:groups]...)
	if n%8 > 0 {
		b[len(b)-1] &= 1<<(n%8) - 1
	}
	return b
}

// withLength appends the output of f, preceded by its length in four bytes.
func withLength(b []byte, f func([]byte) []byte) []byte {
	at := len(b)
	b = f(append(b, 0, 0, 0, 0))
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}
