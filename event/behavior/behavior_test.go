package behavior_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// viewed returns the message of a valid event.
func viewed() *behaviorv1.BehaviorEvent {
	return &behaviorv1.BehaviorEvent{
		MessageId: "m1", Type: behavior.Track, Event: "Product Viewed", AnonymousId: "a1", Source: "web",
		Timestamp:  timestamppb.New(time.Unix(1_700_000_000, 123_456_789)),
		ReceivedAt: timestamppb.New(time.Unix(1_700_000_001, 0)),
		Properties: `{"sku":"22423"}`, Consent: map[string]bool{"analytics": true, "ads": false},
	}
}

// envelope returns the event of a message, without the check.
func envelope(t testing.TB, m *behaviorv1.BehaviorEvent) event.Event {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return event.Event{
		ID: event.BehaviorID(m.GetSource(), m.GetMessageId()), Aggregate: "behavior",
		Type: "millrace.behavior.v1.BehaviorEvent", Stream: behavior.Key(m), Data: data,
		OccurredAt: event.Time(m.GetTimestamp().AsTime()), RecordedAt: event.Time(m.GetReceivedAt().AsTime()),
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for key, change := range map[string]func(*behaviorv1.BehaviorEvent){
		"a1": func(*behaviorv1.BehaviorEvent) {},
		"u1": func(m *behaviorv1.BehaviorEvent) { m.UserId = "u1" },
	} {
		want := viewed()
		change(want)
		e, err := behavior.Envelope(want)
		if err != nil {
			t.Fatal(err)
		}
		if e.Stream != key {
			t.Errorf("key %q, want %q", e.Stream, key)
		}
		got, m, err := behavior.FromRecord([]byte(e.Stream), e.Data, e.Headers())
		if err != nil || !proto.Equal(m, want) || !reflect.DeepEqual(got, e) {
			t.Errorf("got %v in %+v, %v; want %v in %+v", m, got, err, want, e)
		}
		if id, ok := event.BehaviorHeaderID(e.Headers()); !ok || id != e.ID {
			t.Errorf("id in the headers: %v, %v, want %v", id, ok, e.ID)
		}
		// Readers that know only the topic check the same.
		if err := event.CheckOn("millrace.behavior", got); err != nil {
			t.Error(err)
		}
	}
}

// TestDecodeRejects checks which records are not events, for every reader.
func TestDecodeRejects(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		message func(*behaviorv1.BehaviorEvent)
		event   func(*event.Event)
	}{
		"no message id":     {message: func(m *behaviorv1.BehaviorEvent) { m.MessageId = "" }},
		"no type":           {message: func(m *behaviorv1.BehaviorEvent) { m.Type = "" }},
		"no source":         {message: func(m *behaviorv1.BehaviorEvent) { m.Source = "" }},
		"nobody":            {message: func(m *behaviorv1.BehaviorEvent) { m.AnonymousId = "" }},
		"no time":           {message: func(m *behaviorv1.BehaviorEvent) { m.Timestamp = nil }},
		"never received":    {message: func(m *behaviorv1.BehaviorEvent) { m.ReceivedAt = nil }},
		"a list":            {message: func(m *behaviorv1.BehaviorEvent) { m.Properties = `[1]` }},
		"half an object":    {message: func(m *behaviorv1.BehaviorEvent) { m.Traits = `{"a":` }},
		"two objects":       {message: func(m *behaviorv1.BehaviorEvent) { m.Context = `{}{}` }},
		"another's key":     {event: func(e *event.Event) { e.Stream = "a2" }},
		"another's id":      {event: func(e *event.Event) { e.ID = uuid.New() }},
		"another time":      {event: func(e *event.Event) { e.OccurredAt = e.OccurredAt.Add(time.Second) }},
		"another reception": {event: func(e *event.Event) { e.RecordedAt = e.RecordedAt.Add(time.Second) }},
		"a version":         {event: func(e *event.Event) { e.Version = 1 }},
		"a position":        {event: func(e *event.Event) { e.Position.Sequence = 1 }},
		"another type":      {event: func(e *event.Event) { e.Type = "millrace.behavior.v1.Other" }},
		"another aggregate": {event: func(e *event.Event) { e.Aggregate = "order" }},
		"text of bytes":     {event: func(e *event.Event) { e.Data = append(e.Data, 0x1a, 1, 0xff) }},
		"cut short":         {event: func(e *event.Event) { e.Data = e.Data[:len(e.Data)-1] }},
		"two times": {event: func(e *event.Event) {
			again, _ := proto.Marshal(&behaviorv1.BehaviorEvent{Timestamp: timestamppb.New(time.Unix(5, 0))})
			e.Data = append(e.Data, again...)
		}},
	} {
		m := viewed()
		if c.message != nil {
			c.message(m)
		}
		e := envelope(t, m)
		if c.event != nil {
			c.event(&e)
		}
		if got, err := behavior.Decode(e); !errors.Is(err, event.ErrNotEvent) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if c.event == nil {
			if _, err := behavior.Envelope(m); !errors.Is(err, event.ErrNotEvent) {
				t.Errorf("%s: the event can be made: %v", name, err)
			}
		}
	}
}

// TestDecodeAcceptsNewerFields checks that an intake of a later version can be read.
func TestDecodeAcceptsNewerFields(t *testing.T) {
	t.Parallel()
	e := envelope(t, viewed())
	e.Data = protowire.AppendString(protowire.AppendTag(e.Data, 60, protowire.BytesType), "later")
	e.Data = protowire.AppendString(protowire.AppendTag(e.Data, 600, protowire.BytesType), "later")
	if _, err := behavior.Decode(e); err != nil {
		t.Error(err)
	}
}

// FuzzFromRecord checks that any accepted record is an event with a message that can be sent on.
func FuzzFromRecord(f *testing.F) {
	e := envelope(f, viewed())
	f.Add(e.Data, "a1", e.OccurredAt.UnixMicro(), e.RecordedAt.UnixMicro())
	f.Add([]byte{}, "", int64(0), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, key string, occurred, recorded int64) {
		e := event.Event{
			Aggregate: "behavior", Type: "millrace.behavior.v1.BehaviorEvent", Stream: key, Data: data,
			OccurredAt: time.UnixMicro(occurred).UTC(), RecordedAt: time.UnixMicro(recorded).UTC(),
		}
		m := &behaviorv1.BehaviorEvent{}
		if proto.Unmarshal(data, m) == nil { // otherwise no id can be right
			e.ID = event.BehaviorID(m.GetSource(), m.GetMessageId())
		}
		m, err := behavior.Decode(e)
		if err != nil {
			if !errors.Is(err, event.ErrNotEvent) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := behavior.Envelope(m)
		if err != nil {
			t.Fatalf("%v cannot be sent on: %v", m, err)
		}
		if again.ID != e.ID || again.Stream != e.Stream || !again.OccurredAt.Equal(e.OccurredAt) {
			t.Fatalf("%+v became %+v", e, again)
		}
	})
}

// TestRecentMatchesList compares Recent with the definition of a copy.
func TestRecentMatchesList(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 8).Draw(t, "limit")
		recent := behavior.NewRecent(limit)
		type added struct {
			id uuid.UUID
			at time.Time
		}
		var list []added // in the order of addition
		now := time.Unix(1_700_000_000, 0)
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 3600, 12 * 3600, 24 * 3600, 24*3600 + 1}).
				Draw(t, "later")) * time.Second)
			id := uuid.UUID{byte(rapid.IntRange(0, 11).Draw(t, "id"))}
			first := true
			// What is too old, or exceeds the limit, is forgotten.
			for i := len(list) - 1; i >= 0 && len(list)-i <= limit; i-- {
				if list[i].id == id && now.Sub(list[i].at) <= behavior.Window {
					first = false
				}
			}
			if has := recent.Has(id, now); has == first {
				t.Fatalf("Has(%d) is %v", id[0], has)
			}
			if got := recent.Add(id, now); got != first {
				t.Fatalf("Add(%d) is %v, want %v, after %v", id[0], got, first, list)
			}
			if first {
				list = append(list, added{id, now})
			}
			if recent.Len() > limit {
				t.Fatalf("%d ids are remembered, more than %d", recent.Len(), limit)
			}
		}
	})
}

func BenchmarkRecent(b *testing.B) {
	r, now := behavior.NewRecent(1<<20), time.Unix(1_700_000_000, 0)
	var n uint64
	for b.Loop() {
		n++
		r.Add(event.BehaviorID("web", time.Unix(int64(n), 0).String()), now)
	}
}
