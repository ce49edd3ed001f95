package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// everyField checks that Load and Read return every field of an event unchanged, including extreme
// values. Times must be in UTC, whatever location they had when they were appended.
func everyField(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	// A stream id may be any text, including quotes that SQL would interpret.
	const stream = "Öl № 1/ä'\"\\"
	b := one(stream, 0, 3)
	// All fields set and the latest year; no optional field; the largest data and the earliest
	// year.
	full, bare, early := &b.Streams[0].Events[0], &b.Streams[0].Events[1], &b.Streams[0].Events[2]
	full.Data = []byte{0, 1, 0xff, 0}
	full.CorrelationID, full.CausationID = "correlation", "causation"
	full.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	full.OccurredAt = time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	bare.Data = nil
	early.Data = []byte(strings.Repeat("x", eventstore.MaxData))
	early.OccurredAt = time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC)
	early.RecordedAt = time.Date(2010, 12, 1, 8, 26, 0, 1000, time.FixedZone("east", 3600))

	// Both ways to read return the events as they were appended, with the fields that the store
	// sets.
	last := mustAppend(ctx, t, s, b)
	loaded, read := mustLoad(ctx, t, s, stream, 0), mustRead(ctx, t, s, event.Position{}, 3)
	if len(loaded) != 3 {
		t.Fatalf("Load returned %d events, want 3", len(loaded))
	}
	for i, want := range b.Streams[0].Events {
		want.Aggregate, want.Stream, want.Version = Aggregate.Name, stream, uint64(i)+1
		want.Position = loaded[i].Position
		if d := difference(loaded[i], want); d != "" {
			t.Errorf("load, event %d: %.500s", i, d)
		}
		if d := difference(read[i], want); d != "" {
			t.Errorf("read, event %d: %.500s", i, d)
		}
	}
	// The position of a batch is that of its last event.
	if last != read[2].Position {
		t.Errorf("Append returned position %v, the last event has %v", last, read[2].Position)
	}
	if got := mustLoad(ctx, t, s, stream, 2); len(got) != 1 || got[0].Version != 3 {
		t.Errorf("Load after version 2 returned %d events", len(got))
	}
	// Versions at and beyond the end, including numbers that a signed column cannot store.
	for _, after := range []uint64{3, 4, math.MaxInt64, math.MaxUint64} {
		if got := mustLoad(ctx, t, s, stream, after); len(got) != 0 {
			t.Errorf("Load after version %d returned %d events", after, len(got))
		}
	}
	if got := mustLoad(ctx, t, s, "missing", 0); len(got) != 0 {
		t.Errorf("Load of a missing stream returned %d events", len(got))
	}
}

// oneWinner checks that of concurrent appends at one version exactly one succeeds. This is
// optimistic concurrency control: each command decides on the state of a version, so two commands
// must not both append to it. The losers learn the new version, and the stream has the winner's
// events only.
func oneWinner(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	const racers, rounds = 32, 10
	for round := range uint64(rounds) {
		var mu sync.Mutex
		var won []uuid.UUID
		var g errgroup.Group
		for range racers {
			g.Go(func() error {
				b := one("contended", round*2, 2) // two events: a batch must not be stored in part
				_, err := s.Append(ctx, b)
				if conflict := (*eventstore.ConflictError)(nil); errors.As(err, &conflict) {
					if conflict.Stream != "contended" || conflict.Expected != round*2 || conflict.Actual != round*2+2 {
						return fmt.Errorf("round %d: %w", round, conflict)
					}
					return nil
				}
				// Not a conflict: this append won, or it failed, which ends the test.
				mu.Lock()
				defer mu.Unlock()
				// The id of the first event identifies the winner.
				won = append(won, b.Streams[0].Events[0].ID)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		// Each round appends two events, so the next round expects a version that is higher by two.
		if len(won) != 1 {
			t.Fatalf("round %d has %d winners", round, len(won))
		}
		if got := mustLoad(ctx, t, s, "contended", round*2); len(got) != 2 || got[0].ID != won[0] {
			t.Fatalf("round %d: the stream's new events are not the winner's: %v", round, got)
		}
	}
}

// conflicts checks the details of a ConflictError, and that a refused batch leaves nothing. A
// version that is too high is a conflict too: it would leave a gap.
func conflicts(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	mustAppend(ctx, t, s, one("a", 0, 3))
	// Older versions, the next one, and one far ahead.
	for _, expected := range []uint64{0, 1, 2, 4, 1000} { // all but the present version 3
		_, err := s.Append(ctx, one("a", expected, 1))
		conflict := (*eventstore.ConflictError)(nil)
		want := eventstore.ConflictError{Stream: "a", Expected: expected, Actual: 3}
		if !errors.As(err, &conflict) || *conflict != want {
			t.Errorf("append to version 3 as version %d: %v", expected, err)
		}
	}
	// A stream that does not exist has version 0.
	if _, err := s.Append(ctx, one("b", 1, 1)); err == nil {
		t.Error("a new stream accepted version 2 as its first")
	}
	if n := len(mustLoad(ctx, t, s, "a", 0)) + len(mustLoad(ctx, t, s, "b", 0)); n != 3 {
		t.Errorf("refused batches left events: %d, want 3", n)
	}
}

// severalStreams checks that a batch with several streams is stored completely or not at all, with
// its answer and its snapshots. The first stream of the refused batch is right and the second is
// wrong, so a store that appends stream by stream has something to undo.
func severalStreams(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	mustAppend(ctx, t, s, one("z", 0, 1))
	b := eventstore.Batch{
		Streams: []eventstore.StreamAppend{
			{Stream: "y", ExpectedVersion: 0, Events: newEvents(2)},
			{Stream: "z", ExpectedVersion: 0, Events: newEvents(1)}, // wrong
			{Stream: "x", ExpectedVersion: 0, Events: newEvents(1)},
		},
		Answer:    eventstore.Answer{Key: "k", Fingerprint: []byte{1}, Response: []byte{2}, Stream: "x", Version: 1},
		Snapshots: []eventstore.Snapshot{{Stream: "y", Version: 2, Schema: 1, State: []byte("s")}},
	}
	conflict := (*eventstore.ConflictError)(nil)
	if _, err := s.Append(ctx, b); !errors.As(err, &conflict) || conflict.Stream != "z" {
		t.Fatalf("append with one wrong version: %v", err)
	}
	if n := len(mustLoad(ctx, t, s, "x", 0)) + len(mustLoad(ctx, t, s, "y", 0)); n != 0 {
		t.Errorf("a refused batch left %d events", n)
	}
	// An answer that survived would report success for events that do not exist.
	if _, ok, err := s.LoadAnswer(ctx, "k"); ok || err != nil {
		t.Errorf("a refused batch left its answer (%v)", err)
	}
	if _, ok, err := s.LoadSnapshot(ctx, "y"); ok || err != nil {
		t.Errorf("a refused batch left its snapshot (%v)", err)
	}

	// With the right version, everything is stored, in the order of the batch.
	b.Streams[1].ExpectedVersion = 1
	last := mustAppend(ctx, t, s, b)
	all := mustRead(ctx, t, s, event.Position{}, 5)
	var order []string
	for _, e := range all[1:] {
		order = append(order, fmt.Sprintf("%s%d", e.Stream, e.Version))
	}
	// The order is that of the batch, not that in which a store may lock the streams.
	if got := strings.Join(order, " "); got != "y1 y2 z2 x1" {
		t.Errorf("the batch has the order %s", got)
	}
	if all[4].Position != last {
		t.Errorf("Append returned %v, the last event has %v", last, all[4].Position)
	}
	if a, ok, err := s.LoadAnswer(ctx, "k"); !ok || err != nil || a.Position != last {
		t.Errorf("its answer is %v %v (%v), want position %v", a, ok, err, last)
	}
	if _, ok, err := s.LoadSnapshot(ctx, "y"); !ok || err != nil {
		t.Errorf("its snapshot is missing (%v)", err)
	}
}

// crossing checks that two stores that append to the same streams in opposite order do not
// deadlock. A store that locks streams in the order of the batch would: each writer would hold one
// stream and wait for the other.
func crossing(t *testing.T, db Database) {
	ctx := testContext(t)
	stores := []eventstore.Store{db.open(t), db.open(t)}
	const rounds = 20
	var g errgroup.Group
	for i, s := range stores {
		g.Go(func() error {
			streams := []string{"left", "right"}
			if i == 1 {
				streams = []string{"right", "left"}
			}
			// Each round retries until it succeeds, so a deadlock would end the test by its
			// timeout.
			for range rounds {
				if err := appendOnTop(ctx, s, streams...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []string{"left", "right"} {
		// Every append was retried until it succeeded, so none is missing, and none is stored
		// twice.
		if n := len(mustLoad(ctx, t, stores[0], stream, 0)); n != 2*rounds {
			t.Errorf("%s has %d events, want %d", stream, n, 2*rounds)
		}
	}
}

// appendOnTop appends one event to each stream in one batch, as a service does: it loads, appends,
// and retries after a conflict. Other writers may append to the same streams meanwhile.
func appendOnTop(ctx context.Context, s eventstore.Store, streams ...string) error {
	for {
		var b eventstore.Batch
		for _, stream := range streams {
			// The number of events of a stream is also its version.
			present, err := s.Load(ctx, stream, 0)
			if err != nil {
				return err
			}
			b.Streams = append(b.Streams, eventstore.StreamAppend{
				Stream: stream, ExpectedVersion: uint64(len(present)), Events: newEvents(1),
			})
		}
		_, err := s.Append(ctx, b)
		if conflict := (*eventstore.ConflictError)(nil); !errors.As(err, &conflict) {
			return err
		}
	}
}

// limits checks that each limit of a batch is enforced, and that the longest stream id is accepted.
// All stores have the same limits, so services need not know the adapter. Many limits come from a
// database: PostgreSQL's texts are UTF-8 without zero bytes, and its numbers are signed.
func limits(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	// with returns a valid batch with one change to its event.
	with := func(change func(e *event.Event)) eventstore.Batch {
		b := one("s", 0, 1)
		change(&b.Streams[0].Events[0])
		return b
	}
	// One byte longer than a text may be. The limit counts bytes, and ü has two.
	long := strings.Repeat("ü", eventstore.MaxText/2) + "."
	for name, b := range map[string]eventstore.Batch{
		"empty stream id":        one("", 0, 1),
		"stream id not UTF-8":    one("\xff", 0, 1),
		"stream id with zero":    one("a\x00b", 0, 1),
		"stream id too long":     one(long, 0, 1),
		"no events":              one("s", 0, 0),
		"version out of range":   one("s", math.MaxUint64, 1),
		"stream twice":           {Streams: append(one("s", 0, 1).Streams, one("s", 1, 1).Streams...)},
		"no id":                  with(func(e *event.Event) { e.ID = uuid.Nil }),
		"no type":                with(func(e *event.Event) { e.Type = "" }),
		"no business time":       with(func(e *event.Event) { e.OccurredAt = time.Time{} }),
		"no recording time":      with(func(e *event.Event) { e.RecordedAt = time.Time{} }),
		"year 10000":             with(func(e *event.Event) { e.OccurredAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"data too long":          with(func(e *event.Event) { e.Data = make([]byte, eventstore.MaxData+1) }),
		"correlation not UTF-8":  with(func(e *event.Event) { e.CorrelationID = "\xc3" }),
		"causation with zero":    with(func(e *event.Event) { e.CausationID = "\x00" }),
		"trace too long":         with(func(e *event.Event) { e.TraceParent = long }),
		"key not UTF-8":          {Answer: eventstore.Answer{Key: "\xff"}},
		"key too long":           {Answer: eventstore.Answer{Key: long}},
		"response too long":      {Answer: eventstore.Answer{Key: "k", Response: make([]byte, eventstore.MaxData+1)}},
		"snapshot of no stream":  {Snapshots: []eventstore.Snapshot{{Version: 1}}},
		"snapshot of version 0":  {Snapshots: []eventstore.Snapshot{{Stream: "s"}}},
		"snapshot twice":         {Snapshots: []eventstore.Snapshot{{Stream: "s", Version: 1}, {Stream: "s", Version: 2}}},
		"snapshot out of range":  {Snapshots: []eventstore.Snapshot{{Stream: "s", Version: math.MaxUint64}}},
		"schema out of range":    {Snapshots: []eventstore.Snapshot{{Stream: "s", Version: 1, Schema: -1}}},
		"one stream of two":      {Streams: append(one("good", 0, 1).Streams, one("", 0, 1).Streams...)},
		"answer to not UTF-8 id": {Answer: eventstore.Answer{Key: "k", Stream: "\xff"}},
	} {
		if _, err := s.Append(ctx, b); !errors.Is(err, eventstore.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nothing was stored, and the longest allowed id is accepted.
	if head, err := s.Head(ctx); err != nil || !head.IsZero() {
		t.Errorf("after refused batches the head is %v (%v)", head, err)
	}
	mustAppend(ctx, t, s, one(strings.Repeat("ü", eventstore.MaxText/2), 0, 1))
}

// endedContext checks that calls with an ended context fail and store nothing. A context that ends
// during Append is different: the batch may be stored.
func endedContext(t *testing.T, db Database) {
	s := db.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Append(ctx, one("s", 0, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("append: %v", err)
	}
	if got := mustLoad(testContext(t), t, s, "s", 0); len(got) != 0 {
		t.Errorf("the batch was stored")
	}
	if _, err := s.Read(ctx, event.Position{}, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
}
