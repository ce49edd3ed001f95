package maintenance

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Pauses follow the duty cycle, after pieces of work that are long enough.
func TestThrottle(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		dutyCycle   float64
		work, pause time.Duration
	}{
		{0.5, time.Second, time.Second},
		{0.25, 100 * time.Millisecond, 300 * time.Millisecond},
		{0.5, minWork - 1, 0},
		{1, time.Hour, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newThrottle(c.dutyCycle)
			for range 3 {
				time.Sleep(c.work) // the work; this clock is the test's own
				begun := time.Now()
				if err := p.pause(t.Context()); err != nil {
					t.Fatal(err)
				}
				if paused := time.Since(begun); paused != c.pause {
					t.Errorf("duty cycle %g: paused %v after %v of work", c.dutyCycle, paused, c.work)
				}
				if c.pause == 0 {
					p.since = time.Now() // otherwise short pieces add up
				}
			}
		})
	}
}

// A cancelled run does not pause any longer.
func TestThrottleStopsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newThrottle(0.001)
		time.Sleep(time.Hour) // of the test's own clock
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if err := p.pause(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}
