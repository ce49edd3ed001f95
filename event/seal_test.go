package event_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

func sealedEvent() event.Event {
	return event.Event{
		ID: uuid.MustParse("0192f0c8-1111-7222-8333-444455556666"), Aggregate: "order", Stream: orderID, Version: 2,
		Type: "millrace.order.v1.OrderConfirmed", Data: confirmed(),
		OccurredAt: time.Unix(1_700_000_000, 1000).UTC(), RecordedAt: time.Unix(1_700_000_001, 0).UTC(),
		CorrelationID: "c", CausationID: "d", TraceParent: "00-1-2-3", Position: event.Position{Transaction: 3, Sequence: 4},
	}
}

// TestSeal checks that a seal travels with the record and matches only its event.
func TestSeal(t *testing.T) {
	t.Parallel()
	e := sealedEvent()
	headers := append(e.Headers(), e.Seal("here"))
	back, err := event.FromRecord([]byte(e.Stream), e.Data, headers)
	if err != nil || !back.SealMatches(headers) {
		t.Fatalf("%v: the seal does not match %v", err, back)
	}
	if name, ok := event.SealName(headers); !ok || string(name) != "here" {
		t.Errorf("name in the seal is %q, want here", name)
	}
	if _, ok := event.SealName(e.Headers()); ok || e.SealMatches(e.Headers()) {
		t.Error("a record without a seal has one")
	}
	for name, change := range map[string]func(*event.Event){
		"id":             func(e *event.Event) { e.ID[15]++ },
		"aggregate":      func(e *event.Event) { e.Aggregate = "stock" },
		"stream":         func(e *event.Event) { e.Stream += "0" },
		"version":        func(e *event.Event) { e.Version++ },
		"type":           func(e *event.Event) { e.Type += "d" },
		"data":           func(e *event.Event) { e.Data = append(bytes.Clone(e.Data), 0) },
		"no data":        func(e *event.Event) { e.Data = nil },
		"time":           func(e *event.Event) { e.OccurredAt = e.OccurredAt.Add(time.Microsecond) },
		"recorded":       func(e *event.Event) { e.RecordedAt = e.RecordedAt.Add(-time.Microsecond) },
		"correlation":    func(e *event.Event) { e.CorrelationID = "" },
		"text moved":     func(e *event.Event) { e.CorrelationID, e.CausationID = "cd", "" },
		"trace":          func(e *event.Event) { e.TraceParent += "0" },
		"transaction":    func(e *event.Event) { e.Position.Transaction++ },
		"sequence":       func(e *event.Event) { e.Position.Sequence = 99999999 },
		"numbers change": func(e *event.Event) { e.Position = event.Position{Transaction: 4, Sequence: 3} },
	} {
		other := e
		if change(&other); other.SealMatches(headers) {
			t.Errorf("%s: the seal matches another event", name)
		}
	}
	for name, h := range map[string]event.Header{
		"another name": {Key: e.Seal("here").Key, Value: append([]byte("there"), e.Seal("here").Value[4:]...)},
		"truncated":    {Key: e.Seal("here").Key, Value: e.Seal("here").Value[:8]},
		"no sum":       {Key: e.Seal("here").Key, Value: []byte("here")},
		"empty":        {Key: e.Seal("here").Key},
		"bytes":        {Key: e.Seal("here").Key, Value: []byte{0xff, ':', 0}},
	} {
		if e.SealMatches([]event.Header{h}) {
			t.Errorf("%s: the seal matches", name)
		}
	}
}

func TestSealMatchesOnlyEqualEvents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		draw := func() event.Event {
			e := sealedEvent()
			e.Stream, e.Type = rapid.String().Draw(rt, "stream"), rapid.String().Draw(rt, "type")
			e.CorrelationID, e.CausationID = rapid.String().Draw(rt, "correlation"), rapid.String().Draw(rt, "causation")
			e.Version, e.Data = rapid.Uint64().Draw(rt, "version"), rapid.SliceOf(rapid.Byte()).Draw(rt, "data")
			return e
		}
		a, b := draw(), draw()
		equal := a.Stream == b.Stream && a.Type == b.Type &&
			a.CorrelationID == b.CorrelationID && a.CausationID == b.CausationID &&
			a.Version == b.Version && bytes.Equal(a.Data, b.Data)
		if matches := b.SealMatches([]event.Header{a.Seal("n")}); matches != equal {
			rt.Fatalf("the seal of %v matches %v: %v", a, b, matches)
		}
	})
}

func BenchmarkSealMatches(b *testing.B) {
	e := sealedEvent()
	e.Data = orderPlaced(func(*orderv1.OrderPlaced) {})
	headers := append(e.Headers(), e.Seal("0123456789abcdef"))
	b.ReportAllocs()
	for b.Loop() {
		if !e.SealMatches(headers) {
			b.Fatal("the seal does not match")
		}
	}
}

func BenchmarkFromRecord(b *testing.B) {
	e := sealedEvent()
	e.Data = orderPlaced(func(*orderv1.OrderPlaced) {})
	headers := append(e.Headers(), e.Seal("0123456789abcdef"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.FromRecord([]byte(e.Stream), e.Data, headers); err != nil {
			b.Fatal(err)
		}
	}
}
