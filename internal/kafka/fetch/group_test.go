package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
)

// sink stores records and their position atomically, and refuses records that do not follow its
// position, like a table.
type sink struct {
	mu   sync.Mutex
	next map[int32]int64
	got  map[int32][]string
}

func newSink() *sink { return &sink{next: map[int32]int64{}, got: map[int32][]string{}} }

func (s *sink) position(_ context.Context, partitions []int32) (map[int32]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := map[int32]int64{}
	for _, p := range partitions {
		at[p] = s.next[p]
	}
	return at, nil
}

var errFenced = errors.New("fenced")

// take stores a batch that starts at an offset.
func (s *sink) take(from int64, b fetch.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next[b.Partition] != from {
		return errFenced
	}
	for r := range b.Records() {
		s.got[b.Partition] = append(s.got[b.Partition], string(r.Value))
	}
	s.next[b.Partition] = b.Next
	return nil
}

func (s *sink) reached(ends map[int32]int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, end := range ends {
		if s.next[p] < end {
			return false
		}
	}
	return true
}

func (w world) join(t *testing.T, position func(context.Context, []int32) (map[int32]int64, error)) *fetch.Reader {
	t.Helper()
	r, err := fetch.Join(fetch.Config{Brokers: w.seeds, Topic: w.topic, ClientID: "test",
		Logger: slog.New(slog.DiscardHandler)},
		fetch.Group{Name: "g-" + w.topic, Position: position})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// work moves records into the sink until ctx ends, like a lander. After a failure it starts again
// at the sink's position.
func (w world) work(ctx context.Context, t *testing.T, s *sink) {
	session := func() error {
		var mu sync.Mutex
		at := map[int32]int64{}
		r := w.join(t, func(ctx context.Context, partitions []int32) (map[int32]int64, error) {
			from, err := s.position(ctx, partitions)
			mu.Lock()
			defer mu.Unlock()
			for p, offset := range from {
				at[p] = offset
			}
			return from, err
		})
		defer r.Close()
		for {
			batches, err := r.Poll(ctx, 50*time.Millisecond)
			if err != nil {
				return err
			}
			for _, b := range batches {
				mu.Lock()
				from := at[b.Partition]
				at[b.Partition] = b.Next
				mu.Unlock()
				if err := s.take(from, b); err != nil {
					return err
				}
			}
			r.Yield()
		}
	}
	for ctx.Err() == nil {
		if err := session(); ctx.Err() == nil {
			t.Logf("a member joins again: %v", err)
		}
	}
}

// Members join and leave while records are written. Every record reaches the sink once and in
// order.
func TestMembersShareATopic(t *testing.T) {
	t.Parallel()
	const partitions, rounds = 4, 5
	each(t, partitions, func(t *testing.T, w world) {
		s := newSink()
		var members sync.WaitGroup
		start := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			members.Go(func() { w.work(ctx, t, s) })
			return cancel
		}
		stops := []func(){start()}
		written := 0
		for range rounds {
			for range 5 {
				var records []fetchtest.Record
				for range 100 {
					records = append(records, record(int32(written%partitions), fmt.Sprint(written/partitions)))
					written++
				}
				must(t, w.Commit(t.Context(), w.topic, records...))
			}
			stops = append(stops, start())
			if len(stops) > 2 { // the oldest leaves
				stops[0]()
				stops = stops[1:]
			}
			ends, err := w.Ends(t.Context(), w.topic)
			must(t, err)
			polltest.Until(t, "the sink has everything", func() bool { return s.reached(ends) })
		}
		for _, stop := range stops {
			stop()
		}
		members.Wait()
		for p := range int32(partitions) {
			var want []string
			for i := range written / partitions {
				want = append(want, fmt.Sprint(i))
			}
			if !slices.Equal(s.got[p], want) {
				t.Errorf("partition %d: %d records, want %d in order", p, len(s.got[p]), len(want))
			}
		}
	})
}

// A member that has not yielded keeps its partitions, and learns that others wait for them.
func TestNoRebalanceBeforeYield(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, w world) {
		must(t, w.Commit(t.Context(), w.topic, record(0, "a"), record(1, "b")))
		s := newSink()
		first := w.join(t, s.position)
		seen := 0
		for seen < 2 {
			batches, err := first.Poll(t.Context(), time.Second)
			must(t, err)
			for _, b := range batches {
				for range b.Records() {
					seen++
				}
			}
			if seen == 0 {
				first.Yield()
			}
		}
		second := w.join(t, s.position)
		polltest.Until(t, "a rebalance is pending", first.RebalancePending)
		if got := first.Assigned(); !slices.Equal(got, []int32{0, 1}) {
			t.Fatalf("the first member has %v before it has yielded", got)
		}
		polltest.Until(t, "both members have a partition", func() bool {
			for _, r := range []*fetch.Reader{first, second} {
				_, err := r.Poll(t.Context(), 10*time.Millisecond)
				must(t, err)
				r.Yield()
			}
			return len(first.Assigned()) == 1 && len(second.Assigned()) == 1
		})
	})
}

// The group's own offsets are only for display. An operator who changes them does not move a
// reader.
func TestGroupOffsetsAreIgnored(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, w world) {
		must(t, w.Commit(t.Context(), w.topic, record(0, "a"), record(0, "b"), record(0, "c")))
		s := newSink()
		s.next[0] = 1
		first := w.join(t, s.position)
		polltest.Until(t, "the first reads", func() bool {
			batches, err := first.Poll(t.Context(), 10*time.Millisecond)
			must(t, err)
			first.Yield()
			return len(batches) > 0
		})
		for _, offset := range []int64{0, 3} {
			must(t, first.Commit(t.Context(), map[int32]int64{0: offset}))
		}
		first.Close()
		second := w.join(t, s.position)
		var got []string
		polltest.Until(t, "the second member reads from the sink's offset", func() bool {
			batches, err := second.Poll(t.Context(), 10*time.Millisecond)
			must(t, err)
			for _, b := range batches {
				for r := range b.Records() {
					got = append(got, string(r.Value))
				}
			}
			second.Yield()
			return len(got) >= 2
		})
		if !slices.Equal(got, []string{"b", "c"}) {
			t.Fatalf("read %v", got)
		}
	})
}

// Poll returns the error of Group.Position.
func TestPositionError(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, w world) {
		broken := errors.New("the table is of another topic")
		r := w.join(t, func(context.Context, []int32) (map[int32]int64, error) { return nil, broken })
		var err error
		polltest.Until(t, "Poll fails", func() bool {
			_, err = r.Poll(t.Context(), 100*time.Millisecond)
			r.Yield()
			return err != nil
		})
		if !errors.Is(err, broken) {
			t.Fatalf("got %v", err)
		}
	})
}
