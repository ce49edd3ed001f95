package streams_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// archive has the records that a log had when it was copied.
type archive struct {
	mu      sync.Mutex
	id      string
	records map[int32][]streams.Record
	next    map[int32]int64
	reads   int
	fail    func(read int) error // may be nil
	sealed  int                  // calls of Seal
}

// archived copies everything that is on the log now.
func (l log) archived(t *testing.T) *archive {
	t.Helper()
	admin, err := kafka.NewAdmin(l.on)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	a := &archive{records: map[int32][]streams.Record{}}
	info, err := admin.Topic(t.Context(), l.Topic)
	if err != nil {
		t.Fatal(err)
	}
	a.id = info.ID
	if a.next, err = admin.EndOffsets(t.Context(), l.Topic); err != nil {
		t.Fatal(err)
	}
	err = kafka.ReadAll(t.Context(), l.on, l.Topic, nil, a.next, func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		a.records[m.Partition] = append(a.records[m.Partition],
			streams.Record{Event: e, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// extend adds what was copied later.
func (a *archive) extend(later *archive) {
	for partition, records := range later.records {
		a.records[partition] = append(a.records[partition], records...)
	}
	a.next = later.next
}

func (a *archive) Extent(context.Context, string) (streams.Extent, error) {
	return streams.Extent{Topic: a.id, Next: a.next}, nil
}

func (a *archive) Events(_ context.Context, _ string, ranges map[int32]streams.Range) ([]streams.Record, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	if a.fail != nil {
		if err := a.fail(a.reads); err != nil {
			return nil, err
		}
	}
	var found []streams.Record
	for partition, want := range ranges {
		for _, r := range a.records[partition] {
			if r.Offset >= want.From && r.Offset < want.To {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

func (a *archive) Seal(context.Context, string, event.Event) (event.Header, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sealed++
	return event.Header{Key: "seal", Value: []byte("s")}, nil
}

// delete deletes everything that is on the log now, as its retention does.
func (l log) delete(t *testing.T) {
	t.Helper()
	if err := server.DeleteRecords(t.Context(), l.on.Brokers, l.Topic); err != nil {
		t.Fatal(err)
	}
}

// startWith starts a runtime with an archive.
func startWith(t testing.TB, cfg streams.Config, a streams.Archive) *running {
	r := streams.New(cfg)
	r.UseArchive(a)
	return &running{r, cfg.Watermarks, streamstest.Start(t, r)}
}

// What the log has deleted is read from the archive, and the rest from the log: each event once, and in
// order per key, which the sink checks.
func TestReadsTheArchiveFirst(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, on kafka.Config) {
		topic := kafka.Topic{Name: streams.DeadLetterTopic, Partitions: 1, Compacted: true}
		if err := kafka.EnsureTopics(t.Context(), on, topic); err != nil {
			t.Fatal(err)
		}
		l, sink := newLog(t, on), newMemory()
		l.Write(t, l.events("s", 97, 2000)...)
		a := l.archived(t)
		l.delete(t)
		l.Write(t, l.events("s", 97, 300)...)
		r := startWith(t, config(l, sink), a)
		r.catchUp(t)
		last := l.next("s-1")
		l.Write(t, last) // while it runs
		if err := r.watermarks.Wait(t.Context(), l.Topic, last.Stream, last.Position); err != nil {
			t.Fatal(err)
		}
		r.stop()
		sink.mustHave(t, l.Versions)
		if applied, deliveries := sink.counts(); applied != 2301 || deliveries != 2301 {
			t.Errorf("%d records applied in %d deliveries, want 2301 in as many", applied, deliveries)
		}
		if _, letters := readDeadLetters(t, on, config(l, sink).Name); letters > 0 {
			t.Errorf("%d dead letters", letters)
		}
		reads := a.reads
		r = startWith(t, config(l, sink), a) // it continues on the log
		r.catchUp(t)
		r.stop()
		if a.reads != reads {
			t.Error("the archive was read again")
		}
	})
}

// Whatever the log has deleted and the archive has, and wherever the runtime is stopped: each event is
// applied once.
func TestArchiveAtRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			l, sink := newLog(t, shared), newMemory()
			events := l.events("s", 1+random.IntN(60), 200+random.IntN(3000))
			cut := []int{random.IntN(len(events)), random.IntN(len(events)), random.IntN(len(events))}
			slices.Sort(cut)
			l.Write(t, events[:cut[0]]...)
			if random.IntN(2) == 0 { // the sink has read them before
				r := start(t, config(l, sink))
				r.catchUp(t)
				r.stop()
			}
			a := l.archived(t)
			l.delete(t)
			l.Write(t, events[cut[0]:cut[1]]...)
			if random.IntN(2) == 0 { // the archive also has what the log still has
				a.extend(l.archived(t))
			}
			a.fail = func(int) error {
				if random.IntN(3) == 0 {
					return errors.New("the archive is away")
				}
				return nil
			}
			l.Write(t, events[cut[1]:cut[2]]...)
			for random.IntN(4) > 0 { // stopped on the way
				already, _ := sink.counts()
				goal := already + random.IntN(300)
				r := startWith(t, config(l, sink), a)
				streamstest.Eventually(t, "more is applied", func() bool {
					applied, _ := sink.counts()
					return applied >= min(goal, cut[2])
				})
				r.stop()
			}
			var writing sync.WaitGroup
			writing.Go(func() { l.Write(t, events[cut[2]:]...) })
			r := startWith(t, config(l, sink), a)
			writing.Wait()
			r.catchUp(t)
			r.stop()
			sink.mustHave(t, l.Versions)
			if applied, _ := sink.counts(); applied != len(events) {
				t.Errorf("%d records applied, want %d", applied, len(events))
			}
		})
	}
}

// A sink that loses everything is filled from the archive and the log.
func TestLostDataComesFromTheArchive(t *testing.T) {
	t.Parallel()
	l, sink := newLog(t, shared), newMemory()
	l.Write(t, l.events("s", 30, 900)...)
	a := l.archived(t)
	r := startWith(t, config(l, sink), a)
	r.catchUp(t)
	l.delete(t)
	l.Write(t, l.events("s", 30, 100)...)
	r.catchUp(t)
	sink.flush()
	streamstest.Eventually(t, "everything is applied again", func() bool {
		applied, _ := sink.counts()
		return applied >= 1900
	})
	r.catchUp(t)
	r.stop()
	sink.mustHave(t, l.Versions)
}

// Where the archive ends before the log begins, events are missing. The streams that miss one become
// dead letters, and the others continue.
func TestArchiveEndsBeforeTheLog(t *testing.T) {
	t.Parallel()
	l, sink := newLog(t, shared), newMemory()
	l.Write(t, l.events("whole", 20, 400)...)
	a := l.archived(t)
	l.Write(t, l.events("torn", 2, 4)...)
	l.delete(t)
	whole := map[string]uint64{}
	l.Write(t, l.events("torn", 2, 4)...)
	l.Write(t, l.events("whole", 20, 100)...)
	for stream, version := range l.Versions {
		if strings.HasPrefix(stream, "whole") {
			whole[stream] = version
		}
	}
	r := startWith(t, config(l, sink), a)
	r.catchUp(t)
	r.stop()
	sink.mustHave(t, whole)
	if _, letters := readDeadLetters(t, shared, config(l, sink).Name); letters != 4 {
		t.Errorf("%d dead letters, want 4", letters)
	}
}

// An archive of another topic of the same name is not read: its offsets are of other events.
func TestArchiveOfAnotherTopic(t *testing.T) {
	t.Parallel()
	l, sink := newLog(t, shared), newMemory()
	l.Write(t, l.events("s", 10, 100)...)
	a := l.archived(t)
	a.id = "another"
	l.delete(t)
	r := startWith(t, config(l, sink), a)
	r.catchUp(t)
	r.stop()
	if applied, _ := sink.counts(); applied != 0 || a.reads != 0 {
		t.Errorf("%d events of another topic were applied", applied)
	}
}

// An event of the archive that cannot be applied parks its stream, with a seal, so that it can be
// applied again.
func TestArchivedEventIsParked(t *testing.T) {
	t.Parallel()
	l, sink := newLog(t, shared), newMemory()
	l.Write(t, l.events("s", 10, 100)...)
	a := l.archived(t)
	l.delete(t)
	sink.unreadable = func(r streams.Record) error {
		if r.Event.Stream == "s-3" {
			return errors.New("poison")
		}
		return nil
	}
	r := startWith(t, config(l, sink), a)
	r.catchUp(t)
	if parked, events := r.Parked(); parked != 1 || events != 10 {
		t.Errorf("%d streams with %d events are parked, want 1 with 10", parked, events)
	}
	r.stop()
	if a.sealed == 0 {
		t.Error("the dead letters have no seal")
	}
	byKey, _ := readDeadLetters(t, shared, config(l, sink).Name)
	for key, m := range byKey {
		if !slices.ContainsFunc(m.Headers, func(h event.Header) bool { return h.Key == "seal" }) {
			t.Errorf("dead letter %s has no seal", key)
		}
	}
}
