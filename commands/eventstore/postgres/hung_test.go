package postgres_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	server "github.com/millrace/millrace/test/servers/postgres"
)

// A server that hangs keeps its connections and does not answer. Every call must end, whether its
// caller set a limit or not. When the server continues, the store does, too.
func TestHungServer(t *testing.T) {
	t.Parallel()
	own := server.Cluster{}
	conn := own.ConnString(t)
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	s, err := postgres.Open(ctx, conn, eventstoretest.Aggregate, postgres.WithQueryTimeout(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"load":     func() error { _, err := s.Load(ctx, "a", 0); return err },
		"read":     func() error { _, err := s.Read(ctx, event.Position{}, 10); return err },
		"head":     func() error { _, err := s.Head(ctx); return err },
		"stats":    func() error { _, err := s.Stats(ctx, event.Position{}); return err },
		"known":    func() error { _, err := s.Known(ctx, []event.Event{{Stream: "a", Version: 1}}); return err },
		"epoch":    func() error { _, err := s.Epoch(ctx); return err },
		"secret":   func() error { _, err := s.Secret(ctx); return err },
		"snapshot": func() error { _, _, err := s.LoadSnapshot(ctx, "a"); return err },
		"answer":   func() error { _, _, err := s.LoadAnswer(ctx, "a"); return err },
		"wait":     func() error { return s.Wait(ctx, event.Position{}) },
		"settings": func() error { _, err := s.Settings(ctx); return err },
		"append":   func() error { _, err := s.Append(ctx, batch("hung", 0)); return err },
	}
	errs := make(chan error, len(calls))
	for name, call := range calls {
		go func() {
			err := call()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: error %v", name, err)
			}
			errs <- err
		}()
	}
	for range calls {
		<-errs
	}
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Head(ctx); err != nil {
		t.Errorf("after the pause: %v", err)
	}
}

// A server that accepts connections and does not answer must not block Open.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	conn := "postgres://postgres@" + listener.Addr().String() + "/postgres?sslmode=disable"
	_, err = postgres.Open(context.Background(), conn, eventstoretest.Aggregate,
		postgres.WithQueryTimeout(100*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "open event store") {
		t.Errorf("error %v", err)
	}
}
