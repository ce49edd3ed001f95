package backoff_test

import (
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/backoff"
)

// Waits double up to the longest one, within the bounds of their randomization, and Reset starts
// over.
func TestWaits(t *testing.T) {
	t.Parallel()
	p := backoff.Policy{First: time.Second, Longest: 10 * time.Second}
	waits := p.Start()
	for range 2 {
		for _, want := range []time.Duration{1, 2, 4, 8, 10, 10, 10} {
			want *= time.Second
			if got := waits.Next(); got < want/2 || got > want*3/2 {
				t.Errorf("wait of %v, want about %v", got, want)
			}
		}
		waits.Reset()
	}
}

// Wait returns false at once when its context ends, and true after the time otherwise.
func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	if !(backoff.Policy{First: 1, Longest: 1}).Start().Wait(ctx) {
		t.Error("Wait returned false, but its context has not ended")
	}
	cancel()
	if (backoff.Policy{First: time.Hour, Longest: time.Hour}).Start().Wait(ctx) {
		t.Error("Wait returned true, but its context has ended")
	}
}
