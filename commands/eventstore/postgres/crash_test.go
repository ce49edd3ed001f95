package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/polltest"
	server "github.com/millrace/millrace/test/servers/postgres"
)

// TestServerCrash kills and freezes PostgreSQL repeatedly while writers append and a reader
// follows. The store must recover by itself. Every acknowledged event is there exactly once, and
// the reader has seen all of them, in order.
func TestServerCrash(t *testing.T) {
	t.Parallel()
	var own server.Cluster
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := postgres.Open(ctx, own.ConnString(t), event.Order, postgres.WithPoll(2*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), own.Stop()); err != nil {
			t.Error(err)
		}
	})

	const writers, crashes = 8, 4
	var acknowledged, failed atomic.Int64
	versions := make([]uint64, writers) // the version that each writer's stream must have
	stop := make(chan struct{})
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for stream := fmt.Sprint("stream ", w); ; versions[w]++ {
				select {
				case <-stop:
					return
				default:
				}
				b := batch(stream, versions[w])
				b.Answer.Key = fmt.Sprint(stream, "/", versions[w])
				for {
					_, err := s.Append(ctx, b)
					// AnsweredError means that an earlier attempt was stored, but its answer was
					// lost.
					if err == nil || errors.As(err, new(*eventstore.AnsweredError)) {
						break
					}
					if ctx.Err() != nil || errors.As(err, new(*eventstore.ConflictError)) {
						t.Errorf("%s, version %d: %v", stream, versions[w]+1, err)
						return
					}
					failed.Add(1)
				}
				acknowledged.Add(1)
			}
		})
	}
	var seen []event.Event
	following := make(chan error, 1)
	until := make(chan int, 1) // number of events at the end
	go func() {
		following <- func() error {
			var after event.Position
			for want := -1; want < 0 || len(seen) < want; {
				short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				_ = s.Wait(short, after) // the server may be down
				cancel()
				events, err := s.Read(ctx, after, 100)
				if ctx.Err() != nil {
					return fmt.Errorf("%w, after %d events: %w", ctx.Err(), len(seen), err)
				}
				for _, e := range events {
					if e.Position.Compare(after) <= 0 {
						return fmt.Errorf("position %v came after %v", e.Position, after)
					}
					seen, after = append(seen, e), e.Position
				}
				select {
				case want = <-until:
				default:
				}
			}
			return nil
		}()
	}()

	progress := func(what string) {
		t.Helper()
		from := acknowledged.Load()
		polltest.Until(t, "appends continue "+what, func() bool { return acknowledged.Load() > from+100 })
	}
	for range crashes {
		progress("before the crash")
		if err := own.Kill(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := own.Restart(); err != nil {
			t.Fatal(err)
		}
		back := time.Since(begun)
		progress("after the crash")
		t.Logf("the server was back after %v, 100 appends later it was %v", back, time.Since(begun))
	}
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	before := acknowledged.Load()
	if _, err := s.Append(within(t, 300*time.Millisecond), batch("frozen", 0)); err == nil {
		t.Error("a frozen server acknowledged")
	}
	if n := acknowledged.Load(); n > before+writers {
		t.Errorf("%d appends were acknowledged by a frozen server", n-before)
	}
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	progress("after the pause")
	close(stop)
	writing.Wait()
	if failed.Load() == 0 {
		t.Error("no append failed, so the crashes had no effect")
	}

	total := 0
	for w, want := range versions {
		events, err := s.Load(ctx, fmt.Sprint("stream ", w), 0)
		if err != nil || uint64(len(events)) != want {
			t.Errorf("writer %d: %d events are stored, %d were acknowledged (%v)", w, len(events), want, err)
		}
		total += len(events)
	}
	frozen, err := s.Load(ctx, "frozen", 0) // it may or may not be stored
	if err != nil {
		t.Fatal(err)
	}
	total += len(frozen)
	until <- total
	if err := <-following; err != nil {
		t.Fatal(err)
	}
	next := map[string]uint64{}
	for _, e := range seen {
		if next[e.Stream]++; e.Version != next[e.Stream] {
			t.Fatalf("the reader saw version %d of %s, want %d", e.Version, e.Stream, next[e.Stream])
		}
	}
	if len(seen) != total {
		t.Errorf("the reader saw %d events of %d", len(seen), total)
	}
	t.Logf("%d appends were acknowledged, %d calls failed", acknowledged.Load(), failed.Load())
}

// within returns a context that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
