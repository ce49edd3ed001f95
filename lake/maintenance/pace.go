package maintenance

import (
	"context"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
)

// pace has a compaction rest between pieces of work, so that what else the machine does gets its
// turn in time. Time is the clock's: on a busy machine work takes longer, and so do the rests.
type pace struct {
	share float64 // of the time, for work
	since time.Time
}

// Work is done in pieces of this length or longer.
const pieceOfWork = 20 * time.Millisecond

func newPace(share float64) *pace { return &pace{share, time.Now()} }

// after is take, and a rest where one is due.
func (p *pace) after(ctx context.Context, take func(arrow.RecordBatch) error) func(arrow.RecordBatch) error {
	return func(rec arrow.RecordBatch) error {
		if err := take(rec); err != nil {
			return err
		}
		return p.rest(ctx)
	}
}

// rest returns after as much time as is due.
func (p *pace) rest(ctx context.Context) error {
	worked := time.Since(p.since)
	if p.share == 1 || worked < pieceOfWork {
		return ctx.Err()
	}
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
