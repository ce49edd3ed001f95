package event_test

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

// record is the part of a Kafka record that a Sequence reads.
type record struct {
	at      event.Position
	headers []event.Header
}

// TestSequenceAcceptsEachEventOnce checks that each event of a partition is accepted once, whichever
// records are copied and wherever a reader restarts. The relay publishes in order. It publishes
// behind a later event only if a part of its transaction was on the log before, and marks that.
func TestSequenceAcceptsEachEventOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var log []record
		var want, got []event.Position
		var highest event.Position
		var reader event.Sequence
		put := func(r record) {
			log = append(log, r)
			next, err := reader.Next(r.at, r.headers)
			switch {
			case err == nil:
				got = append(got, r.at)
			case !errors.Is(err, event.ErrDuplicate) || !errors.Is(err, event.ErrNotEvent) || next != reader:
				t.Fatalf("%v, and %v after %v", err, next, reader)
			}
			reader = next
			if r.at.Compare(highest) > 0 {
				highest = r.at
			}
		}
		copyOrRestart := func() {
			for range rapid.IntRange(0, 4).Draw(t, "disturbances") {
				if len(log) > 0 && rapid.Bool().Draw(t, "copy") {
					put(rapid.SampledFrom(log).Draw(t, "copied"))
					continue
				}
				back, err := event.ParseSequence(reader.String())
				if err != nil || back != reader {
					t.Fatalf("%v was parsed as %v, %v", reader, back, err)
				}
			}
		}
		replay := func() { // replays everything in the partition
			for _, r := range slices.Clone(log) {
				put(r)
			}
		}
		var store event.Position
		for range rapid.IntRange(1, 8).Draw(t, "transactions") {
			var first, rest []event.Position
			for range rapid.IntRange(1, 6).Draw(t, "events") {
				store.Transaction += rapid.Uint64Range(0, 2).Draw(t, "transaction")
				store.Sequence++
				want = append(want, store)
				if rapid.IntRange(0, 3).Draw(t, "published before") == 0 {
					first = append(first, store)
				} else {
					rest = append(rest, store)
				}
			}
			for _, p := range first {
				put(record{at: p})
				copyOrRestart()
			}
			for passed := highest; len(rest) > 0; passed = highest {
				some := rapid.IntRange(1, len(rest)).Draw(t, "until the next crash")
				for _, p := range rest[:some] {
					r := record{at: p}
					if passed.Compare(p) > 0 {
						r.headers = []event.Header{{Key: "other"}, event.LateHeader(passed)}
					}
					put(r)
					copyOrRestart()
				}
				rest = rest[some:]
			}
			if rapid.IntRange(0, 3).Draw(t, "replay") == 0 {
				replay()
			}
		}
		slices.SortFunc(got, event.Position.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("accepted %v, want %v", got, want)
		}
	})
}

func TestSequenceDoesNotAllocate(t *testing.T) {
	var s event.Sequence
	var at event.Position
	headers := make([]event.Header, 12)
	allocations := testing.AllocsPerRun(100, func() {
		at.Sequence++
		next, err := s.Next(at, headers)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	})
	if allocations != 0 {
		t.Errorf("%v allocations per event, want none", allocations)
	}
}

func FuzzParseSequence(f *testing.F) {
	for _, text := range []string{"", "0.0", "1.2", "1.2/1.1", "1.2/1.3", "1.2/0.0", "1.2/", "/1.2", "01.2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := event.ParseSequence(text)
		if err != nil {
			return
		}
		if back, err := event.ParseSequence(s.String()); err != nil || back != s {
			t.Fatalf("%q was parsed as %v, then as %v, %v", text, s, back, err)
		}
	})
}
