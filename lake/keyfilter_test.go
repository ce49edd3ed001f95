package lake

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

// The first event of a stream that comes a second time changes nothing, whatever the lander remembers of the stream,
// and however much has happened to the table since.
func TestFirstEventThatComesAgain(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(w *stateWorld, g *generator){
		"at once":                         func(*stateWorld, *generator) {},
		"to a session that knows nothing": func(w *stateWorld, _ *generator) { w.restart(0) },
		"after other streams have taken its place in memory": func(w *stateWorld, g *generator) {
			w.forget()
			_, e := g.placed()
			w.topic[0] = append(w.topic[0], e)
			w.mustLand(0, 0, 1)
		},
		"after the files were rewritten": func(w *stateWorld, _ *generator) {
			w.maintain(func() {})
			w.restart(0)
		},
		"after another lander has had the partition": func(w *stateWorld, g *generator) {
			_, e := g.placed()
			w.topic[0] = append(w.topic[0], e)
			w.mustLand(1, 0, 1)
			w.topic[0] = append(w.topic[0], e)
		},
		"after the other lander has landed it": func(w *stateWorld, g *generator) {
			o, e := g.placed()
			w.topic[0] = append(w.topic[0], e, g.confirmed(o))
			w.mustLand(0, 0, 1)
			w.mustLand(1, 0, 1)
			w.topic[0] = append(w.topic[0], e)
		},
		"beside the first of others": func(w *stateWorld, g *generator) {
			w.restart(0)
			for range 20 {
				_, e := g.placed()
				w.topic[0] = append(w.topic[0], e)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newStateWorld(t, ordersCurrent, 2)
			g := newGenerator(21)
			var first []event.Event
			for range 3 {
				o, placed := g.placed()
				first = append(first, placed)
				w.topic[0] = append(w.topic[0], placed, g.linesAdded(o), g.confirmed(o))
			}
			w.mustLand(0, 0, len(w.topic[0]))
			meanwhile(w, g)
			w.topic[0] = append(w.topic[0], first...)
			changed := first[0]
			changed.ID, changed.RecordedAt = first[1].ID, changed.RecordedAt.Add(1000) // another event with the same version
			w.topic[0] = append(w.topic[0], changed)
			w.mustLand(0, 0, len(w.topic[0]))
			w.check("the first events again")
			w.topic[0] = append(w.topic[0], first...)
			w.mustLand(0, 0, len(w.topic[0]))
			w.check("the first events once more")
		})
	}
}

// forget has a lander forget the rows that it remembers, as others take their place.
func (w *stateWorld) forget() {
	switch rows := w.landers[0].rows.(type) {
	case *states[orderState]:
		rows.known.Purge()
	default:
		w.t.Fatalf("rows of %T", rows)
	}
}

// A stream that is new is not looked up, though the session has forgotten all, and the table has others.
func TestNewStreamsAreNotLookedUp(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, ordersCurrent, 1)
	g := newGenerator(23)
	const orders, rounds = 500, 4
	read, looked := 0, 0
	for round := range rounds {
		if round == rounds/2 {
			w.restart(0)
		}
		w.forget()
		for range orders {
			_, e := g.placed()
			w.topic[0] = append(w.topic[0], e)
		}
		b := w.gather(0, 0, orders)
		held := w.landers[0].rows.(upserts)
		if n := len(held.missing(b.from)); n > 0 {
			t.Errorf("round %d: %d are looked up", round, n)
		}
		if held.wantsKeys() {
			read++
			f, err := readKeys(t.Context(), w.load(), held.columns()[0].Name, w.stands())
			if err != nil {
				t.Fatal(err)
			}
			held.keys(f)
		}
		looked += len(held.doubtful())
		if err := w.land(t.Context(), 0, b); err != nil {
			t.Fatal(err)
		}
	}
	w.check("landing")
	if read != 2 {
		t.Errorf("the keys were read %d times, want once in each of two sessions", read)
	}
	if looked > orders*rounds/50 {
		t.Errorf("%d of %d new streams are looked up", looked, orders*rounds)
	}
}

// A filter knows every key that was added, and few others.
func TestKeyFilter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := newKeyFilter(0, nil)
		keys := rapid.SliceOfN(rapid.String(), 0, 200).Draw(t, "keys")
		for _, k := range keys {
			f.add(k)
		}
		for _, k := range keys {
			if !f.may(k) {
				t.Fatalf("%q was added", k)
			}
		}
	})
	f := newKeyFilter(leastFilter/2, nil)
	for i := range leastFilter {
		f.add(fmt.Sprint("key ", i))
	}
	wrong := 0
	for i := range 100_000 {
		if f.may(fmt.Sprint("another ", i)) {
			wrong++
		}
	}
	if wrong > 2000 {
		t.Errorf("a full filter takes %d of 100000 other keys for known", wrong)
	}
}

// A filter is good for what it was told, and no further.
func TestKeyFilterKnowsHowFarItIs(t *testing.T) {
	t.Parallel()
	f := newKeyFilter(0, map[int32]int64{1: 7})
	for _, c := range []struct {
		partition int32
		upTo      int64
		want      bool
	}{{1, 7, true}, {1, 8, false}, {1, 6, false}, {2, 0, true}, {2, 1, false}} {
		if got := f.knows(c.partition, c.upTo); got != c.want {
			t.Errorf("partition %d up to %d: %v", c.partition, c.upTo, got)
		}
	}
	f.keys = f.capacity + 1
	if f.knows(1, 7) {
		t.Error("it is full, and a larger one could be made")
	}
	if (*keyFilter)(nil).knows(2, 0) {
		t.Error("none knows nothing")
	}
}
