package eventstoretest

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
)

// known checks Known with events of the store, and with events that differ from them in one field.
// The relay uses Known to find out whether a log belongs to its store. An event counts as known
// only if id, stream, version and position all match.
func known(t *testing.T, db Database) {
	ctx := testContext(t)
	s := db.open(t)
	mustAppend(ctx, t, s, one("a", 0, 2))
	mustAppend(ctx, t, s, one("b", 0, 1))
	events := mustRead(ctx, t, s, event.Position{}, 3)
	change := func(f func(*event.Event)) event.Event {
		e := events[1]
		f(&e)
		return e
	}
	// The stored events, and copies of the second one with one field changed. The ids that no
	// database can store must be answered, too.
	asked := append(events,
		change(func(e *event.Event) { e.ID = uuid.New() }),
		change(func(e *event.Event) { e.Stream = "b" }),
		change(func(e *event.Event) { e.Stream = "none" }),
		change(func(e *event.Event) { e.Stream = "a\x00\xff" }),
		change(func(e *event.Event) { e.Version = 1 }),
		change(func(e *event.Event) { e.Version = 1<<64 - 1 }),
		change(func(e *event.Event) { e.Position.Sequence += 7 }),
		change(func(e *event.Event) { e.Position = event.Position{Transaction: 1<<64 - 1, Sequence: 1<<64 - 1} }),
	)
	got, err := s.Known(ctx, asked)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(asked) {
		t.Fatalf("%d answers for %d events", len(got), len(asked))
	}
	// Only the unchanged events are known. The answers are in the order of the question.
	for i, known := range got {
		if want := i < len(events); known != want {
			t.Errorf("event %d, %+v: known is %v, want %v", i, asked[i], known, want)
		}
	}
	if got, err := s.Known(ctx, nil); err != nil || len(got) != 0 {
		t.Errorf("Known without events: %v, %v", got, err)
	}
}

// epoch checks that all stores of a database have the same epoch, and that appends do not change
// it.
func epoch(t *testing.T, db Database) {
	ctx := testContext(t)
	first, second := db.open(t), db.open(t)
	want, err := first.Epoch(ctx)
	if err != nil || want == "" {
		t.Fatalf("epoch %q, %v", want, err)
	}
	mustAppend(ctx, t, first, one("a", 0, 1))
	if got, err := second.Epoch(ctx); err != nil || got != want {
		t.Fatalf("another store in the same database has epoch %q, %v, want %q", got, err, want)
	}
}

// secret checks that all stores of a database have the same secret, and that it is not derived from
// the epoch, which is public. The secret signs checkpoints, so only processes with access to the
// database may know it.
func secret(t *testing.T, db Database) {
	ctx := testContext(t)
	first, second := db.open(t), db.open(t)
	want, err := first.Secret(ctx)
	if err != nil || len(want) < 16 {
		t.Fatalf("a secret of %d bytes, %v", len(want), err)
	}
	mustAppend(ctx, t, first, one("a", 0, 1))
	if got, err := second.Secret(ctx); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("another store in the same database has another secret, %v", err)
	}
	if id, err := first.Epoch(ctx); err != nil || bytes.Contains(want, []byte(id)) {
		t.Fatalf("the secret contains the epoch, which is public: %v", err)
	}
}
