package streams_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// counts is a streams.Meter.
type counts struct {
	mu          sync.Mutex
	fresh, old  int            // applied events whose age was measured, and the others
	failed      map[string]int // by class
	deadLetters map[string]int // by reason
	rebalances  int
}

func newCounts() *counts { return &counts{failed: map[string]int{}, deadLetters: map[string]int{}} }

func (c *counts) Applied(_ string, recorded time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if recorded.IsZero() {
		c.old++
	} else {
		c.fresh++
	}
}

func (c *counts) Failed(class string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[class]++
}

func (c *counts) DeadLetters(reason string, records int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadLetters[reason] += records
}

func (c *counts) Rebalanced() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rebalances++
}

// What a sink does is counted by its cause. On a slow machine, a rebalance may deliver events again, so
// the numbers are lower bounds.
func TestMeter(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		sink.unreadable = poisoned
		var once sync.Once
		sink.setBefore(func(_ context.Context, records []streams.Record) error {
			for _, r := range records {
				if r.Event.Stream == "panics" {
					panic("at this event")
				}
			}
			failed := error(nil)
			once.Do(func() { failed = errors.New("unavailable") })
			return failed
		})
		l.writeSealed(t, l.next("s-100"), l.next("s-100"), l.next("panics"))
		l.WriteRecords(t, kafka.Record{Topic: l.Topic, Partition: 0, Key: []byte("k"), Value: []byte("not an event")})
		cfg := parkingConfig(t, l, sink)
		c := newCounts()
		r := streams.New(cfg)
		r.Measure(c)
		running := &running{r, cfg.Watermarks, streamstest.Start(t, r)}
		running.catchUp(t)
		l.writeSealed(t, l.next("s-100")) // it waits
		l.writeSealed(t, l.events("t", 10, 20)...)
		running.catchUp(t)
		for _, p := range r.Progress() {
			if p.Topic != l.Topic || len(p.Ends) == 0 || !maps.Equal(p.Next, p.Ends) {
				t.Errorf("progress %+v after catching up", p)
			}
		}
		if n := r.Queued(); n != 0 {
			t.Errorf("%d records are queued", n)
		}
		running.stop()
		want := []string{streams.ReasonBehind, streams.ReasonNotAnEvent, streams.ReasonPanic, streams.ReasonRefused}
		if got := slices.Sorted(maps.Keys(c.deadLetters)); !slices.Equal(got, want) {
			t.Errorf("dead letters %v, want the reasons %v", c.deadLetters, want)
		}
		if c.failed[streams.ErrorSink] == 0 || c.rebalances == 0 {
			t.Errorf("failed attempts %v, rebalances %d, want some of each", c.failed, c.rebalances)
		}
		if c.fresh < 20 || c.old == 0 {
			t.Errorf("%d events with an age and %d without, want 20 that arrived and some that were there", c.fresh, c.old)
		}
	})
}
