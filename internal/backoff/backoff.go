// Package backoff defines the retry policies of this repository.
//
// A [Policy] is the first and the longest wait between two attempts. [Policy.Start] returns the
// [Waits] of one retry loop. [Waits.Wait] sleeps before the next attempt, and [Waits.Reset] starts
// over after a success. The waits are computed by cenkalti/backoff.
//
// Each wait is twice the previous one, up to [Policy.Longest]. It is then randomized between half
// and one and a half times as much, so that callers that failed together do not retry together.
// There is no limit on the number of attempts: the caller's context ends the loop.
package backoff

import (
	"context"
	"time"

	exponential "github.com/cenkalti/backoff/v5"
)

// Policy defines how long to wait before another attempt.
type Policy struct {
	First, Longest time.Duration // before randomization
}

// The policies. A shorter wait recovers sooner, and a longer one spares what is overloaded.
var (
	// Server is for a server that failed or cannot be reached.
	Server = Policy{50 * time.Millisecond, 5 * time.Second}
	// Call is for a request whose caller is blocked meanwhile.
	Call = Policy{20 * time.Millisecond, 2 * time.Second}
	// Append is for an append to an event store that conflicted with a concurrent one.
	Append = Policy{time.Millisecond, 50 * time.Millisecond}
	// Commit is for a commit to a table that conflicted with a concurrent one. It is short, because
	// landers commit every second and the next attempt has to fit in between.
	Commit = Policy{20 * time.Millisecond, 400 * time.Millisecond}
	// Child is for restarting a child process that has exited.
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

// Reset starts over with the first wait.
func (w *Waits) Reset() { w.next.Reset() }

// Wait sleeps for the next wait. It reports whether to try again, and returns false as soon as ctx
// ends.
func (w *Waits) Wait(ctx context.Context) bool { return Sleep(ctx, w.Next()) }

// Sleep sleeps for d. It returns false as soon as ctx ends, and true otherwise.
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
