package eventstoretest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// answers checks that a key is answered once, whatever its second batch contains. A client that
// sends a command again, because it did not get the answer, must get the first answer, and nothing
// may be appended a second time.
func answers(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	mustAppend(ctx, t, s, one("a", 0, 1))
	// The batch is between two others, so that its position is neither the first nor the last.
	b := one("a", 1, 2)
	b.Answer = eventstore.Answer{
		Key: "key", Fingerprint: []byte{1, 0}, Response: []byte("first"), Stream: "a", Version: 3,
	}
	want := b.Answer
	want.Position = mustAppend(ctx, t, s, b)
	mustAppend(ctx, t, s, one("a", 3, 1))

	// The answer has the position of its own batch, not of later ones.
	if a, ok, err := s.LoadAnswer(ctx, "key"); err != nil || !ok || !sameAnswer(a, want) {
		t.Errorf("LoadAnswer returned %+v %v (%v), want %+v", a, ok, err, want)
	}
	if _, ok, err := s.LoadAnswer(ctx, "other"); err != nil || ok {
		t.Errorf("an unknown key has an answer (%v)", err)
	}

	// The answer takes precedence over the conflict: a command that is sent again conflicts with
	// its own events. The second batch also has another fingerprint and response, which must not
	// replace the first ones. It is the caller that compares fingerprints.
	for name, streams := range map[string][]eventstore.StreamAppend{
		"the same version":      b.Streams,
		"a matching version":    one("a", 4, 1).Streams,
		"another stream":        one("b", 0, 1).Streams,
		"no stream":             nil,
		"a conflicting version": one("b", 9, 1).Streams,
	} {
		again := eventstore.Batch{
			Streams: streams,
			Answer:  eventstore.Answer{Key: "key", Fingerprint: []byte{2}, Response: []byte("second")},
		}
		_, err := s.Append(ctx, again)
		answered := (*eventstore.AnsweredError)(nil)
		if !errors.As(err, &answered) || !sameAnswer(answered.Answer, want) {
			t.Errorf("the key again, with %s: %v, want the first answer", name, err)
		}
	}
	// 1 + 2 + 1 events were appended before the repetitions.
	if n := len(mustLoad(ctx, t, s, "a", 0)) + len(mustLoad(ctx, t, s, "b", 0)); n != 4 {
		t.Errorf("an answered key appended: %d events, want 4", n)
	}
}

// racedKey checks that of concurrent batches with one key exactly one is stored, and that all get
// its answer. So a client may send a command to two instances of a service at once.
func racedKey(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	const racers, rounds = 16, 8
	// Each round has a new key.
	for round := range rounds {
		// Each racer appends to a stream of its own, so only the key can conflict.
		answered := make([]eventstore.Answer, racers)
		won := make([]bool, racers)
		var g errgroup.Group
		for i := range racers {
			g.Go(func() error {
				b := one(fmt.Sprintf("stream %d of %d", i, round), 0, 1)
				b.Answer = eventstore.Answer{
					Key: fmt.Sprintf("key %d", round), Fingerprint: []byte("f"), Response: []byte{byte(i)},
				}
				done, err := s.Append(ctx, b)
				if first := (*eventstore.AnsweredError)(nil); errors.As(err, &first) {
					answered[i] = first.Answer
					return nil
				}
				// The position is the only part of an answer that the store sets.
				won[i], answered[i] = true, b.Answer
				answered[i].Position = done.Position
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		// Losers get the winner's answer, and their streams remain empty.
		winners := 0
		for i := range racers {
			if won[i] {
				winners++
			}
			if !sameAnswer(answered[i], answered[0]) {
				t.Errorf("round %d: two answers to one key: %+v, %+v", round, answered[i], answered[0])
			}
			if n := len(mustLoad(ctx, t, s, fmt.Sprintf("stream %d of %d", i, round), 0)); n > 0 != won[i] {
				t.Errorf("round %d: racer %d has %d events; won: %v", round, i, n, won[i])
			}
		}
		if winners != 1 {
			t.Fatalf("round %d has %d winners", round, winners)
		}
	}
}

// answerAlone checks batches without events: the answer has the store's head as its position. A
// command that changes nothing is such a batch. Its token must cover what the command has seen.
func answerAlone(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	alone := func(key string) eventstore.Batch {
		return eventstore.Batch{Answer: eventstore.Answer{Key: key, Response: []byte(key)}}
	}
	if p := mustAppend(ctx, t, s, alone("nothing yet")); !p.IsZero() {
		t.Errorf("the position in an empty store is %v, want zero", p)
	}
	last := mustAppend(ctx, t, s, one("a", 0, 2))
	if p := mustAppend(ctx, t, s, alone("something")); p != last {
		t.Errorf("its position is %v, want the head %v", p, last)
	}
	// A batch may even be empty. It stores nothing and returns the head.
	if p := mustAppend(ctx, t, s, eventstore.Batch{}); p != last {
		t.Errorf("the empty batch's position is %v, want the head %v", p, last)
	}
	// Later events do not change the positions of stored answers.
	mustAppend(ctx, t, s, one("a", 2, 1))
	for key, want := range map[string]event.Position{"nothing yet": {}, "something": last} {
		if a, ok, err := s.LoadAnswer(ctx, key); err != nil || !ok || string(a.Response) != key || a.Position != want {
			t.Errorf("answer %q is %+v %v (%v), want position %v", key, a, ok, err, want)
		}
	}
	if _, err := s.Append(ctx, alone("something")); !errors.As(err, new(*eventstore.AnsweredError)) {
		t.Errorf("its key again: %v", err)
	}
}

// snapshots checks that a snapshot replaces an older one of its stream only. Concurrent commands
// may store snapshots late and out of order.
func snapshots(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	if _, ok, err := s.LoadSnapshot(ctx, "a"); ok || err != nil {
		t.Fatalf("a snapshot in an empty store (%v)", err)
	}
	b := one("a", 0, 5)
	// The second stream has no events: a store keeps snapshots as they are, without comparing them
	// with events.
	b.Snapshots = []eventstore.Snapshot{
		{Stream: "a", Version: 5, Schema: 1, State: []byte{5, 0}},
		{Stream: "other", Version: 1},
	}
	mustAppend(ctx, t, s, b)
	// An older snapshot is ignored, an equal version replaces, and a newer one replaces.
	for _, step := range []struct{ put, want eventstore.Snapshot }{
		{eventstore.Snapshot{Stream: "a", Version: 4, Schema: 1, State: []byte("late")}, b.Snapshots[0]},
		{eventstore.Snapshot{Stream: "a", Version: 5, Schema: 2, State: nil}, eventstore.Snapshot{Stream: "a", Version: 5, Schema: 2}},
		{eventstore.Snapshot{Stream: "a", Version: 9, Schema: 2, State: []byte("9")}, eventstore.Snapshot{Stream: "a", Version: 9, Schema: 2, State: []byte("9")}},
	} {
		mustAppend(ctx, t, s, eventstore.Batch{Snapshots: []eventstore.Snapshot{step.put}})
		got, ok, err := s.LoadSnapshot(ctx, "a")
		if err != nil || !ok || !sameSnapshot(got, step.want) {
			t.Errorf("after %+v: %+v %v (%v), want %+v", step.put, got, ok, err, step.want)
		}
	}
	if got, ok, err := s.LoadSnapshot(ctx, "other"); err != nil || !ok || !sameSnapshot(got, b.Snapshots[1]) {
		t.Errorf("the other stream: %+v %v (%v), want %+v", got, ok, err, b.Snapshots[1])
	}
}

// sameAnswer compares answers. Nil and empty bytes are equal, because databases do not distinguish
// them in the same way.
func sameAnswer(a, b eventstore.Answer) bool {
	return a.Key == b.Key && bytes.Equal(a.Fingerprint, b.Fingerprint) && bytes.Equal(a.Response, b.Response) &&
		a.Stream == b.Stream && a.Version == b.Version && a.Position == b.Position
}

// sameSnapshot compares snapshots. Nil and empty bytes are equal.
func sameSnapshot(a, b eventstore.Snapshot) bool {
	return a.Stream == b.Stream && a.Version == b.Version && a.Schema == b.Schema && bytes.Equal(a.State, b.State)
}
