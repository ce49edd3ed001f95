package server

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrOverloaded is what Gate and Slots give whom they turn away. The work has not begun: it can be
// tried again.
var ErrOverloaded = errors.New("more is asked than can be done; try again later")

// RetryAfter is how many seconds those who are turned away are told to wait.
const RetryAfter = "1"

// Class says how much a request matters. Under load the lower ones are turned away first.
type Class int

// The classes, those that matter least first.
const (
	SQL Class = iota
	Query
	Command
	classes int = iota
)

func (c Class) String() string { return [...]string{"sql", "query", "command"}[c] }

// How long a request may stand in the queue: patience while the queue has been empty a moment ago,
// so that a burst is worked off; and no more than the target once there is a standing queue, for
// that is more than can be done, and waiting would only make everybody's answer late.
var (
	patience = [classes]time.Duration{SQL: 200 * time.Millisecond, Query: 500 * time.Millisecond, Command: time.Second}
	target   = [classes]time.Duration{SQL: 0, Query: 50 * time.Millisecond, Command: 100 * time.Millisecond}
)

const (
	standing = 100 * time.Millisecond // a queue that was not empty for this long is standing
	depth    = 8                      // waiting requests of a class, for each that may be under way
	behind   = time.Second            // for which nothing is let in that matters less than what was turned away
)

// Gate lets so many requests be worked on at a time, and chooses who waits and who is turned away.
type Gate struct {
	most int

	mu      sync.Mutex
	running int
	queues  [classes]*list.List // of *waiter, oldest first
	waiting int
	empty   time.Time     // when nobody waited last
	pace    time.Duration // between two places that come free, while somebody waits for one
	freed   time.Time     // when one came free last; zero: nobody has waited since
	shed    [classes]int
	turned  [classes]time.Time // when one was turned away last
}

type waiter struct {
	ready chan struct{}
	place *list.Element // nil: let in
}

// NewGate returns a gate for so many requests at a time.
func NewGate(most int) *Gate {
	g := &Gate{most: max(most, 1)}
	for i := range g.queues {
		g.queues[i] = list.New()
	}
	return g
}

// Enter waits for the turn of a request. It gives ErrOverloaded where its turn would come too late,
// or ctx's error. Leave must be called once the work is done.
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
	return leave, nil // its turn came at the same moment
}

// queue lets the request in, or gives its place in the queue and how long it may wait there.
func (g *Gate) queue(c Class) (w *waiter, wait time.Duration, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.waiting == 0 {
		g.empty = now
	}
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

// bears returns how long another request of the class may wait; 0: its turn would come too late.
// How long that takes is known by how many stand before it, and how fast places come free.
func (g *Gate) bears(c Class, now time.Time) time.Duration {
	wait := patience[c]
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

// outranked reports whether something that matters more was just turned away. Then the class is
// turned away too, even in a moment in which nobody waits: under load such moments come often, and
// would go to what matters least.
func (g *Gate) outranked(c Class, now time.Time) bool {
	for higher := c + 1; int(higher) < classes; higher++ {
		if now.Sub(g.turned[higher]) < behind {
			return true
		}
	}
	return false
}

// Admits reports whether a request of the class may come in or wait. One that may not is counted as
// turned away.
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

func (g *Gate) turnAway(c Class, now time.Time) {
	g.shed[c]++
	g.turned[c] = now
}

// room returns how many may be under way for another of the class to be let in: what matters less
// leaves room for what matters more.
func (g *Gate) room(c Class) int {
	if c == Command {
		return g.most
	}
	return max(g.most-g.most/4, 1)
}

func (g *Gate) abandon(w *waiter, c Class, why error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.place == nil {
		return false
	}
	g.queues[c].Remove(w.place)
	w.place = nil
	g.waiting--
	if errors.Is(why, ErrOverloaded) {
		g.turnAway(c, time.Now())
	}
	return true
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.keepPace(time.Now())
	g.admit()
}

// keepPace learns from a place that comes free. The pace is a moving average, and means nothing
// while nobody waits.
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

// admit lets in who may be: those that matter most first, and of those who waits for longest.
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

// Shed returns how many requests of a class were turned away.
func (g *Gate) Shed(c Class) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shed[c]
}
