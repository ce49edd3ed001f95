package adapter_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/polltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// batch returns a batch with one event.
func batch(stream string) eventstore.Batch {
	e := event.Event{ID: uuid.New(), Type: "t", OccurredAt: time.Now(), RecordedAt: time.Now()}
	return eventstore.Batch{Streams: []eventstore.StreamAppend{{Stream: stream, Events: []event.Event{e}}}}
}

// disk is a store function that blocks until the test releases it, and reports each group.
type disk struct {
	groups chan string   // the streams of each group, joined
	answer chan struct{} // each value releases one group
}

func newDisk() *disk { return &disk{groups: make(chan string), answer: make(chan struct{})} }

func (d *disk) store(group []*adapter.Call) []*adapter.Call {
	d.groups <- names(group)
	<-d.answer
	for _, c := range group {
		c.Resolve(eventstore.Appended{Position: event.Position{Sequence: uint64(len(group))}}, nil)
	}
	return nil
}

// names joins the streams of a group.
func names(group []*adapter.Call) string {
	var streams []string
	for _, c := range group {
		streams = append(streams, c.Batch.Streams[0].Stream)
	}
	return strings.Join(streams, " ")
}

// Calls that arrive while a group is stored form the next group, and each call gets its group's
// result.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	d := newDisk()
	w := adapter.StartWriter(d.store)
	results := make(chan uint64)
	call := func(stream string) {
		done, err := w.Append(context.Background(), batch(stream))
		if err != nil {
			t.Error(err)
		}
		results <- done.Position.Sequence
	}
	go call("first")
	if got := <-d.groups; got != "first" {
		t.Fatalf("the first group is %q", got)
	}
	const waiting = 20
	for i := range waiting {
		go call(fmt.Sprint(i))
	}
	awaitQueued(t, w, waiting)
	d.answer <- struct{}{}
	if got := strings.Fields(<-d.groups); len(got) != waiting {
		t.Errorf("the second group is %v, want all waiting calls", got)
	}
	d.answer <- struct{}{}
	sum := uint64(0)
	for range waiting + 1 {
		sum += <-results
	}
	if sum != waiting*waiting+1 {
		t.Errorf("the calls did not get their group's results: %d", sum)
	}
	w.Stop()
}

// A caller whose context ends learns from the error whether its batch may be stored: a queued batch
// is not, a claimed one may be.
func TestCanceledWhileQueuedIsNotStored(t *testing.T) {
	t.Parallel()
	d := newDisk()
	w := adapter.StartWriter(d.store)
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	call := func(stream string) {
		_, err := w.Append(ctx, batch(stream))
		errs <- fmt.Errorf("%s: %w", stream, err)
	}
	go call("claimed")
	<-d.groups
	go call("queued")
	awaitQueued(t, w, 1)
	cancel()
	messages := map[string]string{}
	for range 2 {
		err := <-errs
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v is not the context's error", err)
		}
		stream, text, _ := strings.Cut(err.Error(), ":")
		messages[stream] = text
	}
	if !strings.Contains(messages["claimed"], "may be stored") || !strings.Contains(messages["queued"], "not stored") {
		t.Errorf("the callers got the errors %q", messages)
	}
	d.answer <- struct{}{}
	w.Stop() // no second group is stored, so "queued" is not stored
}

// Calls that the store function returns for a retry come first in the next group, in order.
func TestRetriedCallsComeFirst(t *testing.T) {
	t.Parallel()
	groups, answer := make(chan string), make(chan struct{})
	w := adapter.StartWriter(func(group []*adapter.Call) []*adapter.Call {
		groups <- names(group)
		<-answer
		group[0].Resolve(eventstore.Appended{}, nil)
		return group[1:]
	})
	done := make(chan error)
	call := func(stream string) {
		_, err := w.Append(context.Background(), batch(stream))
		done <- err
	}
	go call("a")
	<-groups
	go call("b")
	awaitQueued(t, w, 1)
	go call("c")
	awaitQueued(t, w, 2)
	answer <- struct{}{}
	if got := <-groups; got != "b c" {
		t.Errorf("the second group is %q", got)
	}
	go call("d")
	awaitQueued(t, w, 1)
	answer <- struct{}{}
	if got := <-groups; got != "c d" {
		t.Errorf("the third group is %q", got)
	}
	answer <- struct{}{}
	if got := <-groups; got != "d" {
		t.Errorf("the last group is %q", got)
	}
	answer <- struct{}{}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.Stop()
}

// awaitQueued blocks until n calls are queued.
func awaitQueued(t *testing.T, w *adapter.Writer, n int) {
	t.Helper()
	polltest.Until(t, fmt.Sprintf("%d calls are queued", n), func() bool { return w.Queued() == n })
}

// Close rejects new calls and waits for the ones in progress. Only the first Close returns true.
func TestInFlight(t *testing.T) {
	t.Parallel()
	g := adapter.NewInFlight()
	if err := g.Enter(); err != nil {
		t.Fatal(err)
	}
	first := make(chan bool)
	go func() { first <- g.Close() }()
	<-g.Closing()
	if err := g.Enter(); !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("Enter after Close: %v, want ErrClosed", err)
	}
	select {
	case <-first:
		t.Error("Close returned while a call was in progress")
	default:
	}
	g.Leave()
	if !<-first {
		t.Error("the first Close returned false")
	}
	if g.Close() {
		t.Error("the second Close returned true")
	}
}

// Broadcast wakes the present waiters, and has no effect on later ones.
func TestBroadcaster(t *testing.T) {
	t.Parallel()
	var b adapter.Broadcaster
	b.Broadcast() // without a waiter
	before := b.Next()
	b.Broadcast()
	<-before
	select {
	case <-b.Next():
		t.Error("a waiter was woken without a Broadcast")
	default:
	}
}
