package streams

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

// In whatever order workers finish, the position is the end of the consecutive finished records at
// the front.
func TestPositionIsConsecutive(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		start := rapid.Int64Range(0, 100).Draw(rt, "start")
		marks := NewWatermarks()
		p := newPartition("topic", 0, startAt(Applied{Next: start}), marks)
		type entry struct {
			number uint64
			next   int64
			record bool
			done   bool
			at     event.Position
			asOf   time.Time
		}
		var entries []entry
		next, sequence := start, uint64(0)
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0, 1: // a record, perhaps after markers
				next += rapid.Int64Range(0, 2).Draw(rt, "gap")
				sequence++
				e := event.Event{
					Position: event.Position{Sequence: sequence}, RecordedAt: time.UnixMicro(int64(sequence)).UTC(),
				}
				n := p.add(next, e, 0)
				next++
				entries = append(entries, entry{n, next, true, false, e.Position, e.RecordedAt})
			case 2:
				next += rapid.Int64Range(0, 2).Draw(rt, "markers")
				p.end(next)
				entries = append(entries, entry{next: next, done: true})
			case 3:
				var open []int
				for i, e := range entries {
					if !e.done {
						open = append(open, i)
					}
				}
				if len(open) == 0 {
					continue
				}
				i := rapid.SampledFrom(open).Draw(rt, "which")
				if !p.enter() {
					rt.Fatal("a partition that nobody took away refused")
				}
				applied, isEvent := rapid.Bool().Draw(rt, "applied"), rapid.Bool().Draw(rt, "is an event")
				p.leave(entries[i].number, applied, isEvent)
				entries[i].done = applied
				entries[i].record = entries[i].record &&
					(isEvent || !applied) // a record that is not an event moves no watermark
			}
			want := Applied{Next: start}
			for _, e := range entries {
				if !e.done {
					break
				}
				want.Next = e.next
				if e.record {
					want.Watermark, want.AsOf = e.at, e.asOf
				}
			}
			got, _ := marks.Applied("topic", 0)
			if got != want {
				rt.Fatalf("position %v, want %v, of %v", got, want, entries)
			}
		}
	})
}

// drain drops waiting records and blocks for those inside the sink. Their result still counts.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := newPartition("topic", 0, start{}, NewWatermarks())
	inside, waiting := p.add(0, event.Event{}, 0), p.add(1, event.Event{}, 0)
	if !p.enter() {
		t.Fatal("refused")
	}
	drained := make(chan struct{})
	go func() {
		p.drain()
		close(drained)
	}()
	for p.enter() { // until drain begins
		p.leave(waiting, false, true)
	}
	select {
	case <-drained:
		t.Fatal("drained while a record was inside the sink")
	default:
	}
	p.leave(inside, true, true)
	<-drained
	if m, ok := p.unsaved(); !ok || m.To.Next != 1 {
		t.Fatalf("the record that was applied during drain is not in the position: %v, %v", m, ok)
	}
}

// ParseApplied reads what String returns, and positions of earlier versions, and rejects anything
// else.
func TestAppliedString(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		want := Applied{
			Next: rapid.Int64().Draw(rt, "next"),
			Watermark: event.Position{
				Transaction: rapid.Uint64().Draw(rt, "transaction"), Sequence: rapid.Uint64().Draw(rt, "sequence"),
			},
			Topic:      rapid.SampledFrom([]string{"", "AAAAAAAAAAAAAAAAAAAAAQ", "x"}).Draw(rt, "topic"),
			Partitions: rapid.Int32().Draw(rt, "partitions"),
		}
		if micros := rapid.Int64Range(0, 1<<52).Draw(rt, "micros"); micros != 0 {
			want.AsOf = time.UnixMicro(micros).UTC()
		}
		got, err := ParseApplied(want.String())
		if err != nil || got != want {
			rt.Fatalf("%q: %v, %v, want %v", want.String(), got, err, want)
		}
	})
	// Positions of an earlier version had no topic id.
	earlier := Applied{
		Next: 7, Watermark: event.Position{Transaction: 3, Sequence: 2}, AsOf: time.UnixMicro(1000).UTC(),
	}
	if got, err := ParseApplied("7 3.2 1000"); err != nil || got != earlier || got.String() != "7 3.2 1000" {
		t.Errorf("position of an earlier version: %+v, %v", got, err)
	}
	for _, s := range []string{"", "1", "1 2", "1 2.3", "x 2.3 4", "1 2.x 4", "1 2.3 x", "1 2.3 4 5", "1 2.3 4 x id", "1 2.3 4 99999999999 id", "1 2.3 4 5 id more"} {
		if a, err := ParseApplied(s); err == nil {
			t.Errorf("%q is %v", s, a)
		}
	}
}

// Every position that ParseApplied accepts has a stable form.
func FuzzParseApplied(f *testing.F) {
	f.Add("12 3.4 1700000000000000")
	f.Add("12 3.4 1700000000000000 4 AAAAAAAAAAAAAAAAAAAAAQ")
	f.Add("12 3.4 0 0 -")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseApplied(s)
		if err != nil {
			return
		}
		if b, err := ParseApplied(a.String()); err != nil || a != b {
			t.Fatalf("%q: %v, then %v, %v", s, a, b, err)
		}
	})
}

func startAt(a Applied) start { return start{saved: a, at: a} }
