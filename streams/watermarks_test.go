package streams

import (
	"context"
	"errors"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

func at(sequence uint64) event.Position { return event.Position{Sequence: sequence} }

func TestWaitIsForTheKeysPartition(t *testing.T) {
	t.Parallel()
	w := NewWatermarks()
	mine := kafka.Partition([]byte("key"), 4)
	waited := make(chan error, 1)
	go func() { waited <- w.Wait(t.Context(), "topic", "key", at(5)) }()

	// Another partition, another topic, a lower position, and one whose topic is not known whole, satisfy nobody.
	for id := range int32(4) {
		if id != mine {
			w.set("topic", id, Applied{Next: 9, Watermark: at(9)})
		}
		w.set("other", id, Applied{Next: 9, Watermark: at(9)})
	}
	w.set("topic", mine, Applied{Next: 4, Watermark: at(4)})
	w.look("topic", map[int32]int64{0: 9, 1: 9, 2: 9, 3: 9})
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

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := NewWatermarks()
	why := errors.New("no time")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := w.Wait(ctx, "topic", "key", at(1)); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
}

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
	w.look("topic", map[int32]int64{0: 5, 1: 10})
	lag(12, true)
	w.reached("topic", 0, 7) // read since the look
	lag(14, true)
	w.set("topic", 1, Applied{Next: 12}) // applied since the look
	lag(4, true)
	w.set("topic", 1, Applied{}) // the sink was flushed
	lag(16, true)
}
