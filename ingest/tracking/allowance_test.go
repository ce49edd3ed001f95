package tracking

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestAllowance checks that a source never sends more than its burst and its rate in the time that has
// passed, and that a source that waits is let through.
func TestAllowance(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.IntRange(1, 2000).Draw(t, "rate")
		a := newAllowance(rate)
		most := max(burst*rate, maxEvents)
		begin := time.Unix(1_700_000_000, 0)
		if !a.take(1, begin) {
			t.Fatal("the first event is refused")
		}
		now, sent := begin, 1
		for range rapid.IntRange(1, 60).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.IntRange(-1000, 20_000).Draw(t, "wait")) * time.Millisecond)
			n := rapid.IntRange(1, maxEvents).Draw(t, "events")
			if a.take(n, now) {
				sent += n
			}
			latest := a.at.Sub(begin) // of all times: the clock may go back
			if limit := float64(most) + latest.Seconds()*float64(rate); float64(sent) > limit+1e-3 {
				t.Fatalf("%d events in %v, want at most %v", sent, latest, limit)
			}
		}
		later := now.Add(time.Minute + time.Duration(most/rate+1)*time.Second)
		if !a.take(maxEvents, later) {
			t.Fatalf("a batch is refused %v after the last one", later.Sub(now))
		}
	})
	if !newAllowance(0).take(1_000_000, time.Time{}) {
		t.Error("a source without a rate is refused")
	}
}
