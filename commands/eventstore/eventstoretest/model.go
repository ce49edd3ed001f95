package eventstoretest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// model compares random calls with a model of maps and slices. It finds combinations that the other
// checks do not list, and rapid reduces a failure to a short sequence of calls.
//
// All runs share one store, because opening a database for each would be slow. Each run uses its
// own names, and reads only events after the head at its start.
func model(t *testing.T, db Database) {
	ctx, s := testContext(t), db.open(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		head, err := s.Head(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		m := &machine{
			ctx: ctx, store: s, name: fmt.Sprintf("run %d, ", run), begin: head, head: head,
			versions: map[string]uint64{}, answers: map[string]eventstore.Answer{},
			snapshots: map[string]eventstore.Snapshot{},
		}
		// rapid calls the function with the empty name after each of the others.
		rt.Repeat(map[string]func(*rapid.T){
			"append": m.append, "load": m.load, "read": m.read, "": m.checkHead,
		})
	})
}

// machine is the model, and the store that it is compared with. rapid calls append, load and read
// in random order, and checkHead after each of them.
type machine struct {
	ctx   context.Context // a run of the model is one call
	store eventstore.Store
	name  string // prefix of this run's streams and keys

	// The model's state. events are in the order of their appends, without positions. versions,
	// answers and snapshots have the full names with the prefix as their keys.
	begin, head event.Position // head at the start of the run, and now
	events      []event.Event
	versions    map[string]uint64
	answers     map[string]eventstore.Answer
	snapshots   map[string]eventstore.Snapshot
}

// stream draws one of a few streams, so that calls conflict often.
func (m *machine) stream(t *rapid.T) string {
	return m.name + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "stream")
}

// append draws a batch, stores it and compares the result with the model's. The batch may have
// streams, an answer, a snapshot, several of them or none.
func (m *machine) append(t *rapid.T) {
	var b eventstore.Batch
	// The batch appends to up to three different streams.
	versions := map[string]uint64{}
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID[string])
	for _, name := range names.Draw(t, "streams") {
		stream := m.name + name
		expected := m.versions[stream]
		// One in five versions is drawn, and so usually wrong.
		if rapid.IntRange(0, 4).Draw(t, "wrong") == 0 {
			expected = rapid.Uint64Range(0, 6).Draw(t, "expected")
		}
		events := newEvents(rapid.IntRange(1, 3).Draw(t, "events"))
		versions[stream] = expected + uint64(len(events))
		b.Streams = append(b.Streams, eventstore.StreamAppend{
			Stream: stream, ExpectedVersion: expected, Events: events,
		})
	}
	// A few keys, so that some are used again.
	if key := rapid.SampledFrom([]string{"", "k", "l", "m", "n"}).Draw(t, "key"); key != "" {
		b.Answer = eventstore.Answer{
			Key: m.name + key, Fingerprint: rapid.SliceOf(rapid.Byte()).Draw(t, "fingerprint"),
			Response: rapid.SliceOf(rapid.Byte()).Draw(t, "response"),
			Version:  rapid.Uint64Range(0, 9).Draw(t, "version"),
		}
	}
	if rapid.Bool().Draw(t, "snapshot") {
		b.Snapshots = []eventstore.Snapshot{{
			Stream: m.stream(t), Version: rapid.Uint64Range(1, 9).Draw(t, "version"),
			Schema: rapid.IntRange(0, 3).Draw(t, "schema"), State: rapid.SliceOf(rapid.Byte()).Draw(t, "state"),
		}}
	}

	// The model decides with the state before the append.
	done, err := m.store.Append(m.ctx, b)
	if !m.refuses(t, b, err) {
		m.apply(t, b, done.Position)
	}
}

// refuses reports whether the model refuses the batch. It fails unless the store did the same. The
// order of the checks is part of the contract: first the key, then the versions.
func (m *machine) refuses(t *rapid.T, b eventstore.Batch, err error) bool {
	// An empty key is never in the map, so batches without a key pass.
	if first, ok := m.answers[b.Answer.Key]; ok {
		answered := (*eventstore.AnsweredError)(nil)
		if !errors.As(err, &answered) || !sameAnswer(answered.Answer, first) {
			t.Fatalf("key %q is answered by %+v: %v", b.Answer.Key, first, err)
		}
		return true
	}
	for _, s := range b.Streams {
		if m.versions[s.Stream] == s.ExpectedVersion {
			continue
		}
		// If several streams conflict, the error may name any of them.
		conflict := (*eventstore.ConflictError)(nil)
		if !errors.As(err, &conflict) ||
			conflict.Actual != m.versions[conflict.Stream] || conflict.Actual == conflict.Expected {
			t.Fatalf("stream %q is at version %d, not %d: %v", s.Stream, m.versions[s.Stream], s.ExpectedVersion, err)
		}
		return true
	}
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return false
}

// apply adds a stored batch to the model. last is the position that the store returned.
func (m *machine) apply(t *rapid.T, b eventstore.Batch, last event.Position) {
	for _, s := range b.Streams {
		for _, e := range s.Events {
			// These are the fields that the store sets.
			m.versions[s.Stream]++
			e.Aggregate, e.Stream, e.Version = Aggregate.Name, s.Stream, m.versions[s.Stream]
			m.events = append(m.events, e)
		}
	}
	// Positions grow with each append. A batch without events has the head as its position.
	switch {
	case len(b.Streams) > 0 && last.Compare(m.head) <= 0:
		t.Fatalf("Append returned position %v after %v", last, m.head)
	case len(b.Streams) == 0 && last != m.head:
		t.Fatalf("a batch without events has position %v, the head is %v", last, m.head)
	}
	m.head = last
	if b.Answer.Key != "" {
		b.Answer.Position = last
		m.answers[b.Answer.Key] = b.Answer
	}
	// An older snapshot does not replace a newer one.
	for _, s := range b.Snapshots {
		if s.Version >= m.snapshots[s.Stream].Version {
			m.snapshots[s.Stream] = s
		}
	}
}

// load compares a stream, its snapshot and all answers with the model's. The drawn version may be
// beyond the end of the stream.
func (m *machine) load(t *rapid.T) {
	stream, after := m.stream(t), rapid.Uint64Range(0, 5).Draw(t, "after")
	got, err := m.store.Load(m.ctx, stream, after)
	if err != nil {
		t.Fatal(err)
	}
	var want []event.Event
	for _, e := range m.events {
		if e.Stream == stream && e.Version > after {
			want = append(want, e)
		}
	}
	compare(t, got, want)

	snap, ok, err := m.store.LoadSnapshot(m.ctx, stream)
	if want, exists := m.snapshots[stream]; err != nil || ok != exists || !sameSnapshot(snap, want) {
		t.Fatalf("the snapshot is %+v %v (%v), want %+v %v", snap, ok, err, want, exists)
	}
	for _, key := range []string{"k", "l", "m", "n"} {
		a, ok, err := m.store.LoadAnswer(m.ctx, m.name+key)
		if want, exists := m.answers[m.name+key]; err != nil || ok != exists || !sameAnswer(a, want) {
			t.Fatalf("answer %q is %+v %v (%v), want %+v %v", key, a, ok, err, want, exists)
		}
	}
}

// read reads everything since the start of the run, page by page. Small pages often end within a
// batch, so they show that Read resumes at any position.
func (m *machine) read(t *rapid.T) {
	limit := rapid.IntRange(1, 5).Draw(t, "limit")
	var got []event.Event
	// Read until a page is empty. A short page does not mean the end.
	for after := m.begin; ; {
		some, err := m.store.Read(m.ctx, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		// Fewer than the limit are allowed, more are not.
		if len(some) > limit {
			t.Fatalf("read %d events, the limit is %d", len(some), limit)
		}
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			if e.Position.Compare(after) <= 0 {
				t.Fatalf("position %v came after %v", e.Position, after)
			}
			after = e.Position
		}
		got = append(got, some...)
	}
	compare(t, got, m.events)
	// Batches without events do not move the head, so it is the position of the last event.
	if len(got) > 0 && got[len(got)-1].Position != m.head {
		t.Fatalf("the last event has position %v, Append returned %v", got[len(got)-1].Position, m.head)
	}
}

// checkHead waits until the store has released what was appended, then compares its head. A store
// may hold events back while older transactions are open.
func (m *machine) checkHead(t *rapid.T) {
	for {
		head, err := m.store.Head(m.ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch c := head.Compare(m.head); {
		case c == 0:
			return
		case c > 0:
			t.Fatalf("head is %v, the last Append returned %v", head, m.head)
		}
		// Wait returns when there may be events after head, so the loop does not spin.
		if err := m.store.Wait(m.ctx, head); err != nil {
			t.Fatal(err)
		}
	}
}

// compare compares all fields but the positions, which the model does not predict.
func compare(t *rapid.T, got, want []event.Event) {
	if len(got) != len(want) {
		t.Fatalf("got %d events, want %d", len(got), len(want))
	}
	for i := range got {
		e := want[i]
		e.Position = got[i].Position
		if d := difference(got[i], e); d != "" {
			t.Fatalf("event %d: %s", i, d)
		}
	}
}
