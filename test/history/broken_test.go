package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
)

// broken is a store that works, except for occasional faults. Each fault breaks a single promise.
type broken struct {
	eventstore.Store
	append func(context.Context, eventstore.Store, eventstore.Batch) (eventstore.Appended, error)
	load   func(context.Context, eventstore.Store, string, uint64) ([]event.Event, error)
}

func (b *broken) Append(ctx context.Context, batch eventstore.Batch) (eventstore.Appended, error) {
	if b.append == nil {
		return b.Store.Append(ctx, batch)
	}
	return b.append(ctx, b.Store, batch)
}

func (b *broken) Load(ctx context.Context, stream string, after uint64) ([]event.Event, error) {
	if b.load == nil {
		return b.Store.Load(ctx, stream, after)
	}
	return b.load(ctx, b.Store, stream, after)
}

// faulty reports whether to inject a fault now.
func faulty() bool { return rand.IntN(20) == 0 }

// rejectsStoredAppends appends, but answers with a conflict.
func rejectsStoredAppends(ctx context.Context, s eventstore.Store, b eventstore.Batch) (eventstore.Appended, error) {
	done, err := s.Append(ctx, b)
	if err == nil && len(b.Streams) > 0 && faulty() {
		first := b.Streams[0]
		return done, &eventstore.ConflictError{Stream: first.Stream, Expected: first.ExpectedVersion,
			Actual: first.ExpectedVersion + 1}
	}
	return done, err
}

// dropsAcknowledgedAppends answers like a store that has appended, but does not append.
func dropsAcknowledgedAppends(ctx context.Context, s eventstore.Store, b eventstore.Batch) (eventstore.Appended,
	error) {
	if faulty() {
		head, err := s.Head(ctx)
		return eventstore.Appended{Position: event.Position{Sequence: head.Sequence + 1}}, err
	}
	return s.Append(ctx, b)
}

// checksThenAppends reads the versions, and later appends to whatever the versions are by then.
func checksThenAppends(ctx context.Context, s eventstore.Store, b eventstore.Batch) (eventstore.Appended, error) {
	for _, w := range b.Streams {
		events, err := s.Load(ctx, w.Stream, 0)
		if err != nil {
			return eventstore.Appended{}, err
		}
		if actual := uint64(len(events)); actual != w.ExpectedVersion {
			return eventstore.Appended{}, &eventstore.ConflictError{Stream: w.Stream, Expected: w.ExpectedVersion,
				Actual: actual}
		}
	}
	for {
		done, err := s.Append(ctx, b)
		var late *eventstore.ConflictError
		if !errors.As(err, &late) {
			return done, err
		}
		for i := range b.Streams {
			if b.Streams[i].Stream == late.Stream {
				b.Streams[i].ExpectedVersion = late.Actual
			}
		}
	}
}

// splitsBatches stores the streams of a batch one by one.
func splitsBatches(ctx context.Context, s eventstore.Store, b eventstore.Batch) (done eventstore.Appended, err error) {
	if len(b.Streams) < 2 {
		return s.Append(ctx, b)
	}
	first, second := b, b
	first.Streams, first.Answer = b.Streams[:1], eventstore.Answer{}
	second.Streams = b.Streams[1:]
	if done, err = s.Append(ctx, first); err != nil {
		return done, err
	}
	return s.Append(ctx, second)
}

// forgetsKeys loses some answers.
func forgetsKeys(ctx context.Context, s eventstore.Store, b eventstore.Batch) (eventstore.Appended, error) {
	if faulty() {
		b.Answer = eventstore.Answer{}
	}
	return s.Append(ctx, b)
}

// readsOldCopies answers some loads from earlier results. It does so for every fourth load that
// would return more, because a copy that is not outdated is not a fault.
func readsOldCopies() func(context.Context, eventstore.Store, string, uint64) ([]event.Event, error) {
	var mu sync.Mutex
	copies := map[string][]event.Event{}
	return func(ctx context.Context, s eventstore.Store, stream string, after uint64) ([]event.Event, error) {
		events, err := s.Load(ctx, stream, after)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		name := fmt.Sprint(stream, " after ", after)
		if old, ok := copies[name]; ok && len(old) < len(events) && rand.IntN(4) == 0 {
			return old, nil
		}
		copies[name] = events
		return events, nil
	}
}

// TestBrokenStores checks that the model detects each fault within a run, and reports nothing
// without a fault.
func TestBrokenStores(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]*broken{
		"intact":                     {},
		"rejects stored appends":     {append: rejectsStoredAppends},
		"drops acknowledged appends": {append: dropsAcknowledgedAppends},
		"checks, then appends":       {append: checksThenAppends},
		"splits batches":             {append: splitsBatches},
		"forgets keys":               {append: forgetsKeys},
		"reads old copies":           {load: readsOldCopies()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := runInProcess(t, b)
			findings := judge(shelves, h.settled(), name == "intact")
			if name == "intact" {
				if findings = append(findings, h.beyondShelves()...); len(findings) > 0 {
					t.Errorf("findings in a store without faults:\n%s", strings.Join(findings, "\n"))
				}
			} else if len(findings) == 0 || !strings.HasPrefix(findings[0], "no order") {
				t.Errorf("the fault is not detected in %d operations: %v", len(h.operations), findings)
			}
		})
	}
}

// runInProcess runs clients on a store in this process until the history is long enough to show
// every fault.
func runInProcess(t *testing.T, b *broken) storeHistory {
	t.Helper()
	const enough = 1000
	path := filepath.Join(t.TempDir(), "events.db")
	store, err := sqlite.Open(t.Context(), path, event.Order)
	if err != nil {
		t.Fatal(err)
	}
	b.Store = store
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	ops := map[string]storeOp{}
	clients := &storeClients{store: b, number: clientsOfProcess, record: func(op storeOp) error {
		mu.Lock()
		defer mu.Unlock()
		if ops[op.ID] = op; len(ops) >= enough {
			cancel()
		}
		return nil
	}}
	if err := clients.run(ctx); err != nil {
		t.Fatal(err)
	}
	// An append whose client has gone may still be committed. Close waits for it, so the contents are
	// final.
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = sqlite.Open(t.Context(), path, event.Order); err != nil {
		t.Fatal(err)
	}
	var h storeHistory
	for _, op := range ops {
		h.operations = append(h.operations, op)
	}
	if h.contents, err = readContents(t.Context(), store, h.operations); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}
