package maintenance

import (
	"context"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
)

// throttle limits a compaction to a duty cycle by pausing between pieces of work, so that other
// processes get the machine. It measures wall-clock time: on a busy machine, both work and pauses
// take longer.
type throttle struct {
	dutyCycle float64   // fraction of time spent working
	since     time.Time // start of the current piece of work
}

// minWork is how long a piece of work lasts at least. Shorter pieces add up, because timers are too
// coarse for pauses between single batches.
const minWork = 20 * time.Millisecond

// newThrottle returns a throttle whose first piece of work starts now.
func newThrottle(dutyCycle float64) *throttle { return &throttle{dutyCycle, time.Now()} }

// wrap returns a function that calls take and then pauses if a pause is due.
func (t *throttle) wrap(ctx context.Context, take func(arrow.RecordBatch) error) func(arrow.RecordBatch) error {
	return func(rec arrow.RecordBatch) error {
		if err := take(rec); err != nil {
			return err
		}
		return t.pause(ctx)
	}
}

// pause sleeps for as long as the duty cycle requires after the last piece of work.
func (t *throttle) pause(ctx context.Context) error {
	worked := time.Since(t.since)
	if t.dutyCycle == 1 || worked < minWork {
		return ctx.Err()
	}
	// work / (work + pause) = dutyCycle
	timer := time.NewTimer(time.Duration(float64(worked) * (1/t.dutyCycle - 1)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		t.since = time.Now()
		return nil
	}
}
