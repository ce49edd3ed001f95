package history

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/streams/streamstest"
)

// online runs the features in memory without a snapshot, and returns a function that compares their
// vectors with those of all facts, once they are ready.
func (w *world) online(t *testing.T, past online.Past) (r *online.Runner, check func(facts []features.Fact)) {
	t.Helper()
	store, err := online.New([]*features.Group{w.group}, online.Options{})
	must(t, err)
	c := w.config(nil)
	r = online.NewRunner(store, online.Config{Brokers: c.Brokers, WriteDeadLetters: c.WriteDeadLetters,
		Logger: streamstest.Quiet, Past: past})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return r, func(facts []features.Fact) {
		t.Helper()
		polltest.Until(t, "the features in memory are ready", func() bool { return r.Ready() == nil })
		q, err := store.Compile(w.group.Name)
		must(t, err)
		for range 30 {
			entities, at := []string{w.entity(), "unknown", w.entity()}, time.UnixMicro(w.at())
			found, err := store.Lookup(t.Context(), q, entities, at, nil)
			must(t, err)
			have := make([]features.Vector, len(found))
			for i, v := range found {
				have[i] = features.Vector{Entity: v.Entity, Found: v.Found, Values: v.Values}
			}
			w.compare(t, have, entities, facts, at, time.Time{})
		}
	}
}

// Vectors in memory are complete although the log has lost its first records and there is no snapshot:
// those facts come from the tables, and the rest from the log.
func TestVectorsWithoutTheBeginningOfTheLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 21)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	stop := running(t, h)
	w.trade(t, 60)
	w.filled(t, h)
	stop()
	// The tables reach further than the beginning of the log, which has corrections of what is gone.
	middle, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	w.trade(t, 40)
	running(t, h)
	w.filled(t, h)
	for p, offset := range middle {
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	_, check := w.online(t, h)
	check(w.facts)

	// Without the tables, the same facts are missing.
	r, _ := w.online(t, nil)
	polltest.Until(t, "the features in memory are ready", func() bool { return r.Ready() == nil })
	all, _ := r.Store().Size()
	q, err := r.Store().Compile(w.group.Name, "n_lifetime")
	must(t, err)
	var have, want int64
	for _, e := range []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"} {
		found, err := r.Store().Lookup(t.Context(), q, []string{e}, w.now, nil)
		must(t, err)
		have += found[0].Values[0].Int
		want += features.Evaluate(w.group, map[string][]features.Fact{w.group.Sources[0].Name: w.facts}, e, w.now,
			time.Time{}).Values[3].Int
	}
	if have >= want || all == 0 {
		t.Errorf("%d facts of %d entities are in memory, and %d in all: this test shows nothing", have, all, want)
	}
}

// broken is a Past that fails in the middle of the first attempts.
type broken struct {
	*History
	failures int
}

func (b *broken) Facts(ctx context.Context, source string, part, parts int, each func(features.Fact) error) error {
	if part == parts/2 && b.failures > 0 {
		b.failures--
		return errors.New("the server has gone")
	}
	return b.History.Facts(ctx, source, part, parts, each)
}

// After an error in the middle, the facts are read again.
func TestPastFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 22)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	running(t, h)
	w.trade(t, 30)
	w.filled(t, h)
	ends, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	for p, offset := range ends {
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	_, check := w.online(t, &broken{h, 2})
	check(w.facts)
}

// Tables that do not reach up to the log, or that are of another topic, are not used.
func TestPastOfAnotherLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 23)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	stop := running(t, h)
	w.trade(t, 30)
	w.filled(t, h)
	stop()
	w.trade(t, 30)
	middle, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	gone := len(w.facts)
	w.trade(t, 30)
	for p, offset := range middle { // after the records that the tables have
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
	_, check := w.online(t, h)
	check(w.facts[gone:])
}
