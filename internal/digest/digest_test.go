package digest_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
)

func sample() event.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	return event.Event{
		ID: uuid.MustParse("0192f0c8-1111-7222-8333-444455556666"), Aggregate: "order", Stream: "s", Version: 1,
		Type: "t", Data: []byte("d"), OccurredAt: at, RecordedAt: at,
		CorrelationID: "c", CausationID: "k", TraceParent: "p", Position: event.Position{Sequence: 1},
	}
}

func total(e event.Event) digest.Sum {
	d := digest.New()
	d.AddEvent(e)
	return d.Total()
}

// TestDigestCoversEveryField checks that a change of any field of an event changes the hash.
func TestDigestCoversEveryField(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*event.Event){
		"ID":                                    func(e *event.Event) { e.ID[0]++ },
		"Aggregate":                             func(e *event.Event) { e.Aggregate = "x" },
		"Stream":                                func(e *event.Event) { e.Stream = "x" },
		"Version":                               func(e *event.Event) { e.Version++ },
		"Type":                                  func(e *event.Event) { e.Type = "x" },
		"Data":                                  func(e *event.Event) { e.Data = []byte("x") },
		"OccurredAt":                            func(e *event.Event) { e.OccurredAt = e.OccurredAt.Add(time.Microsecond) },
		"RecordedAt":                            func(e *event.Event) { e.RecordedAt = e.RecordedAt.Add(time.Microsecond) },
		"CorrelationID":                         func(e *event.Event) { e.CorrelationID = "" },
		"CausationID":                           func(e *event.Event) { e.CausationID = "" },
		"TraceParent":                           func(e *event.Event) { e.TraceParent = "" },
		"text moved from one field to the next": func(e *event.Event) { e.CorrelationID, e.CausationID = "ck", "" },
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			e := sample()
			change(&e)
			if total(e) == total(sample()) {
				t.Fatal("the hash did not change")
			}
		})
	}
}

// TestDigestIgnoresPosition checks that the position, which belongs to the store, is not content.
func TestDigestIgnoresPosition(t *testing.T) {
	t.Parallel()
	e := sample()
	e.Position = event.Position{Transaction: 7, Sequence: 9}
	if total(e) != total(sample()) {
		t.Fatal("the position changed the hash")
	}
}
