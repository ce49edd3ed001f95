package server

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrOverloaded means that a Limiter or Slots refused a request. Its work has not begun, so the
// client may retry.
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

// How long a request may queue. burstWait applies if the queue was empty a moment ago, so that a
// burst is served. standingWait applies to a standing queue: then there is more load than
// capacity, and waiting would only make every response late. CoDel does the same for packets.
var (
	burstWait = [classes]time.Duration{SQL: 200 * time.Millisecond, Query: 500 * time.Millisecond,
		Command: time.Second}
	standingWait = [classes]time.Duration{SQL: 0, Query: 50 * time.Millisecond, Command: 100 * time.Millisecond}
)

const (
	standing     = 100 * time.Millisecond // a queue that was not empty for this long is standing
	depth        = 8                      // queued requests of a class, per request that may be in progress
	outrankedFor = time.Second            // how long lower classes are refused after a higher one was refused
)

// Limiter bounds the requests in progress, and decides which ones queue and which are refused.
type Limiter struct {
	limit int // maximum number of requests in progress

	// mu protects the fields below.
	mu        sync.Mutex
	running   int
	queues    [classes]*list.List // of *waiter, oldest first
	waiting   int                 // number of queued requests
	empty     time.Time           // when the queue was last empty
	interval  time.Duration       // average time between two places that become free while requests queue
	freed     time.Time           // when a place last became free; zero if no request has queued since
	shed      [classes]int        // refused requests
	refusedAt [classes]time.Time  // when a request was last refused
}

// waiter is a queued request.
type waiter struct {
	ready   chan struct{} // closed when it is admitted
	element *list.Element // nil after it has left the queue
}

// NewLimiter returns a limiter for at most limit requests in progress.
func NewLimiter(limit int) *Limiter {
	l := &Limiter{limit: max(limit, 1)}
	for i := range l.queues {
		l.queues[i] = list.New()
	}
	return l
}

// Acquire admits a request, or blocks until it is its turn. It returns ErrOverloaded if the turn
// would come too late, or ctx's error. The caller must call release when the work is done.
func (l *Limiter) Acquire(ctx context.Context, c Class) (release func(), err error) {
	w, wait, err := l.queue(c)
	if err != nil {
		return nil, err
	}
	release = l.releaser()
	if w == nil {
		return release, nil
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case <-w.ready:
		return release, nil
	case <-late.C:
		err = ErrOverloaded
	case <-ctx.Done():
		err = ctx.Err()
	}
	// The timer and the admission can coincide. Then the place is ours, and must be used or
	// released.
	if l.abandon(w, c, err) {
		return nil, err
	}
	return release, nil // it was admitted at the same moment
}

// releaser returns a function that frees a place when it is first called.
func (l *Limiter) releaser() func() {
	var released atomic.Bool
	return func() {
		if !released.Swap(true) {
			l.release()
		}
	}
}

// queue admits the request and returns nil, or queues it and returns how long it may wait.
func (l *Limiter) queue(c Class) (w *waiter, wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.waiting == 0 {
		l.empty = now
	}
	// Nothing queues and there is capacity: admit at once.
	if l.waiting == 0 && l.running < l.capacity(c) && !l.outranked(c, now) {
		l.running++
		return nil, 0, nil
	}
	wait = l.maxWait(c, now)
	if wait == 0 {
		l.refuse(c, now)
		return nil, 0, ErrOverloaded
	}
	w = &waiter{ready: make(chan struct{})}
	w.element = l.queues[c].PushBack(w)
	l.waiting++
	// While lower classes queue, a command can still be admitted at once, to a reserved place.
	l.admit()
	return w, wait, nil
}

// maxWait returns how long another request of the class may wait, or 0 if its turn would come too
// late. It estimates that from the number of requests before it and the rate at which places become
// free.
func (l *Limiter) maxWait(c Class, now time.Time) time.Duration {
	wait := burstWait[c]
	// The queue has not been empty for a while: it is standing.
	if now.Sub(l.empty) > standing {
		wait = standingWait[c]
	}
	// Requests of this class and of higher ones are served first.
	before := 0
	for higher := c; int(higher) < classes; higher++ {
		before += l.queues[higher].Len()
	}
	if l.outranked(c, now) || l.queues[c].Len() >= depth*l.limit || time.Duration(before)*l.interval > wait {
		return 0
	}
	return wait
}

// outranked reports whether a request of a higher class was refused a moment ago. Then the class is
// refused even when the queue is empty. Under load the queue is often empty for a moment, and the
// lowest class would use these moments.
func (l *Limiter) outranked(c Class, now time.Time) bool {
	for higher := c + 1; int(higher) < classes; higher++ {
		if now.Sub(l.refusedAt[higher]) < outrankedFor {
			return true
		}
	}
	return false
}

// Admits reports whether a request of the class may enter or queue. If not, it counts the request
// as refused.
func (l *Limiter) Admits(c Class) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.waiting == 0 && !l.outranked(c, now) || l.maxWait(c, now) > 0 {
		return true
	}
	l.refuse(c, now)
	return false
}

// refuse counts a refused request.
func (l *Limiter) refuse(c Class, now time.Time) {
	l.shed[c]++
	l.refusedAt[c] = now
}

// capacity returns the maximum number of requests in progress for the class to be admitted. Lower
// classes leave a quarter of the places to commands.
func (l *Limiter) capacity(c Class) int {
	if c == Command {
		return l.limit
	}
	return max(l.limit-l.limit/4, 1)
}

// abandon removes a request from the queue. It returns false if the request was admitted meanwhile.
func (l *Limiter) abandon(w *waiter, c Class, why error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.element == nil {
		return false
	}
	l.queues[c].Remove(w.element)
	w.element = nil
	l.waiting--
	// A client that has given up was not refused.
	if errors.Is(why, ErrOverloaded) {
		l.refuse(c, time.Now())
	}
	return true
}

// release frees a place.
func (l *Limiter) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	l.updateInterval(time.Now())
	l.admit()
}

// updateInterval updates the average interval when a place becomes free. It is a moving average,
// and has no meaning while the queue is empty.
func (l *Limiter) updateInterval(now time.Time) {
	const weight = 16 // of the past: one new interval counts for a sixteenth
	if l.waiting == 0 {
		l.freed = time.Time{}
		return
	}
	if !l.freed.IsZero() {
		l.interval += (now.Sub(l.freed) - l.interval) / weight
	}
	l.freed = now
}

// admit admits queued requests while there is room: the highest class first, and the oldest request
// of a class first.
func (l *Limiter) admit() {
	for c := Class(classes - 1); c >= 0; c-- {
		for l.running < l.capacity(c) {
			first := l.queues[c].Front()
			if first == nil {
				break
			}
			w, _ := l.queues[c].Remove(first).(*waiter)
			w.element = nil
			l.waiting--
			l.running++
			close(w.ready)
		}
	}
}

// Shed returns the number of refused requests of a class.
func (l *Limiter) Shed(c Class) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shed[c]
}
