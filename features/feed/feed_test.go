package feed_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// All tests share the broker. Each has its own topic.
var broker kafka.Config

func TestMain(m *testing.M) {
	cfg, stop, err := streamstest.StartBroker()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	broker = cfg
	code := m.Run()
	if err = stop(); err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// errUnreadable is the error of the test's source for the value "unreadable".
var errUnreadable = errors.New("field text is unreadable")

// source makes two facts of an event: one of the stream, one of everything.
func source(name, topic string) features.Source {
	return features.Source{Name: name, Topic: topic,
		Columns: []features.Column{{Name: "text", Kind: exact.Text}},
		Project: func(e event.Event) ([]features.Fact, error) {
			at := e.OccurredAt
			switch string(e.Data) {
			case "nothing":
				return nil, nil
			case "unreadable":
				return nil, errUnreadable
			case "ancient":
				at = time.Date(1066, 1, 1, 0, 0, 0, 0, time.UTC)
			}
			values := []exact.Value{exact.TextValue(string(e.Data))}
			return []features.Fact{
				{Entity: e.Stream, Key: e.ID.String(), At: at, Values: values},
				{Entity: "all", Key: e.ID.String(), At: at, Values: values},
			}, nil
		},
	}
}

// log is a topic of one test, with the dead letters of its feeds.
type log struct {
	*fetchtest.Producer
	topic string
	next  uint64
	mu    sync.Mutex
	// letters are the reasons, by sink, partition and offset.
	letters map[string]string
	decoder *registry.Decoder
}

const partitions = 2

func newLog(t *testing.T) *log {
	t.Helper()
	l := &log{topic: "t-" + uuid.NewString(), letters: map[string]string{}}
	l.Producer = fetchtest.New(t, strings.Split(broker.Brokers, ","), l.topic)
	l.create(t)
	return l
}

func (l *log) create(t *testing.T) {
	t.Helper()
	must(t, l.CreateTopic(t.Context(), l.topic, partitions))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// event returns the record of an event with the given value.
func (l *log) event(partition int32, value string) fetchtest.Record {
	l.next++
	at := time.Date(2026, 1, 1, 0, 0, int(l.next), 0, time.UTC)
	return fetchtest.Event(partition, event.Event{
		ID: uuid.Must(uuid.NewV7()), Aggregate: "test", Stream: "s", Version: l.next, Type: "test.Event",
		Data: []byte(value), OccurredAt: at, RecordedAt: at.Add(time.Minute), Position: event.Position{Sequence: l.next},
	})
}

// open returns a feed that is not started.
func (l *log) open(t *testing.T, names ...string) *feed.Feed {
	t.Helper()
	sources := make([]features.Source, len(names))
	for i, name := range names {
		sources[i] = source(name, l.topic)
	}
	f, err := feed.Open(feed.Config{
		Brokers: strings.Split(broker.Brokers, ","), Topic: l.topic, Sources: sources, Sink: "features/test",
		Logger: streamstest.Quiet, Decoder: l.decoder,
		WriteDeadLetters: func(_ context.Context, letters ...streams.DeadLetter) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, r := range letters {
				l.letters[fmt.Sprintf("%s|%d|%d", r.Sink, r.Partition, r.Offset)] = r.Reason.Error()
			}
			return nil
		},
	})
	must(t, err)
	t.Cleanup(f.Close)
	return f
}

// read reads to the ends of the topic. It returns the values of the source "a" by partition, and all
// batches.
func read(t *testing.T, f *feed.Feed) (map[int32][]string, []feed.Batch) {
	t.Helper()
	topic, err := f.Describe(t.Context())
	must(t, err)
	values, all := map[int32][]string{}, []feed.Batch(nil)
	polltest.Until(t, "the ends of the topic", func() bool {
		batches, err := f.Poll(t.Context(), 100*time.Millisecond)
		must(t, err)
		for _, b := range batches {
			all = append(all, b)
			for _, fact := range b.Facts["a"] {
				if fact.Entity != "all" {
					values[b.Partition] = append(values[b.Partition], fact.Values[0].Text)
				}
			}
		}
		for p, at := range f.Positions() {
			if at.Next < topic.Partitions[p].End {
				return false
			}
		}
		return true
	})
	return values, all
}

// Every event is read once, with what the log knows of it. Positions continue where they were taken.
func TestReadsFacts(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	must(t, l.Commit(t.Context(), l.topic, l.event(0, "one"), l.event(1, "two"), l.event(0, "nothing")))
	must(t, l.Abort(t.Context(), l.topic, l.event(0, "aborted")))
	f := l.open(t, "a", "b")
	topic, err := f.Start(t.Context(), "", nil)
	must(t, err)
	values, batches := read(t, f)
	if fmt.Sprint(values) != "map[0:[one] 1:[two]]" {
		t.Errorf("read %v", values)
	}
	facts := 0
	for _, b := range batches {
		facts += len(b.Facts["b"])
		for i, fact := range b.Facts["a"] {
			if want := (features.Origin{Topic: l.topic, Partition: b.Partition, Offset: 0, Index: int32(i)}); fact.Origin != want {
				t.Errorf("origin is %+v, want %+v", fact.Origin, want)
			}
			if want := fact.At.Add(time.Minute); !fact.Known.Equal(want) {
				t.Errorf("known at %s, want the recording time %s", fact.Known, want)
			}
		}
	}
	if facts != 4 {
		t.Errorf("the other source has %d facts, want 4", facts)
	}
	at := f.Positions()
	if at[0].Watermark != (event.Position{Sequence: 3}) || !at[0].AsOf.Equal(time.Date(2026, 1, 1, 0, 1, 3, 0, time.UTC)) {
		t.Errorf("the position of partition 0 is %+v", at[0])
	}
	for p, pos := range at {
		again, err := feed.ParsePosition(pos.String())
		must(t, err)
		if again != pos {
			t.Errorf("partition %d: %+v was stored as %s and read as %+v", p, pos, pos, again)
		}
	}
	must(t, l.Commit(t.Context(), l.topic, l.event(1, "three")))
	next := l.open(t, "a")
	_, err = next.Start(t.Context(), topic.ID, at)
	must(t, err)
	if values, _ := read(t, next); fmt.Sprint(values) != "map[1:[three]]" {
		t.Errorf("after the position: read %v", values)
	}
}

// A partition that is added to the topic is read from its first record.
func TestReadsAddedPartitions(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	f := l.open(t, "a")
	_, err := f.Start(t.Context(), "", nil)
	must(t, err)
	must(t, l.AddPartitions(t.Context(), l.topic, 1))
	must(t, l.Commit(t.Context(), l.topic, l.event(partitions, "new")))
	polltest.Until(t, "the client knows the partition", func() bool {
		topic, err := f.Describe(t.Context())
		must(t, err)
		return len(topic.Partitions) == partitions+1
	})
	if values, _ := read(t, f); fmt.Sprint(values) != "map[2:[new]]" {
		t.Errorf("read %v", values)
	}
}

// sealed is a registry.Seals under which every record has a seal.
type sealed struct{}

func (sealed) CheckSeal(context.Context, registry.Record, event.Event) (bool, error) {
	return true, nil
}

// What has no facts becomes a dead letter with the reason, and nothing else is affected: records
// that are not events, that a source cannot read, whose facts are not valid, and copies.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.decoder = registry.NewDecoder(nil)
	l.decoder.CheckSeals(sealed{})
	first := l.event(0, "one")
	must(t, l.Commit(t.Context(), l.topic, first,
		fetchtest.Record{Partition: 0, Key: []byte("k"), Value: []byte("v")},
		l.event(0, "unreadable"), l.event(0, "ancient"), first, l.event(0, "two")))
	f := l.open(t, "a")
	_, err := f.Start(t.Context(), "", nil)
	must(t, err)
	if values, _ := read(t, f); fmt.Sprint(values) != "map[0:[one two]]" {
		t.Errorf("read %v", values)
	}
	want := []string{event.ErrNotEvent.Error(), errUnreadable.Error(), "year from 1900", "copy of an earlier event"}
	for i, reason := range want {
		key := fmt.Sprintf("features/test|0|%d", i+1)
		if !strings.Contains(l.letters[key], reason) {
			t.Errorf("dead letter %s is %q, want %q in it", key, l.letters[key], reason)
		}
	}
	if len(l.letters) != len(want) {
		t.Errorf("dead letters are %v", slices.Sorted(maps.Keys(l.letters)))
	}
}

// A copy of a record that an earlier reader has read is recognised by the position alone.
func TestPositionRemembersCopies(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	l.decoder = registry.NewDecoder(nil)
	l.decoder.CheckSeals(sealed{})
	first := l.event(0, "one")
	must(t, l.Commit(t.Context(), l.topic, first))
	f := l.open(t, "a")
	topic, err := f.Start(t.Context(), "", nil)
	must(t, err)
	read(t, f)
	must(t, l.Commit(t.Context(), l.topic, first))
	again := l.open(t, "a")
	_, err = again.Start(t.Context(), topic.ID, f.Positions())
	must(t, err)
	if values, _ := read(t, again); len(values) > 0 {
		t.Errorf("the copy was read as %v", values)
	}
}

// Start refuses positions that are not those of the topic.
func TestRefusesWrongPositions(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	must(t, l.Commit(t.Context(), l.topic, l.event(0, "one"), l.event(0, "two")))
	f := l.open(t, "a")
	topic, err := f.Start(t.Context(), "", nil)
	must(t, err)
	read(t, f)
	must(t, l.DeleteRecords(t.Context(), l.topic, 0, 2))
	var gone *fetch.OutOfRangeError
	if _, err := l.open(t, "a").Start(t.Context(), topic.ID, map[int32]feed.Position{0: {Next: 1}}); !errors.As(err, &gone) ||
		gone.Offset != 1 || gone.Log.Start != 2 {
		t.Errorf("records that are gone: %v", err)
	}
	must(t, l.DeleteTopic(t.Context(), l.topic))
	polltest.Until(t, "the topic is deleted", func() bool {
		_, err := l.open(t, "a").Start(t.Context(), "", nil)
		return errors.Is(err, fetch.ErrNoTopic)
	})
	l.create(t)
	polltest.Until(t, "the topic was recreated", func() bool {
		_, err := l.open(t, "a").Start(t.Context(), topic.ID, f.Positions())
		return errors.Is(err, feed.ErrRecreated)
	})
}

func FuzzParsePosition(f *testing.F) {
	f.Add(`{"next":3,"watermark":"0.2","as_of":1,"sequence":"0.2/0.1"}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := feed.ParsePosition(text)
		if err != nil {
			return
		}
		again, err := feed.ParsePosition(p.String())
		if err != nil || again != p {
			t.Fatalf("%q is %+v, then %+v, %v", text, p, again, err)
		}
	})
}
