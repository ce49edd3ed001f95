package relay_test

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// sealed is a topic with 30 real events, and the name under which they are sealed.
type sealed struct {
	broker
	store eventstore.Store
	*writer
	name string
}

func newSealed(t *testing.T, b broker) sealed {
	t.Helper()
	s := b.newStore(t)
	w := newWriter(s)
	w.valid = true
	w.append(t, 30)
	b.publish(t, s)
	return sealed{b, s, w, b.nameOnTopic(t)}
}

// nameOnTopic returns the name in the last seal on the topic.
func (b broker) nameOnTopic(t *testing.T) (name string) {
	t.Helper()
	err := b.read(t.Context(), func(m kafka.Message) error {
		if n, ok := event.SealName(m.Headers); ok { // records of earlier versions have none
			name = string(n)
		}
		return nil
	})
	if err != nil || name == "" {
		t.Fatalf("the records on the topic have no seal: %v", err)
	}
	return name
}

func (b broker) secret(t *testing.T, s eventstore.Store) []byte {
	t.Helper()
	secret, err := s.Secret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (b broker) topicID(t *testing.T) string {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	info, err := a.Topic(t.Context(), b.order.Topic)
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// announcements returns the records under a name, in order.
func (b broker) announcements(t *testing.T, name string) (found []kafka.Message) {
	t.Helper()
	for _, m := range b.positions(t) {
		if string(m.Key) == b.order.Service+"/seal/"+name {
			found = append(found, m)
		}
	}
	return found
}

// positions returns the records of PositionsTopic, in order.
func (b broker) positions(t *testing.T) (all []kafka.Message) {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	end, err := a.HighWatermarks(t.Context(), relay.PositionsTopic)
	if err != nil {
		t.Fatal(err)
	}
	err = kafka.ReadAll(t.Context(), b.Config, relay.PositionsTopic, nil, end, func(m kafka.Message) error {
		all = append(all, m)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// announced reports whether the last record under a name is a valid announcement of it.
func (b broker) announced(t *testing.T, name string) bool {
	t.Helper()
	all := b.announcements(t, name)
	if len(all) == 0 {
		return false
	}
	got, _, err := relay.ParseAnnouncement(all[len(all)-1])
	return err == nil && got == name
}

// announcementRecord returns an unsigned record with the key of an announcement.
func (b broker) announcementRecord(name, value string) kafka.Record {
	r := kafka.Record{Topic: relay.PositionsTopic, Key: []byte(b.order.Service + "/seal/" + name)}
	if value != "" { // otherwise a tombstone
		r.Value = []byte(value)
	}
	return r
}

// forge returns an event of a stream that the store does not have. If name is empty, it has no
// seal.
func (b broker) forge(name string) kafka.Record {
	now := event.Time(time.Now())
	e := event.Event{
		ID: uuid.New(), Aggregate: "order", Type: "millrace.order.v1.OrderPlaced", Stream: "ghost", Version: 1,
		Data: orderPlaced("ghost"), OccurredAt: now, RecordedAt: now,
	}
	r := b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions))
	if name != "" {
		r.Headers = append(slices.Clone(r.Headers), e.Seal(name))
	}
	return r
}

// everyReader runs a check with new readers of all kinds.
func (s sealed) everyReader(t *testing.T, check func(t *testing.T, readers *relay.Seals)) {
	t.Helper()
	t.Run("with the store", func(t *testing.T) { check(t, s.seals(t, s.store)) })
	t.Run("without the store", func(t *testing.T) { check(t, s.seals(t)) })
}

func (s sealed) checkCounts(t *testing.T, readers *relay.Seals, accepted, rejected int) {
	t.Helper()
	if gotAccepted, gotRejected := s.countAccepted(t, readers); gotAccepted != accepted || gotRejected != rejected {
		t.Errorf("%d records were accepted and %d rejected, want %d and %d", gotAccepted, gotRejected, accepted, rejected)
	}
}

// Announcements that were not signed by a relay have no effect on readers, which accept real events
// and reject forged ones.
func TestInvalidAnnouncements(t *testing.T) {
	t.Parallel()
	most := fmt.Sprint(math.MaxInt64)
	everywhere := strings.Join([]string{most, most, most, most}, ",")
	for name, invalid := range map[string]func(t *testing.T, s sealed) []kafka.Record{
		"junk": func(t *testing.T, s sealed) []kafka.Record {
			genuine := s.announcements(t, s.name)[0]
			out := []kafka.Record{
				s.announcementRecord("", "0,0,0"), s.announcementRecord("x", "junk"),
				s.announcementRecord("y", "-1"), s.announcementRecord("z", ""),
				{Topic: relay.PositionsTopic, Key: []byte("/seal/z"), Value: []byte("0")},
				{
					Topic: relay.PositionsTopic, Key: []byte("x/seal/" + s.name), Value: genuine.Value, Headers: genuine.Headers,
				},
			}
			for n := range 1000 {
				out = append(out, s.announcementRecord(fmt.Sprint(n), "0,0,0"))
			}
			return out
		},
		"another name": func(_ *testing.T, s sealed) []kafka.Record {
			return []kafka.Record{s.announcementRecord("evil", "0,0,0,0")}
		},
		"the highest floors": func(_ *testing.T, s sealed) []kafka.Record {
			return []kafka.Record{s.announcementRecord("zzzz", everywhere)}
		},
		"the genuine name, with other floors": func(_ *testing.T, s sealed) []kafka.Record {
			return []kafka.Record{s.announcementRecord(s.name, everywhere)}
		},
		"the genuine name and public key, with other floors": func(t *testing.T, s sealed) []kafka.Record {
			genuine := s.announcements(t, s.name)[0]
			r := s.announcementRecord(s.name, everywhere)
			r.Headers = genuine.Headers
			other := s.announcementRecord("evil", "0,0,0")
			other.Headers = genuine.Headers
			return []kafka.Record{r, other}
		},
		"another key under the genuine name": func(t *testing.T, s sealed) []kafka.Record {
			r := relay.Announcement([]byte("other"), s.order.Service, s.topicID(t), 0, 0, 0)
			r.Key = []byte(s.order.Service + "/seal/" + s.name)
			return []kafka.Record{r}
		},
		"the genuine one deleted": func(_ *testing.T, s sealed) []kafka.Record {
			return []kafka.Record{s.announcementRecord(s.name, "")}
		},
		"the genuine one deleted, and another name": func(_ *testing.T, s sealed) []kafka.Record {
			return []kafka.Record{s.announcementRecord(s.name, ""), s.announcementRecord("evil", "0,0,0,0")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := newSealed(t, b)
				began := s.seals(t)
				s.checkCounts(t, began, 30, 0)
				s.produce(t, append(invalid(t, s), s.forge(""), s.forge("evil"), s.forge("zzzz")))
				s.everyReader(t, func(t *testing.T, readers *relay.Seals) { s.checkCounts(t, readers, 30, 3) })
				s.append(t, 10)
				s.publish(t, s.store)
				if !s.announced(t, s.name) {
					t.Error("the relay's announcement is not the last record under its key")
				}
				s.everyReader(t, func(t *testing.T, readers *relay.Seals) { s.checkCounts(t, readers, 40, 3) })
				s.checkCounts(t, began, 40, 3)
			})
		})
	}
}

// A relay that starts writes a deleted or overwritten announcement again, and reports the invalid
// record. A relay that finds its own announcement writes nothing.
func TestRelayRestoresAnnouncementAtStart(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := newSealed(t, b)
		s.publish(t, s.store)
		if got := len(s.announcements(t, s.name)); got != 1 {
			t.Fatalf("%d announcements by relays that found one", got)
		}
		first := s.announcements(t, s.name)[0]
		for _, value := range []string{"", "junk", "0,0,0,0"} {
			s.produce(t, []kafka.Record{s.announcementRecord(s.name, value)})
			deadLetters, change := s.deadLetters(t)
			if got := s.publish(t, s.store, change); got.InvalidRecords != 1 || deadLetters() != 1 {
				t.Errorf("%q: %d invalid records counted and %d dead letters", value, got.InvalidRecords, deadLetters())
			}
			all := s.announcements(t, s.name)
			if last := all[len(all)-1]; !s.announced(t, s.name) || !bytes.Equal(last.Value, first.Value) {
				t.Errorf("%q: the last record under the key is %q, want %q", value, last.Value, first.Value)
			}
		}
	})
}

// A running relay restores its announcement, too, even without events to publish.
func TestRunningRelayRestoresAnnouncement(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := newSealed(t, b)
		deadLetters, change := s.deadLetters(t)
		r := s.newRelay(t, s.store, change)
		r.CheckInterval(50 * time.Millisecond)
		run(t, r).await(t, s.store)
		s.produce(t, []kafka.Record{s.announcementRecord(s.name, "")})
		eventually(t, func() bool { return s.announced(t, s.name) }, "the announcement is restored")
		if got := r.Progress().InvalidRecords; got != 1 || deadLetters() != 1 {
			t.Errorf("%d invalid records counted and %d dead letters", got, deadLetters())
		}
		s.everyReader(t, func(t *testing.T, readers *relay.Seals) { s.checkCounts(t, readers, 30, 0) })
	})
}

// If two systems announce, a reader with the store knows its own. A reader without it cannot know:
// it rejects nothing and reports a fault.
func TestTwoSystemsAnnounce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := newSealed(t, b)
		secret := []byte("other")
		other := relay.SealName(secret, s.order.Service, s.topicID(t))
		s.produce(t, []kafka.Record{
			relay.Announcement(secret, s.order.Service, s.topicID(t), 0, 0, 0), s.forge(other), s.forge(""),
		})

		s.checkCounts(t, s.seals(t, s.store), 30, 2)
		readers := s.seals(t)
		s.checkCounts(t, readers, 32, 0)
		faults, err := readers.Settings(t.Context())
		if err != nil || len(faults) != 1 || !strings.Contains(faults[0].Value, "two systems") || faults[0].Fatal {
			t.Errorf("faults %v, %v", faults, err)
		}
	})
}

// If two systems announce, another system's seal does not prove that this relay checked the record.
// So the reader accepts it, but does not report it as sealed.
func TestSealWithConflictIsNotChecked(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := newSealed(t, b)
		secret := []byte("other")
		other := relay.SealName(secret, s.order.Service, s.topicID(t))
		forged := s.forge(other)
		s.produce(t, []kafka.Record{relay.Announcement(secret, s.order.Service, s.topicID(t), 0, 0, 0), forged})
		readers := s.seals(t)
		s.checkCounts(t, readers, 31, 0)
		r := s.record(kafka.Message{Key: forged.Key, Value: forged.Value, Headers: forged.Headers})
		e, err := event.FromRecord(r.Key, r.Value, r.Headers)
		if err != nil {
			t.Fatal(err)
		}
		if sealed, err := readers.CheckSeal(t.Context(), r, e); sealed || err != nil {
			t.Errorf("sealed: %v, %v", sealed, err)
		}
	})
}

// After compaction, only another system's announcement may be left. Real events are still accepted.
func TestOnlyAnotherSystemsAnnouncementIsLeft(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		store := b.newStore(t)
		w := newWriter(store)
		w.valid = true
		w.append(t, 30)
		s := sealed{b, store, w, relay.SealName(b.secret(t, store), b.order.Service, b.topicID(t))}
		var records []kafka.Record
		for _, e := range s.stored(t, store, event.Position{}) {
			r := s.onTopic(e, kafka.Partition([]byte(e.Stream), partitions))
			r.Headers = append(slices.Clone(r.Headers), e.Seal(s.name))
			records = append(records, r)
		}
		s.produce(t, append(records, s.forge("evil")))
		s.checkCounts(t, s.seals(t, store), 30, 1) // there is no announcement
		s.checkCounts(t, s.seals(t), 31, 0)

		other := relay.Announcement([]byte("other"), s.order.Service, s.topicID(t), 0, 0, 0)
		s.produce(t, []kafka.Record{s.announcementRecord(s.name, ""), other})
		s.checkCounts(t, s.seals(t, store), 30, 1)
		readers := s.seals(t)
		s.checkCounts(t, readers, 31, 0)
		faults, err := readers.Settings(t.Context())
		if err != nil || len(faults) != 1 || !strings.Contains(faults[0].Value, "overwritten or deleted") {
			t.Errorf("faults %v, %v", faults, err)
		}
	})
}

// A checkpoint contains the floors of the seal, too. So a lost announcement does not make records
// without a seal valid.
func TestCheckpointContainsSealFloors(t *testing.T) {
	t.Parallel()
	k, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	b := newBroker(t, k.Addr())
	store := b.newStore(t)
	w := newWriter(store)
	w.valid = true
	w.append(t, 30)
	var old []kafka.Record // records of an earlier version
	for _, e := range b.stored(t, store, event.Position{}) {
		old = append(old, b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions)))
	}
	b.produce(t, old)
	w.append(t, 10)
	b.publish(t, store)
	s := sealed{b, store, w, b.nameOnTopic(t)}
	first, checkpoints := s.announcements(t, s.name)[0], s.checkpoints(t)
	s.produce(t, []kafka.Record{s.forge("")})

	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	positions := kafka.Topic{Name: relay.PositionsTopic, Partitions: 1, Compacted: true}
	if err := a.RecreateTopics(t.Context(), positions); err != nil {
		t.Fatal(err)
	}
	s.produce(t, []kafka.Record{forged(checkpoints[len(checkpoints)-1], "", nil)})
	s.checkCounts(t, s.seals(t, store), 41, 0)
	s.publish(t, store)
	if again := s.announcements(t, s.name); len(again) != 1 || !bytes.Equal(again[0].Value, first.Value) {
		t.Fatalf("announced %v, want %s once more", again, first.Value)
	}
	s.everyReader(t, func(t *testing.T, readers *relay.Seals) { s.checkCounts(t, readers, 40, 1) })
}

// An announcement is read as it was signed, or rejected.
func FuzzAnnouncement(f *testing.F) {
	r := relay.Announcement([]byte("secret"), "order", "topic", 1, 2, 3)
	h := r.Headers
	f.Add(r.Key, r.Value, h[0].Value, h[1].Value, h[2].Value)
	f.Add([]byte("order/seal/evil"), []byte("0,0,0,0"), h[0].Value, h[1].Value, h[2].Value)
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value, public, topic, signature []byte) {
		m := kafka.Message{Key: key, Value: value, Headers: []event.Header{
			{Key: h[0].Key, Value: public}, {Key: h[1].Key, Value: topic}, {Key: h[2].Key, Value: signature},
		}}
		name, floors, err := relay.ParseAnnouncement(m)
		if err != nil || !bytes.Equal(public, h[0].Value) {
			return
		}
		if !bytes.Equal(key, r.Key) || !bytes.Equal(value, r.Value) || !bytes.Equal(topic, h[1].Value) {
			t.Errorf("the forged announcement %s, %v was accepted", name, floors)
		}
	})
}
