package maintenance

import (
	"context"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
)

// pace throttles a compaction by resting between pieces of work, so that other processes get the
// machine. It measures wall-clock time: on a busy machine, both work and rests take longer.
type pace struct {
	share float64 // fraction of time spent working
	since time.Time
}

// pieceOfWork is the minimum length of a piece of work.
const pieceOfWork = 20 * time.Millisecond

func newPace(share float64) *pace { return &pace{share, time.Now()} }

// after wraps take with a rest whenever one is due.
func (p *pace) after(ctx context.Context, take func(arrow.RecordBatch) error) func(arrow.RecordBatch) error {
	return func(rec arrow.RecordBatch) error {
		if err := take(rec); err != nil {
			return err
		}
		return p.rest(ctx)
	}
}

// rest sleeps for as long as the last piece of work requires.
func (p *pace) rest(ctx context.Context) error {
	worked := time.Since(p.since)
	if p.share == 1 || worked < pieceOfWork {
		return ctx.Err()
	}
	// work / (work + rest) = share
	t := time.NewTimer(time.Duration(float64(worked) * (1/p.share - 1)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		p.since = time.Now()
		return nil
	}
}
