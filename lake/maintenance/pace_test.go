package maintenance

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Rests follow the configured share, after pieces of work that are long enough.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		share      float64
		work, rest time.Duration
	}{
		{0.5, time.Second, time.Second},
		{0.25, 100 * time.Millisecond, 300 * time.Millisecond},
		{0.5, pieceOfWork - 1, 0},
		{1, time.Hour, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPace(c.share)
			for range 3 {
				time.Sleep(c.work) // the work; this clock is the test's own
				begun := time.Now()
				if err := p.rest(t.Context()); err != nil {
					t.Fatal(err)
				}
				if rested := time.Since(begun); rested != c.rest {
					t.Errorf("at a share of %g it rests %v after %v of work", c.share, rested, c.work)
				}
				if c.rest == 0 {
					p.since = time.Now() // else pieces add up
				}
			}
		})
	}
}

// A cancelled run does not rest.
func TestPaceEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPace(0.001)
		time.Sleep(time.Hour) // of the test's own clock
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if err := p.rest(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}
