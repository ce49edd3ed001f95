package relay_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// forged returns a copy of a relay's checkpoint with some headers changed.
func forged(m kafka.Message, value string, headers map[string]string) kafka.Record {
	r := kafka.Record{
		Topic: relay.PositionsTopic, Partition: 0, Key: m.Key, Value: m.Value, Headers: slices.Clone(m.Headers),
	}
	if value != "" {
		r.Value = []byte(value)
	}
	for i, h := range r.Headers {
		if v, ok := headers[h.Key]; ok {
			r.Headers[i].Value = []byte(v)
		}
	}
	return r
}

// names returns the headers in which a checkpoint identifies an event.
func names(e event.Event) map[string]string {
	return map[string]string{"event": e.ID.String(), "stream": e.Stream, "version": strconv.FormatUint(e.Version, 10)}
}

// A forged checkpoint may be consistent and name events that exist. It has no effect: the relay
// starts, publishes the missing events, and makes the forgery a dead letter. A Follower ignores it.
func TestForgedCheckpoints(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]func(m kafka.Message, published, waiting []event.Event) []kafka.Record{
		"the topic was longer": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			return []kafka.Record{forged(m, "", map[string]string{"floors": "900000,900000,900000"})}
		},
		"the topic was another one": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			return []kafka.Record{forged(m, "", map[string]string{"topic-id": uuid.NewString()})}
		},
		"the topic had more partitions": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			floors := strings.Repeat("0,", 63) + "0"
			return []kafka.Record{forged(m, "", map[string]string{"partitions": "64", "floors": floors})}
		},
		"keys are spread over fewer partitions": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			return []kafka.Record{forged(m, "", map[string]string{"partitions": "1"})}
		},
		"the store had another epoch": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			return []kafka.Record{forged(m, "", map[string]string{"epoch": uuid.NewString()})}
		},
		"events that wait are published": func(m kafka.Message, _, waiting []event.Event) []kafka.Record {
			last := waiting[len(waiting)-1]
			at := last.Position.String()
			headers := names(last)
			headers["from"], headers["base"] = at, at
			return []kafka.Record{forged(m, at, headers)}
		},
		"nothing is published": func(m kafka.Message, published, _ []event.Event) []kafka.Record {
			first := published[0]
			headers := names(first)
			headers["from"], headers["base"] = "0.0", "0.0"
			return []kafka.Record{forged(m, first.Position.String(), headers)}
		},
		"an unknown event on the topic is published": func(m kafka.Message, published, _ []event.Event) []kafka.Record {
			e := published[len(published)-1]
			e.ID, e.Version, e.Position.Sequence = uuid.New(), e.Version+1, e.Position.Sequence+1000
			topic := event.Order.Topic + "-" + string(m.Key)
			return []kafka.Record{
				{
					Topic: topic, Partition: kafka.Partition([]byte(e.Stream), partitions),
					Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers(),
				},
				forged(m, e.Position.String(), names(e)),
			}
		},
		"without a signature": func(m kafka.Message, _, _ []event.Event) []kafka.Record {
			r := forged(m, "", map[string]string{"topic-id": uuid.NewString()})
			r.Headers = r.Headers[:len(r.Headers)-1]
			return []kafka.Record{r}
		},
		"a thousand of them": func(m kafka.Message, _, waiting []event.Event) (out []kafka.Record) {
			for range 1000 {
				at := waiting[0].Position.String()
				headers := names(waiting[0])
				headers["from"], headers["base"] = at, at
				out = append(out, forged(m, at, headers))
			}
			return out
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := b.newStore(t)
				w := newWriter(s)
				w.append(t, 30)
				b.publish(t, s)
				published := b.stored(t, s, event.Position{})
				at := published[len(published)-1].Position
				w.append(t, 30)
				checkpoints := b.checkpoints(t)
				b.produce(t, forge(checkpoints[len(checkpoints)-1], published, b.stored(t, s, at)))

				f := b.follower(t, s)
				if got := poll(t, f)[b.order.Service].Position; got != at {
					t.Errorf("a follower returns %v, want the published %v", got, at)
				}
				deadLetters, change := b.deadLetters(t)
				got := b.publish(t, s, change)
				if got.Published != 30 {
					t.Errorf("published %d events, want the 30 waiting ones", got.Published)
				}
				if got.InvalidRecords == 0 || deadLetters() == 0 {
					t.Errorf("%d invalid records were counted and %d became dead letters", got.InvalidRecords, deadLetters())
				}
				b.checkStreams(t, s)
				if got := poll(t, f)[b.order.Service].Position; got != b.head(t, s) {
					t.Errorf("a follower finally returns %v, want %v", got, b.head(t, s))
				}
				if again := b.publish(t, s).Published; again != 0 {
					t.Errorf("the next relay published %d events again", again)
				}
			})
		})
	}
}

// Compaction keeps the last record of a key, which may be a forged checkpoint. Even without new
// events, a relay writes its own checkpoint again, so that it is the last one.
func TestForgedCheckpointIsReplaced(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		newWriter(s).append(t, 30)
		b.publish(t, s)
		checkpoints := b.checkpoints(t)
		mine := checkpoints[len(checkpoints)-1]
		b.produce(t, []kafka.Record{forged(mine, "", map[string]string{"topic-id": uuid.NewString()})})
		b.publish(t, s)
		checkpoints = b.checkpoints(t)
		if last := checkpoints[len(checkpoints)-1]; len(checkpoints) != 3 || string(last.Value) != string(mine.Value) {
			t.Fatalf("%d checkpoints, the last of which is at %s", len(checkpoints), last.Value)
		}
		b.publish(t, s)
		if got := len(b.checkpoints(t)); got != 3 {
			t.Fatalf("a relay whose own checkpoint was the last one wrote %d more", got-3)
		}
	})
}

// If no checkpoint with the store's signature is left, the relay ignores a forged one and compares
// the whole log with the store.
func TestOnlyForgedCheckpointIsLeft(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 30)
		var records []kafka.Record
		for _, e := range b.stored(t, s, event.Position{}) {
			records = append(records, b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions)))
		}
		b.produce(t, records)
		w.append(t, 30)

		other := newBroker(t, b.Brokers) // another service's checkpoint is signed with another secret
		s2 := other.newStore(t)
		newWriter(s2).append(t, 60)
		other.publish(t, s2)
		checkpoint := other.checkpoints(t)[0]
		checkpoint.Key = []byte(b.order.Service)
		all := b.stored(t, s, event.Position{})
		last := all[len(all)-1]
		b.produce(t, []kafka.Record{forged(checkpoint, last.Position.String(), names(last))})

		if got := poll(t, b.follower(t, s))[b.order.Service].Position; !got.IsZero() {
			t.Errorf("a follower returns %v, which no relay of this store has signed", got)
		}
		if got := b.publish(t, s).Published; got != 30 {
			t.Errorf("published %d events, want the 30 waiting ones", got)
		}
		b.checkStreams(t, s)
	})
}

// A copy of an old checkpoint has a valid signature and is true, so it has no effect.
func TestRepeatedOldCheckpoint(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		for range 3 {
			w.append(t, 20)
			b.publish(t, s)
		}
		f := b.follower(t, s)
		b.produce(t, []kafka.Record{forged(b.checkpoints(t)[0], "", nil)})
		if got := poll(t, f)[b.order.Service].Position; got != b.head(t, s) {
			t.Errorf("a follower returns %v, want %v", got, b.head(t, s))
		}
		w.append(t, 20)
		if got := b.publish(t, s).Published; got != 20 {
			t.Errorf("published %d events, want 20", got)
		}
		b.checkStreams(t, s)
	})
}

// A topic that was restored completely, under another id, is as good as the old one.
func TestRestoredTopic(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 60)
		b.publish(t, s)
		var kept []kafka.Record
		err := b.read(t.Context(), func(m kafka.Message) error {
			kept = append(kept, kafka.Record{
				Topic: m.Topic, Partition: m.Partition, Key: m.Key, Value: m.Value, Headers: m.Headers,
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		b.recreate(t)
		b.produce(t, kept[:len(kept)-1])
		b.stopsWith(t, s, relay.ErrLogChanged, "recreated") // the last event is missing
		b.produce(t, kept[len(kept)-1:])
		if got := b.publish(t, s).Published; got != 0 {
			t.Errorf("published %d events again", got)
		}
		w.append(t, 20)
		b.publish(t, s)
		b.checkStreams(t, s)
	})
}

// recreate deletes the topic and creates it again, without records.
func (b broker) recreate(t *testing.T) {
	t.Helper()
	if err := server.Delete(t.Context(), b.Brokers, b.order.Topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return kafka.EnsureTopics(ctx, b.Config, relay.Topics([]event.Aggregate{b.order}, partitions)...) == nil
	}, "the topic is recreated")
}

func (b broker) stored(t *testing.T, s eventstore.Store, after event.Position) []event.Event {
	t.Helper()
	events, err := s.Read(t.Context(), after, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func (b broker) head(t *testing.T, s eventstore.Store) event.Position {
	t.Helper()
	head, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func (b broker) follower(t *testing.T, s eventstore.Store) *relay.Follower {
	t.Helper()
	f, err := relay.NewFollower(b.Config, map[string]eventstore.Store{b.order.Service: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func poll(t *testing.T, f *relay.Follower) map[string]relay.Progress {
	t.Helper()
	progress, err := f.Poll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return progress
}

// deadLetters counts the dead letters of a relay that is configured by change.
func (b broker) deadLetters(t *testing.T) (count func() int, change func(*relay.Config)) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	count = func() int { mu.Lock(); defer mu.Unlock(); return n }
	return count, func(c *relay.Config) {
		c.DeadLetter = func(_ context.Context, _ kafka.Message, reason error) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; reason == nil {
				return errors.New("the dead letter has no reason")
			}
			return nil
		}
	}
}
