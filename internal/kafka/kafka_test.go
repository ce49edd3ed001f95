package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func broker(t testing.TB, topics ...kafka.Topic) kafka.Config {
	t.Helper()
	b, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := kafka.Config{Brokers: b.Addr(), ClientID: "test", Logger: quiet}
	if len(topics) > 0 {
		if err := kafka.EnsureTopics(t.Context(), cfg, topics...); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func transactional(t testing.TB, cfg kafka.Config, id string) *kafka.TransactionalProducer {
	t.Helper()
	p, err := kafka.NewTransactionalProducer(cfg, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

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

func commit(t testing.TB, p *kafka.TransactionalProducer, records ...kafka.Record) {
	t.Helper()
	begin(t, p, records...)
	if err := p.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func record(partition int32, key, value string) kafka.Record {
	return kafka.Record{
		Topic: "events", Partition: partition, Key: []byte(key), Value: []byte(value),
		Headers: []event.Header{{Key: "h", Value: []byte("v-" + value)}, {Key: "empty", Value: []byte{}}},
	}
}

func readValues(ctx context.Context, cfg kafka.Config, from, to map[int32]int64) ([]string, error) {
	var got []string
	err := kafka.ReadAll(ctx, cfg, "events", from, to, func(m kafka.Message) error {
		if len(m.Headers) != 2 || m.Headers[0].Key != "h" || string(m.Headers[0].Value) != "v-"+string(m.Value) {
			return fmt.Errorf("headers of %s: %v", m.Value, m.Headers)
		}
		got = append(got, string(m.Value))
		return nil
	})
	return got, err
}

func expect(t testing.TB, cfg kafka.Config, from, to map[int32]int64, want ...string) {
	t.Helper()
	got, err := readValues(t.Context(), cfg, from, to)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("read %v, want %v", got, want)
	}
}

func ends(t testing.TB, cfg kafka.Config, ask func(*kafka.Admin, context.Context, string) (map[int32]int64, error)) map[int32]int64 {
	t.Helper()
	a, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	got, err := ask(a, t.Context(), "events")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTransactionsAreVisibleWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
	p := transactional(t, cfg, "p")
	commit(t, p, record(0, "k", "1"), record(0, "k", "2"))
	begin(t, p, record(0, "k", "never"))
	if err := p.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	commit(t, p, record(0, "k", "3"))
	end := ends(t, cfg, (*kafka.Admin).EndOffsets)
	expect(t, cfg, nil, end, "1", "2", "3")
	expect(t, cfg, map[int32]int64{0: 1}, end, "2", "3")
	expect(t, cfg, nil, map[int32]int64{0: 1}, "1")
	expect(t, cfg, end, end)
	expect(t, cfg, nil, map[int32]int64{})

	boom := errors.New("boom")
	if err := kafka.ReadAll(t.Context(), cfg, "events", nil, end, func(kafka.Message) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("error of the reader's function: %v", err)
	}
}

func TestReadAllWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
	open, done := transactional(t, cfg, "open"), transactional(t, cfg, "done")
	begin(t, open, record(0, "k", "open"))
	flushed(t, cfg, 1)
	commit(t, done, record(0, "k", "done"))
	if lso := ends(t, cfg, (*kafka.Admin).EndOffsets)[0]; lso != 0 {
		t.Fatalf("end offset %d beside an open transaction, want 0", lso)
	}
	high := ends(t, cfg, (*kafka.Admin).HighWatermarks)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if got, err := readValues(short, cfg, nil, high); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read %v, error %v below an open transaction, want it to wait", got, err)
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, cfg, nil, high, "open", "done")
}

// flushed waits until the partition has n records, committed or not.
func flushed(t testing.TB, cfg kafka.Config, n int64) {
	t.Helper()
	a, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for {
		high, err := a.HighWatermarks(t.Context(), "events")
		if err != nil {
			t.Fatal(err)
		}
		if high[0] >= n {
			return
		}
	}
}

func TestNewProducerFencesTheOld(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(t *testing.T, cfg kafka.Config, old *kafka.TransactionalProducer) error{
		"between transactions": func(t *testing.T, cfg kafka.Config, old *kafka.TransactionalProducer) error {
			transactional(t, cfg, "p")
			if err := old.Begin(); err != nil {
				return err
			}
			return errors.Join(old.Produce(t.Context(), record(0, "k", "zombie")), old.Commit(t.Context()))
		},
		"before the commit": func(t *testing.T, cfg kafka.Config, old *kafka.TransactionalProducer) error {
			begin(t, old, record(0, "k", "zombie"))
			flushed(t, cfg, 3)
			transactional(t, cfg, "p")
			return old.Commit(t.Context())
		},
		"between two records": func(t *testing.T, cfg kafka.Config, old *kafka.TransactionalProducer) error {
			begin(t, old, record(0, "k", "zombie"))
			flushed(t, cfg, 3)
			transactional(t, cfg, "p")
			return errors.Join(old.Produce(t.Context(), record(0, "k", "zombie 2")), old.Commit(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
			old := transactional(t, cfg, "p")
			commit(t, old, record(0, "k", "1"))
			if err := when(t, cfg, old); !errors.Is(err, kafka.ErrFenced) {
				t.Fatalf("the old producer: %v, want ErrFenced", err)
			}
			expect(t, cfg, nil, ends(t, cfg, (*kafka.Admin).EndOffsets), "1")
		})
	}
}

func TestTransactionOpenTooLongIsFenced(t *testing.T) {
	t.Parallel()
	cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
	cfg.Extra = map[string]string{"transaction.timeout.ms": "1000"}
	p := transactional(t, cfg, "p")
	begin(t, p, record(0, "k", "late"))
	flushed(t, cfg, 2) // the record and the broker's abort marker
	if err := p.Commit(t.Context()); !errors.Is(err, kafka.ErrFenced) {
		t.Fatalf("commit after the timeout: %v, want ErrFenced", err)
	}
	commit(t, transactional(t, cfg, "p"), record(0, "k", "1"))
	expect(t, cfg, nil, ends(t, cfg, (*kafka.Admin).EndOffsets), "1")
}

func TestUnknownTopicMustBeAborted(t *testing.T) {
	t.Parallel()
	cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
	cfg.Extra = map[string]string{"topic.metadata.propagation.max.ms": "200"}
	p := transactional(t, cfg, "p")
	r := record(0, "k", "lost")
	r.Topic = "nowhere"
	begin(t, p, r)
	if err := p.Commit(t.Context()); !errors.Is(err, kafka.ErrMustAbort) {
		t.Fatalf("commit: %v, want ErrMustAbort", err)
	}
	if err := p.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	commit(t, p, record(0, "k", "1"))
	expect(t, cfg, nil, ends(t, cfg, (*kafka.Admin).EndOffsets), "1")
}

func TestCallsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	cfg := kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet}
	p, err := kafka.NewTransactionalProducer(cfg, "p")
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
	if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: "events", Partitions: 1}); err == nil {
		t.Fatal("EnsureTopics without a broker succeeded")
	}
	q, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Produce(ctx, record(0, "k", "1")); !errors.Is(err, gone) {
		t.Fatalf("Produce: %v", err)
	}
}

func TestProducerReportsDelivery(t *testing.T) {
	t.Parallel()
	cfg := broker(t, kafka.Topic{Name: "events", Partitions: 1})
	p, err := kafka.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, v := range []string{"1", "2"} {
		if err := p.Produce(t.Context(), record(kafka.AnyPartition, "k", v)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, cfg, nil, ends(t, cfg, (*kafka.Admin).EndOffsets), "1", "2")
	if err := p.Produce(t.Context(), record(7, "k", "3")); err == nil {
		t.Fatal("a record for a partition that is not there was delivered")
	}
}

func TestEnsureTopics(t *testing.T) {
	t.Parallel()
	cfg := broker(t)
	want := []kafka.Topic{{Name: "events", Partitions: 3}, {Name: "positions", Partitions: 1, Compacted: true}}
	for range 2 {
		if err := kafka.EnsureTopics(t.Context(), cfg, want...); err != nil {
			t.Fatal(err)
		}
	}
	a, err := kafka.NewAdmin(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if n, err := a.Partitions(t.Context(), "events"); n != 3 || err != nil {
		t.Fatalf("%d partitions, %v; want 3", n, err)
	}
	if _, err := a.Partitions(t.Context(), "nowhere"); !errors.Is(err, kafka.ErrUnknownTopic) {
		t.Fatalf("partitions of a topic that is not there: %v", err)
	}
	if err := a.EnsureTopics(t.Context(), kafka.Topic{Name: "events", Partitions: 2}); err != nil {
		t.Fatalf("a topic with more partitions than wanted: %v", err)
	}
	if err := a.EnsureTopics(t.Context(), kafka.Topic{Name: "events", Partitions: 4}); err == nil {
		t.Fatal("a topic with fewer partitions than wanted is no error")
	}
}

func TestPropertiesThatCorrectnessRestsOnAreRefused(t *testing.T) {
	t.Parallel()
	cfg := kafka.Config{Brokers: "127.0.0.1:1", Logger: quiet, Extra: map[string]string{"enable.idempotence": "false"}}
	if p, err := kafka.NewTransactionalProducer(cfg, "p"); err == nil {
		p.Close()
		t.Fatal("a transactional producer without idempotence")
	}
	if _, err := kafka.NewAdmin(kafka.Config{Logger: quiet}); err == nil {
		t.Fatal("a client without brokers")
	}
}
