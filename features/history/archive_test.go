package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/polltest"
)

// archived is the events of a world up to some offsets, as an Archive.
type archived struct {
	*world
	id   string
	mu   sync.Mutex
	next map[int32]int64
	open atomic.Int32
}

// archive returns an Archive of what is on the topic now.
func (w *world) archive(t testing.TB) *archived {
	t.Helper()
	r, err := fetch.Open(fetch.Config{Brokers: strings.Split(broker.Brokers, ","), Topic: w.topic, ClientID: "test",
		Logger: w.config(nil).Logger})
	must(t, err)
	defer r.Close()
	topic, err := r.Describe(t.Context())
	must(t, err)
	a := &archived{world: w, id: topic.ID}
	a.extend(t)
	t.Cleanup(func() {
		if n := a.open.Load(); n != 0 {
			t.Errorf("%d archives are still open", n)
		}
	})
	return a
}

// extend archives what is on the topic now.
func (a *archived) extend(t testing.TB) {
	t.Helper()
	ends, err := a.Ends(t.Context(), a.topic)
	must(t, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = ends
}

// Topic implements Archive.
func (a *archived) Topic(_ context.Context, topic string) (Archived, error) {
	if topic != a.topic {
		return Archived{}, ErrNotArchived
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := Archived{TopicID: a.id, Next: a.next, Seen: map[int32]event.Sequence{},
		Close: func() error { a.open.Add(-1); return nil }}
	a.open.Add(1)
	for i, e := range a.events {
		if at := a.places[i]; at.Offset < a.next[at.Partition] {
			seen, err := out.Seen[at.Partition].Next(e.Position, e.Headers())
			if err != nil {
				return Archived{}, err
			}
			out.Seen[at.Partition] = seen
		}
	}
	out.Events = func(_ context.Context, partition int32, from, to int64, each func(event.Event, int64) error) error {
		for _, i := range rand.Perm(len(a.events)) {
			if at := a.places[i]; at.Partition == partition && at.Offset >= from && at.Offset < to {
				if err := each(a.events[i], at.Offset); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, nil
}

// expire deletes everything from the topic that is on it now.
func (w *world) expire(t testing.TB) {
	t.Helper()
	ends, err := w.Ends(t.Context(), w.topic)
	must(t, err)
	for p, offset := range ends {
		must(t, w.DeleteRecords(t.Context(), w.topic, p, offset))
	}
}

// The log has lost its first records, in part before the tables were made, in part while nobody filled
// them. Their facts come from the archive, and the features in memory wait for them.
func TestFactsOfExpiredRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 31)
	w.trade(t, 60)
	w.expire(t)
	w.trade(t, 20)
	archive := w.archive(t) // has records that the log has, too
	w.trade(t, 20)
	c := w.config(clickhousetest.OpenStore(t))
	c.Archive, c.offsets = archive, 7
	h := open(t, c)
	stop := running(t, h)
	_, check := w.online(t, h, nil)
	w.filled(t, h)
	w.check(t, h, 30)
	w.checkCounts(t, h)
	check(w.facts)
	stop()

	w.trade(t, 40)
	w.expire(t)
	w.trade(t, 10)
	archive.extend(t)
	h = open(t, c)
	stop = running(t, h)
	w.filled(t, h)
	w.trade(t, 10)
	w.filled(t, h)
	w.check(t, h, 30)
	w.checkCounts(t, h)
	stop()
	// Copies are recognised as before: the events of this topic have no seals, so none has moved the
	// sequence since the archive was read.
	want, err := archive.Topic(t.Context(), w.topic)
	must(t, err)
	must(t, want.Close())
	_, have, err := h.Complete(t.Context(), w.topic)
	must(t, err)
	for p, seen := range want.Seen {
		if have[p].Sequence != seen {
			t.Errorf("partition %d: the sequence is %s, want %s", p, have[p].Sequence, seen)
		}
	}
}

// An archive that does not reach up to the log is waited for, and the log alone is not read.
func TestArchiveIsBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 32)
	w.trade(t, 30)
	archive := w.archive(t)
	w.trade(t, 30)
	w.expire(t)
	w.trade(t, 10)
	c := w.config(clickhousetest.OpenStore(t))
	c.Archive = archive
	h := open(t, c)
	running(t, h)
	polltest.Until(t, "the archive is reported to be behind", func() bool {
		for _, f := range h.Faults() {
			if errors.Is(f.Reason, errArchiveBehind) {
				return !f.Stopped
			}
		}
		return false
	})
	archive.extend(t)
	w.filled(t, h)
	w.check(t, h, 20)
	w.checkCounts(t, h)
}

// Without an archive, and with that of another topic, the facts begin where the log does.
func TestNoArchive(t *testing.T) {
	t.Parallel()
	for name, archive := range map[string]func(*world) Archive{
		"none":           func(*world) Archive { return nil },
		"of others":      func(*world) Archive { return &archived{world: &world{topic: "other"}} },
		"of another id":  func(w *world) Archive { return &archived{world: w, id: "another"} },
		"nothing landed": func(w *world) Archive { a := w.archive(t); a.next = nil; return a },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 33)
			w.trade(t, 30)
			w.expire(t)
			gone := len(w.facts)
			c := w.config(clickhousetest.OpenStore(t))
			c.Archive = archive(w)
			h := open(t, c)
			running(t, h)
			w.filled(t, h)                  // nothing is on the log, so this is what the claims say
			_, check := w.online(t, h, nil) // does not wait for more
			check(nil)
			w.trade(t, 20)
			w.filled(t, h)
			w.facts = w.facts[gone:]
			w.checkCounts(t, h)
			w.check(t, h, 10)
		})
	}
}

// Writers with batches of different sizes read the archive at the same time. Each fails at every step.
func TestArchiveIsReadByWritersThatFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 34)
	w.trade(t, 120)
	archive := w.archive(t)
	w.expire(t)
	w.trade(t, 20)
	s := clickhousetest.OpenStore(t)
	var mu sync.Mutex
	failures, rnd := map[string]int{}, rand.New(rand.NewPCG(3, 3))
	var h *History
	for i, offsets := range []int64{3, 11, 1000} {
		c := w.config(s)
		c.Archive, c.offsets = archive, offsets
		c.hook = func(_ context.Context, step string) error {
			mu.Lock()
			defer mu.Unlock()
			name := fmt.Sprint(i, step)
			if failures[name] < 2 && rnd.IntN(3) == 0 {
				failures[name]++
				return errors.New("injected")
			}
			return nil
		}
		h = open(t, c)
		running(t, h)
	}
	w.filled(t, h)
	w.check(t, h, 30)
	w.checkCounts(t, h)
	mu.Lock()
	defer mu.Unlock()
	if len(failures) < len(steps) {
		t.Errorf("only %d steps have failed", len(failures))
	}
}
