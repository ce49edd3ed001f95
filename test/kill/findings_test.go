package kill

import (
	"testing"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
)

// TestFindingsOfVisits runs the audit's check of visitors' events on handmade sides.
func TestFindingsOfVisits(t *testing.T) {
	t.Parallel()
	sent := map[string]visit{"a": {acknowledged: true}, "b": {acknowledged: true}, "given up": {}}
	for name, c := range map[string]struct {
		have          map[string]int
		lost, doubled int
	}{
		"nothing wrong":                  {have: map[string]int{"a": 1, "b": 1}},
		"what was given up may be there": {have: map[string]int{"a": 1, "b": 1, "given up": 1}},
		"what was given up is doubled":   {have: map[string]int{"a": 1, "b": 1, "given up": 2}, doubled: 1},
		"one is lost, one is doubled":    {have: map[string]int{"a": 2}, lost: 1, doubled: 1},
	} {
		f := &findings{}
		if f.traceVisits("the topic", sent, c.have); f.lost != c.lost || f.doubled != c.doubled {
			t.Errorf("%s: %d lost, %d doubled; want %d, %d", name, f.lost, f.doubled, c.lost, c.doubled)
		}
	}
}

// TestFindings runs the audit's checks on handmade sides. Each case says what differs from three
// acknowledged commands in their order.
func TestFindings(t *testing.T) {
	t.Parallel()
	written := func(key string, version uint64) event.Event {
		return event.Event{ID: uuid.Must(uuid.NewV7()), Stream: "s", Version: version, CausationID: key}
	}
	one, two, three := written("a", 1), written("b", 2), written("c", 3)
	acknowledged := []entry{
		{key: "a", token: event.Token{Stream: "s", Version: 1}},
		{key: "b", token: event.Token{Stream: "s", Version: 2}},
		{key: "c", token: event.Token{Stream: "s", Version: 3}},
	}
	all := []event.Event{one, two, three}
	for name, c := range map[string]struct {
		store, topic              []event.Event
		lost, doubled, disordered int
	}{
		"nothing wrong":                             {store: all, topic: all},
		"an unacknowledged event may exist":         {store: append(all[:3:3], written("d", 4)), topic: append(all[:3:3], written("d", 4))},
		"the store lost a command":                  {store: all[:2], topic: all[:2], lost: 1},
		"the store has another event at a version":  {store: []event.Event{one, two, written("x", 3)}, topic: all[:2], lost: 1},
		"the store has a command twice":             {store: append(all[:3:3], written("a", 4)), topic: all, doubled: 1},
		"the store has an unanswered command twice": {store: append(all[:3:3], written("u", 4), written("u", 5)), topic: all, doubled: 1},
		"the topic lost the last event":             {store: all, topic: all[:2], lost: 1},
		"the topic lost an event in the middle":     {store: all, topic: []event.Event{one, three}, lost: 1, disordered: 1},
		"the topic has an event twice":              {store: all, topic: []event.Event{one, two, two, three}, doubled: 1},
		"the topic has two events at a version":     {store: all, topic: append(all[:3:3], written("y", 3)), doubled: 1},
		"the topic has the wrong order":             {store: all, topic: []event.Event{two, one, three}, disordered: 2},
		"the topic has a gap behind the last event": {store: all, topic: []event.Event{one, two, three, written("z", 5)}, disordered: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &findings{}
			store, topic := f.newSide("the store"), f.newSide("the topic")
			for _, e := range c.store {
				store.add(e)
			}
			for _, e := range c.topic {
				topic.add(e)
			}
			f.trace(acknowledged, store, topic)
			if f.lost != c.lost || f.doubled != c.doubled || f.disordered != c.disordered {
				t.Errorf("%d lost, %d doubled, %d out of order; want %d, %d, %d: %q",
					f.lost, f.doubled, f.disordered, c.lost, c.doubled, c.disordered, f.examples)
			}
			if right := c.lost+c.doubled+c.disordered == 0; right != (f.err() == nil) {
				t.Errorf("err() = %v", f.err())
			}
		})
	}
}
