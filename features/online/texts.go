package online

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// texts numbers the distinct texts in the columns of facts, so that each is in memory once. One
// goroutine adds texts while others read: a number is published before any row has it.
type texts struct {
	ids   map[string]uint32 // of the goroutine that adds
	all   atomic.Pointer[[]text]
	bytes atomic.Int64
}

// text is a text and its hash for Distinct.
type text struct {
	text string
	hash uint64
}

// textBytes is about what a text costs besides its characters.
const textBytes = 64

// newTexts returns texts that have the empty one.
func newTexts() *texts {
	t := &texts{ids: map[string]uint32{}}
	t.all.Store(&[]text{})
	t.id("")
	return t
}

// id returns the number of a text, and adds it if necessary.
func (t *texts) id(s string) uint32 {
	if id, ok := t.ids[s]; ok {
		return id
	}
	all := *t.all.Load()
	id := uint32(len(all))
	s = string([]byte(s)) // it may be a part of a larger one
	t.ids[s] = id
	// Readers of the previous slice do not see the new element, which may be in the same array.
	all = append(all, text{s, xxhash.Sum64String(s)})
	t.all.Store(&all)
	t.bytes.Add(int64(len(s)) + textBytes)
	return id
}

// list returns the texts by number. It has every number that is in a row which the caller sees.
func (t *texts) list() []text { return *t.all.Load() }

// replace replaces all texts by those of a snapshot. The first is the empty one.
func (t *texts) replace(list []string) {
	t.ids = make(map[string]uint32, len(list))
	all := make([]text, len(list))
	t.bytes.Store(0)
	for i, s := range list {
		t.ids[s] = uint32(i)
		all[i] = text{s, xxhash.Sum64String(s)}
		t.bytes.Add(int64(len(s)) + textBytes)
	}
	t.all.Store(&all)
}

// clear removes all texts but the empty one, and keeps the memory.
func (t *texts) clear() {
	clear(t.ids)
	all := (*t.all.Load())[:0]
	t.all.Store(&all)
	t.bytes.Store(0)
	t.id("")
}
