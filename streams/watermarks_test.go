package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

func at(sequence uint64) event.Position { return event.Position{Sequence: sequence} }

// Wait returns when the partition of the key has reached the position, and not before.
func TestWaitForPartitionOfKey(t *testing.T) {
	t.Parallel()
	w := NewWatermarks()
	mine := kafka.Partition([]byte("key"), 4)
	waited := make(chan error, 1)
	go func() { waited <- w.Wait(t.Context(), "topic", "key", at(5)) }()

	// Another partition, another topic, a lower position, and a topic whose partitions are not all
	// known must not end a wait.
	for id := range int32(4) {
		if id != mine {
			w.set("topic", id, Applied{Next: 9, Watermark: at(9)})
		}
		w.set("other", id, Applied{Next: 9, Watermark: at(9)})
	}
	w.set("topic", mine, Applied{Next: 4, Watermark: at(4)})
	w.setEnds("topic", map[int32]int64{0: 9, 1: 9, 2: 9, 3: 9})
	select {
	case err := <-waited:
		t.Fatalf("satisfied too early: %v", err)
	default:
	}
	w.set("topic", mine, Applied{Next: 5, Watermark: at(5)})
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(t.Context(), "topic", "key", at(5)); err != nil {
		t.Fatalf("what has been reached must not be waited for: %v", err)
	}
}

// Wait returns the cause of its context.
func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	w := NewWatermarks()
	why := errors.New("no time")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := w.Wait(ctx, "topic", "key", at(1)); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
}

// Lag counts records up to the known ends, and is unknown until all partitions are known.
func TestLag(t *testing.T) {
	t.Parallel()
	w := NewWatermarks()
	lag := func(want uint64, known bool) {
		t.Helper()
		if got, ok := w.Lag("topic"); got != want || ok != known {
			t.Fatalf("lag %d, %v, want %d, %v", got, ok, want, known)
		}
	}
	lag(0, false)
	w.set("topic", 0, Applied{Next: 3})
	lag(0, false) // there may be more partitions
	w.setEnds("topic", map[int32]int64{0: 5, 1: 10})
	lag(12, true)
	w.reached("topic", 0, 7) // read after the last refresh
	lag(14, true)
	w.set("topic", 1, Applied{Next: 12}) // applied after the last refresh
	lag(4, true)
	w.set("topic", 1, Applied{}) // the sink was flushed
	lag(16, true)
}

// Whatever number of partitions keys were spread over, and however wide the topic is now, a wait
// ends exactly when the event's partition has reached its position.
func TestWaitFindsPartitionOfEvent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		spread := rapid.Int32Range(1, 8).Draw(rt, "spread")
		wide := spread + rapid.Int32Range(0, 8).Draw(rt, "more")
		w := NewWatermarks()
		ends, applied := map[int32]int64{}, make([]Applied, wide)
		for id := range wide {
			ends[id] = 0
			w.set("topic", id, Applied{})
		}
		w.setEnds("topic", ends)
		type published struct {
			key string
			at  event.Position
			on  int32
		}
		var log []published
		for i := range rapid.IntRange(1, 40).Draw(rt, "events") {
			key := fmt.Sprint("key-", rapid.IntRange(0, 20).Draw(rt, "key"))
			log = append(log, published{key, at(uint64(i + 1)), kafka.Partition([]byte(key), spread)})
		}
		// Partitions are applied in any order, but each in its own order.
		for left := log; len(left) > 0; {
			i := rapid.IntRange(0, len(left)-1).Draw(rt, "next")
			on := left[i].on
			i = slices.IndexFunc(left, func(p published) bool { return p.on == on })
			applied[on] = Applied{Next: applied[on].Next + 1, Watermark: left[i].at, Partitions: spread}
			w.set("topic", on, applied[on])
			left = slices.Delete(slices.Clone(left), i, i+1)
			for _, p := range log {
				got := w.topics["topic"].reached([]byte(p.key), p.at)
				if want := applied[p.on].Watermark.Compare(p.at) >= 0; got != want {
					rt.Fatalf("%d of %d partitions: the event of %s at %s is applied: %v, and reached says %v",
						spread, wide, p.key, p.at, want, got)
				}
			}
		}
	})
}
