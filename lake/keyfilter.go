package lake

import (
	"context"
	"math"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go/table"
	"github.com/cespare/xxhash/v2"
)

// keyFilter is a Bloom filter of a state table's keys. It reports whether the table may have a row of a key. A session
// builds it from one scan of the key column when it first needs it, and adds the keys that it lands. Nothing is
// persisted, so a kill cannot make it wrong.
type keyFilter struct {
	bits     []uint64
	keys     int // added
	capacity int // keys that it is sized for
	// upTo is the offset up to which the filter has the keys of each partition. Rows that others land later are
	// missing.
	upTo map[int32]int64
}

const (
	filterBits   = 10 // per key, for 1% false positives
	filterHashes = 7
	leastFilter  = 1 << 16  // keys: 80 KiB
	mostFilter   = 50 << 20 // keys: 64 MiB; larger tables get more false positives
)

// newKeyFilter returns an empty filter for a table with this many rows, with room for as many again.
func newKeyFilter(rows int, upTo map[int32]int64) *keyFilter {
	capacity := min(max(leastFilter, 2*rows), mostFilter)
	if upTo == nil {
		upTo = map[int32]int64{}
	}
	return &keyFilter{bits: make([]uint64, capacity*filterBits/64), capacity: capacity, upTo: upTo}
}

// each calls fn for the bits of a key until fn returns false. It reports whether all calls returned true.
func (f *keyFilter) each(key string, fn func(word int, bit uint64) bool) bool {
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

func (f *keyFilter) add(key string) {
	if f.may(key) {
		return
	}
	f.keys++
	f.each(key, func(word int, bit uint64) bool {
		f.bits[word] |= bit
		return true
	})
}

// may reports whether a key may have been added.
func (f *keyFilter) may(key string) bool {
	return f.each(key, func(word int, bit uint64) bool { return f.bits[word]&bit != 0 })
}

// knows reports whether the filter has all keys of a partition up to an offset and is not too full.
func (f *keyFilter) knows(partition int32, upTo int64) bool {
	if f == nil || f.keys > f.capacity && f.capacity < mostFilter {
		return false
	}
	at, ok := f.upTo[partition]
	return ok && at == upTo || !ok && upTo == 0
}

// readKeys builds the filter of a table that has landed its topic up to these offsets.
func readKeys(ctx context.Context, have *table.Table, key string, upTo map[int32]int64) (*keyFilter, error) {
	f := newKeyFilter(rowsSaid(have), upTo)
	if have.CurrentSnapshot() == nil {
		return f, nil
	}
	ctx, cancel := context.WithCancel(ctx) // the scan's goroutines end with it
	defer cancel()
	_, records, err := have.Scan(table.WithSelectedFields(key), table.WithMaxConcurrency(lookUpFiles)).ToArrowRecords(ctx)
	if err != nil {
		return nil, err
	}
	for rec, err := range records {
		if err != nil {
			return nil, err
		}
		err = f.addColumn(rec, key)
		rec.Release()
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *keyFilter) addColumn(rec arrow.RecordBatch, key string) error {
	keys, err := columnOf[*array.String](rec, key)
	if err != nil {
		return err
	}
	for i := range keys.Len() {
		f.add(keys.Value(i))
	}
	return nil
}

// rowsSaid returns the row count in the table's summary, or 0 if there is none.
func rowsSaid(have *table.Table) int {
	s := have.CurrentSnapshot()
	if s == nil || s.Summary == nil {
		return 0
	}
	n, err := strconv.ParseInt(s.Summary.Properties["total-records"], 10, 64)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return int(n)
}
