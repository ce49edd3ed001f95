package commands_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/commandstest"
	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// faulty is a store that fails on demand.
type faulty struct {
	eventstore.Store
	append     func(eventstore.Batch) error // before the append; nil means success
	load       func(stream string, after uint64) ([]event.Event, error)
	loadAnswer func() error
}

func (f *faulty) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if f.append != nil {
		if err := f.append(b); err != nil {
			return eventstore.Appended{}, err
		}
	}
	return f.Store.Append(ctx, b)
}

func (f *faulty) Load(ctx context.Context, stream string, after uint64) ([]event.Event, error) {
	if f.load != nil {
		return f.load(stream, after)
	}
	return f.Store.Load(ctx, stream, after)
}

func (f *faulty) LoadAnswer(ctx context.Context, key string) (eventstore.Answer, bool, error) {
	if f.loadAnswer != nil {
		return eventstore.Answer{}, false, f.loadAnswer()
	}
	return f.Store.LoadAnswer(ctx, key)
}

// lines is a log that a test can read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A conflict with another process is retried and does not reach the caller.
func TestConflictIsRetried(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	store := &faulty{Store: newStore(t), append: func(b eventstore.Batch) error {
		if calls.Add(1) <= 3 {
			return &eventstore.ConflictError{Stream: b.Streams[0].Stream, Expected: 0, Actual: 1}
		}
		return nil
	}}
	place(t, orders(t, store), placing(1, "key"))
	if n := calls.Load(); n != 4 {
		t.Errorf("%d attempts, want 4", n)
	}
}

// If the conflicts do not end, the caller gets Aborted.
func TestPersistentConflictIsAborted(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	store := &faulty{Store: newStore(t), append: func(b eventstore.Batch) error {
		calls.Add(1)
		return &eventstore.ConflictError{Stream: b.Streams[0].Stream, Expected: 0, Actual: 1}
	}}
	_, err := orders(t, store).PlaceOrder(t.Context(), connect.NewRequest(placing(1, "key")))
	if connect.CodeOf(err) != connect.CodeAborted || calls.Load() < 2 {
		t.Errorf("%d attempts, then %v", calls.Load(), err)
	}
}

// Retries end with the caller's context.
func TestConflictRetriesEndWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	store := &faulty{Store: newStore(t), append: func(b eventstore.Batch) error {
		if calls.Add(1) == 2 {
			cancel()
		}
		return &eventstore.ConflictError{Stream: b.Streams[0].Stream, Expected: 0, Actual: 1}
	}}
	_, err := orders(t, store).PlaceOrder(ctx, connect.NewRequest(placing(1, "key")))
	if connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("%v", err)
	}
}

// TestLostAcknowledgementIsRecovered checks a lost answer: the store has committed the batch but
// could not report it. When the command is sent again, it finds its first answer, even though the
// domain would now reject it.
func TestLostAcknowledgementIsRecovered(t *testing.T) {
	t.Parallel()
	whole := newStore(t)
	lost := false
	store := &faulty{Store: whole}
	store.append = func(b eventstore.Batch) error {
		if lost {
			return nil
		}
		lost = true
		if _, err := whole.Append(context.Background(), b); err != nil {
			t.Error(err)
		}
		return errors.New("connection reset by peer")
	}
	client := orders(t, store)
	m := placing(2, "key")
	m.OrderId = "0196f0c4-0000-7000-8000-00000000000a"
	if _, err := client.PlaceOrder(t.Context(), connect.NewRequest(m)); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Fatalf("want Unavailable, got %v", err)
	}
	if res := place(t, client, m); !res.GetReceipt().GetReplayed() || res.GetReceipt().GetVersion() != 1 {
		t.Errorf("%v", res)
	}
	if n := len(commandstest.Events(t, whole)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// Callers get a code, but no details of an internal error. The log has the details.
func TestStoreErrorsAreHidden(t *testing.T) {
	t.Parallel()
	const secret = "password=hunter2"
	broken := func() error { return errors.New(secret) }
	for name, c := range map[string]struct {
		damage func(*faulty)
		code   connect.Code
	}{
		"append fails":      {func(f *faulty) { f.append = func(eventstore.Batch) error { return broken() } }, connect.CodeUnavailable},
		"load fails":        {func(f *faulty) { f.load = func(string, uint64) ([]event.Event, error) { return nil, broken() } }, connect.CodeUnavailable},
		"load answer fails": {func(f *faulty) { f.loadAnswer = broken }, connect.CodeUnavailable},
		"store is closed":   {func(f *faulty) { f.append = func(eventstore.Batch) error { return eventstore.ErrClosed } }, connect.CodeUnavailable},
		"batch is invalid": {func(f *faulty) {
			f.append = func(eventstore.Batch) error { return errors.Join(eventstore.ErrInvalid, broken()) }
		}, connect.CodeInternal},
		"an event is damaged": {func(f *faulty) {
			f.load = func(stream string, _ uint64) ([]event.Event, error) {
				return []event.Event{{Stream: stream, Version: 1, Data: []byte{0xff}}}, nil
			}
		}, connect.CodeInternal},
		"an event has an unknown type": {func(f *faulty) {
			f.load = func(stream string, _ uint64) ([]event.Event, error) {
				return []event.Event{{Stream: stream, Version: 1, Type: "millrace.order.v9.OrderSung"}}, nil
			}
		}, connect.CodeInternal},
		"an event is missing": {func(f *faulty) {
			f.load = func(stream string, _ uint64) ([]event.Event, error) {
				return []event.Event{{Stream: stream, Version: 2}}, nil
			}
		}, connect.CodeInternal},
		"the store panics": {func(f *faulty) { f.append = func(eventstore.Batch) error { panic(secret) } }, connect.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log lines
			store := &faulty{Store: newStore(t)}
			client := orders(t, store, commands.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			m := placing(1, "")
			m.OrderId = "0196f0c4-0000-7000-8000-00000000000a"
			place(t, client, m)

			c.damage(store)
			_, err := client.ConfirmOrder(t.Context(), connect.NewRequest(&orderv1.ConfirmOrderRequest{OrderId: m.GetOrderId()}))
			if store.loadAnswer != nil { // looked up only for a rejected command
				m.IdempotencyKey = "key"
				_, err = client.PlaceOrder(t.Context(), connect.NewRequest(m))
			}
			if connect.CodeOf(err) != c.code || strings.Contains(err.Error(), secret) {
				t.Errorf("the caller got %v, want code %v", err, c.code)
			}
			if !strings.Contains(log.String(), "level=ERROR") {
				t.Errorf("no error in the log: %q", log.String())
			}

			store.append, store.load, store.loadAnswer = nil, nil, nil
			place(t, client, placing(1, "")) // and the service continues
		})
	}
}

// A caller whose deadline passes during the append gets DeadlineExceeded, not an internal error.
func TestDeadlineIsReported(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: newStore(t)}
	ended := make(chan struct{})
	store.append = func(eventstore.Batch) error { <-ended; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	context.AfterFunc(ctx, func() { close(ended) })
	_, err := orders(t, store).PlaceOrder(ctx, connect.NewRequest(placing(1, "")))
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("%v", err)
	}
}

// An event that no store accepts and a request beyond the limit are rejected before anything is
// stored.
func TestOversizedCommandIsRejected(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	client := orders(t, store)
	m := placing(5000, "")
	for _, l := range m.GetLines() {
		l.Description = strings.Repeat("x", 300)
	}
	_, err := client.PlaceOrder(t.Context(), connect.NewRequest(m))
	if r := commandstest.Rejection(t, err, connect.CodeInvalidArgument); r.GetRule() != "event_too_large" {
		t.Errorf("an event of 1.7 MB: %v", r)
	}
	for _, l := range m.GetLines() {
		l.Description = strings.Repeat("x", 1000) // longer than its rule allows, but the size is checked first
	}
	if _, err := client.PlaceOrder(t.Context(), connect.NewRequest(m)); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a request of 5 MB: %v", err)
	}
	if n := len(commandstest.Events(t, store)); n != 0 {
		t.Errorf("%d events", n)
	}
}
