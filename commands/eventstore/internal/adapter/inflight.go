// Package adapter is what the event store's adapters do alike: the gate that every call passes, the
// queue in which appends gather into one transaction, and the bell that a commit rings. The SQL is
// each adapter's own.
package adapter

import (
	"sync"

	"github.com/millrace/millrace/commands/eventstore"
)

// Gate lets calls in until it is closed, and tells when the last of them has left.
type InFlight struct {
	mu      sync.Mutex
	closed  bool
	calls   sync.WaitGroup
	closing chan struct{}
}

// NewGate makes an open gate.
func NewInFlight() *InFlight { return &InFlight{closing: make(chan struct{})} }

// Enter lets a call in, or fails with eventstore.ErrClosed. Who entered must Leave.
func (g *InFlight) Enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return eventstore.ErrClosed
	}
	g.calls.Add(1)
	return nil
}

// Leave ends a call.
func (g *InFlight) Leave() { g.calls.Done() }

// Closing is closed when Close begins: calls that only wait end then.
func (g *InFlight) Closing() <-chan struct{} { return g.closing }

// Close lets no more calls in and returns once all have left. Only the first Close gets true.
func (g *InFlight) Close() bool {
	g.mu.Lock()
	first := !g.closed
	if first {
		g.closed = true
		close(g.closing)
	}
	g.mu.Unlock()
	g.calls.Wait()
	return first
}
