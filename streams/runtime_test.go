package streams_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// Every event is delivered exactly once while nothing fails, and in order per key, which the sink
// checks. Watermarks, lag and saved positions agree afterwards.
func TestAppliesInOrderPerKey(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 97, 3000)...)
		r := start(t, config(l, sink))
		r.catchUp(t)
		sink.mustHave(t, l.Versions)

		l.Write(t, l.events("s", 97, 500)...) // while it runs
		last := l.next("s-1")
		l.Write(t, last)
		if err := r.watermarks.Wait(t.Context(), l.Topic, last.Stream, last.Position); err != nil {
			t.Fatal(err)
		}
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
		if applied, deliveries := sink.counts(); applied != 3501 || deliveries != 3501 {
			t.Errorf("%d records applied in %d deliveries, want 3501 in as many", applied, deliveries)
		}
		// The markers of transactions are behind the last record of every partition, but do not
		// count as lag.
		if lag, known := r.watermarks.Lag(l.Topic); lag != 0 || !known {
			t.Errorf("lag is %d (known: %v) after catching up", lag, known)
		}
		if got := r.watermarks.AsOf(l.Topic); !got.Equal(last.RecordedAt) {
			t.Errorf("as of %v, want %v", got, last.RecordedAt)
		}
		r.stop()
		saved, _ := sink.Positions(t.Context(), l.Topic)
		var next int64
		for id, a := range saved {
			next += a.Next
			if live, _ := r.watermarks.Applied(l.Topic, id); live != a {
				t.Errorf("partition %d: %v saved at the stop, %v applied", id, a, live)
			}
		}
		if next <= 3501 {
			t.Errorf("positions add up to %d: the markers were not passed", next)
		}
	})
}

// A runtime that is stopped and started several times resumes at the sink's position, and does not
// start again at the beginning.
func TestResumesAtSinkPosition(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		events := l.events("s", 50, 4000)
		l.Write(t, events[:2000]...)
		var writing sync.WaitGroup
		writing.Go(func() { l.Write(t, events[2000:]...) })
		for range 4 { // stopped in between
			before, _ := sink.counts()
			r := start(t, config(l, sink))
			streamstest.Eventually(t, "more is applied", func() bool {
				applied, _ := sink.counts()
				return applied > before+200 || applied == len(events)
			})
			r.stop()
			sink.mu.Lock()
			if sink.entered != 0 {
				t.Error("a call of the sink was in progress when Run returned")
			}
			sink.mu.Unlock()
		}
		writing.Wait()
		r := start(t, config(l, sink))
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
		if _, deliveries := sink.counts(); deliveries >= 2*len(events) {
			t.Errorf("%d deliveries of %d records: it did not resume at its position", deliveries, len(events))
		}
		r.stop()
		sink.close()
	})
}

// At a first start, positions may be looked for just before the first ones are saved. That is no loss.
func TestFirstPositionsAreNoLoss(t *testing.T) {
	t.Parallel()
	l, sink, logged := newLog(t, shared), newMemory(), &messages{}
	l.Write(t, l.events("s", 10, 50)...)
	cfg := config(l, sink)
	cfg.Logger = slog.New(logged)
	runtime := streams.New(cfg)
	var reads atomic.Int64
	sink.read = func(ctx context.Context) {
		// The first to read looks for lag, long before the group has assigned partitions.
		if reads.Add(1) == 1 {
			for runtime.Owned() == 0 && ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
		}
	}
	streamstest.Start(t, runtime)
	streamstest.CatchUp(t, runtime)
	streamstest.Eventually(t, "positions are compared several times", func() bool { return reads.Load() > 4 })
	for _, message := range []string{"lag failed", "lost data"} {
		if logged.has(message) {
			t.Errorf("the first start reports %q", logged.logged)
		}
	}
	sink.mustHave(t, l.Versions)
}

// Members share the partitions, and hand them over when one joins or leaves.
func TestRebalance(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		events := l.events("s", 200, 12000)
		l.Write(t, events[:1000]...)

		// Two members must never have a stream inside the sink at the same time. Draining before a
		// revocation ensures that.
		var inside sync.Map
		guard := func(_ context.Context, records []streams.Record) error {
			mine := map[string]bool{}
			for _, r := range records {
				mine[r.Event.Stream] = true
			}
			for stream := range mine {
				if _, taken := inside.LoadOrStore(stream, true); taken {
					t.Errorf("stream %s is inside the sink twice", stream)
				}
			}
			for stream := range mine {
				inside.Delete(stream)
			}
			return nil
		}
		sink.setBefore(guard)

		owned := func(members ...*running) (counts []int) {
			for _, m := range members {
				counts = append(counts, m.Owned())
			}
			return counts
		}
		a := start(t, config(l, sink))
		a.catchUp(t)
		var writing sync.WaitGroup
		writing.Go(func() { l.Write(t, events[1000:]...) })
		b := start(t, config(l, sink))
		streamstest.Eventually(t, "both members have partitions", func() bool {
			n := owned(a, b)
			return n[0] > 0 && n[1] > 0 && n[0]+n[1] == partitions
		})
		a.stop()
		streamstest.Eventually(t, "the remaining member has all partitions", func() bool {
			return owned(b)[0] == partitions
		})
		c := start(t, config(l, sink))
		streamstest.Eventually(t, "a third joins", func() bool { n := owned(b, c); return n[0] > 0 && n[1] > 0 })
		writing.Wait()
		b.catchUp(t) // it sees the other member's positions
		c.catchUp(t)
		sink.mustHave(t, l.Versions)
		if applied, deliveries := sink.counts(); applied != len(events) || deliveries > len(events)+len(events)/2 {
			t.Errorf("%d of %d events applied in %d deliveries", applied, len(events), deliveries)
		}
	})
}

// A batch that the sink did not take is delivered again.
func TestFailedApplyIsRetried(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 20, 500)...)
		var calls atomic.Int64
		sink.setBefore(func(context.Context, []streams.Record) error {
			if calls.Add(1)%2 == 1 {
				return errors.New("out of order")
			}
			return nil
		})
		r := start(t, config(l, sink))
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
	})
}

// While the sink hangs, at most one batch per worker is inside it, fetching is paused, and the
// member remains in its group.
func TestHungSinkIsBoundedByQueue(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 400, 5000)...)
		var held atomic.Int64
		release := make(chan struct{})
		sink.setBefore(func(ctx context.Context, records []streams.Record) error {
			held.Add(int64(len(records)))
			defer held.Add(-int64(len(records)))
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		cfg := config(l, sink)
		cfg.Workers, cfg.Batch, cfg.Queue = 4, 10, 40
		logged := &messages{}
		cfg.Logger = slog.New(logged)
		r := start(t, cfg)
		streamstest.Eventually(t, "all workers are inside the sink", func() bool { return held.Load() > 0 })
		streamstest.Eventually(t, "fetching is paused", func() bool { return logged.has("paused") })
		// Records are in the lanes, in the workers, and one is held back. All of them count as lag.
		if lag, known := r.watermarks.Lag(l.Topic); known && lag < 5000 {
			t.Errorf("lag %d while nothing is applied", lag)
		}
		if n := held.Load(); n > int64(cfg.Workers*cfg.Batch) {
			t.Errorf("%d records inside the sink, want at most %d", n, cfg.Workers*cfg.Batch)
		}
		// A member that joins while the sink hangs gets its partitions all the same.
		other := config(l, sink)
		r2 := start(t, other)
		close(release)
		streamstest.Eventually(t, "the second member has partitions", func() bool { return r2.Owned() > 0 })
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
	})
}

// A record that is not an event, and an event that the sink cannot read, become dead letters. All
// others are applied. A second delivery writes the same dead letters under the same keys.
func TestUnreadableRecordsBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		sink.unreadable = func(r streams.Record) error {
			if string(r.Event.Data) == "garbage" {
				return errors.New("no such message")
			}
			return nil
		}
		good, bad := l.next("s-0"), l.next("s-0")
		bad.Data = []byte("garbage")
		l.Write(t, good, bad)
		l.Versions["s-0"]-- // no event has this version yet; the store's one comes later
		external := kafka.Record{
			Topic: l.Topic, Partition: kafka.AnyPartition, Key: []byte("s-0"), Value: []byte("not ours"),
			Headers: []event.Header{{Key: "from", Value: []byte("elsewhere")}},
		}
		l.WriteRecords(t, external)
		l.Write(t, l.events("s", 10, 300)...)

		cfg := config(l, sink)
		r := start(t, cfg)
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
		sink.flush() // everything is delivered again
		l.Write(t, l.next("s-1"))
		r.catchUp(t)
		streamstest.Eventually(t, "the sink is complete again", func() bool {
			sink.mu.Lock()
			defer sink.mu.Unlock()
			return maps.Equal(sink.versions, l.Versions)
		})
		r.stop()

		letters, records := readDeadLetters(t, on, cfg.Name)
		if len(letters) != 2 || records < 4 {
			t.Fatalf("%d dead letters under %d keys, want at least 4 under 2", records, len(letters))
		}
		partition := kafka.Partition([]byte("s-0"), partitions)
		m := letters[fmt.Sprintf("%s|%s|%d|%d", cfg.Name, l.Topic, partition, 1)]
		if string(m.Value) != "garbage" || header(m, "ce_streamversion") != "2" ||
			header(m, streams.HeaderDeadLetterReason) != "no such message" {
			t.Errorf("the dead letter of the unreadable event is %q %q", m.Value, m.Headers)
		}
		delete(letters, string(m.Key))
		for _, m := range letters {
			if string(m.Value) != "not ours" || header(m, "from") != "elsewhere" ||
				header(m, streams.HeaderDeadLetterKey) != "s-0" ||
				header(m, streams.HeaderDeadLetterReason) == "" {
				t.Errorf("the dead letter of the external record is %q %q", m.Value, m.Headers)
			}
		}
	})
}

// The runtime notices that the sink lost everything, at a write or at the next look at its
// positions, and reads the log again.
func TestLostDataIsReadAgain(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(l log) event.Event{
		"and the next event shows a gap":     func(l log) event.Event { return l.next("s-3") },
		"and the next event starts a stream": func(l log) event.Event { return l.next("new") },
		"and no event follows":               nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, on kafka.Config) {
				l, sink := newLog(t, on), newMemory()
				l.Write(t, l.events("s", 50, 1000)...)
				r := start(t, config(l, sink))
				r.catchUp(t)
				streamstest.Eventually(t, "positions are saved", func() bool {
					saved, _ := sink.Positions(t.Context(), l.Topic)
					for id := range int32(partitions) {
						if live, _ := r.watermarks.Applied(l.Topic, id); saved[id] != live {
							return false
						}
					}
					return true
				})
				sink.flush()
				if next != nil {
					l.Write(t, next(l))
				}
				streamstest.Eventually(t, "the sink is complete again", func() bool {
					sink.mu.Lock()
					defer sink.mu.Unlock()
					return maps.Equal(sink.versions, l.Versions)
				})
				r.catchUp(t)
				r.stop()
				saved, _ := sink.Positions(t.Context(), l.Topic)
				for id := range int32(partitions) {
					if live, _ := r.watermarks.Applied(l.Topic, id); saved[id] != live {
						t.Errorf("partition %d: %v saved, %v applied", id, saved[id], live)
					}
				}
			})
		})
	}
}

// A lost document does not change the positions. The next event of its stream shows a gap, and the
// partition is read again.
func TestLostDocumentIsReadAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 50, 1000)...)
		r := start(t, config(l, sink))
		r.catchUp(t)
		sink.mu.Lock()
		delete(sink.versions, "s-7") // evicted; the positions do not change
		sink.mu.Unlock()
		l.Write(t, l.next("s-7"))
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
	})
}

// If the log lacks an event, reading again does not help. Later events of that stream become dead
// letters, and other streams continue.
func TestGapInLogBecomesDeadLetters(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 50, 500)...)
		l.next("s-7") // never written
		behind := []event.Event{l.next("s-7"), l.next("s-7")}
		l.Write(t, behind...)
		l.Write(t, l.events("t", 50, 500)...)
		cfg := config(l, sink)
		r := start(t, cfg)
		r.catchUp(t)
		l.Write(t, l.next("s-7"))
		l.Write(t, l.events("u", 5, 50)...)
		r.catchUp(t)
		l.Versions["s-7"] = 10
		sink.mustHave(t, l.Versions)
		r.stop()
		letters, _ := readDeadLetters(t, on, cfg.Name)
		if len(letters) != 3 {
			t.Errorf("%d dead letters, want the three behind the gap", len(letters))
		}
		for _, m := range letters {
			if header(m, streams.HeaderDeadLetterKey) != "s-7" {
				t.Errorf("dead letter of stream %s", header(m, streams.HeaderDeadLetterKey))
			}
		}
	})
}

// A stop ends the calls of the sink by their context, and loses nothing.
func TestStopWithHungSink(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 10, 100)...)
		var inside atomic.Int64
		sink.setBefore(func(ctx context.Context, _ []streams.Record) error {
			inside.Add(1)
			defer inside.Add(-1)
			<-ctx.Done()
			return ctx.Err()
		})
		r := start(t, config(l, sink))
		streamstest.Eventually(t, "a call of the sink is in progress", func() bool { return inside.Load() > 0 })
		r.stop()
		if n := inside.Load(); n != 0 {
			t.Errorf("%d calls of the sink are in progress after the stop", n)
		}
		sink.setBefore(nil)
		r = start(t, config(l, sink))
		r.catchUp(t)
		sink.mustHave(t, l.Versions)
	})
}

// A runtime whose broker is gone stops, and its saved positions are complete. This runs on an
// embedded broker of its own, because other tests need the shared ones.
func TestStopWithoutBroker(t *testing.T) {
	t.Parallel()
	cfg, stopBroker, err := streamstest.StartBroker()
	if err != nil {
		t.Fatal(err)
	}
	l := log{streamstest.NewLog(t, cfg, "orphan"), cfg}
	sink := newMemory()
	c := config(l, sink)
	l.Write(t, l.events("s", 10, 100)...)
	r := start(t, c)
	r.catchUp(t)
	if err := stopBroker(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.CatchUp(ctx); err == nil {
		t.Error("caught up without a broker")
	}
	r.stop()
	if err := r.CatchUp(t.Context()); err == nil {
		t.Error("caught up after the stop")
	}
	saved, _ := sink.Positions(t.Context(), l.Topic)
	for id := range int32(partitions) {
		if live, _ := r.watermarks.Applied(l.Topic, id); saved[id] != live {
			t.Errorf("partition %d: %v saved, %v applied", id, saved[id], live)
		}
	}
}
