// Package adapter contains the common code of the event store's adapters. The SQL belongs to each
// adapter.
//
// InFlight counts the calls in progress, so that Close can reject new ones and wait for the rest.
// Writer is the group commit: it collects concurrent appends into one transaction, because syncing
// the disk is the most expensive step of an append. Broadcaster wakes waiting readers after a
// commit.
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
func (f *InFlight) Enter() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return eventstore.ErrClosed
	}
	f.calls.Add(1)
	return nil
}

// Leave ends a call.
func (f *InFlight) Leave() { f.calls.Done() }

// Closing returns a channel that is closed when Close begins. Calls that only wait for something
// must then return.
func (f *InFlight) Closing() <-chan struct{} { return f.closing }

// Close rejects new calls and blocks until those in progress have ended. Only the first Close
// returns true.
func (f *InFlight) Close() bool {
	f.mu.Lock()
	first := !f.closed
	if first {
		f.closed = true
		close(f.closing)
	}
	f.mu.Unlock()
	f.calls.Wait()
	return first
}
