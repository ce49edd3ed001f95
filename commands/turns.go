package commands

import (
	"context"
	"errors"
	"sync"
)

// maxWaiting is how many commands may wait for their turn on one stream.
const maxWaiting = 1000

var errTooManyWaiting = errors.New("too many commands wait for it")

// turns lets the commands on one stream go one after the other within this process, so that only other processes can make
// them conflict. Commands on different streams do not wait for each other.
type turns struct {
	mu      sync.Mutex
	streams map[string]*turn
}

type turn struct {
	taken chan struct{} // holds a value while somebody has the turn
	users int           // who have it or wait for it
}

// take waits for the turn on a stream, which lasts until done is called. It fails with errTooManyWaiting or ctx's error.
func (t *turns) take(ctx context.Context, stream string) (done func(), err error) {
	t.mu.Lock()
	if t.streams == nil {
		t.streams = map[string]*turn{}
	}
	s := t.streams[stream]
	if s == nil {
		s = &turn{taken: make(chan struct{}, 1)}
		t.streams[stream] = s
	}
	full := s.users > maxWaiting
	if !full {
		s.users++
	}
	t.mu.Unlock()
	if full {
		return nil, errTooManyWaiting
	}
	select {
	case s.taken <- struct{}{}:
		return func() { <-s.taken; t.leave(stream, s) }, nil
	case <-ctx.Done():
		t.leave(stream, s)
		return nil, ctx.Err()
	}
}

func (t *turns) leave(stream string, s *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(t.streams, stream)
	}
}
