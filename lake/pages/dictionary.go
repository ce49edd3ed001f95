package pages

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"

	"github.com/apache/arrow-go/v18/arrow/bitutil"

	"github.com/millrace/millrace/lake/columnar"
)

// What a dictionary has at most. It is in memory, and readers keep it there.
const (
	dictionaryEntries = 1 << 16
	dictionaryBytes   = 1 << 20
)

// dictionary numbers distinct values.
type dictionary struct {
	plain []byte   // the entries as PLAIN has them: the dictionary's page
	ends  []uint32 // of each entry in it
	keys  []uint64 // of each entry
	table []uint32 // open addressing: the number of an entry, and 1 more; 0 is free
	most  int      // entries
}

// A key is a value, or of one that has more than a key holds, a hash: then longKey is set in it.
const longKey = 0xff << 56

// Nobody can choose values that all come to the same place.
var (
	seed         = maphash.MakeSeed()
	seed1, seed2 = rand.Uint64(), rand.Uint64() | 1
)

func (d *dictionary) reset() {
	d.plain, d.ends, d.keys = d.plain[:0], d.ends[:0], d.keys[:0]
	clear(d.table)
}

func (d *dictionary) len() int { return len(d.ends) }

// truncate keeps the first n entries. No more can be added then.
func (d *dictionary) truncate(n int) {
	if n == 0 {
		d.plain, d.ends = d.plain[:0], d.ends[:0]
		return
	}
	d.plain, d.ends = d.plain[:d.ends[n-1]], d.ends[:n]
}

// fixed puts the numbers of values of the same width into indices. It gives up where there would be too many entries.
func (d *dictionary) fixed(indices []uint32, values []byte, width int) bool {
	for i := range indices {
		v := values[i*width : (i+1)*width]
		var key uint64
		switch width {
		case 4:
			key = uint64(binary.LittleEndian.Uint32(v))
		case 8:
			key = binary.LittleEndian.Uint64(v)
		default:
			key = longKey | maphash.Bytes(seed, v)
		}
		entry := d.first(key)
		if entry == 0 || d.keys[entry-1] != key || width != 4 && width != 8 && !d.is(entry, v) {
			if entry = d.find(key, v, false, width == 4 || width == 8); entry == 0 {
				return false
			}
		}
		indices[i] = entry - 1
	}
	return true
}

// strings does as fixed; values are those of the column that are not null.
func (d *dictionary) strings(indices []uint32, col *columnar.Bytes, valid []byte) bool {
	offsets, content := col.Offsets(), col.Content()
	begin, at := offsets[0], 0
	for i, end := range offsets[1:] {
		if valid != nil && !bitutil.BitIsSet(valid, i) {
			continue // it has no content
		}
		v := content[begin:end]
		key := keyOf(content[begin:], len(v))
		begin = end
		entry := d.first(key)
		if entry == 0 || d.keys[entry-1] != key || key >= longKey && !d.is(entry, v) {
			if entry = d.find(key, v, true, key < longKey); entry == 0 {
				return false
			}
		}
		indices[at] = entry - 1
		at++
	}
	return true
}

// keyOf makes a key of the first n of some bytes.
func keyOf(b []byte, n int) uint64 {
	switch {
	case n < 8 && len(b) >= 8:
		return binary.LittleEndian.Uint64(b)&(1<<(8*n)-1) | uint64(n)<<56
	case n < 8:
		var v [8]byte
		copy(v[:], b[:n])
		return binary.LittleEndian.Uint64(v[:]) | uint64(n)<<56
	case n <= 16:
		high, low := bits.Mul64(binary.LittleEndian.Uint64(b)^seed1, binary.LittleEndian.Uint64(b[n-8:n])^seed2)
		return longKey | (high ^ low)
	default:
		return longKey | maphash.Bytes(seed, b[:n])
	}
}

func place(key uint64) uint32 {
	high, low := bits.Mul64(key^seed1, seed2)
	return uint32(high ^ low)
}

// first is the entry that stands where one of this key would stand if no other did.
func (d *dictionary) first(key uint64) uint32 {
	if len(d.table) == 0 {
		return 0
	}
	return d.table[place(key)&uint32(len(d.table)-1)]
}

// find finds the entry of a value, or makes it; 0 where there is no room. An exact key belongs to one value.
func (d *dictionary) find(key uint64, v []byte, length, exact bool) uint32 {
	if 2*len(d.ends) >= len(d.table) {
		d.grow()
	}
	mask := uint32(len(d.table) - 1)
	at := place(key) & mask
	for ; d.table[at] != 0; at = (at + 1) & mask {
		if entry := d.table[at]; d.keys[entry-1] == key && (exact || d.is(entry, v)) {
			return entry
		}
	}
	if len(d.ends) >= d.most || len(d.plain)+len(v)+4 > dictionaryBytes {
		return 0
	}
	if length {
		d.plain = binary.LittleEndian.AppendUint32(d.plain, uint32(len(v)))
	}
	d.plain = append(d.plain, v...)
	d.ends, d.keys = append(d.ends, uint32(len(d.plain))), append(d.keys, key)
	d.table[at] = uint32(len(d.ends))
	return d.table[at]
}

// is compares a value with an entry that has the same key, so that both have a length or neither.
func (d *dictionary) is(entry uint32, v []byte) bool {
	end, begin := d.ends[entry-1], uint32(0)
	if entry > 1 {
		begin = d.ends[entry-2]
	}
	have := d.plain[begin:end]
	return len(have) >= len(v) && string(have[len(have)-len(v):]) == string(v) && (len(have) == len(v) || len(have) == len(v)+4)
}

func (d *dictionary) grow() {
	d.table = make([]uint32, max(64, 2*len(d.table)))
	mask := uint32(len(d.table) - 1)
	for i, key := range d.keys {
		at := place(key) & mask
		for d.table[at] != 0 {
			at = (at + 1) & mask
		}
		d.table[at] = uint32(i + 1)
	}
}
