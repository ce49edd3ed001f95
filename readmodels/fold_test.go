package readmodels_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
	"github.com/millrace/millrace/streams"
)

// project is a projection that appends each event's data to the field stream.
func project(doc *eventv1.PositionToken, e event.Event) (*eventv1.PositionToken, error) {
	next := &eventv1.PositionToken{Service: e.Stream}
	if doc != nil {
		next = proto.CloneOf(doc)
	}
	next.Version = e.Version
	if string(e.Data) == "bad" {
		return next, fmt.Errorf("version %d is bad", e.Version)
	}
	next.Stream += string(e.Data)
	return next, nil
}

func record(stream string, version uint64, data string) streams.Record {
	return streams.Record{Event: event.Event{Stream: stream, Version: version, Data: []byte(data)},
		Offset: int64(version)}
}

func TestFold(t *testing.T) {
	t.Parallel()
	docs := map[string]*eventv1.PositionToken{"a": {Service: "a", Stream: "12", Version: 2}}
	before := docs["a"]
	changed, err := readmodels.Fold(docs, []streams.Record{
		record("a", 2, "2"), // again
		record("a", 3, "3"), record("b", 1, "1"), record("a", 4, "4"),
		record("b", 1, "1"),                                             // again
		record("c", 1, "bad"), record("c", 1, "1"), record("c", 2, "2"), // the valid record of that version
		record("e", 1, "bad"), record("f", 7, "bad"), // of unknown streams
		record("d", 1, "1"),
	}, project)
	var unreadable *streams.UnreadableError
	if !errors.As(err, &unreadable) || len(unreadable.Records) != 3 || unreadable.Records[0].Event.Stream != "c" {
		t.Fatalf("error %v, want the records of c, e and f", err)
	}
	if len(docs) != 4 {
		t.Errorf("%d documents, want those of a, b, c and d", len(docs))
	}
	for stream, want := range map[string]struct {
		text    string
		version uint64
	}{"a": {"1234", 4}, "b": {"1", 1}, "c": {"12", 2}, "d": {"1", 1}} {
		if got := docs[stream]; got.GetStream() != want.text || got.GetVersion() != want.version || !changed[stream] {
			t.Errorf("%s is %v (changed: %v), want %v", stream, got, changed[stream], want)
		}
	}
	if before.Version != 2 || before.Stream != "12" {
		t.Error("the document that was passed in is changed")
	}
	changed, err = readmodels.Fold(docs, []streams.Record{record("a", 4, "4"), record("c", 1, "bad")}, project)
	if len(changed) != 0 || !errors.As(err, &unreadable) || len(unreadable.Records) != 1 {
		t.Errorf("a redelivery changed %v, and said %v of what is still unreadable", changed, err)
	}
}

// An event at which the projection panics is unreadable, for a view and for its verification. Later
// events of its stream wait behind it, and the others are folded.
func TestPanicOfAProjection(t *testing.T) {
	t.Parallel()
	broken := func(doc *eventv1.PositionToken, e event.Event) (*eventv1.PositionToken, error) {
		if string(e.Data) == "panic" {
			panic("a mistake")
		}
		return project(doc, e)
	}
	records := []streams.Record{record("a", 1, "1"), record("a", 2, "panic"), record("a", 3, "3"), record("b", 1, "1")}
	docs := map[string]*eventv1.PositionToken{}
	_, err := readmodels.Fold(docs, records, broken)
	var unreadable *streams.UnreadableError
	if !errors.As(err, &unreadable) || len(unreadable.Records) != 2 || unreadable.Reasons[0].Error() != "panic: a mistake" ||
		!errors.Is(unreadable.Reasons[1], streams.ErrBehind) {
		t.Fatalf("error %v, want a panic and the event behind it", err)
	}
	if docs["a"].GetVersion() != 1 || docs["b"].GetVersion() != 1 {
		t.Errorf("folded %v", docs)
	}
	expected, err := readmodels.Expected(func(yield func(event.Event, error) bool) {
		for _, r := range records {
			if !yield(r.Event, nil) {
				return
			}
		}
	}, broken)
	if err != nil || expected.Total().Count != 2 {
		t.Errorf("%v documents are expected, want 2: %v", expected, err)
	}
}

func TestFoldFindsGaps(t *testing.T) {
	t.Parallel()
	for _, have := range []uint64{0, 1, 5} {
		docs := map[string]*eventv1.PositionToken{}
		if have > 0 {
			docs["a"] = &eventv1.PositionToken{Version: have}
		}
		r := record("a", have+2, "x")
		_, err := readmodels.Fold(docs, []streams.Record{r}, project)
		var gap *streams.GapError
		if !errors.As(err, &gap) || !errors.Is(err, streams.ErrLost) || gap.Have != have ||
			gap.Record.Offset != r.Offset {
			t.Errorf("at version %d: %v", have, err)
		}
	}
}

// TestFoldOfAnyDeliveryIsTheExpected checks that the documents are those of the events alone,
// however often what is redelivered, and however it is divided into batches.
func TestFoldOfAnyDeliveryIsTheExpected(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var history []event.Event
		versions := map[string]uint64{}
		for range rapid.IntRange(0, 30).Draw(rt, "events") {
			stream := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "stream")
			data := rapid.SampledFrom([]string{"x", "y", "bad"}).Draw(rt, "data")
			if data == "bad" { // not an event, whatever version it claims
				version := rapid.Uint64Range(1, 9).Draw(rt, "claimed version")
				history = append(history, event.Event{Stream: stream, Version: version, Data: []byte(data)})
				continue
			}
			versions[stream]++
			history = append(history, event.Event{Stream: stream, Version: versions[stream], Data: []byte(data)})
		}
		docs := map[string]*eventv1.PositionToken{}
		reached := 0
		for reached < len(history) { // each delivery starts at or before the end of the previous ones
			from := rapid.IntRange(0, reached).Draw(rt, "from")
			to := rapid.IntRange(from+1, len(history)).Draw(rt, "to")
			var batch []streams.Record
			for _, e := range history[from:to] {
				batch = append(batch, streams.Record{Event: e})
			}
			var unreadable *streams.UnreadableError
			if _, err := readmodels.Fold(docs, batch, project); err != nil && !errors.As(err, &unreadable) {
				rt.Fatal(err)
			}
			reached = max(reached, to)
		}
		got := digest.New()
		for stream, doc := range docs {
			if err := readmodels.AddDocument(got, stream, doc); err != nil {
				rt.Fatal(err)
			}
		}
		want, err := readmodels.Expected(func(yield func(event.Event, error) bool) {
			for _, e := range history {
				if string(e.Data) != "bad" && !yield(e, nil) { // the store has none of these
					return
				}
			}
		}, project)
		if err != nil || got.Total() != want.Total() {
			rt.Fatalf("%v, %v, want %v", got, err, want)
		}
	})
}

func TestExpectedPassesErrorsOn(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk on fire")
	for name, c := range map[string]struct {
		e   event.Event
		err error
	}{"of the reader": {err: broken}, "a gap": {e: event.Event{Stream: "a", Version: 2}}} {
		_, err := readmodels.Expected(func(yield func(event.Event, error) bool) { yield(c.e, c.err) }, project)
		if err == nil || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
