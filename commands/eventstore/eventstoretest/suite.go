// Package eventstoretest is the conformance suite of eventstore.Store. Run checks an adapter, and
// Benchmark measures it. Services may rely on what the suite checks, so adapters that pass it are
// interchangeable.
//
// The checks are grouped by file: append.go, read.go, answers.go, identity.go and lifecycle.go.
// model.go compares random sequences of calls with a model.
//
// An adapter's test provides a Database. Checks that race open it twice, because in operation
// several processes share a database. They use only the methods of Store, so nothing depends on how
// an adapter stores its data.
//
// A new guarantee of Store needs a check here first. All adapters then have to pass it.
package eventstoretest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// Database opens a store of Aggregate. All calls open the same database, so a store has the events
// that another one has appended, at the same time or before. The caller closes the store.
type Database func(t *testing.T) eventstore.Store

// Aggregate is the aggregate whose store a Database must open.
var Aggregate = event.Order

// Run checks an adapter. Each call of newDatabase must return the opener of a new, empty database.
// The checks run in parallel, so the databases must be independent. Each name is the guarantee that
// its check shows.
func Run(t *testing.T, newDatabase func(t *testing.T) Database) {
	for _, check := range []struct {
		name string
		run  func(t *testing.T, db Database)
	}{
		{"events are returned unchanged", everyField},
		{"one append per version wins", oneWinner},
		{"a wrong version conflicts", conflicts},
		{"several streams are appended to atomically", severalStreams},
		{"appends to crossing streams do not deadlock", crossing},
		{"a key has one answer", answers},
		{"concurrent batches with one key get one answer", racedKey},
		{"an answer without events", answerAlone},
		{"a newer snapshot replaces an older one", snapshots},
		{"invalid batches are rejected", limits},
		{"a batch whose context has ended is not stored", endedContext},
		{"Read misses nothing while others write", gapSafe},
		{"Read returns a stream in the order of its versions", guessedVersions},
		{"Read respects the limit", readLimit},
		{"Stats counts events after a position", stats},
		{"Known compares id, stream, version and position", known},
		{"the epoch belongs to the database", epoch},
		{"the secret belongs to the database", secret},
		{"Wait returns after an append", waitWakes},
		{"Wait returns when its context ends or the store closes", waitEnds},
		{"a closed store returns ErrClosed", closed},
		{"Close waits for calls in progress", closeDrains},
		{"acknowledged batches survive reopening", reopen},
		{"two stores share one database", twoStores},
		{"random calls match the model", model},
	} {
		t.Run(check.name, func(t *testing.T) {
			t.Parallel()
			check.run(t, newDatabase(t))
		})
	}
}

// open opens a store and closes it at the end of the test. Checks that close a store themselves
// call the Database directly.
func (p Database) open(t *testing.T) eventstore.Store {
	t.Helper()
	s := p(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return s
}

// timeout bounds every wait of the suite. A correct store needs a fraction of it.
const timeout = 5 * time.Minute

// testContext returns a context that ends after timeout, so that a hung store fails its test.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// newEvents returns n events as a command handler would create them. The store sets the fields that
// are missing: aggregate, stream, version and position.
func newEvents(n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		// Times of events are in UTC with whole microseconds.
		now := event.Time(time.Now())
		events[i] = event.Event{
			ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1.OrderPlaced", Data: []byte(fmt.Sprintf("data %d", i)),
			OccurredAt: now.Add(-time.Hour), RecordedAt: now,
		}
	}
	return events
}

// one returns a batch of n new events for one stream, which must have the expected version.
func one(stream string, expected uint64, n int) eventstore.Batch {
	return eventstore.Batch{Streams: []eventstore.StreamAppend{{
		Stream: stream, ExpectedVersion: expected, Events: newEvents(n),
	}}}
}

// mustAppend stores a batch and returns its position.
func mustAppend(ctx context.Context, t *testing.T, s eventstore.Store, b eventstore.Batch) event.Position {
	t.Helper()
	done, err := s.Append(ctx, b)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return done.Position
}

// mustLoad loads a stream.
func mustLoad(ctx context.Context, t *testing.T, s eventstore.Store, stream string, after uint64) []event.Event {
	t.Helper()
	events, err := s.Load(ctx, stream, after)
	if err != nil {
		t.Fatalf("load %q: %v", stream, err)
	}
	return events
}

// mustRead reads until it has n events after a position, and fails if there are more. It waits for
// them, because a store may hold events back while an older transaction is open. It reads in small
// pages, and checks that positions increase.
func mustRead(ctx context.Context, t *testing.T, s eventstore.Store, after event.Position, n int) []event.Event {
	t.Helper()
	var all []event.Event
	for len(all) < n {
		if err := s.Wait(ctx, after); err != nil {
			t.Fatalf("wait for event %d of %d after %v: %v", len(all)+1, n, after, err)
		}
		some, err := s.Read(ctx, after, 7)
		if err != nil {
			t.Fatalf("read after %v: %v", after, err)
		}
		for _, e := range some {
			if e.Position.Compare(after) <= 0 {
				t.Fatalf("Read after %v returned position %v", after, e.Position)
			}
			after = e.Position
		}
		all = append(all, some...)
	}
	if len(all) != n {
		t.Fatalf("read %d events, want %d", len(all), n)
	}
	return all
}

// difference returns how two events differ, or "" if they are equal. Times are compared as
// instants, but those that a store returns must be in UTC.
func difference(got, want event.Event) string {
	switch {
	case !got.OccurredAt.Equal(want.OccurredAt) || !got.RecordedAt.Equal(want.RecordedAt):
		return fmt.Sprintf("times %v, %v, want %v, %v",
			got.OccurredAt, got.RecordedAt, want.OccurredAt, want.RecordedAt)
	// Equal ignores the location, so it is compared by itself.
	case got.OccurredAt.Location() != time.UTC || got.RecordedAt.Location() != time.UTC:
		return "times are not in UTC"
	case string(got.Data) != string(want.Data):
		return fmt.Sprintf("data %q, want %q", got.Data, want.Data)
	case got.ID != want.ID || got.Aggregate != want.Aggregate ||
		got.Stream != want.Stream || got.Version != want.Version ||
		got.Type != want.Type || got.CorrelationID != want.CorrelationID || got.CausationID != want.CausationID ||
		got.TraceParent != want.TraceParent || got.Position != want.Position:
		return fmt.Sprintf("%+v, want %+v", got, want)
	}
	return ""
}
