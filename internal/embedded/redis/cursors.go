package redis

import (
	"strconv"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cursors maps the cursors of SCAN and HSCAN to the places where they resume. The oldest are
// evicted.
type cursors struct {
	*sync.Mutex
	places *simplelru.LRU[uint64, place]
	last   *uint64
}

// place is where a scan resumes: at a field of the hash key, or of the sets if key is empty.
type place struct{ key, field string }

// mostCursors bounds the number of scans that can be continued.
const mostCursors = 1024

func newCursors() cursors {
	places, err := simplelru.NewLRU[uint64, place](mostCursors, nil)
	if err != nil {
		panic(err) // the size is above 0
	}
	return cursors{&sync.Mutex{}, places, new(uint64)}
}

// add returns a cursor for a place.
func (c cursors) add(at place) string {
	c.Lock()
	defer c.Unlock()
	*c.last++
	c.places.Add(*c.last, at)
	return strconv.FormatUint(*c.last, 10)
}

// get returns the place of a cursor. It is false if the cursor was evicted.
func (c cursors) get(cursor uint64) (place, bool) {
	c.Lock()
	defer c.Unlock()
	return c.places.Get(cursor)
}
