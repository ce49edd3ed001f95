package server

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrOverloaded means that Gate or Slots refused a request. Its work has not begun, so the client
// may retry.
var ErrOverloaded = errors.New("overloaded; try again later")

// RetryAfter is the value of the Retry-After header of refused requests, in seconds.
const RetryAfter = "1"

// Class is the priority of a request. Under load, lower classes are refused first.
type Class int

// Classes in ascending order of priority.
const (
	SQL Class = iota
	Query
	Command
	classes int = iota
)

// String returns the class's name in metrics.
func (c Class) String() string { return [...]string{"sql", "query", "command"}[c] }

// How long a request may queue. It is patience if the queue was empty a moment ago, so that a burst
// is served. It is target once there is a standing queue: then there is more load than capacity,
// and waiting would only make every response late.
var (
	patience = [classes]time.Duration{SQL: 200 * time.Millisecond, Query: 500 * time.Millisecond, Command: time.Second}
	target   = [classes]time.Duration{SQL: 0, Query: 50 * time.Millisecond, Command: 100 * time.Millisecond}
)

const (
	standing = 100 * time.Millisecond // a queue that was not empty for this long is standing
	depth    = 8                      // queued requests of a class, per request that may be in progress
	behind   = time.Second            // how long lower classes are refused after a higher one was refused
)

// Gate bounds the requests in progress, and decides which ones queue and which are refused.
type Gate struct {
	most int // maximum number of requests in progress

	// mu protects the fields below.
	mu      sync.Mutex
	running int
	queues  [classes]*list.List // of *waiter, oldest first
	waiting int                 // number of queued requests
	empty   time.Time           // when the queue was last empty
	pace    time.Duration       // average time between two places that become free while requests queue
	freed   time.Time           // when a place last became free; zero if no request has queued since
	shed    [classes]int        // refused requests
	turned  [classes]time.Time  // when a request was last refused
}

// waiter is a queued request.
type waiter struct {
	ready chan struct{} // closed when it is admitted
	place *list.Element // nil after it has left the queue
}

// NewGate returns a gate for most requests in progress.
func NewGate(most int) *Gate {
	g := &Gate{most: max(most, 1)}
	for i := range g.queues {
		g.queues[i] = list.New()
	}
	return g
}

// Enter admits a request, or blocks until it is its turn. It returns ErrOverloaded if the turn
// would come too late, or ctx's error. The caller must call leave when the work is done.
func (g *Gate) Enter(ctx context.Context, c Class) (leave func(), err error) {
	w, wait, err := g.queue(c)
	if err != nil {
		return nil, err
	}
	leave = sync.OnceFunc(g.leave)
	if w == nil {
		return leave, nil
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case <-w.ready:
		return leave, nil
	case <-late.C:
		err = ErrOverloaded
	case <-ctx.Done():
		err = ctx.Err()
	}
	if g.abandon(w, c, err) {
		return nil, err
	}
	return leave, nil // it was admitted at the same moment
}

// queue admits the request and returns nil, or queues it and returns how long it may wait.
func (g *Gate) queue(c Class) (w *waiter, wait time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.waiting == 0 {
		g.empty = now
	}
	// Nothing queues and there is room: admit at once.
	if g.waiting == 0 && g.running < g.room(c) && !g.outranked(c, now) {
		g.running++
		return nil, 0, nil
	}
	wait = g.bears(c, now)
	if wait == 0 {
		g.turnAway(c, now)
		return nil, 0, ErrOverloaded
	}
	w = &waiter{ready: make(chan struct{})}
	w.place = g.queues[c].PushBack(w)
	g.waiting++
	g.admit()
	return w, wait, nil
}

// bears returns how long another request of the class may wait, or 0 if its turn would come too
// late. It estimates that from the number of requests before it and the rate at which places become
// free.
func (g *Gate) bears(c Class, now time.Time) time.Duration {
	wait := patience[c]
	// The queue has not been empty for a while: it is standing.
	if now.Sub(g.empty) > standing {
		wait = target[c]
	}
	before := 0
	for higher := c; int(higher) < classes; higher++ {
		before += g.queues[higher].Len()
	}
	if g.outranked(c, now) || g.queues[c].Len() >= depth*g.most || time.Duration(before)*g.pace > wait {
		return 0
	}
	return wait
}

// outranked reports whether a request of a higher class was refused a moment ago. Then the class is
// refused even when the queue is empty. Under load the queue is often empty for a moment, and the
// lowest class would use these moments.
func (g *Gate) outranked(c Class, now time.Time) bool {
	for higher := c + 1; int(higher) < classes; higher++ {
		if now.Sub(g.turned[higher]) < behind {
			return true
		}
	}
	return false
}

// Admits reports whether a request of the class may enter or queue. If not, it counts the request
// as refused.
func (g *Gate) Admits(c Class) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.waiting == 0 && !g.outranked(c, now) || g.bears(c, now) > 0 {
		return true
	}
	g.turnAway(c, now)
	return false
}

// turnAway counts a refused request.
func (g *Gate) turnAway(c Class, now time.Time) {
	g.shed[c]++
	g.turned[c] = now
}

// room returns the maximum number of requests in progress for the class to be admitted. Lower
// classes leave a quarter of the places to commands.
func (g *Gate) room(c Class) int {
	if c == Command {
		return g.most
	}
	return max(g.most-g.most/4, 1)
}

// abandon removes a request from the queue. It returns false if the request was admitted meanwhile.
func (g *Gate) abandon(w *waiter, c Class, why error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.place == nil {
		return false
	}
	g.queues[c].Remove(w.place)
	w.place = nil
	g.waiting--
	// A client that has given up was not refused.
	if errors.Is(why, ErrOverloaded) {
		g.turnAway(c, time.Now())
	}
	return true
}

// leave frees a place.
func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.keepPace(time.Now())
	g.admit()
}

// keepPace updates the pace when a place becomes free. The pace is a moving average. It has no
// meaning while the queue is empty.
func (g *Gate) keepPace(now time.Time) {
	const weight = 16
	if g.waiting == 0 {
		g.freed = time.Time{}
		return
	}
	if !g.freed.IsZero() {
		g.pace += (now.Sub(g.freed) - g.pace) / weight
	}
	g.freed = now
}

// admit admits queued requests while there is room: the highest class first, and the oldest request
// of a class first.
func (g *Gate) admit() {
	for c := Class(classes - 1); c >= 0; c-- {
		for g.running < g.room(c) {
			first := g.queues[c].Front()
			if first == nil {
				break
			}
			w, _ := g.queues[c].Remove(first).(*waiter)
			w.place = nil
			g.waiting--
			g.running++
			close(w.ready)
		}
	}
}

// Shed returns the number of refused requests of a class.
func (g *Gate) Shed(c Class) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shed[c]
}
