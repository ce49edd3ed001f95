package redis

import (
	"strconv"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cursors are where scans go on. A client is handed a number for each, and the oldest are forgotten.
type cursors struct {
	*sync.Mutex
	places *simplelru.LRU[uint64, place]
	last   *uint64
}

// place is where a scan goes on: in a hash, or of all keys where key is empty, from a field on.
type place struct{ key, field string }

const mostCursors = 1024

func newCursors() cursors {
	places, err := simplelru.NewLRU[uint64, place](mostCursors, nil)
	if err != nil {
		panic(err) // the size is above 0
	}
	return cursors{&sync.Mutex{}, places, new(uint64)}
}

func (c cursors) add(at place) string {
	c.Lock()
	defer c.Unlock()
	*c.last++
	c.places.Add(*c.last, at)
	return strconv.FormatUint(*c.last, 10)
}

func (c cursors) get(cursor uint64) (place, bool) {
	c.Lock()
	defer c.Unlock()
	return c.places.Get(cursor)
}
