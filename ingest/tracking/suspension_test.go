package tracking

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestSuspension runs the tail's answer to a request before, in and after a suspension.
func TestSuspension(t *testing.T) {
	t.Parallel()
	l := &tail{waiters: make(chan chan struct{})}
	start := time.Unix(1_700_000_000, 0)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// A request that has to wait fails, because its time is over.
	current := func(at time.Duration) bool {
		err := l.current(ended, start.Add(at))
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return err == nil
	}
	read := func() { // serves one barrier, as the tail does once it has read the log
		close(<-l.waiters)
	}
	if !current(0) || !current(suspendedAfter) {
		t.Error("the first requests wait")
	}
	const woken = suspendedAfter + suspendedAfter + time.Millisecond
	l.suspended.alive(start.Add(woken)) // the tail is the first that runs again
	if current(woken) || current(woken+time.Second) {
		t.Error("requests do not wait after a suspension")
	}
	go read()
	if err := l.current(t.Context(), start.Add(woken+time.Second)); err != nil {
		t.Error(err)
	}
	if !current(woken + 2*time.Second) {
		t.Error("requests wait although the log was read")
	}
	// Another suspension, while a request waits because of the one before.
	const again = woken + time.Hour
	waiting := make(chan error)
	go func() { waiting <- l.current(t.Context(), start.Add(again)) }()
	barrier := <-l.waiters
	l.suspended.alive(start.Add(again + time.Hour))
	close(barrier)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if current(again + time.Hour) {
		t.Error("requests do not wait after the second suspension")
	}
}
