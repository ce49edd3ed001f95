package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// gapSafe reads from the beginning while writers on two stores race, and again when they have
// ended. Both reads must return the same events.
//
// It checks the property on which every consumer relies: a reader that has seen a position never
// misses an event at a lower one. A database does not provide it by itself. Concurrent transactions
// get numbers in one order and become visible in another, so a store must hold back events while an
// older transaction is open.
func gapSafe(t *testing.T, db Database) {
	ctx := testContext(t)
	stores := []eventstore.Store{db.open(t), db.open(t)}
	const writers, rounds = 8, 15
	var stored atomic.Int64
	var g errgroup.Group
	for i := range writers {
		s := stores[i%len(stores)]
		g.Go(func() error {
			for round := range rounds {
				// A stream of this writer, and one of three that all writers append to. Some
				// batches have one stream, so batches of both kinds race.
				own, shared := fmt.Sprintf("own %d", i), fmt.Sprintf("shared %d", round%3)
				streams := []string{own, shared}
				if round%4 == 0 {
					streams = []string{own}
				}
				if err := appendOnTop(ctx, s, streams...); err != nil {
					return err
				}
				stored.Add(int64(len(streams)))
			}
			return nil
		})
	}

	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	// Read with a small limit while the writers run, so that many reads overlap with appends.
	var seen []event.Event
	var after event.Position
	// Continue until the writers have ended and all of their events were read. A missed event would
	// make the read go on until its context ends.
	for running := true; running || len(seen) < int(stored.Load()); {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		// Events of both stores must appear, although only one is read.
		some, err := stores[0].Read(ctx, after, 5)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range some {
			if e.Position.Compare(after) <= 0 {
				t.Fatalf("position %v came after %v", e.Position, after)
			}
			after = e.Position
		}
		seen = append(seen, some...)
	}

	// Every stored event was read once, and each stream in the order of its versions.
	if len(seen) != int(stored.Load()) {
		t.Fatalf("saw %d events of %d", len(seen), stored.Load())
	}
	versions, ids := map[string]uint64{}, map[uuid.UUID]bool{}
	for _, e := range seen {
		if versions[e.Stream]++; e.Version != versions[e.Stream] {
			t.Fatalf("stream %q: saw version %d, want %d", e.Stream, e.Version, versions[e.Stream])
		}
		if ids[e.ID] {
			t.Fatalf("saw event %s twice", e.ID)
		}
		ids[e.ID] = true
	}
	// The other store returns the same events in the same order.
	for i, e := range mustRead(ctx, t, stores[1], event.Position{}, len(seen)) {
		if d := difference(e, seen[i]); d != "" {
			t.Fatalf("event %d, read again: %s", i, d)
		}
	}
	if head, err := stores[1].Head(ctx); err != nil || head != after {
		t.Errorf("head is %v (%v), the last event has position %v", head, err, after)
	}
}

// guessedVersions appends at versions that are not stored yet and retries on conflicts, so appends
// may overtake each other. The order of Read must be the order of versions all the same. A store
// that assigns positions before it checks versions would fail: a later version could get a lower
// position.
func guessedVersions(t *testing.T, db Database) {
	ctx := testContext(t)
	stores := []eventstore.Store{db.open(t), db.open(t)}
	const versions, streams = 16, 4
	var g errgroup.Group
	for i := range versions * streams {
		g.Go(func() error {
			// All versions of a stream are appended concurrently, one goroutine for each. A
			// goroutine conflicts until its predecessor has been stored.
			b := one(fmt.Sprintf("guessed %d", i%streams), uint64(i/streams), 1)
			// With a key, an append that was stored despite an error would be noticed when it is
			// repeated.
			b.Answer.Key = fmt.Sprint("guess ", i)
			for {
				_, err := stores[i%2].Append(ctx, b)
				if conflict := (*eventstore.ConflictError)(nil); !errors.As(err, &conflict) {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Each stream's versions come in order, without gaps.
	next := map[string]uint64{}
	for _, e := range mustRead(ctx, t, stores[0], event.Position{}, versions*streams) {
		if next[e.Stream]++; e.Version != next[e.Stream] {
			t.Fatalf("stream %q: read version %d, want %d", e.Stream, e.Version, next[e.Stream])
		}
	}
}

// readLimit checks limits, and reads after the last position. A limit of zero or less returns
// nothing, and a limit above the number of events is not an error.
func readLimit(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	if got, err := s.Read(ctx, event.Position{}, 10); err != nil || len(got) != 0 {
		t.Fatalf("an empty store returned %d events (%v)", len(got), err)
	}
	if head, err := s.Head(ctx); err != nil || !head.IsZero() {
		t.Fatalf("an empty store's head is %v (%v)", head, err)
	}
	last := mustAppend(ctx, t, s, one("a", 0, 10))
	all := mustRead(ctx, t, s, event.Position{}, 10)
	// The store has ten events. A huge limit must not allocate room for as many.
	for limit, want := range map[int]int{-1: 0, 0: 0, 1: 1, 9: 9, 10: 10, 11: 10, math.MaxInt32: 10} {
		if got, err := s.Read(ctx, event.Position{}, limit); err != nil || len(got) != want {
			t.Errorf("limit %d returned %d events (%v), want %d", limit, len(got), err, want)
		}
	}
	for i, e := range all {
		if got, err := s.Read(ctx, e.Position, 100); err != nil || len(got) != 9-i {
			t.Errorf("after event %d there are %d (%v), want %d", i, len(got), err, 9-i)
		}
	}
	if all[9].Position != last {
		t.Errorf("Append returned %v, the last event has position %v", last, all[9].Position)
	}
	// Positions beyond the last event, up to the largest one.
	for _, beyond := range []event.Position{
		{Transaction: last.Transaction, Sequence: math.MaxUint64},
		{Transaction: math.MaxUint64, Sequence: math.MaxUint64},
	} {
		if got, err := s.Read(ctx, beyond, 10); err != nil || len(got) != 0 {
			t.Errorf("after %v there are %d events (%v)", beyond, len(got), err)
		}
	}
}

// waitWakes checks that Wait returns for all waiters after an append. The append may happen before,
// during or after the call of Wait, so a store that only wakes current waiters would miss some.
func waitWakes(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	// Each round waits after the position of the previous one.
	var head event.Position
	for i := range 5 {
		const waiters = 4
		woken := make(chan error, waiters)
		for range waiters {
			go func() { woken <- s.Wait(ctx, head) }()
		}
		last := mustAppend(ctx, t, s, one("a", uint64(i), 1))
		for range waiters {
			if err := <-woken; err != nil {
				t.Fatalf("wait: %v", err)
			}
		}
		if got := mustRead(ctx, t, s, head, 1); got[0].Position != last {
			t.Fatalf("woken for %v, Append returned %v", got[0].Position, last)
		}
		head = last
	}
	if err := s.Wait(ctx, event.Position{}); err != nil {
		t.Errorf("wait for existing events: %v", err)
	}
}

// waitEnds checks that Wait returns when its context ends, and when the store is closed. Otherwise
// a stopping service would hang.
func waitEnds(t *testing.T, db Database) {
	s := db(t)
	last := mustAppend(testContext(t), t, s, one("a", 0, 1))

	// There are no events after the last position, so Wait blocks until the deadline.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx, last); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with a deadline: %v", err)
	}

	// A waiter whose context does not end returns when the store is closed.
	waiting := make(chan error, 1)
	go func() { waiting <- s.Wait(context.Background(), last) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("wait in a store that is closed: %v", err)
	}
}

// stats checks counts and times after each position. They are what the reported lag of a sink is
// computed from.
func stats(t *testing.T, db Database) {
	ctx := testContext(t)
	s := db.open(t)
	// expect compares the statistics with those of the events after the position.
	expect := func(after event.Position, events []event.Event) {
		t.Helper()
		got, err := s.Stats(ctx, after)
		want := eventstore.Stats{Events: uint64(len(events))}
		for _, e := range events {
			if e.RecordedAt.After(want.NewestRecorded) {
				want.NewestRecorded = e.RecordedAt
			}
		}
		if err != nil || got.Events != want.Events || !got.NewestRecorded.Equal(want.NewestRecorded) {
			t.Fatalf("after %v: %+v, %v, want %+v", after, got, err, want)
		}
	}
	// An empty store first, then every position.
	expect(event.Position{}, nil)
	mustAppend(ctx, t, s, one("a", 0, 3))
	mustAppend(ctx, t, s, one("b", 0, 2))
	all := mustRead(ctx, t, s, event.Position{}, 5)
	expect(event.Position{}, all)
	for i, e := range all {
		expect(e.Position, all[i+1:])
	}
}
