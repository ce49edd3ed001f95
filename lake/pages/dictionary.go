package pages

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/bits"
	"math/rand/v2"

	"github.com/apache/arrow-go/v18/arrow/bitutil"

	"github.com/millrace/millrace/lake/columnar"
)

// Limits of a dictionary. It is held in memory, also by readers.
const (
	dictionaryEntries = 1 << 16
	dictionaryBytes   = 1 << 20
)

// dictionary assigns indices to distinct values. It is an open-addressing hash table.
type dictionary struct {
	plain      []byte   // entries in PLAIN encoding, which is the dictionary's page
	entries    []entry  // from index 1; 0 means none
	table      []uint32 // indices of entries
	maxEntries int      // maximum number of entries in the current state, see chunk.lookUp
}

// entry is a key and the end of its value. It is compact, so that thousands of entries fit into the
// CPU cache.
type entry struct {
	first, last uint64
	size        uint32
	end         uint32 // offset in plain
}

// key is a value of at most keyBytes bytes, or else a hash of it.
type key struct {
	first, last uint64 // first and last eight bytes, which overlap in values shorter than 16
	size        uint32
}

// keyBytes is the maximum length of values that are compared by their keys alone.
const keyBytes = 16

// none is the entry at index 0. Its size differs from that of every key.
var none = entry{size: math.MaxUint32}

// is reports whether the entry has a key.
func (e *entry) is(k key) bool { return e.first == k.first && e.last == k.last && e.size == k.size }

// Random seeds prevent inputs that were chosen to collide.
var (
	seed         = maphash.MakeSeed()
	seed1, seed2 = rand.Uint64(), rand.Uint64()
)

// reset empties the dictionary and keeps its memory.
func (d *dictionary) reset() {
	d.plain, d.entries = d.plain[:0], append(d.entries[:0], none)
	if len(d.table) == 0 {
		d.table = make([]uint32, 64)
	}
	clear(d.table)
}

// len returns the number of entries, without none.
func (d *dictionary) len() int { return len(d.entries) - 1 }

// truncate keeps the first n entries. Nothing can be added afterwards, because the table is not
// updated.
func (d *dictionary) truncate(n int) {
	d.entries = d.entries[:n+1]
	d.plain = d.plain[:d.entries[n].end]
}

// fixed writes the indices of fixed-width values to indices. It returns false if there are too many
// entries.
func (d *dictionary) fixed(indices []uint32, values []byte, width int) bool {
	for i := range indices {
		var k key
		switch width {
		case 4:
			k = key{uint64(binary.LittleEndian.Uint32(values[4*i:])), 0, 4}
		case 8:
			k = key{binary.LittleEndian.Uint64(values[8*i:]), 0, 8}
		default:
			k = keyOf(values[i*width:], width)
		}
		// Fast path: the value is in its home slot. Long values need a full comparison in find.
		n := d.table[k.hash()&uint32(len(d.table)-1)]
		if !d.entries[n].is(k) || width > keyBytes {
			if n = d.find(k, values[i*width:(i+1)*width], false); n == 0 {
				return false
			}
		}
		indices[i] = n - 1
	}
	return true
}

// strings is like fixed for the non-null values of a column.
func (d *dictionary) strings(indices []uint32, col *columnar.Bytes, valid []byte) bool {
	offsets, content := col.Offsets(), col.Content()
	begin, at := int(offsets[0]), 0
	// last is the previous value if it is long. Columns such as the topic repeat it in every row.
	var last []byte
	var lastIndex uint32
	for i, offset := range offsets[1:] {
		if valid != nil && !bitutil.BitIsSet(valid, i) {
			continue // nulls have no content
		}
		// Values follow each other in the content, nulls take no space.
		end := int(offset)
		// A repeated long value is found without hashing it again.
		if end-begin > keyBytes && string(content[begin:end]) == string(last) {
			indices[at] = lastIndex
			begin = end
			at++
			continue
		}
		k := keyOf(content[begin:], end-begin)
		// The same fast path as in fixed.
		n := d.table[k.hash()&uint32(len(d.table)-1)]
		if !d.entries[n].is(k) || end-begin > keyBytes {
			if n = d.find(k, content[begin:end], true); n == 0 {
				return false
			}
			last, lastIndex = content[begin:end], n-1
		}
		begin = end
		indices[at] = n - 1
		at++
	}
	return true
}

// keyOf returns the key of the first n bytes of b. It avoids branches on n, because lengths vary
// unpredictably.
func keyOf(b []byte, n int) key {
	if n > keyBytes {
		return key{maphash.Bytes(seed, b[:n]), 0, uint32(n)}
	}
	// At the end of the column there may be fewer bytes than are loaded.
	if len(b) < keyBytes {
		var room [keyBytes]byte
		copy(room[:], b)
		b = room[:]
	}
	mask := uint64(math.MaxUint64) >> (64 - 8*min(n, 8))
	return key{binary.LittleEndian.Uint64(b) & mask, binary.LittleEndian.Uint64(b[max(n-8, 0):]) & mask, uint32(n)}
}

// hash returns the hash of a key.
func (k key) hash() uint32 {
	high, low := bits.Mul64(k.first^seed1, k.last^seed2)
	return uint32(high ^ low)
}

// find returns the entry of a value, adding it if necessary, or 0 if there is no room. length is
// set if the value's length precedes it in PLAIN.
func (d *dictionary) find(k key, v []byte, length bool) uint32 {
	if 2*len(d.entries) > len(d.table) {
		d.grow()
	}
	mask := uint32(len(d.table) - 1)
	at := k.hash() & mask
	// Linear probing. Long values with equal hashes are compared in full.
	for ; d.table[at] != 0; at = (at + 1) & mask {
		n := d.table[at]
		e := &d.entries[n]
		if e.is(k) && (len(v) <= keyBytes || string(d.plain[int(e.end)-len(v):e.end]) == string(v)) {
			return n
		}
	}
	// No room: the caller continues without a dictionary.
	if d.len() >= d.maxEntries || len(d.plain)+len(v)+4 > dictionaryBytes {
		return 0
	}
	if length {
		d.plain = binary.LittleEndian.AppendUint32(d.plain, uint32(len(v)))
	}
	d.plain = append(d.plain, v...)
	n := uint32(len(d.entries))
	d.entries = append(d.entries, entry{k.first, k.last, k.size, uint32(len(d.plain))})
	d.table[at] = n
	return n
}

// grow doubles the table, which keeps it at most half full.
func (d *dictionary) grow() {
	d.table = make([]uint32, 2*len(d.table))
	mask := uint32(len(d.table) - 1)
	for n := 1; n < len(d.entries); n++ {
		e := d.entries[n]
		// Keys are distinct, so only an empty slot is needed.
		at := key{e.first, e.last, e.size}.hash() & mask
		for d.table[at] != 0 {
			at = (at + 1) & mask
		}
		d.table[at] = uint32(n)
	}
}
