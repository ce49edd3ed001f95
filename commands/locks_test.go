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
	var locks streamLocks
	inside, most := 0, 0 // guarded by the stream lock itself; the race detector checks that
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			done, err := locks.lock(context.Background(), "a")
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
		t.Errorf("%d held the lock at the same time", most)
	}
	if len(locks.streams) != 0 {
		t.Errorf("%d locks remain after the last release", len(locks.streams))
	}
}

func TestWaitingForALockEnds(t *testing.T) {
	t.Parallel()
	var locks streamLocks
	done, err := locks.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled waiter: %v, want context.Canceled", err)
	}
	other, err := locks.lock(t.Context(), "b")
	if err != nil {
		t.Errorf("another stream: %v", err)
	}
	other()

	var wg sync.WaitGroup
	ctx, cancel = context.WithCancel(t.Context())
	for range maxWaiting {
		wg.Go(func() {
			if done, err := locks.lock(ctx, "a"); err == nil {
				done()
			}
		})
	}
	full := func() bool {
		locks.mu.Lock()
		defer locks.mu.Unlock()
		return locks.streams["a"].users == maxWaiting+1
	}
	for !full() {
		runtime.Gosched()
	}
	if _, err := locks.lock(t.Context(), "a"); !errors.Is(err, errTooManyWaiting) {
		t.Errorf("one waiter too many: %v, want errTooManyWaiting", err)
	}
	cancel()
	wg.Wait()
	done()
	if len(locks.streams) != 0 {
		t.Errorf("%d locks remain after the last release", len(locks.streams))
	}
}
