package server

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Slots shares a few places for long work fairly: the next free one goes to the caller who holds
// the fewest, and no caller holds more than half, so that one who asks for much does not keep the
// others waiting.
type Slots struct {
	most    int
	waiting int // of one caller
	wait    time.Duration

	mu      sync.Mutex
	running int
	callers map[string]*caller
	turn    uint64
	refused int
}

type caller struct {
	running int
	queue   []*turn
	last    uint64 // when it got a place last
}

type turn struct {
	ready chan struct{}
	let   bool
}

// NewSlots makes so many slots. So many of a caller's requests may wait for one, and for so long.
func NewSlots(most, waiting int, wait time.Duration) *Slots {
	return &Slots{most: max(most, 1), waiting: waiting, wait: wait, callers: map[string]*caller{}}
}

// Take waits for a slot. It gives ErrOverloaded where there are too many that wait, or ctx's error.
// Give must be called once the work is done.
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

// Full reports whether as many of a caller's requests wait as may. One more is counted as refused
// then.
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

func (s *Slots) give(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.callers[name].running--
	s.next()
	s.forget(name)
}

func (s *Slots) forget(name string) {
	if c := s.callers[name]; c.running == 0 && len(c.queue) == 0 {
		delete(s.callers, name)
	}
}

// next gives free slots away.
func (s *Slots) next() {
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

// Refused returns how many waited in vain, or might not.
func (s *Slots) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}
