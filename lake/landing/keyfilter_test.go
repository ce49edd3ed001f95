package landing

import (
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/tables"
)

// A duplicate of a stream's first event changes nothing, whatever the lander remembers of the
// stream and whatever has happened to the table since.
func TestDuplicateFirstEvent(t *testing.T) {
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
			w := newStateWorld(t, tables.OrdersCurrent, 2)
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

// forget drops the rows that a lander remembers, as if newer ones had replaced them.
func (w *stateWorld) forget() {
	w.landers[0].to.upserts.(interface{ Forget() }).Forget()
}

// A new stream is not looked up, although the session remembers nothing and the table has other
// streams.
func TestNewStreamsAreNotLookedUp(t *testing.T) {
	t.Parallel()
	w := newStateWorld(t, tables.OrdersCurrent, 1)
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
		b := w.collect(0, 0, orders)
		held := w.landers[0].to.upserts
		if n := len(held.LookupKeys(b.from)); n > 0 {
			t.Errorf("round %d: %d are looked up", round, n)
		}
		if held.NeedsKeys() {
			read++
			f, err := readKeys(t.Context(), w.load(), held.Columns()[0].Name, w.offsets())
			if err != nil {
				t.Fatal(err)
			}
			held.SetKeys(f)
		}
		looked += len(held.UncertainKeys())
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
