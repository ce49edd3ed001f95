package lake

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
)

// A lander whose commit was refused has lost to another. If it went on at once, both would read and write everything, and
// one of them in vain. So it stands by: it looks at the table once per commit interval, which costs nearly nothing, and
// lands again when the topic has what the table lacks, and the table has not moved for some intervals.
const (
	standbyIntervals = 4
	standbyLeast     = time.Second // a commit takes a moment, whatever the interval
)

// standBy returns nil when it is time to land again.
func (l *lander) standBy(ctx context.Context, reason error) error {
	l.log.Info("another process lands in this table; standing by", "reason", reason)
	reader, err := l.reader()
	if err != nil {
		return err
	}
	defer reader.Close()
	patience := max(standbyIntervals*l.config.CommitInterval, standbyLeast)
	patience += rand.N(patience / 4) // of several that stand by, one shall be first
	look := time.NewTicker(max(l.config.CommitInterval, patience/8))
	defer look.Stop()
	last, since := "", time.Now()
	for {
		at, behind, err := l.compare(ctx, reader)
		if err != nil {
			return err
		}
		if place := fmt.Sprint(at.commit, at.next); !behind || place != last {
			last, since = place, time.Now()
		}
		if time.Since(since) > patience {
			l.log.Info("the table falls behind; landing again", "after", time.Since(since))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// compare tells where the table is, and whether the topic has more.
func (l *lander) compare(ctx context.Context, reader *fetch.Reader) (at progress, behind bool, err error) {
	have, err := l.lake.load(ctx, l.table.Name)
	if err != nil {
		return progress{}, false, err
	}
	if at, err = readProgress(l.table.Aggregate.Topic, have.Properties()); err != nil {
		return progress{}, false, &PositionError{l.table.Name, l.table.Aggregate.Topic, err}
	}
	topic, err := reader.Describe(ctx)
	if err != nil {
		return progress{}, false, err
	}
	for partition, log := range topic.Partitions {
		if log.End > max(at.next[partition], log.Start) {
			return at, true, nil
		}
	}
	return at, false, nil
}
