package backoff_test

import (
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/backoff"
)

func TestWaits(t *testing.T) {
	t.Parallel()
	p := backoff.Policy{First: time.Second, Longest: 10 * time.Second}
	waits := p.Start()
	for range 2 {
		for _, want := range []time.Duration{1, 2, 4, 8, 10, 10, 10} {
			want *= time.Second
			if got := waits.Next(); got < want/2 || got > want*3/2 {
				t.Errorf("the wait is %v, want about %v", got, want)
			}
		}
		waits.Reset()
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	if !(backoff.Policy{First: 1, Longest: 1}).Start().Wait(ctx) {
		t.Error("a wait whose context is alive reports its end")
	}
	cancel()
	if (backoff.Policy{First: time.Hour, Longest: time.Hour}).Start().Wait(ctx) {
		t.Error("a wait whose context has ended reports that it is alive")
	}
}
