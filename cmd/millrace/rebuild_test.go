package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// TestRebuild checks that a replaced store stops the relay, that the error names the command that
// helps, and that this command does.
func TestRebuild(t *testing.T) {
	data := t.TempDir()
	t.Setenv("MILLRACE_KAFKA_LISTEN", "127.0.0.1:0")
	quiet := slog.New(slog.DiscardHandler)
	store := filepath.Join(data, "store", "order.db")
	if err := os.MkdirAll(filepath.Dir(store), 0o750); err != nil {
		t.Fatal(err)
	}
	// publish adds n events to the store and runs a relay until all are on the log, or it stops.
	publish := func(n int) (onLog int64, stopped error) {
		broker, err := embeddedkafka.Start(t.Context(), embeddedkafka.Config{DataDir: filepath.Join(data, "kafka"),
			Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		s, err := sqlite.Open(t.Context(), store, event.Order)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := errors.Join(s.Close(), broker.Close()); err != nil {
				t.Error(err)
			}
		}()
		for range n {
			now := event.Time(time.Now())
			_, err := s.Append(t.Context(),
				eventstore.Batch{Streams: []eventstore.StreamAppend{{Stream: uuid.NewString(), Events: []event.Event{{
					ID: uuid.Must(uuid.NewV7()), Type: "millrace.order.v1.OrderPlaced", OccurredAt: now, RecordedAt: now,
				}}}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		cfg := kafka.Config{Brokers: broker.Addr(), Logger: quiet}
		if err := kafka.EnsureTopics(t.Context(), cfg, relay.Topics(event.Aggregates(), 4)...); err != nil {
			t.Fatal(err)
		}
		r, err := relay.New(relay.Config{Store: s, Aggregate: event.Order, Kafka: cfg,
			TransactionalID: "relay-" + broker.Boot(), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		head, err := s.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for waiting := true; waiting; {
			select {
			case stopped = <-done:
				waiting = false
			case <-tick.C:
				if r.Progress().Position == head {
					cancel()
					stopped = <-done
					waiting = false
				}
			}
		}
		cancel()
		admin, err := kafka.NewAdmin(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		ends, err := admin.HighWatermarks(t.Context(), event.Order.Topic)
		if err != nil {
			t.Fatal(err)
		}
		err = kafka.ReadAll(t.Context(), cfg, event.Order.Topic, nil, ends, func(kafka.Message) error {
			onLog++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return onLog, stopped
	}

	if n, err := publish(20); n != 20 || err != nil {
		t.Fatalf("%d events are on the log, %v", n, err)
	}
	lost, err := filepath.Glob(store + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lost {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	n, err := publish(30)
	if n != 20 || !errors.Is(err, relay.ErrStoreBehind) {
		t.Fatalf("%d events are on the log, and the relay stopped with %v, want ErrStoreBehind", n, err)
	}
	_, remedy, ok := strings.Cut(err.Error(), "`millrace ")
	remedy, _, closed := strings.Cut(remedy, "`")
	if !ok || !closed {
		t.Fatalf("the relay names no command: %v", err)
	}
	args := append(strings.Fields(remedy), "--data", data)
	if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Fatalf("it deletes unasked: %v, %s", err, out)
	}
	if out, err := run(t, append(args, "--yes")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n, err := publish(5); n != 35 || err != nil {
		t.Fatalf("%d events are on the log, %v, want the 35 of the store", n, err)
	}
	if _, err := run(t, "rebuild", "--service", "orders", "--yes", "--data", data); err == nil ||
		!strings.Contains(err.Error(), "inventory") {
		t.Fatalf("a service that is none: %v", err)
	}
}
