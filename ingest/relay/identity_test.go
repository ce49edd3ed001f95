package relay_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
)

// publish runs a relay until the log has all of the store's events, and stops it.
func (b broker) publish(t *testing.T, s eventstore.Store, change ...func(*relay.Config)) relay.Progress {
	t.Helper()
	x := run(t, b.newRelay(t, s, change...))
	x.await(t, s)
	if err := x.stop(); err != nil {
		t.Fatal(err)
	}
	return x.relay.Progress()
}

// checkStreams fails unless the topic has each of the store's events once, and those of a stream in
// one partition and in order. It ignores other records.
func (b broker) checkStreams(t *testing.T, s eventstore.Store) {
	t.Helper()
	events, err := s.Read(t.Context(), event.Position{}, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	want := map[uuid.UUID]bool{}
	for _, e := range events {
		want[e.ID] = true
	}
	seen, at, version := map[uuid.UUID]int{}, map[string]int32{}, map[string]uint64{}
	err = b.read(t.Context(), func(m kafka.Message) error {
		e, err := event.FromRecord(m.Key, m.Value, m.Headers)
		if err != nil || !want[e.ID] {
			return nil //nolint:nilerr // an invalid record
		}
		seen[e.ID]++
		if p, ok := at[e.Stream]; ok && p != m.Partition {
			t.Errorf("stream %s is in partitions %d and %d", e.Stream, p, m.Partition)
		}
		if e.Version != version[e.Stream]+1 {
			t.Errorf("stream %s: version %d follows %d", e.Stream, e.Version, version[e.Stream])
		}
		// Records of earlier versions have no such header.
		if n := kafka.PartitionsOf(m.Headers); n > 0 && kafka.Partition(m.Key, n) != m.Partition {
			t.Errorf("stream %s is in partition %d, but its header claims %d partitions", e.Stream, m.Partition, n)
		}
		at[e.Stream], version[e.Stream] = m.Partition, e.Version
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	duplicated, lost := 0, 0
	for _, e := range events {
		switch n := seen[e.ID]; {
		case n == 0:
			lost++
		case n > 1:
			duplicated++
		}
	}
	if duplicated > 0 || lost > 0 {
		t.Errorf("of %d events, %d are duplicated on the log and %d are missing", len(events), duplicated, lost)
	}
}

// checkpoints returns the checkpoints of the broker's service, in order.
func (b broker) checkpoints(t *testing.T) (checkpoints []kafka.Message) {
	t.Helper()
	for _, m := range b.positions(t) {
		if string(m.Key) == b.order.Service {
			checkpoints = append(checkpoints, m)
		}
	}
	return checkpoints
}

// produce writes records in one transaction.
func (b broker) produce(t *testing.T, records []kafka.Record) {
	t.Helper()
	p, err := kafka.NewTransactionalProducer(b.Config, uuid.NewString())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := errors.Join(p.Init(t.Context()), p.Begin()); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := p.Produce(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(records, func(r kafka.Record) bool { return r.Topic == relay.PositionsTopic }) {
		b.positionsReadable(t)
	}
}

// positionsReadable blocks until no open transaction, of any test, hides a written checkpoint.
func (b broker) positionsReadable(t *testing.T) {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	written, err := a.HighWatermarks(t.Context(), relay.PositionsTopic)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		readable, err := a.EndOffsets(t.Context(), relay.PositionsTopic)
		return err == nil && readable[0] >= written[0]
	}, "all checkpoints are readable")
}

// stopsWith fails unless a relay stops with the given error, which contains the text and a remedy,
// without having published any event.
func (b broker) stopsWith(
	t *testing.T, s eventstore.Store, want error, text string, change ...func(*relay.Config),
) {
	t.Helper()
	x := run(t, b.newRelay(t, s, change...))
	select {
	case <-x.done:
	case <-time.After(3 * time.Minute): // it may have to wait for the end of another test's transaction
		t.Fatal("the relay did not stop")
	}
	if !errors.Is(x.err, want) || !strings.Contains(x.err.Error(), text) ||
		!strings.Contains(x.err.Error(), "millrace rebuild --service") {
		t.Fatalf("the relay stopped with %v, want %v with %q and a remedy", x.err, want, text)
	}
	if n := x.relay.Progress().Published; n != 0 {
		t.Fatalf("it published %d events", n)
	}
}

// A topic may be widened, whether a relay runs or not. Keys remain in their partitions.
func TestWidenedTopic(t *testing.T) {
	t.Parallel()
	t.Run("from 4 to 8 while stopped", func(t *testing.T) {
		t.Parallel()
		apache.Each(t, func(t *testing.T, brokers string) {
			b := broker{kafka.Config{Brokers: brokers, Logger: quiet}, event.Order}
			b.order.Service += "-" + uuid.NewString()
			b.order.Topic += "-" + b.order.Service
			if err := kafka.EnsureTopics(t.Context(), b.Config, relay.Topics([]event.Aggregate{b.order}, 4)...); err != nil {
				t.Fatal(err)
			}
			s := b.newStore(t)
			w := newWriter(s)
			w.append(t, 60) // in one transaction
			b.publish(t, s)
			if err := server.AddPartitions(t.Context(), b.Brokers, b.order.Topic, 8); err != nil {
				t.Fatal(err)
			}
			if got := b.publish(t, s).Published; got != 0 {
				t.Errorf("%d events were published again", got)
			}
			w.append(t, 60)
			b.publish(t, s)
			b.checkStreams(t, s)
			err := b.read(t.Context(), func(m kafka.Message) error {
				if n := kafka.PartitionsOf(m.Headers); n != 4 {
					t.Errorf("a record's header claims %d partitions, want 4", n)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("while publishing", func(t *testing.T) {
		t.Parallel()
		each(t, func(t *testing.T, b broker) {
			s := b.newStore(t)
			stop := load(t, newWriter(s))
			x := run(t, b.newRelay(t, s))
			grow := func(n uint64) {
				from := x.relay.Progress().Published
				eventually(t, func() bool { return x.relay.Progress().Published >= from+n }, "the relay publishes")
			}
			grow(100)
			if err := server.AddPartitions(t.Context(), b.Brokers, b.order.Topic, 2*partitions); err != nil {
				t.Fatal(err)
			}
			grow(500)
			if err := x.stop(); err != nil {
				t.Fatal(err)
			}
			stop()
			b.publish(t, s)
			b.checkStreams(t, s)
		})
	})
	t.Run("after an earlier version published to it", func(t *testing.T) {
		t.Parallel()
		each(t, func(t *testing.T, b broker) {
			s := b.newStore(t)
			w := newWriter(s)
			w.append(t, 60)
			b.publishAsEarlier(t, s)
			if err := server.AddPartitions(t.Context(), b.Brokers, b.order.Topic, 2*partitions); err != nil {
				t.Fatal(err)
			}
			w.append(t, 60)
			b.publish(t, s)
			b.checkStreams(t, s)
		})
	})
}

// publishAsEarlier publishes the store's events like an earlier version, whose checkpoints have no
// identity.
func (b broker) publishAsEarlier(t *testing.T, s eventstore.Store) {
	t.Helper()
	events, err := s.Read(t.Context(), event.Position{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	var records []kafka.Record
	for _, e := range events {
		records = append(records, b.onTopic(e, kafka.Partition([]byte(e.Stream), partitions)))
	}
	last := events[len(events)-1].Position
	b.produce(t, append(records, relay.CheckpointRecord(event.Position{}, last, b.order.Service)))
}

// A checkpoint of an earlier version, which has no identity, is accepted if the log confirms it, and
// replaced at once.
func TestCheckpointOfEarlierVersionIsReplaced(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 40)
		b.publishAsEarlier(t, s)
		if got := b.publish(t, s).Published; got != 0 {
			t.Errorf("%d events were published again", got)
		}
		checkpoints := b.checkpoints(t)
		has := func(key string) bool {
			last := checkpoints[len(checkpoints)-1]
			return slices.ContainsFunc(last.Headers, func(h event.Header) bool { return h.Key == key && len(h.Value) > 0 })
		}
		for _, key := range []string{"epoch", "topic-id", "partitions", "event", "stream", "version"} {
			if !has(key) {
				t.Errorf("the last checkpoint of %d has no %s", len(checkpoints), key)
			}
		}
		b.checkEqual(t, s)
		before := len(checkpoints)
		b.publish(t, s)
		if got := len(b.checkpoints(t)); got != before {
			t.Errorf("a relay without new events wrote %d checkpoints", got-before)
		}
	})
}

// A relay refuses to publish to a topic that was recreated or has lost events.
func TestChangedLogIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("recreated while stopped", func(t *testing.T) {
		t.Parallel()
		each(t, func(t *testing.T, b broker) {
			s := b.newStore(t)
			w := newWriter(s)
			w.append(t, 30)
			b.publish(t, s)
			b.recreate(t)
			b.stopsWith(t, s, relay.ErrLogChanged, "recreated")
			w.append(t, 30)
			b.stopsWith(t, s, relay.ErrLogChanged, "recreated")
		})
	})
	// This runs on Apache Kafka only. Deleting topics is unusual on the embedded broker, which may
	// keep the open transaction of a deleted one.
	t.Run("recreated while publishing", func(t *testing.T) {
		t.Parallel()
		b := newBroker(t, apache.Brokers(t))
		s := b.newStore(t)
		load(t, newWriter(s))
		x := run(t, b.newRelay(t, s))
		b.awaitGrowth(t)(100)
		b.recreate(t)
		select {
		case <-x.done:
		case <-time.After(time.Minute):
			t.Fatal("the relay did not stop")
		}
		if !errors.Is(x.err, relay.ErrLogChanged) {
			t.Fatalf("the relay stopped with %v, want ErrLogChanged", x.err)
		}
	})
	t.Run("truncated at the end", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "log")
		with := func(use func(b broker)) {
			k, err := embedded.Start(t.Context(), embedded.Config{DataDir: dir, Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			b := broker{kafka.Config{Brokers: k.Addr(), Logger: quiet}, event.Order}
			topics := relay.Topics([]event.Aggregate{b.order}, partitions)
			if err := kafka.EnsureTopics(t.Context(), b.Config, topics...); err != nil {
				t.Fatal(err)
			}
			use(b)
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
		}
		s := broker{order: event.Order}.newStore(t)
		with(func(b broker) {
			newWriter(s).append(t, 60)
			b.publish(t, s, func(c *relay.Config) { c.MaxEvents = 10 })
		})
		segments, err := filepath.Glob(filepath.Join(dir, "partitions", event.Order.Topic+"-1", "*"))
		if err != nil || len(segments) == 0 {
			t.Fatalf("%v, %v", segments, err)
		}
		segments = append(segments, filepath.Join(dir, "stopped.json")) // otherwise the broker refuses the log
		for _, name := range segments {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		// It misses either an event or the end of the partition, depending on whether the newest checkpoint
		// was written after the end was read.
		with(func(b broker) { b.stopsWith(t, s, relay.ErrLogChanged, event.Order.Topic) })
	})
}

// Records that were deleted from the beginning of the topic are not published again.
func TestTruncatedTopic(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 30)
		b.publish(t, s)
		if err := server.DeleteRecords(t.Context(), b.Brokers, b.order.Topic); err != nil {
			t.Fatal(err)
		}
		w.append(t, 7)
		if got := b.publish(t, s).Published; got != 7 {
			t.Fatalf("published %d events, want the 7 new ones", got)
		}
	})
}

// A store that was restored from a backup, and may have recorded other events since, has another
// history than the log.
func TestStoreThatLostEventsIsRefused(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"and is behind": 0, "and has recorded others since": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				dir := t.TempDir()
				path, backup := filepath.Join(dir, "order.db"), filepath.Join(dir, "backup.db")
				s := b.openStore(t, path)
				w := newWriter(s)
				w.append(t, 30)
				b.publish(t, s)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				backUp(t, path, backup)
				s = b.openStore(t, path)
				w.store = s
				w.append(t, 10)
				b.publish(t, s)

				restored := b.openStore(t, backup)
				if more > 0 {
					w := newWriter(restored)
					w.versions["other"] = 0
					for range more / 10 {
						if err := appendTo(t.Context(), restored, w, "other", 10); err != nil {
							t.Fatal(err)
						}
					}
				}
				b.stopsWith(t, restored, relay.ErrStoreBehind, "the store does not have")
				b.checkEqual(t, s)
			})
		})
	}
}

// backUp copies the file of a closed store.
func backUp(t *testing.T, path, backup string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(backup, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// appendTo appends n events to one stream.
func appendTo(ctx context.Context, s eventstore.Store, w *writer, stream string, n int) error {
	var events []event.Event
	for range n {
		now := event.Time(time.Now())
		events = append(events, event.Event{
			ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1.OrderPlaced", Data: []byte("x"),
			OccurredAt: now, RecordedAt: now,
		})
	}
	_, err := s.Append(ctx, eventstore.Batch{Streams: []eventstore.StreamAppend{{
		Stream: stream, ExpectedVersion: w.versions[stream], Events: events,
	}}})
	w.versions[stream] += uint64(n)
	return err
}

// A client that can write to the topics cannot stop or mislead a relay: it starts, publishes the
// missing events, and makes the invalid records dead letters.
func TestInvalidRecords(t *testing.T) {
	t.Parallel()
	forged := func(change func(*event.Event)) event.Event {
		now := event.Time(time.Now())
		e := event.Event{
			ID: uuid.New(), Aggregate: event.Order.Name, Type: "millrace.order.v1.OrderPlaced", Stream: "order-1", Version: 7,
			Data: []byte("\xff\xff garbage"), OccurredAt: now, RecordedAt: now,
		}
		change(&e)
		return e
	}
	far := event.Position{Transaction: 99999999}
	for name, make := range map[string]func(b broker, known []event.Event) []kafka.Record{
		"an event at a position far ahead": func(b broker, _ []event.Event) []kafka.Record {
			return []kafka.Record{b.onTopic(forged(func(e *event.Event) { e.Position = far }), 0)}
		},
		"an event slightly ahead on every partition": func(b broker, known []event.Event) (out []kafka.Record) {
			for p := range int32(partitions) {
				out = append(out, b.onTopic(forged(func(e *event.Event) {
					e.Position = known[len(known)-1].Position
					e.Position.Sequence += 5
				}), p))
			}
			return out
		},
		"a position far ahead": func(b broker, _ []event.Event) []kafka.Record {
			return []kafka.Record{relay.CheckpointRecord(far, far, b.order.Service)}
		},
		"a position slightly ahead, of events to come": func(b broker, known []event.Event) []kafka.Record {
			at := known[len(known)-1].Position
			at.Sequence += 5
			return []kafka.Record{relay.CheckpointRecord(at, at, b.order.Service)}
		},
		"an event and a position that agree": func(b broker, _ []event.Event) []kafka.Record {
			ahead := forged(func(e *event.Event) { e.Position = far })
			return []kafka.Record{b.onTopic(ahead, 0), relay.CheckpointRecord(far, far, b.order.Service)}
		},
		"copies of an old event": func(b broker, known []event.Event) (out []kafka.Record) {
			for range 300 {
				out = append(out, b.onTopic(known[0], kafka.Partition([]byte(known[0].Stream), partitions)))
			}
			return out
		},
		"a copy on another partition": func(b broker, known []event.Event) []kafka.Record {
			other := (kafka.Partition([]byte(known[0].Stream), partitions) + 1) % partitions
			return []kafka.Record{b.onTopic(known[0], other)}
		},
		"an event of another aggregate": func(b broker, known []event.Event) []kafka.Record {
			return []kafka.Record{b.onTopic(forged(func(e *event.Event) {
				e.Aggregate, e.Position = event.Stock.Name, known[0].Position
			}), 0)}
		},
		"garbage of 10,000 records": func(b broker, _ []event.Event) (out []kafka.Record) {
			for range 10_000 {
				out = append(out, kafka.Record{Topic: b.order.Topic, Partition: 1, Key: []byte("k"), Value: []byte("\x00\xff")})
			}
			return out
		},
		"garbage among the positions": func(b broker, _ []event.Event) []kafka.Record {
			key := []byte(b.order.Service)
			return []kafka.Record{
				{Topic: relay.PositionsTopic, Partition: 0, Key: key, Value: []byte("junk")},
				{Topic: relay.PositionsTopic, Partition: 0, Key: key},
				{Topic: relay.PositionsTopic, Partition: 0, Key: []byte("another"), Value: []byte("1.1")},
				{
					Topic: relay.PositionsTopic, Partition: 0, Key: key, Value: []byte("1.1"),
					Headers: []event.Header{{Key: "from", Value: []byte("9.9")}},
				},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := b.newStore(t)
				w := newWriter(s)
				w.append(t, 30)
				b.publish(t, s)
				known, err := s.Read(t.Context(), event.Position{}, 100)
				if err != nil {
					t.Fatal(err)
				}
				b.produce(t, make(b, known))
				w.append(t, 30)
				var mu sync.Mutex
				var deadLetters []kafka.Message
				got := b.publish(t, s, func(c *relay.Config) {
					c.DeadLetter = func(_ context.Context, m kafka.Message, reason error) error {
						mu.Lock()
						defer mu.Unlock()
						if reason == nil {
							t.Error("a dead letter has no reason")
						}
						deadLetters = append(deadLetters, m)
						return nil
					}
				})
				if got.Published != 30 {
					t.Errorf("published %d events, want the 30 new ones", got.Published)
				}
				if copies := strings.HasPrefix(name, "copies"); !copies && (got.InvalidRecords == 0 || len(deadLetters) == 0) {
					t.Errorf("%d invalid records were counted and %d became dead letters", got.InvalidRecords, len(deadLetters))
				}
				if len(deadLetters) > 2000 {
					t.Errorf("%d records became dead letters, want at most 2000", len(deadLetters))
				}
				if !strings.Contains(name, "cop") {
					b.checkStreams(t, s)
				}
				if again := b.publish(t, s).Published; again != 0 {
					t.Errorf("the next relay published %d events again", again)
				}
			})
		})
	}
}

// onTopic returns the record of an event, without a seal.
func (b broker) onTopic(e event.Event, partition int32) kafka.Record {
	return kafka.Record{
		Topic: b.order.Topic, Partition: partition, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers(),
	}
}
