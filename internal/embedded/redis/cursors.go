package redis

import (
	"strconv"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cursors maps the cursors of SCAN and HSCAN to the positions where they resume. Redis' cursors are
// numbers, but positions are fields of any length, so they must be remembered. The least recently
// used ones are evicted, since clients may abandon a scan.
type cursors struct {
	*sync.Mutex // protects the rest
	positions   *simplelru.LRU[uint64, scanPosition]
	last        *uint64 // cursor that was assigned last; 0 is not a cursor, since it starts a scan
}

// scanPosition is where a scan resumes: at a field of the hash key, or of the sets if key is empty.
type scanPosition struct{ key, field string }

// maxCursors bounds the number of scans that can be continued.
const maxCursors = 1024

// newCursors returns an empty map.
func newCursors() cursors {
	positions, err := simplelru.NewLRU[uint64, scanPosition](maxCursors, nil)
	if err != nil {
		panic(err) // the size is above 0
	}
	return cursors{&sync.Mutex{}, positions, new(uint64)}
}

// add returns a new cursor for a position.
func (c cursors) add(at scanPosition) string {
	c.Lock()
	defer c.Unlock()
	*c.last++
	c.positions.Add(*c.last, at)
	return strconv.FormatUint(*c.last, 10)
}

// get returns the position of a cursor. It is false if the cursor was evicted.
func (c cursors) get(cursor uint64) (scanPosition, bool) {
	c.Lock()
	defer c.Unlock()
	return c.positions.Get(cursor)
}
