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
	most    int           // number of slots
	waiting int           // maximum number of queued requests per caller
	wait    time.Duration // how long a request may queue

	// mu protects the fields below.
	mu      sync.Mutex
	running int
	callers map[string]*caller
	turn    uint64 // number of slots that were given so far; it orders the callers
	refused int
}

// caller is a caller that holds or waits for a slot.
type caller struct {
	running int
	queue   []*turn
	last    uint64 // turn at which it last got a slot
}

// turn is a queued request.
type turn struct {
	ready chan struct{}
	let   bool
}

// NewSlots returns most slots. waiting requests of each caller may queue, for at most wait.
func NewSlots(most, waiting int, wait time.Duration) *Slots {
	return &Slots{most: max(most, 1), waiting: waiting, wait: wait, callers: map[string]*caller{}}
}

// Take blocks until a slot is free for the caller. It returns ErrOverloaded if too many of its
// requests queue or if the wait was too long, or ctx's error. The caller must call give when the
// work is done.
func (s *Slots) Take(ctx context.Context, name string) (give func(), err error) {
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
	if err != nil && s.abandon(name, t) {
		return nil, err
	}
	return sync.OnceFunc(func() { s.give(name) }), nil
}

// queue adds a request to its caller's queue.
func (s *Slots) queue(name string) (*turn, error) {
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
	t := &turn{ready: make(chan struct{})}
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
func (s *Slots) abandon(name string, t *turn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.let {
		return false
	}
	s.refused++
	c := s.callers[name]
	c.queue = slices.DeleteFunc(c.queue, func(other *turn) bool { return other == t })
	s.forget(name)
	return true
}

// give frees a slot.
func (s *Slots) give(name string) {
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

// next assigns free slots.
func (s *Slots) next() {
	// No caller gets more than half, rounded up.
	share := (s.most + 1) / 2
	for s.running < s.most {
		var best *caller
		for _, c := range s.callers {
			if len(c.queue) == 0 || c.running >= share {
				continue
			}
			if best == nil || c.running < best.running || c.running == best.running && c.last < best.last {
				best = c
			}
		}
		if best == nil {
			return
		}
		t := best.queue[0]
		best.queue = best.queue[1:]
		t.let = true
		s.turn++
		best.last = s.turn
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
