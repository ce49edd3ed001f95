// Package polltest lets tests wait for conditions that they cannot be notified of. Tests that can
// block on a channel or a server's answer do that instead.
package polltest

import (
	"testing"
	"time"
)

const (
	timeout  = time.Minute // generous, for machines under load
	interval = 5 * time.Millisecond
)

// Until polls the condition, and returns once it holds. It fails the test after a minute. The text
// names the condition in that failure. Until must be called from the test's own goroutine.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timed out after %v waiting for: %s", timeout, what)
		}
	}
}
