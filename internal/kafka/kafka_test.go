package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
	server "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

func TestMain(m *testing.M) {
	if group := os.Getenv(victim); group != "" {
		fmt.Fprintln(os.Stderr, beVictim(group))
		os.Exit(1)
	}
	process.Parallel(6)
	os.Exit(process.RunTests(m, apache.Stop))
}

// apache is the Apache Kafka that all tests share.
var apache = server.Cluster{Secure: true}

var quiet = slog.New(slog.DiscardHandler)

// broker is a broker as one test uses it.
type broker struct {
	kafka.Config
	topic string // used by one test only
}

// each runs a test on the embedded broker and on Apache Kafka, with a topic of its own if
// partitions is not 0.
func each(t *testing.T, partitions int32, test func(t *testing.T, b broker)) {
	t.Helper()
	apache.Each(t, func(t *testing.T, brokers string) {
		b := newBroker(kafka.Config{Brokers: brokers, ClientID: "test", Logger: quiet})
		if partitions > 0 {
			b.ensure(t, partitions)
		}
		test(t, b)
	})
}

func newBroker(cfg kafka.Config) broker { return broker{cfg, "events-" + uuid.NewString()} }

func (b broker) ensure(t testing.TB, partitions int32) {
	t.Helper()
	if err := kafka.EnsureTopics(t.Context(), b.Config,
		kafka.Topic{Name: b.topic, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

// transactional opens a producer whose transactional id belongs to the topic.
func (b broker) transactional(t testing.TB, id string) *kafka.TransactionalProducer {
	t.Helper()
	p, err := kafka.NewTransactionalProducer(b.Config, b.topic+"-"+id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// begin starts a transaction with records and leaves it open.
func begin(t testing.TB, p *kafka.TransactionalProducer, records ...kafka.Record) {
	t.Helper()
	if err := p.Begin(); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := p.Produce(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

// commit publishes records in one transaction.
func commit(t testing.TB, p *kafka.TransactionalProducer, records ...kafka.Record) {
	t.Helper()
	begin(t, p, records...)
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// record returns a record whose headers depend on its value, which read checks.
func (b broker) record(partition int32, key, value string) kafka.Record {
	return kafka.Record{
		Topic: b.topic, Partition: partition, Key: []byte(key), Value: []byte(value),
		Headers: []event.Header{{Key: "h", Value: []byte("v-" + value)}, {Key: "empty", Value: []byte{}}},
	}
}

// read returns the values that ReadAll passes.
func (b broker) read(ctx context.Context, from, to map[int32]int64) ([]string, error) {
	var got []string
	err := kafka.ReadAll(ctx, b.Config, b.topic, from, to, func(m kafka.Message) error {
		if len(m.Headers) != 2 || m.Headers[0].Key != "h" || string(m.Headers[0].Value) != "v-"+string(m.Value) {
			return fmt.Errorf("headers of %s: %v", m.Value, m.Headers)
		}
		got = append(got, string(m.Value))
		return nil
	})
	return got, err
}

// expect fails unless a range has the given values.
func (b broker) expect(t testing.TB, from, to map[int32]int64, want ...string) {
	t.Helper()
	got, err := b.read(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("read %v, want %v", got, want)
	}
}

// ends calls one of Admin's methods for offsets.
func (b broker) ends(t testing.TB,
	ask func(*kafka.Admin, context.Context, string) (map[int32]int64, error)) map[int32]int64 {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got, err := ask(a, t.Context(), b.topic)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// ReadAll passes committed records of any range, and no aborted ones.
func TestTransactionsAreAtomic(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		p := b.transactional(t, "p")
		commit(t, p, b.record(0, "k", "1"), b.record(0, "k", "2"))
		begin(t, p, b.record(0, "k", "never"))
		if err := p.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
		commit(t, p, b.record(0, "k", "3"))
		end := b.ends(t, (*kafka.Admin).HighWatermarks)
		b.expect(t, nil, end, "1", "2", "3")
		b.expect(t, map[int32]int64{0: 1}, end, "2", "3")
		b.expect(t, nil, map[int32]int64{0: 1}, "1")
		b.expect(t, end, end)
		b.expect(t, nil, map[int32]int64{})

		boom := errors.New("boom")
		if err := kafka.ReadAll(t.Context(), b.Config, b.topic, nil, end,
			func(kafka.Message) error { return boom }); !errors.Is(err, boom) {
			t.Fatalf("error of the reader's function: %v", err)
		}
	})
}

// Brokers learn of new partitions and their leaders one after the other. The client retries until
// they all know, so callers do not see it.
func TestEndsOfWidenedTopic(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		a, err := kafka.NewAdmin(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		for wide := 8; wide <= 40; wide += 8 {
			if err := server.AddPartitions(t.Context(), b.Brokers, b.topic, wide); err != nil {
				t.Fatal(err)
			}
			_, err1 := a.StartOffsets(t.Context(), b.topic)
			_, err2 := a.EndOffsets(t.Context(), b.topic)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatalf("with %d partitions: %v", wide, err)
			}
		}
	})
}

// ReadAll blocks while a transaction in its range is open, because the records behind it are not
// visible.
func TestReadAllWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		open, done := b.transactional(t, "open"), b.transactional(t, "done")
		begin(t, open, b.record(0, "k", "open"))
		b.flushed(t, 1)
		commit(t, done, b.record(0, "k", "done"))
		if lso := b.ends(t, (*kafka.Admin).EndOffsets)[0]; lso != 0 {
			t.Fatalf("end offset %d beside an open transaction, want 0", lso)
		}
		high := b.ends(t, (*kafka.Admin).HighWatermarks)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := b.read(short, nil, high); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("read %v (error %v) despite an open transaction", got, err)
		}
		if err := open.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.expect(t, nil, high, "open", "done")
	})
}

// flushed blocks until the partition has n records, committed or not.
func (b broker) flushed(t testing.TB, n int64) {
	t.Helper()
	a, err := kafka.NewAdmin(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for {
		high, err := a.HighWatermarks(t.Context(), b.topic)
		if err != nil {
			t.Fatal(err)
		}
		if high[0] >= n {
			return
		}
	}
}

// Whenever a new producer with the same transactional id appears, the old one gets ErrFenced, and
// its open transaction is not visible.
func TestNewProducerFencesPrevious(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(t *testing.T, b broker, old *kafka.TransactionalProducer) error{
		"between transactions": func(t *testing.T, b broker, old *kafka.TransactionalProducer) error {
			b.transactional(t, "p")
			if err := old.Begin(); err != nil {
				return err
			}
			return errors.Join(old.Produce(t.Context(), b.record(0, "k", "zombie")), old.Commit(t.Context()))
		},
		"before the commit": func(t *testing.T, b broker, old *kafka.TransactionalProducer) error {
			begin(t, old, b.record(0, "k", "zombie"))
			b.flushed(t, 3)
			b.transactional(t, "p")
			return old.Commit(t.Context())
		},
		"between two records": func(t *testing.T, b broker, old *kafka.TransactionalProducer) error {
			begin(t, old, b.record(0, "k", "zombie"))
			b.flushed(t, 3)
			b.transactional(t, "p")
			return errors.Join(old.Produce(t.Context(), b.record(0, "k", "zombie 2")), old.Commit(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, 1, func(t *testing.T, b broker) {
				old := b.transactional(t, "p")
				commit(t, old, b.record(0, "k", "1"))
				if err := when(t, b, old); !errors.Is(err, kafka.ErrFenced) {
					t.Fatalf("the previous producer: %v, want ErrFenced", err)
				}
				b.expect(t, nil, b.ends(t, (*kafka.Admin).HighWatermarks), "1")
			})
		})
	}
}

// A transaction that exceeds its timeout is aborted by the broker, and its producer gets ErrFenced.
func TestTransactionOpenTooLongIsFenced(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		b.Extra = map[string]string{"transaction.timeout.ms": "1000"}
		p := b.transactional(t, "p")
		begin(t, p, b.record(0, "k", "late"))
		b.flushed(t, 2) // the record and the broker's abort marker
		if err := p.Commit(t.Context()); !errors.Is(err, kafka.ErrFenced) {
			t.Fatalf("commit after the timeout: %v, want ErrFenced", err)
		}
		commit(t, b.transactional(t, "p"), b.record(0, "k", "1"))
		b.expect(t, nil, b.ends(t, (*kafka.Admin).HighWatermarks), "1")
	})
}

// After ErrMustAbort and Abort, a producer can commit other transactions.
func TestUnknownTopicMustBeAborted(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		b.Extra = map[string]string{"topic.metadata.propagation.max.ms": "200"}
		p := b.transactional(t, "p")
		r := b.record(0, "k", "lost")
		r.Topic = "nowhere"
		begin(t, p, r)
		if err := p.Commit(t.Context()); !errors.Is(err, kafka.ErrMustAbort) {
			t.Fatalf("commit: %v, want ErrMustAbort", err)
		}
		if err := p.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
		commit(t, p, b.record(0, "k", "1"))
		b.expect(t, nil, b.ends(t, (*kafka.Admin).HighWatermarks), "1")
	})
}

// Blocking calls end with the cause of their context, although librdkafka does not observe
// cancellation.
func TestCallsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	b := newBroker(kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet})
	p, err := kafka.NewTransactionalProducer(b.Config, "p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { cancel(gone) })
	if err := p.Init(ctx); !errors.Is(err, gone) {
		t.Fatalf("Init: %v", err)
	}
	if err := kafka.EnsureTopics(ctx, b.Config, kafka.Topic{Name: b.topic, Partitions: 1}); err == nil {
		t.Fatal("EnsureTopics without a broker succeeded")
	}
	q, err := kafka.NewProducer(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Produce(ctx, b.record(0, "k", "1")); !errors.Is(err, gone) {
		t.Fatalf("Produce: %v", err)
	}
}

// Produce returns nil only if the brokers have the record.
func TestProducerReportsDelivery(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		p, err := kafka.NewProducer(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, v := range []string{"1", "2"} {
			if err := p.Produce(t.Context(), b.record(kafka.AnyPartition, "k", v)); err != nil {
				t.Fatal(err)
			}
		}
		b.expect(t, nil, b.ends(t, (*kafka.Admin).HighWatermarks), "1", "2")
		if err := p.Produce(t.Context(), b.record(7, "k", "3")); err == nil {
			t.Fatal("a record for a missing partition was delivered")
		}
	})
}

// EnsureTopics can be repeated. It accepts topics with more partitions than wanted, and refuses
// topics with fewer.
func TestEnsureTopics(t *testing.T) {
	t.Parallel()
	each(t, 0, func(t *testing.T, b broker) {
		want := []kafka.Topic{{Name: b.topic, Partitions: 3},
			{Name: b.topic + "-positions", Partitions: 1, Compacted: true}}
		for range 2 {
			if err := kafka.EnsureTopics(t.Context(), b.Config, want...); err != nil {
				t.Fatal(err)
			}
		}
		a, err := kafka.NewAdmin(b.Config)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if n, err := a.Partitions(t.Context(), b.topic); n != 3 || err != nil {
			t.Fatalf("%d partitions, %v; want 3", n, err)
		}
		if _, err := a.Partitions(t.Context(), "nowhere"); !errors.Is(err, kafka.ErrUnknownTopic) {
			t.Fatalf("partitions of a missing topic: %v, want ErrUnknownTopic", err)
		}
		if err := a.EnsureTopics(t.Context(), kafka.Topic{Name: b.topic, Partitions: 2}); err != nil {
			t.Fatalf("a topic with more partitions than needed: %v", err)
		}
		if err := a.EnsureTopics(t.Context(), kafka.Topic{Name: b.topic, Partitions: 4}); err == nil {
			t.Fatal("a topic with too few partitions was accepted")
		}
	})
}

// Config.Extra cannot change properties that correctness depends on.
func TestReservedPropertiesAreRejected(t *testing.T) {
	t.Parallel()
	cfg := kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet, Extra: map[string]string{"enable.idempotence": "false"}}
	if p, err := kafka.NewTransactionalProducer(cfg, "p"); err == nil {
		p.Close()
		t.Fatal("a transactional producer without idempotence was opened")
	}
	if _, err := kafka.NewAdmin(kafka.Config{Logger: quiet}); err == nil {
		t.Fatal("a client without brokers was opened")
	}
}

// A read without progress returns an error and does not block forever.
func TestReadAllStalls(t *testing.T) {
	t.Parallel()
	each(t, 1, func(t *testing.T, b broker) {
		c := b.Config
		c.Stall = 200 * time.Millisecond
		err := kafka.ReadAll(t.Context(), c, b.topic, nil, map[int32]int64{0: 5},
			func(kafka.Message) error { return nil })
		if !errors.Is(err, kafka.ErrStalled) {
			t.Fatalf("got %v, want ErrStalled", err)
		}
	})
}
