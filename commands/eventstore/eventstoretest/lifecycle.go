package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// closed checks that every method of a closed store returns ErrClosed, and that Close may be called
// twice. Calls may still be in progress when a service stops, and their callers must be able to
// distinguish that from a fault.
func closed(t *testing.T, db Database) {
	ctx, s := testContext(t), db(t)
	mustAppend(ctx, t, s, one("a", 0, 1))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	// Every method that can return an error.
	for name, call := range map[string]func() error{
		"Append":       func() error { _, err := s.Append(ctx, one("a", 1, 1)); return err },
		"Load":         func() error { _, err := s.Load(ctx, "a", 0); return err },
		"LoadSnapshot": func() error { _, _, err := s.LoadSnapshot(ctx, "a"); return err },
		"LoadAnswer":   func() error { _, _, err := s.LoadAnswer(ctx, "k"); return err },
		"Read":         func() error { _, err := s.Read(ctx, event.Position{}, 1); return err },
		"Head":         func() error { _, err := s.Head(ctx); return err },
		"Stats":        func() error { _, err := s.Stats(ctx, event.Position{}); return err },
		"Known":        func() error { _, err := s.Known(ctx, nil); return err },
		"Epoch":        func() error { _, err := s.Epoch(ctx); return err },
		"Secret":       func() error { _, err := s.Secret(ctx); return err },
		"Wait":         func() error { return s.Wait(ctx, event.Position{}) },
	} {
		if err := call(); !errors.Is(err, eventstore.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// closeDrains checks that every append that was acknowledged before Close is there after reopening,
// and that no other is. Each append must either be stored and acknowledged, or return ErrClosed and
// leave nothing.
func closeDrains(t *testing.T, db Database) {
	ctx, s := testContext(t), db(t)
	const writers = 16
	// Each writer has an element of its own: the number of its acknowledged appends, and so also
	// the version of its stream.
	var stored [writers]uint64
	var total atomic.Int64
	// enough is closed when the writers are busy, so that Close happens in the middle of appends.
	enough := make(chan struct{})
	var g errgroup.Group
	for i := range writers {
		g.Go(func() error {
			// Append until the store is closed, and count what was acknowledged.
			for {
				_, err := s.Append(ctx, one(fmt.Sprint("stream ", i), stored[i], 1))
				if errors.Is(err, eventstore.ErrClosed) {
					return nil
				}
				if err != nil {
					return err
				}
				stored[i]++
				// Exactly one writer reaches the number, so the channel is closed once.
				if total.Add(1) == 5*writers {
					close(enough)
				}
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
		t.Fatal("the writers made no progress")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Exactly the acknowledged events are stored: a call that returned ErrClosed stored nothing.
	s = db.open(t)
	for i, want := range stored {
		if got := mustLoad(ctx, t, s, fmt.Sprint("stream ", i), 0); uint64(len(got)) != want {
			t.Errorf("writer %d has %d acknowledged appends, %d events are stored", i, want, len(got))
		}
	}
}

// reopen checks that everything is there after reopening, and that positions continue to increase.
// Consumers store positions, so a position must keep its meaning over restarts.
func reopen(t *testing.T, db Database) {
	ctx := testContext(t)
	var events []event.Event
	var last event.Position
	for round := range uint64(3) {
		s := db(t)
		// Only the first round begins with an empty store.
		if head, err := s.Head(ctx); err != nil || (round == 0) != head.IsZero() {
			t.Fatalf("round %d begins with head %v (%v)", round, head, err)
		}
		b := one("a", round*2, 2)
		b.Answer = eventstore.Answer{Key: fmt.Sprint("key ", round), Response: []byte("r")}
		b.Snapshots = []eventstore.Snapshot{{Stream: "a", Version: round*2 + 2, State: []byte("s")}}
		// The positions of this round must be above those of all earlier ones.
		previous := last
		if last = mustAppend(ctx, t, s, b); last.Compare(previous) <= 0 {
			t.Fatalf("round %d: position %v came after %v", round, last, previous)
		}
		// Events of earlier rounds are unchanged, positions included.
		now := mustRead(ctx, t, s, event.Position{}, int(round*2+2))
		for i, e := range events {
			if d := difference(now[i], e); d != "" {
				t.Errorf("round %d, event %d: %s", round, i, d)
			}
		}
		events = now
		for r := range round + 1 {
			if _, ok, err := s.LoadAnswer(ctx, fmt.Sprint("key ", r)); !ok || err != nil {
				t.Errorf("round %d: answer %d is gone (%v)", round, r, err)
			}
		}
		if snap, ok, err := s.LoadSnapshot(ctx, "a"); !ok || err != nil || snap.Version != round*2+2 {
			t.Errorf("round %d: the snapshot is %v %v (%v)", round, snap, ok, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// twoStores opens a database twice at the same time, like two instances of a service, or a service
// and an operator's tool. So a store must not rely on what it remembers: another one may have
// appended since.
func twoStores(t *testing.T, db Database) {
	ctx := testContext(t)
	a, b := db.open(t), db.open(t)
	// Each store sees the events, versions and answers of the other one.
	first := one("s", 0, 1)
	first.Answer = eventstore.Answer{Key: "k", Response: []byte("a")}
	mustAppend(ctx, t, a, first)
	if n := len(mustLoad(ctx, t, b, "s", 0)); n != 1 {
		t.Errorf("the other store has %d events", n)
	}
	if _, err := b.Append(ctx, one("s", 0, 1)); !errors.As(err, new(*eventstore.ConflictError)) {
		t.Errorf("the other store accepted version 1 again: %v", err)
	}
	if _, err := b.Append(ctx, first); !errors.As(err, new(*eventstore.AnsweredError)) {
		t.Errorf("the other store answered the key again: %v", err)
	}
	// Appends at one version through both stores: exactly one succeeds.
	const racers = 8
	var won atomic.Int64
	var g errgroup.Group
	// Half of the appends go through each store.
	for i := range 2 * racers {
		s := a
		if i%2 == 1 {
			s = b
		}
		g.Go(func() error {
			_, err := s.Append(ctx, one("s", 1, 1))
			if errors.As(err, new(*eventstore.ConflictError)) {
				return nil
			}
			// It won, or it failed, in which case g.Wait returns the error.
			won.Add(1)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if won.Load() != 1 {
		t.Errorf("version 2 has %d winners", won.Load())
	}
	// Events exist after the zero position, so Wait returns at once.
	if err := a.Wait(context.WithoutCancel(ctx), event.Position{}); err != nil {
		t.Errorf("wait: %v", err)
	}
}
