// Package keyset has a Bloom filter of a table's keys, with about ten bits per key. Landers of
// State tables use it to skip lookups of rows that certainly do not exist. A false positive only
// costs a lookup; there are no false negatives.
//
// Filter knows up to which offset of each partition it has all keys: see Covers. If another lander
// has added keys since, the filter is outdated and is built again.
package keyset

import (
	"github.com/cespare/xxhash/v2"
)

// Filter is a Bloom filter of a state table's keys. It reports whether the table may have a row of
// a key. A session builds it from one scan of the key column when it first needs it, and adds the
// keys that it lands. Nothing is persisted, so a kill cannot make it wrong.
type Filter struct {
	bits     []uint64
	keys     int // number of keys added
	capacity int // number of keys that it is sized for
	// upTo has the offset of each partition up to which the filter has all keys. Keys that other
	// landers add later are missing.
	upTo map[int32]int64
}

// Parameters of the filter. Size and number of hashes are the usual optimum for the false positive
// rate.
const (
	filterBits   = 10 // per key, for 1% false positives
	filterHashes = 7
	minCapacity  = 1 << 16  // keys: 80 KiB
	maxCapacity  = 50 << 20 // keys: 64 MiB; larger tables get more false positives
)

// New returns an empty filter, sized for twice this number of rows.
func New(rows int, upTo map[int32]int64) *Filter {
	capacity := min(max(minCapacity, 2*rows), maxCapacity)
	if upTo == nil {
		upTo = map[int32]int64{}
	}
	return &Filter{bits: make([]uint64, capacity*filterBits/64), capacity: capacity, upTo: upTo}
}

// each calls fn for the bits of a key until fn returns false. It reports whether all calls returned
// true.
func (f *Filter) each(key string, fn func(word int, bit uint64) bool) bool {
	// Double hashing: two halves of one hash stand in for filterHashes independent ones.
	h := xxhash.Sum64String(key)
	step := h>>33 | 1
	for i := range uint64(filterHashes) {
		at := (h + i*step) * 0x9e3779b97f4a7c15 >> 11 % uint64(len(f.bits)*64)
		if !fn(int(at/64), 1<<(at%64)) {
			return false
		}
	}
	return true
}

// Add adds a key.
func (f *Filter) Add(key string) {
	// Do not count a key twice, since keys determines when the filter is full.
	if f.MayContain(key) {
		return
	}
	f.keys++
	f.each(key, func(word int, bit uint64) bool {
		f.bits[word] |= bit
		return true
	})
}

// MayContain reports whether a key may have been added.
func (f *Filter) MayContain(key string) bool {
	return f.each(key, func(word int, bit uint64) bool { return f.bits[word]&bit != 0 })
}

// Covers reports whether the filter has all keys of a partition up to an offset and is not
// overfull. If not, the caller must build a new filter.
func (f *Filter) Covers(partition int32, upTo int64) bool {
	if f == nil || f.keys > f.capacity && f.capacity < maxCapacity {
		return false
	}
	at, ok := f.upTo[partition]
	// A partition from which nothing has landed needs no keys.
	return ok && at == upTo || !ok && upTo == 0
}

// Advance records that the filter has all keys of a partition up to an offset.
func (f *Filter) Advance(partition int32, upTo int64) { f.upTo[partition] = upTo }
