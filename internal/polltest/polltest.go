// Package polltest lets tests wait for conditions that they cannot be notified of. Tests that can
// block on a channel or a server's answer do that instead.
package polltest

import (
	"testing"
	"time"
)

const (
	timeout = 3 * time.Minute // only a hang exceeds it, even on a machine under load

	// The condition is polled less and less often: many cost a round trip to each of several servers,
	// and a long wait should not take the processors from what it waits for.
	firstInterval = 5 * time.Millisecond
	lastInterval  = 100 * time.Millisecond
)

// Until polls the condition, and returns once it holds. It fails the test after three minutes. The
// text names the condition in that failure. Until must be called from the test's own goroutine.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	for interval := firstInterval; !holds(); interval = min(interval*5/4, lastInterval) {
		select {
		case <-time.After(interval):
		case <-deadline:
			t.Fatalf("timed out after %v waiting for: %s", timeout, what)
		}
	}
}
