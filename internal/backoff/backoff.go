// Package backoff holds the policies by which this repository tries again: how long the first wait
// is, and how long the longest.
//
// Each wait doubles the one before, up to [Policy.Longest], and is then made random, between half of
// it and one and a half times as much, so that callers that failed together do not return together.
// The waits are those of cenkalti/backoff.
//
// A [Waits] belongs to one loop. It starts again with [Waits.Reset] after a success.
package backoff

import (
	"context"
	"time"

	exponential "github.com/cenkalti/backoff/v5"
)

// Policy says how long to wait before another attempt.
type Policy struct {
	First, Longest time.Duration // before they are made random
}

// The policies.
var (
	// Server is for a server that failed or cannot be reached.
	Server = Policy{50 * time.Millisecond, 5 * time.Second}
	// Call is for a caller that waits for an answer.
	Call = Policy{20 * time.Millisecond, 2 * time.Second}
	// Append is for an append to an event store that met another one.
	Append = Policy{time.Millisecond, 50 * time.Millisecond}
	// Commit is for a commit to a table that met another one. It stays short: landers commit every
	// second, and the next attempt has to fit in between.
	Commit = Policy{20 * time.Millisecond, 400 * time.Millisecond}
	// Child is for a child process that ended.
	Child = Policy{100 * time.Millisecond, 10 * time.Second}
)

// Waits are the waits of one loop. They are not safe for concurrent use.
type Waits struct {
	next exponential.ExponentialBackOff
}

// Start returns waits that begin with the first.
func (p Policy) Start() *Waits {
	return &Waits{exponential.ExponentialBackOff{
		InitialInterval: p.First, MaxInterval: p.Longest, Multiplier: 2,
		RandomizationFactor: exponential.DefaultRandomizationFactor,
	}}
}

// Next returns the next wait.
func (w *Waits) Next() time.Duration { return w.next.NextBackOff() }

// Reset begins again with the first wait.
func (w *Waits) Reset() { w.next.Reset() }

// Wait waits for the next wait. It reports whether to try again: false if ctx has ended.
func (w *Waits) Wait(ctx context.Context) bool { return Sleep(ctx, w.Next()) }

// Sleep waits for d. It reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
