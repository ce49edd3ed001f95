// Package polltest lets tests wait for conditions that announce themselves in no other way.
package polltest

import (
	"testing"
	"time"
)

const (
	patience = time.Minute
	step     = 5 * time.Millisecond
)

// Until returns once the condition holds, and fails the test where it does not within a minute.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(step)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}
