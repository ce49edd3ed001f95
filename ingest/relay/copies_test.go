package relay_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// log returns the records of the topic as a tool would read and produce them again.
func (b broker) log(t *testing.T) (all []kafka.Record) {
	t.Helper()
	err := b.read(t.Context(), func(m kafka.Message) error {
		headers := make([]event.Header, len(m.Headers))
		for i, h := range m.Headers {
			headers[i] = event.Header{Key: h.Key, Value: slices.Clone(h.Value)}
		}
		all = append(all, kafka.Record{
			Topic: b.order.Topic, Partition: m.Partition,
			Key: slices.Clone(m.Key), Value: slices.Clone(m.Value), Headers: headers,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// checkEachOnce fails unless a reader accepts each of the store's events once and rejects the given
// number of records.
func (b broker) checkEachOnce(t *testing.T, s eventstore.Store, rejected int) {
	t.Helper()
	want := map[uuid.UUID]int{}
	for _, e := range b.stored(t, s, event.Position{}) {
		want[e.ID] = 1
	}
	values := registry.NewDecoder(nil)
	values.CheckSeals(b.seals(t))
	sequences := map[int32]event.Sequence{}
	err := b.read(t.Context(), func(m kafka.Message) error {
		e, sealed, err := values.Sealed(t.Context(), b.record(m))
		if err == nil && !sealed {
			t.Error("a record without a seal was accepted")
		}
		if err == nil {
			sequences[m.Partition], err = sequences[m.Partition].Next(e.Position, m.Headers)
		}
		if errors.Is(err, event.ErrNotEvent) {
			rejected--
			return nil
		}
		want[e.ID]--
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, n := range want {
		if n != 0 {
			t.Errorf("event %s was accepted %d times, want once", id, 1-n)
		}
	}
	if rejected != 0 {
		t.Errorf("%d copies were not rejected", rejected)
	}
}

// Exact copies of the relay's records, as a mirror or a replay tool makes them, are not events, on
// any partition.
func TestCopiesAreNotEvents(t *testing.T) {
	t.Parallel()
	same := func(r kafka.Record, _ int32) int32 { return r.Partition }
	for name, to := range map[string]func(r kafka.Record, wide int32) int32{
		"on the same partition":             same,
		"on another partition":              func(r kafka.Record, wide int32) int32 { return (r.Partition + 1) % wide },
		"on the partition of a wider topic": func(r kafka.Record, wide int32) int32 { return kafka.Partition(r.Key, wide) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := b.newStore(t)
				w := newWriter(s)
				w.valid = true
				w.append(t, 30)
				b.publish(t, s)
				copied := func(log []kafka.Record, wide int32) int {
					for i := range log {
						log[i].Partition = to(log[i], wide)
					}
					b.produce(t, log)
					return len(log)
				}
				rejected := copied(b.log(t)[:1], partitions)
				b.checkEachOnce(t, s, rejected)
				rejected += copied(b.log(t), partitions)
				b.checkEachOnce(t, s, rejected)
				w.append(t, 30)
				b.publish(t, s)
				b.checkEachOnce(t, s, rejected)
				if err := server.AddPartitions(t.Context(), b.Brokers, b.order.Topic, 2*partitions); err != nil {
					t.Fatal(err)
				}
				rejected += copied(b.log(t), 2*partitions)
				b.checkEachOnce(t, s, rejected)
				w.append(t, 30)
				b.publish(t, s)
				b.checkEachOnce(t, s, rejected)
			})
		})
	}
}

// A tool that reads uncommitted records may copy an event of a transaction that the relay does not
// complete. The copy then takes the event's place. The next relay publishes the events before it,
// and readers accept them.
func TestCopiesOfUnpublishedEvents(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.valid = true
		w.append(t, 30)
		b.publish(t, s)
		name, ok := event.SealName(b.log(t)[0].Headers)
		if !ok {
			t.Fatal("the relay's records have no seal")
		}
		before := b.head(t, s)
		w.append(t, 40)
		last := map[int32]kafka.Record{}
		for _, e := range b.stored(t, s, before)[:30] { // the relay has not published the last one
			r := b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions))
			r.Headers = append(r.Headers, e.Seal(string(name)), kafka.PartitionsHeader(partitions))
			last[r.Partition] = r
		}
		var ahead []kafka.Record
		for _, r := range last {
			ahead = append(ahead, r)
		}
		b.produce(t, ahead)
		if got, want := b.publish(t, s).Published, uint64(40-len(ahead)); got != want {
			t.Errorf("published %d events, want %d", got, want)
		}
		b.checkEachOnce(t, s, 0)
		rejected := 0
		for range 2 {
			log := b.log(t)
			b.produce(t, log)
			rejected += len(log)
			b.checkEachOnce(t, s, rejected)
			w.append(t, 10)
			b.publish(t, s)
			b.checkEachOnce(t, s, rejected)
		}
	})
}
