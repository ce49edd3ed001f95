package relay_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// seals returns a reader's Seals. Without a store, it is that of a process that has no store.
func (b broker) seals(t *testing.T, store ...eventstore.Store) *relay.Seals {
	t.Helper()
	stores := map[string]eventstore.Store{}
	for _, s := range store {
		stores[b.order.Service] = s
	}
	s, err := relay.NewSeals(b.Config, []event.Aggregate{b.order}, stores)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (b broker) record(m kafka.Message) registry.Record {
	return registry.Record{
		Topic: b.order.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Headers: m.Headers,
	}
}

// countAccepted reads the topic, and counts the records that a reader accepts and rejects.
func (b broker) countAccepted(t *testing.T, s *relay.Seals) (accepted, rejected int) {
	t.Helper()
	err := b.read(t.Context(), func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err != nil {
			return err
		}
		switch _, err := s.CheckSeal(t.Context(), b.record(m), e); {
		case err == nil:
			accepted++
		case errors.Is(err, event.ErrNotEvent):
			rejected++
		default:
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return accepted, rejected
}

// Only a record that was written by the relay is an event of its store, even if other records look
// like one.
func TestReadersAcceptOnlyRelayRecords(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.valid = true
		w.append(t, 30)
		b.publish(t, s)
		var published []kafka.Message
		err := b.read(t.Context(), func(m kafka.Message) error { published = append(published, m); return nil })
		if err != nil {
			t.Fatal(err)
		}
		first, err := event.FromRecord(published[0].Key, published[0].Value, published[0].Headers)
		if err != nil {
			t.Fatal(err)
		}
		made := func(change func(*event.Event)) registry.Record {
			e := first
			change(&e)
			r := b.record(published[0])
			r.Offset, r.Headers, r.Value, r.Key = published[0].Offset+1000, e.Headers(), e.Data, []byte(e.Stream)
			return r
		}
		changed := func(change func(*event.Event)) registry.Record { // and the seal kept
			r := made(change)
			r.Headers = append(r.Headers, published[0].Headers[len(published[0].Headers)-1])
			return r
		}
		readers := b.seals(t)
		for name, r := range map[string]registry.Record{
			"of an unknown stream":                 made(func(e *event.Event) { e.ID, e.Stream, e.Version = uuid.New(), "ghost", 1 }),
			"of the free version of a real stream": made(func(e *event.Event) { e.ID, e.Version = uuid.New(), 1000 }),
			"the same event without its seal":      made(func(*event.Event) {}),
			"a copy with another version":          changed(func(e *event.Event) { e.Version++ }),
			"a copy at another position":           changed(func(e *event.Event) { e.Position.Sequence = 99999999 }),
			"a copy with another payload":          changed(func(e *event.Event) { e.Data = []byte("other") }),
			"a copy of another stream":             changed(func(e *event.Event) { e.Stream = "ghost" }),
			"another system's": func() registry.Record {
				r := made(func(e *event.Event) { e.ID = uuid.New() })
				r.Headers = append(r.Headers, first.Seal("elsewhere"))
				return r
			}(),
		} {
			e, err := event.FromRecord(r.Key, r.Value, r.Headers)
			if err != nil {
				t.Fatal(err)
			}
			for reader, readers := range map[string]*relay.Seals{"without the store": readers, "with the store": b.seals(t, s)} {
				if _, err := readers.CheckSeal(t.Context(), r, e); !errors.Is(err, event.ErrNotEvent) {
					t.Errorf("a reader %s, %s: %v", reader, name, err)
				}
			}
		}
		if accepted, rejected := b.countAccepted(t, readers); accepted != 30 || rejected != 0 {
			t.Errorf("of the relay's 30 records, %d were accepted and %d rejected", accepted, rejected)
		}
		// A reader that started before continues, and so does a relay that takes over.
		w.append(t, 20)
		b.publish(t, s)
		if accepted, rejected := b.countAccepted(t, readers); accepted != 50 || rejected != 0 {
			t.Errorf("of the relays' 50 records, %d were accepted and %d rejected", accepted, rejected)
		}
		if accepted, rejected := b.countAccepted(t, b.seals(t)); accepted != 50 || rejected != 0 {
			t.Errorf("a new reader accepted %d of the relays' 50 records and rejected %d", accepted, rejected)
		}
	})
}

// Records that relays of earlier versions have written remain valid. Records after the first relay
// that seals must have a seal.
func TestRecordsOfEarlierVersions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.valid = true
		w.append(t, 30)
		known, err := s.Read(t.Context(), event.Position{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		var old []kafka.Record
		for _, e := range known {
			old = append(old, b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions)))
		}
		b.produce(t, append(old, relay.CheckpointRecord(event.Position{}, known[29].Position, b.order.Service)))
		before := b.seals(t)
		if accepted, rejected := b.countAccepted(t, before); accepted != 30 || rejected != 0 {
			t.Fatalf("before the first seal, %d of 30 records were accepted and %d rejected", accepted, rejected)
		}
		w.append(t, 10)
		if got := b.publish(t, s).Published; got != 10 {
			t.Fatalf("published %d events, want the 10 new ones", got)
		}
		late := known[0]
		late.ID, late.Version = uuid.New(), 100
		b.produce(t, []kafka.Record{b.onTopic(late, 0), b.onTopic(known[0], 1)})
		for name, readers := range map[string]*relay.Seals{
			"a reader from before": before, "a new reader": b.seals(t), "a reader with the store": b.seals(t, s),
		} {
			eventually(t, func() bool { // a reader without an announcement reads new ones once a second
				accepted, rejected := b.countAccepted(t, readers)
				return accepted == 40 && rejected == 2
			}, "%s accepts the 40 events and rejects the 2 others", name)
		}
	})
}

// A record that was on the topic before the relay's first event is not an event.
func TestInvalidRecordBeforeFirstEvent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		now := event.Time(time.Now())
		forged := event.Event{
			ID: uuid.New(), Aggregate: "order", Type: "millrace.order.v1.OrderPlaced", Stream: "ghost", Version: 1,
			Data: []byte("x"), OccurredAt: now, RecordedAt: now,
		}
		b.produce(t, []kafka.Record{b.onTopic(forged, 0)})
		run(t, b.newRelay(t, s))
		readers := b.seals(t)
		eventually(t, func() bool {
			accepted, rejected := b.countAccepted(t, readers)
			return accepted == 0 && rejected == 1
		}, "the record is rejected")
	})
}

// If the announcements cannot be read, the check returns an error that readers retry.
func TestSealsWithoutLog(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		newWriter(s).append(t, 1)
		b.publish(t, s)
		readers := b.seals(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := b.read(t.Context(), func(m kafka.Message) error {
			e, err := event.FromRecord(m.Key, m.Value, m.Headers)
			if err != nil {
				return err
			}
			if _, err := readers.CheckSeal(ctx, b.record(m), e); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("%v, want %v", err, registry.ErrUnavailable)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
