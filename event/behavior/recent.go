package behavior

import (
	"time"

	"github.com/google/uuid"
)

// Window is how long an event's id is remembered. Clients give up sending an event long before.
const Window = 24 * time.Hour

// Recent recognises copies of events by their ids. An event is a copy if its id is among the last
// ids that were added, and was added within Window before it.
//
// A reader of a partition that passes all of its records to Add, in log order and with the times
// at which they were recorded, keeps the first copy of each event, like any other such reader. To
// get there, a reader that begins at a later offset first adds the records of the Window before
// it. An id takes 50 to 80 bytes. Recent is not safe for concurrent use.
type Recent struct {
	max  int
	seen map[uuid.UUID]int64 // when the first copy was recorded, in Unix seconds
	// queue has the ids in the order of their addition. It is a ring: it starts at head, and grows
	// up to max.
	queue []recentID
	head  int
	size  int
}

// recentID is an id with its time, as in Recent.seen.
type recentID struct {
	id uuid.UUID
	at int64
}

// NewRecent returns a Recent that remembers at most max ids, which must be positive.
func NewRecent(maxIDs int) *Recent {
	return &Recent{max: max(maxIDs, 1), seen: map[uuid.UUID]int64{}}
}

// Has reports whether an event that is recorded at a time is a copy.
func (r *Recent) Has(id uuid.UUID, at time.Time) bool {
	seen, ok := r.seen[id]
	return ok && within(seen, at.Unix())
}

// Add remembers an event that was recorded at a time. It reports whether it is the first copy.
func (r *Recent) Add(id uuid.UUID, at time.Time) (first bool) {
	now := at.Unix()
	if seen, ok := r.seen[id]; ok && within(seen, now) {
		return false
	}
	for r.size > 0 && !within(r.queue[r.head].at, now) {
		r.drop()
	}
	if r.size == r.max {
		r.drop()
	}
	r.push(recentID{id, now})
	r.seen[id] = now
	return true
}

// Len returns the number of ids that are remembered.
func (r *Recent) Len() int { return len(r.seen) }

// within reports whether two times are at most Window apart. Servers' clocks differ, so either may
// be the later one.
func within(a, b int64) bool {
	const window = int64(Window / time.Second)
	return b-a <= window && a-b <= window
}

// drop forgets the id that was added first.
func (r *Recent) drop() {
	oldest := r.queue[r.head]
	r.head = (r.head + 1) % len(r.queue)
	r.size--
	// The id may have been added again since.
	if r.seen[oldest.id] == oldest.at {
		delete(r.seen, oldest.id)
	}
}

// push appends to the queue, and makes it larger if it is full.
func (r *Recent) push(id recentID) {
	if r.size == len(r.queue) {
		larger := make([]recentID, min(max(2*len(r.queue), 1024), r.max))
		n := copy(larger, r.queue[r.head:])
		copy(larger[n:], r.queue[:r.head])
		r.queue, r.head = larger, 0
	}
	r.queue[(r.head+r.size)%len(r.queue)] = id
	r.size++
}
