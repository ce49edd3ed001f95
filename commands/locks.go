package commands

import (
	"context"
	"errors"
	"sync"
)

// maxWaiting is the maximum number of commands that wait for one stream.
const maxWaiting = 1000

// errTooManyWaiting is the error of lock if maxWaiting commands wait already. The caller gets
// Aborted.
var errTooManyWaiting = errors.New("too many commands are waiting")

// streamLocks serialises the commands on each stream within this process, so that only other
// processes cause conflicts. Commands on different streams do not wait for each other. An entry
// exists only while it is in use.
type streamLocks struct {
	mu      sync.Mutex
	streams map[string]*streamLock
}

// streamLock is the lock of one stream. It is a channel, not a mutex, so that waiting ends with
// ctx.
type streamLock struct {
	held  chan struct{} // contains a value while the lock is held
	users int           // holders and waiters
}

// lock blocks until the lock of a stream is free. The caller holds it until it calls done. It
// returns errTooManyWaiting, or the error of ctx.
func (l *streamLocks) lock(ctx context.Context, stream string) (done func(), err error) {
	l.mu.Lock()
	if l.streams == nil {
		l.streams = map[string]*streamLock{}
	}
	s := l.streams[stream]
	if s == nil {
		s = &streamLock{held: make(chan struct{}, 1)}
		l.streams[stream] = s
	}
	// users counts the holder too, so maxWaiting of them wait.
	full := s.users > maxWaiting
	if !full {
		s.users++
	}
	l.mu.Unlock()
	if full {
		return nil, errTooManyWaiting
	}
	select {
	case s.held <- struct{}{}:
		return func() { <-s.held; l.release(stream, s) }, nil
	case <-ctx.Done():
		l.release(stream, s)
		return nil, ctx.Err()
	}
}

// release forgets a user of a lock, and the lock after its last user.
func (l *streamLocks) release(stream string, s *streamLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(l.streams, stream)
	}
}
