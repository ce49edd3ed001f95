package commands

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
)

func TestStreamLocksAreExclusive(t *testing.T) {
	t.Parallel()
	var turns streamLocks
	inside, most := 0, 0 // guarded by the stream lock itself; the race detector checks that
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			done, err := turns.lock(context.Background(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			defer done()
			inside++
			most = max(most, inside)
			inside--
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("%d had the turn at once", most)
	}
	if len(turns.streams) != 0 {
		t.Errorf("%d streams are remembered after all", len(turns.streams))
	}
}

func TestWaitingForALockEnds(t *testing.T) {
	t.Parallel()
	var turns streamLocks
	done, err := turns.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up waiting got %v", err)
	}
	other, err := turns.lock(t.Context(), "b")
	if err != nil {
		t.Errorf("another stream: %v", err)
	}
	other()

	var wg sync.WaitGroup
	ctx, cancel = context.WithCancel(t.Context())
	for range maxWaiting {
		wg.Go(func() {
			if done, err := turns.lock(ctx, "a"); err == nil {
				done()
			}
		})
	}
	full := func() bool {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		return turns.streams["a"].users == maxWaiting+1
	}
	for !full() {
		runtime.Gosched()
	}
	if _, err := turns.lock(t.Context(), "a"); !errors.Is(err, errTooManyWaiting) {
		t.Errorf("the one too many got %v", err)
	}
	cancel()
	wg.Wait()
	done()
	if len(turns.streams) != 0 {
		t.Errorf("%d streams are remembered after all", len(turns.streams))
	}
}
