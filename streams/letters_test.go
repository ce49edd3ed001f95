package streams

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// What is written as a dead letter is read as the same record.
func TestDeadLettersAreReadAsWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rec := Record{
			Event: event.Event{Data: rapid.SliceOf(rapid.Byte()).Draw(t, "value")},
			Topic: rapid.StringMatching(`[a-z.]+`).Draw(t, "topic"), Partition: rapid.Int32Min(0).Draw(t, "partition"),
			Offset: rapid.Int64Min(0).Draw(t, "offset"),
		}
		own := []event.Header{{Key: "seal", Value: rapid.SliceOf(rapid.Byte()).Draw(t, "header")}}
		key := rapid.StringN(1, -1, 100).Draw(t, "key")
		attempts := rapid.IntRange(0, 1000).Draw(t, "attempts")
		letter := parkedLetter(*newDeadLetter("view/v1", rec, key, own, errors.New("reason")), "id", attempts, nil)
		l, ok := parseDeadLetter(kafka.Message{Key: letter.Key, Value: letter.Value, Headers: letter.Headers})
		switch {
		case !ok || l.ID() != string(letter.Key) || l.Sink != "view/v1" || l.from().Topic != rec.Topic:
			t.Fatalf("%q became %+v, %v", letter.Key, l, ok)
		case string(l.Key) != key || !bytes.Equal(l.Value, rec.Event.Data) || l.Shortened() || l.topicID != "id":
			t.Fatalf("%+v", l)
		case !l.Parked || l.Attempts != attempts || l.Reason.Error() != "reason":
			t.Fatalf("%+v", l)
		case len(l.Headers) != 1 || !bytes.Equal(l.Headers[0].Value, own[0].Value):
			t.Fatalf("headers %q", l.Headers)
		}
		// A shortened one is recognised, and a deleted one has its identity.
		short := shortened(letter, keptHeaders)
		if l, ok := parseDeadLetter(kafka.Message{Key: short.Key, Value: short.Value, Headers: short.Headers}); !ok ||
			l.Shortened() != (len(rec.Event.Data) > keptValue) || l.Size != int64(len(rec.Event.Data)) {
			t.Fatalf("shortened: %+v, %v", l, ok)
		}
		gone := deletion("view/v1", rec)
		if l, ok := parseDeadLetter(kafka.Message{Key: gone.Key}); !ok || !l.Deleted || l.ID() != string(letter.Key) {
			t.Fatalf("deleted: %+v, %v", l, ok)
		}
	})
}

// Any record of the topic is read without harm, and one that is taken for a dead letter is usable.
func FuzzDeadLetter(f *testing.F) {
	f.Add("view/v1|topic|0|1", []byte("value"), HeaderDeadLetterAttempts, []byte("1"))
	f.Add("view/v1|topic|0|1", []byte("value"), HeaderDeadLetterSize, []byte("9"))
	f.Add("redrive|view/v1", []byte("now"), HeaderDeadLetterKey, []byte("s"))
	f.Add("a|b|-1|99999999999999999999", []byte{}, "", []byte{})
	f.Fuzz(func(t *testing.T, key string, value []byte, name string, header []byte) {
		l, ok := parseDeadLetter(kafka.Message{
			Key: []byte(key), Value: value, Headers: []event.Header{{Key: name, Value: header}},
		})
		if !ok {
			return
		}
		again, ok := parseLetterKey(l.ID())
		if !ok || again.Offset != l.Offset || again.Partition != l.Partition || again.Topic != l.Topic {
			t.Fatalf("%q: id %q", key, l.ID())
		}
		if l.Size < int64(len(l.Value)) || l.Attempts < 0 || l.Offset < 0 || l.Partition < 0 {
			t.Fatalf("%q: %+v", key, l)
		}
	})
}

// The index of parked events agrees with sets of offsets.
func TestParkingIndex(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k, model := parkingOf(nil), map[string]map[int64]bool{}
		for range rapid.IntRange(0, 50).Draw(t, "steps") {
			stream := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "stream")
			offset := rapid.Int64Range(0, 9).Draw(t, "offset")
			if model[stream] == nil {
				model[stream] = map[int64]bool{}
			}
			if rapid.Bool().Draw(t, "park") {
				k.park(stream, offset)
				model[stream][offset] = true
			} else {
				k.release(stream, offset)
				delete(model[stream], offset)
			}
			events, parked := 0, 0
			for name, offsets := range model {
				events += len(offsets)
				if len(offsets) > 0 {
					parked++
				}
				least := int64(-1)
				for o := range offsets {
					if least < 0 || o < least {
						least = o
					}
				}
				for o := range int64(10) {
					behind, waits, first := k.waits(name, o, 0)
					if waits != (least >= 0 && o > least) || first != (o == least) || waits && behind != least {
						t.Fatalf("offset %d of %s: behind %d, waits %v, first %v, parked %v", o, name, behind, waits, first, offsets)
					}
				}
			}
			if s, e := k.size(); s != parked || e != events {
				t.Fatalf("size %d and %d, want %d and %d", s, e, parked, events)
			}
		}
	})
}
