package streams

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPacer checks on a clock of its own that no interval has more records than its rate and the
// burst permit, and that a reader that is never idle gets the whole rate.
func TestPacer(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var p pacer
		rate := rapid.IntRange(1, 5000).Draw(t, "rate")
		p.perSecond.Store(int64(rate))
		begin := time.Unix(1000, 0)
		now, read := begin, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			if wait := p.wait(now); wait > 0 {
				now = now.Add(wait)
			}
			p.passed(now)
			read++
			if rapid.IntRange(0, 20).Draw(t, "idle") == 0 {
				now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "for")) * time.Millisecond)
			}
			// The first record needs no wait, and a wait of less than a nanosecond is rounded.
			most := float64(rate)*(now.Sub(begin)+burst).Seconds() + 2
			if float64(read) > most {
				t.Fatalf("%d records in %v at %d per second", read, now.Sub(begin), rate)
			}
		}
	})
	var p pacer
	p.perSecond.Store(10)
	now := time.Unix(1000, 0)
	for range 100 {
		now = now.Add(p.wait(now))
		p.passed(now)
	}
	if took := now.Sub(time.Unix(1000, 0)); took > 10*time.Second {
		t.Errorf("100 records at 10 per second took %v", took)
	}
	p.perSecond.Store(0)
	if wait := p.wait(now); wait != 0 {
		t.Errorf("without a limit, the wait is %v", wait)
	}
}
