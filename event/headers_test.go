package event_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
)

var (
	earliest = time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC).UnixMicro()
	latest   = time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC).UnixMicro()
)

func TestHeadersRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := func(label string) time.Time {
			return event.Time(time.UnixMicro(rapid.Int64Range(earliest, latest).Draw(t, label)))
		}
		want := event.Event{
			ID:         uuid.New(),
			Aggregate:  rapid.SampledFrom(event.Aggregates()).Draw(t, "aggregate").Name,
			Stream:     rapid.StringN(1, 100, -1).Draw(t, "stream"),
			Version:    rapid.Uint64Min(1).Draw(t, "version"),
			Type:       rapid.StringN(1, 50, -1).Draw(t, "type"),
			Data:       rapid.SliceOf(rapid.Byte()).Draw(t, "data"),
			OccurredAt: at("occurred at"), RecordedAt: at("recorded at"),
			CorrelationID: rapid.String().Draw(t, "correlation"), CausationID: rapid.String().Draw(t, "causation"),
			TraceParent: rapid.String().Draw(t, "trace"),
			Position: event.Position{
				Transaction: rapid.Uint64().Draw(t, "transaction"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			},
		}
		headers := append(want.Headers(), event.Header{Key: "x-of-a-proxy", Value: []byte("ignored")})
		got, err := event.FromRecord([]byte(want.Stream), want.Data, headers)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	})
}

func TestFromRecordRejects(t *testing.T) {
	t.Parallel()
	good := event.Event{
		ID: uuid.New(), Aggregate: "order", Stream: "a", Version: 1, Type: "millrace.order.v1.OrderPlaced",
		OccurredAt: time.Unix(1, 0).UTC(), RecordedAt: time.Unix(2, 0).UTC(),
	}
	set := func(key, value string) func([]event.Header) []event.Header {
		return func(h []event.Header) []event.Header { return append(h, event.Header{Key: key, Value: []byte(value)}) }
	}
	drop := func(key string) func([]event.Header) []event.Header {
		return func(h []event.Header) []event.Header {
			return slices.DeleteFunc(h, func(h event.Header) bool { return h.Key == key })
		}
	}
	for name, change := range map[string]func([]event.Header) []event.Header{
		"no headers":            func([]event.Header) []event.Header { return nil },
		"another specversion":   set("ce_specversion", "2.0"),
		"no specversion":        drop("ce_specversion"),
		"an invalid id":         set("ce_id", "7"),
		"no id":                 drop("ce_id"),
		"no type":               drop("ce_type"),
		"another's source":      set("ce_source", "/elsewhere/order"),
		"an empty source":       set("ce_source", "/millrace/"),
		"another subject":       set("ce_subject", "b"),
		"no subject":            drop("ce_subject"),
		"an invalid time":       set("ce_time", "yesterday"),
		"no time":               drop("ce_time"),
		"no recording time":     drop("ce_recordedtime"),
		"the zero time":         set("ce_time", "0001-01-01T00:00:00Z"),
		"the year 10000 in UTC": set("ce_time", "9999-12-31T23:59:59-01:00"),
		"version 0":             set("ce_streamversion", "0"),
		"version -1":            set("ce_streamversion", "-1"),
		"no version":            drop("ce_streamversion"),
		"a position of 1 part":  set("ce_storeposition", "7"),
	} {
		if e, err := event.FromRecord([]byte(good.Stream), nil, change(good.Headers())); !errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if _, err := event.FromRecord([]byte(good.Stream), nil, good.Headers()); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if e, err := event.FromRecord([]byte("b"), nil, good.Headers()); !errors.Is(err, event.ErrNotEvent) {
		t.Errorf("another key: %+v, %v", e, err)
	}
}

// FuzzFromRecord checks that any accepted event can be sent on as the same event.
func FuzzFromRecord(f *testing.F) {
	e := event.Event{
		ID: uuid.New(), Aggregate: "order", Stream: "a", Version: 1,
		Type: "millrace.order.v1.OrderPlaced", CorrelationID: "c",
		OccurredAt: time.Unix(1, 0).UTC(), RecordedAt: time.Unix(2, 0).UTC(),
		Position: event.Position{Transaction: 1, Sequence: 2},
	}
	var lines []string
	for _, h := range e.Headers() {
		lines = append(lines, h.Key+": "+string(h.Value))
	}
	f.Add([]byte("a"), []byte{1, 2}, strings.Join(lines, "\n"))
	f.Add([]byte("a"), []byte{}, strings.Join(append(lines, "ce_time: 9999-12-31T23:59:59-23:00"), "\n"))
	f.Add([]byte{}, []byte{}, "")
	f.Fuzz(func(t *testing.T, key, value []byte, headers string) {
		var hs []event.Header
		for line := range strings.SplitSeq(headers, "\n") {
			k, v, _ := strings.Cut(line, ": ")
			hs = append(hs, event.Header{Key: k, Value: []byte(v)})
		}
		e, err := event.FromRecord(key, value, hs)
		if err != nil {
			if !errors.Is(err, event.ErrNotEvent) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if e.Stream != string(key) || !bytes.Equal(e.Data, value) {
			t.Fatalf("key %q and value %q became %+v", key, value, e)
		}
		again, err := event.FromRecord([]byte(e.Stream), e.Data, e.Headers())
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}
