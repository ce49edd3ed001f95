// Package adapter contains the common code of the event store's adapters. The SQL belongs to each
// adapter.
//
// InFlight counts the calls in progress, so that Close can reject new ones and wait for the rest.
// Writer is the group commit: it collects concurrent appends into one transaction, because a sync
// of the disk costs more than all else. Broadcaster wakes waiting readers after a commit.
//
// Invariants: every Call gets exactly one result, and a caller whose context ends while its batch
// is queued knows that the batch was not stored.
package adapter

import (
	"sync"

	"github.com/millrace/millrace/commands/eventstore"
)

// InFlight tracks the calls in progress. Close rejects new calls and waits for those in progress.
type InFlight struct {
	// mu orders Enter and Close: no call starts after closed is set.
	mu      sync.Mutex
	closed  bool
	calls   sync.WaitGroup
	closing chan struct{} // closed when Close begins
}

// NewInFlight returns a tracker that accepts calls.
func NewInFlight() *InFlight { return &InFlight{closing: make(chan struct{})} }

// Enter begins a call, which must end with Leave. It returns eventstore.ErrClosed after Close.
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

// Closing returns a channel that is closed when Close begins. Calls that only wait for something
// must then return.
func (g *InFlight) Closing() <-chan struct{} { return g.closing }

// Close rejects new calls and blocks until those in progress have ended. Only the first Close
// returns true.
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
