package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		if err := child(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	process.Parallel(6)
	os.Exit(process.RunTests(m, apache.Stop))
}

const partitions = 3

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// apache is the Apache Kafka that all tests share.
var apache server.Cluster

// A relay publishes the events of its store and those that are appended later. The next relay
// continues after the last one.
func TestRelayPublishesStoredAndNewEvents(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 100)
		x := run(t, b.newRelay(t, s, func(c *relay.Config) { c.MaxEvents = 30 }))
		x.await(t, s)
		for range 20 {
			w.append(t, 3)
			x.await(t, s)
		}
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		b.checkEqual(t, s)
		last := x.relay.Progress()
		if last.Published != 160 || last.RecordedAt.IsZero() {
			t.Fatalf("progress %+v, want 160 published", last)
		}

		// The next one continues from there.
		w.append(t, 10)
		x = run(t, b.newRelay(t, s))
		x.await(t, s)
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		b.checkEqual(t, s)
		if got := x.relay.Progress().Published; got != 10 {
			t.Fatalf("the second relay published %d events, want 10", got)
		}
	})
}

// Config.MaxBytes bounds the events of a transaction.
func TestMaxBytes(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.size = 3000
		w.append(t, 40)
		transactions := 0
		r := b.newRelay(t, s, func(c *relay.Config) { c.MaxBytes = 10_000 })
		r.OnStep(func(at string) error {
			if at == "after commit" {
				transactions++
			}
			return nil
		})
		x := run(t, r)
		x.await(t, s)
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		b.checkEqual(t, s)
		if transactions < 40/3 {
			t.Fatalf("40 events of 3 kB took %d transactions of at most 10 kB", transactions)
		}
	})
}

// A second relay of a store takes over, and the first one stops with ErrFenced when it next
// publishes.
func TestSecondRelayFencesTheFirst(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 10)
		first := run(t, b.newRelay(t, s))
		first.await(t, s)
		second := run(t, b.newRelay(t, s))
		// The second fences the first. If a transaction of the first times out before, as on an overloaded
		// machine, the first opens another producer, and fences the second.
		fenced, other := first, second
		eventually(t, func() bool {
			w.append(t, 1) // it notices the other relay only when it publishes
			select {
			case <-first.done:
				return true
			case <-second.done:
				fenced, other = second, first
				return true
			default:
				return false
			}
		}, "one of the relays stops")
		if !errors.Is(fenced.err, relay.ErrFenced) {
			t.Fatalf("a relay stopped with %v, want ErrFenced", fenced.err)
		}
		for range 10 {
			w.append(t, 5)
			other.await(t, s)
		}
		if err := other.stop(); err != nil {
			t.Fatalf("the other relay: %v", err)
		}
		b.checkEqual(t, s)
	})
}

// After an error at any step of a transaction, the relay resumes without losing or duplicating
// events.
func TestErrorAtAnyStep(t *testing.T) {
	t.Parallel()
	for name := range relay.Steps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := b.newStore(t)
				w := newWriter(s)
				w.append(t, 50)
				fails := 0
				r := b.newRelay(t, s, func(c *relay.Config) { c.MaxEvents = 20 })
				r.OnStep(func(at string) error {
					if at != name || fails >= 4 || rand.N(2) == 0 {
						return nil
					}
					fails++
					return fmt.Errorf("injected %s", at)
				})
				x := run(t, r)
				x.await(t, s)
				for range 10 {
					w.append(t, 10)
					x.await(t, s)
				}
				if err := x.stop(); err != nil {
					t.Fatal(err)
				}
				if fails == 0 {
					t.Fatal("no step failed")
				}
				b.checkEqual(t, s)
			})
		})
	}
}

// The embedded broker can be killed between the partitions of a commit. Then only some of them have
// the transaction, and the next relay completes it.
func TestPartialTransaction(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ checkpoint, events bool }{ // what was committed
		"the checkpoint and one partition": {checkpoint: true, events: true},
		"the checkpoint alone":             {checkpoint: true},
		"one partition alone":              {events: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, b broker) {
				s := b.newStore(t)
				w := newWriter(s)
				w.append(t, 30)
				x := run(t, b.newRelay(t, s))
				x.await(t, s)
				if err := x.stop(); err != nil {
					t.Fatal(err)
				}
				before := x.relay.Progress().Position
				w.append(t, 30)
				events, err := s.Read(t.Context(), before, 100)
				if err != nil {
					t.Fatal(err)
				}

				p, err := kafka.NewTransactionalProducer(b.Config, "half-"+b.order.Service)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if err := errors.Join(p.Init(t.Context()), p.Begin()); err != nil {
					t.Fatal(err)
				}
				var records []kafka.Record
				for _, e := range events {
					if partition := kafka.Partition([]byte(e.Stream), partitions); c.events && partition == 1 {
						records = append(records, b.onTopic(e, partition))
					}
				}
				if c.checkpoint {
					records = append(records, relay.CheckpointRecord(before, events[len(events)-1].Position, b.order.Service))
				}
				for _, r := range records {
					if err := p.Produce(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
				if err := p.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}

				w.append(t, 10)
				x = run(t, b.newRelay(t, s))
				x.await(t, s)
				if err := x.stop(); err != nil {
					t.Fatal(err)
				}
				b.checkEqual(t, s)
			})
		})
	}
}

// An open transaction on PositionsTopic, which all services share, hides later checkpoints. A relay
// nevertheless starts, from an older checkpoint.
func TestOpenTransactionOfAnotherService(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		other := b.Config
		other.Extra = map[string]string{"transaction.timeout.ms": "600000"}
		p, err := kafka.NewTransactionalProducer(other, "other-than-"+b.order.Service)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := errors.Join(p.Init(t.Context()), p.Begin()); err != nil {
			t.Fatal(err)
		}
		// Left open, it would hide the other tests' checkpoints.
		defer func() { _ = p.Abort(context.WithoutCancel(t.Context())) }()
		w := newWriter(s)
		for i := range 3 {
			w.append(t, 20)
			x := run(t, b.newRelay(t, s))
			x.await(t, s)
			if err := x.stop(); err != nil {
				t.Fatal(err)
			}
			if i == 0 { // hides all later checkpoints
				other := relay.CheckpointRecord(event.Position{}, event.Position{Sequence: 7}, event.Stock.Service)
				if err := p.Produce(t.Context(), other); err != nil {
					t.Fatal(err)
				}
				a, err := kafka.NewAdmin(b.Config)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				eventually(t, func() bool {
					high, err := a.HighWatermarks(t.Context(), relay.PositionsTopic)
					if err != nil {
						t.Fatal(err)
					}
					visible, err := a.EndOffsets(t.Context(), relay.PositionsTopic)
					if err != nil {
						t.Fatal(err)
					}
					return visible[0] < high[0]
				}, "the open transaction hides the end of the topic")
			}
		}
		b.checkEqual(t, s)
	})
}

// A relay whose store lost the published events stops with ErrStoreBehind.
func TestStoreBehindLog(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		newWriter(s).append(t, 30)
		x := run(t, b.newRelay(t, s))
		x.await(t, s)
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		other := b.newStore(t)
		newWriter(other).append(t, 10)
		x = run(t, b.newRelay(t, other))
		<-x.done
		if !errors.Is(x.err, relay.ErrStoreBehind) {
			t.Fatalf("a lost store: %v, want ErrStoreBehind", x.err)
		}
		b.checkEqual(t, s)
	})
}

// Records of other producers on both topics are skipped, even if there are more than fit in the first
// window that a relay reads.
func TestInvalidRecordsAreSkipped(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, b broker) {
		s := b.newStore(t)
		w := newWriter(s)
		w.append(t, 30)
		x := run(t, b.newRelay(t, s))
		x.await(t, s)
		if err := x.stop(); err != nil {
			t.Fatal(err)
		}
		p, err := kafka.NewProducer(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, topic := range []string{b.order.Topic, relay.PositionsTopic} {
			for range 200 { // more than the relay's first window
				junk := kafka.Record{Topic: topic, Partition: 0, Key: []byte(b.order.Service), Value: []byte("junk")}
				if err := p.Produce(t.Context(), junk); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.append(t, 30)
		x = run(t, b.newRelay(t, s))
		x.await(t, s)
		if got := x.relay.Progress().Published; got != 30 {
			t.Fatalf("published %d events, want 30", got)
		}
	})
}

// Without a broker the relay retries until it is stopped.
func TestRetryWithoutBroker(t *testing.T) {
	t.Parallel()
	b := broker{kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet}, event.Order}
	x := run(t, b.newRelay(t, b.newStore(t)))
	select {
	case <-x.done:
		t.Fatalf("the relay stopped: %v", x.err)
	case <-time.After(500 * time.Millisecond): // long enough for an attempt
	}
	if err := x.stop(); err != nil {
		t.Fatalf("stopped with %v, want nil", err)
	}
}

// New rejects a configuration that is incomplete or out of range.
func TestNewRejectsInvalidConfig(t *testing.T) {
	t.Parallel()
	s := broker{order: event.Order}.newStore(t)
	good := relay.Config{Store: s, Aggregate: event.Order, TransactionalID: "x"}
	for name, spoil := range map[string]func(*relay.Config){
		"no store":     func(c *relay.Config) { c.Store = nil },
		"no topic":     func(c *relay.Config) { c.Aggregate.Topic = "" },
		"no service":   func(c *relay.Config) { c.Aggregate.Service = "" },
		"no id":        func(c *relay.Config) { c.TransactionalID = "" },
		"negative max": func(c *relay.Config) { c.MaxEvents = -1 },
	} {
		c := good
		spoil(&c)
		if _, err := relay.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
