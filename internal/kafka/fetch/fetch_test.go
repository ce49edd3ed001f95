package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/fetch/fetchtest"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, apache.Stop))
}

// apache is the Apache Kafka that all tests share.
var apache kafka.Cluster

// world is an empty topic with a producer and readers.
type world struct {
	*fetchtest.Producer
	seeds []string
	topic string
	open  func(from map[int32]int64) *fetch.Reader
}

// each runs a test on the embedded broker and on Apache Kafka.
func each(t *testing.T, partitions int32, test func(t *testing.T, w world)) {
	t.Helper()
	apache.Each(t, func(t *testing.T, brokers string) { test(t, newWorld(t, brokers, partitions)) })
}

func newWorld(t *testing.T, brokers string, partitions int32) world {
	t.Helper()
	topic := "t-" + uuid.NewString()
	seeds := strings.Split(brokers, ",")
	p := fetchtest.New(t, seeds, topic)
	if err := p.CreateTopic(t.Context(), topic, partitions); err != nil {
		t.Fatal(err)
	}
	return world{p, seeds, topic, func(from map[int32]int64) *fetch.Reader {
		r, err := fetch.Open(fetch.Config{Brokers: seeds, Topic: topic, ClientID: "test",
			Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		r.Assign(from)
		return r
	}}
}

func record(partition int32, value string) fetchtest.Record {
	return fetchtest.Record{Partition: partition, Key: []byte("k"), Value: []byte(value),
		Headers: []event.Header{{Key: "h", Value: []byte(value)}}}
}

// read polls until every partition is read to its end, and returns the values in offset order.
func read(t *testing.T, r *fetch.Reader, ends map[int32]int64) map[int32][]string {
	t.Helper()
	got, next := map[int32][]string{}, map[int32]int64{}
	deadline := time.Now().Add(time.Minute)
	for {
		left := 0
		for p, end := range ends {
			if next[p] < end {
				left++
			}
		}
		if left == 0 {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("read to %v, want to %v", next, ends)
		}
		batches, err := r.Poll(t.Context(), 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range batches {
			for rec := range b.Records() {
				if rec.Offset < next[b.Partition] {
					t.Fatalf("offset %d of partition %d comes after %d", rec.Offset, b.Partition, next[b.Partition])
				}
				if string(rec.Key) != "k" || len(rec.Headers) != 1 || !bytes.Equal(rec.Headers[0].Value, rec.Value) {
					t.Fatalf("record %+v", rec)
				}
				got[b.Partition] = append(got[b.Partition], string(rec.Value))
			}
			next[b.Partition] = b.Next
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Markers of transactions move a reader to the very end, and aborted records are not visible.
func TestReadsCommittedRecordsToTheEnd(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, w world) {
		must(t, w.Commit(t.Context(), w.topic, record(0, "a"), record(0, "b"), record(1, "x")))
		must(t, w.Abort(t.Context(), w.topic, record(0, "never"), record(1, "never")))
		var ends map[int32]int64
		polltest.Until(t, "the ends are behind the markers, which brokers write later", func() bool {
			var err error
			ends, err = w.Ends(t.Context(), w.topic)
			must(t, err)
			return ends[0] == 5 && ends[1] == 4
		})
		got := read(t, w.open(map[int32]int64{0: 0, 1: 0}), ends)
		if fmt.Sprint(got) != "map[0:[a b] 1:[x]]" {
			t.Fatalf("got %v", got)
		}
		got = read(t, w.open(map[int32]int64{0: 1, 1: 1}), ends)
		if fmt.Sprint(got) != "map[0:[b]]" {
			t.Fatalf("from offset 1: got %v", got)
		}
	})
}

// Aborted records are not visible, however the responses to fetches are truncated.
func TestAbortedRecordsAreHiddenInLargeTopics(t *testing.T) {
	t.Parallel()
	const partitions = 4
	each(t, partitions, func(t *testing.T, w world) {
		body := string(bytes.Repeat([]byte("x"), 3000))
		committed := 0
		for i := range 60 {
			var records []fetchtest.Record
			for n := range 100 {
				records = append(records, record(int32(n%partitions), body))
			}
			if i%2 == 0 {
				must(t, w.Abort(t.Context(), w.topic, records...))
				continue
			}
			must(t, w.Commit(t.Context(), w.topic, records...))
			committed += len(records)
		}
		ends, err := w.Ends(t.Context(), w.topic)
		must(t, err)
		got := 0
		for _, values := range read(t, w.open(map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}), ends) {
			got += len(values)
		}
		if got != committed {
			t.Fatalf("read %d records, want the %d that were committed", got, committed)
		}
	})
}

// Describe returns the ranges of a topic, reports a missing one, and gives a recreated one another
// id.
func TestDescribe(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, w world) {
		must(t, w.Commit(t.Context(), w.topic, record(1, "a"), record(1, "b")))
		must(t, w.DeleteRecords(t.Context(), w.topic, 1, 1))
		r := w.open(nil)
		have, err := r.Describe(t.Context())
		must(t, err)
		if have.ID == "" || len(have.Partitions) != 2 || have.Partitions[1] != (fetch.Range{Start: 1, End: 3}) {
			t.Fatalf("got %+v", have)
		}
		must(t, w.DeleteTopic(t.Context(), w.topic))
		polltest.Until(t, "the topic is deleted", func() bool {
			_, err := r.Describe(t.Context())
			return errors.Is(err, fetch.ErrNoTopic)
		})
		must(t, w.CreateTopic(t.Context(), w.topic, 1))
		var again fetch.Topic
		polltest.Until(t, "the topic exists again", func() bool {
			again, err = w.open(nil).Describe(t.Context())
			return err == nil
		})
		if again.ID == have.ID {
			t.Fatal("a recreated topic has the id of the old one")
		}
	})
}

// OffsetsAfter returns the first record that is not older than a time, or the end.
func TestOffsetsAfter(t *testing.T) {
	t.Parallel()
	each(t, 2, func(t *testing.T, w world) {
		at := time.UnixMilli(1_700_000_000_000)
		must(t, w.Stamp(t.Context(), w.topic, 0, fetchtest.Stamped{Millis: at.UnixMilli(), Value: []byte("a")},
			fetchtest.Stamped{Millis: at.UnixMilli() + 1000, Value: []byte("b")}))
		for later, want := range map[time.Duration]int64{-time.Hour: 0, time.Millisecond: 1, time.Second: 1, time.Hour: 2} {
			have, err := w.open(nil).OffsetsAfter(t.Context(), at.Add(later))
			must(t, err)
			if have[0] != want || have[1] != 0 {
				t.Errorf("after %v: %v, want %d", later, have, want)
			}
		}
	})
}

// An offset that the log does not have is an error, never a jump.
func TestOffsetsOutOfRange(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, w world) {
		must(t, w.Commit(t.Context(), w.topic, record(0, "a"), record(0, "b"), record(0, "c")))
		must(t, w.DeleteRecords(t.Context(), w.topic, 0, 2))
		for _, offset := range []int64{1, 9} {
			r := w.open(map[int32]int64{0: offset})
			var gone *fetch.OutOfRangeError
			for gone == nil {
				batches, err := r.Poll(t.Context(), time.Second)
				if len(batches) > 0 {
					t.Fatalf("from offset %d: read on to %d", offset, batches[0].Next)
				}
				if err != nil && !errors.As(err, &gone) {
					t.Fatal(err)
				}
			}
			if want := (fetch.OutOfRangeError{Topic: w.topic, Offset: offset,
				Log: fetch.Range{Start: 2, End: 4}}); *gone != want {
				t.Fatalf("got %+v, want %+v", *gone, want)
			}
		}
	})
}

// Poll returns after its wait, and with an error when its context ends.
func TestPollEnds(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, w world) {
		r := w.open(map[int32]int64{0: 0})
		batches, err := r.Poll(t.Context(), 10*time.Millisecond)
		if err != nil || len(batches) > 0 {
			t.Fatalf("an empty topic returned %v, %v", batches, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Poll(ctx, time.Hour); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}
