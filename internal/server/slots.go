package server

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Slots shares a few slots for long work fairly. The next free slot goes to the caller that holds
// the fewest. No caller holds more than half of them, so a caller with many requests does not block
// the others.
type Slots struct {
	limit   int           // number of slots
	waiting int           // maximum number of queued requests per caller
	wait    time.Duration // how long a request may queue

	// mu protects the fields below.
	mu      sync.Mutex
	running int
	callers map[string]*caller
	grants  uint64 // number of slots that were given so far; it orders the callers
	refused int
}

// caller is a caller that holds or waits for a slot.
type caller struct {
	running   int
	queue     []*request
	lastGrant uint64 // value of grants when it last got a slot
}

// request is a queued request.
type request struct {
	ready   chan struct{}
	granted bool // guarded by Slots.mu; decides a race between a grant and giving up
}

// NewSlots returns limit slots. waiting requests of each caller may queue, for at most wait.
func NewSlots(limit, waiting int, wait time.Duration) *Slots {
	return &Slots{limit: max(limit, 1), waiting: waiting, wait: wait, callers: map[string]*caller{}}
}

// Acquire blocks until a slot is free for the caller. It returns ErrOverloaded if too many of its
// requests queue or if the wait was too long, or ctx's error. The caller must call release when the
// work is done.
func (s *Slots) Acquire(ctx context.Context, name string) (release func(), err error) {
	t, err := s.queue(name)
	if err != nil {
		return nil, err
	}
	late := time.NewTimer(s.wait)
	defer late.Stop()
	select {
	case <-t.ready:
	case <-late.C:
		err = ErrOverloaded
	case <-ctx.Done():
		err = ctx.Err()
	}
	// If the slot was granted at the same moment, use it, rather than lose it.
	if err != nil && s.abandon(name, t) {
		return nil, err
	}
	return sync.OnceFunc(func() { s.release(name) }), nil
}

// queue adds a request to its caller's queue.
func (s *Slots) queue(name string) (*request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.callers[name]
	if c == nil {
		c = &caller{}
		s.callers[name] = c
	}
	if len(c.queue) >= s.waiting {
		s.refused++
		return nil, ErrOverloaded
	}
	t := &request{ready: make(chan struct{})}
	c.queue = append(c.queue, t)
	s.next()
	return t, nil
}

// Full reports whether the caller's queue is full. If so, it counts a refused request.
func (s *Slots) Full(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.callers[name]
	full := c != nil && len(c.queue) >= s.waiting
	if full {
		s.refused++
	}
	return full
}

// abandon removes a request from the queue. It returns false if the request got a slot meanwhile.
func (s *Slots) abandon(name string, t *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.granted {
		return false
	}
	s.refused++
	c := s.callers[name]
	c.queue = slices.DeleteFunc(c.queue, func(other *request) bool { return other == t })
	s.forget(name)
	return true
}

// release frees a slot.
func (s *Slots) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.callers[name].running--
	s.next()
	s.forget(name)
}

// forget removes a caller without requests.
func (s *Slots) forget(name string) {
	// The map must not grow with the number of callers ever seen.
	if c := s.callers[name]; c.running == 0 && len(c.queue) == 0 {
		delete(s.callers, name)
	}
}

// next assigns free slots to queued requests.
func (s *Slots) next() {
	// No caller gets more than half, rounded up.
	share := (s.limit + 1) / 2
	for s.running < s.limit {
		var best *caller
		for _, c := range s.callers {
			if len(c.queue) == 0 || c.running >= share {
				continue
			}
			// Fewest slots first. Among equals, the one that waited longest since its last slot.
			if best == nil || c.running < best.running || c.running == best.running && c.lastGrant < best.lastGrant {
				best = c
			}
		}
		if best == nil {
			return
		}
		t := best.queue[0]
		best.queue = best.queue[1:]
		t.granted = true
		s.grants++
		best.lastGrant = s.grants
		best.running++
		s.running++
		close(t.ready)
	}
}

// Refused returns how many requests were refused, before or after they queued.
func (s *Slots) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}
