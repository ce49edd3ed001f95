package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/polltest"
	server "github.com/millrace/millrace/test/servers/postgres"
)

// A server that lost committed events while a process was running must not get new ones from it
// until they are back.
func TestServerReplacedWhileOpen(t *testing.T) {
	t.Parallel()
	var own server.Cluster
	conn := own.ConnString(t)
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	open := func() *postgres.Store {
		t.Helper()
		s, err := postgres.Open(ctx, conn, event.Order)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	// reconnected repeats a call until the store has a new connection.
	reconnected := func(call func() error) (err error) {
		polltest.Until(t, "the server answers", func() bool {
			err = call()
			return err == nil || errors.Is(err, eventstore.ErrReplaced) ||
				errors.As(err, new(*eventstore.ConflictError))
		})
		return err
	}
	refuses := func(who string, s *postgres.Store, version uint64) {
		t.Helper()
		for what, call := range map[string]func() error{
			"append": func() error { _, err := s.Append(ctx, batch("a", version)); return err },
			"read":   func() error { _, err := s.Read(ctx, event.Position{}, 1); return err },
			"head":   func() error { _, err := s.Head(ctx); return err },
		} {
			if err := reconnected(call); !errors.Is(err, eventstore.ErrReplaced) {
				t.Errorf("%s, %s: %v, want ErrReplaced", who, what, err)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	writes := open()
	_, err := writes.Append(ctx, batch("a", 0))
	must(err)
	older, err := own.Backup()
	must(err)
	must(reconnected(func() error { _, err := writes.Append(ctx, batch("a", 1)); return err }))
	reads := open()
	newer, err := own.Backup() // an orderly restart loses nothing
	must(err)
	must(reconnected(func() error { _, err := reads.Head(ctx); return err }))
	must(reconnected(func() error { _, err := writes.Append(ctx, batch("a", 2)); return err }))

	must(older())
	refuses("the process that stored the events", writes, 3)
	refuses("a process that only reads", reads, 3)
	refuses("the process that stored the events, which finds the older version", writes, 1)

	must(newer())
	if _, err := open().Head(ctx); err != nil { // a new process accepts any history; the relay compares it with the log
		t.Error(err)
	}
	refuses("the process that stored one event more", writes, 3)
	must(reconnected(func() error { _, err := reads.Head(ctx); return err })) // it has everything that this store saw
}

// Another store in the same place has another epoch, whatever its content.
func TestSchemaRecreatedWhileOpen(t *testing.T) {
	t.Parallel()
	schema := newSchema()
	conn := cluster.ConnString(t) + " application_name=replaced"
	s, err := postgres.Open(t.Context(), conn, eventstoretest.Aggregate, postgres.WithSchema(schema))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	c := connect(t, schema)
	if _, err := c.Exec(t.Context(), "DROP SCHEMA "+pgx.Identifier{schema}.Sanitize()+" CASCADE"); err != nil {
		t.Fatal(err)
	}
	closeStore(t, open(t, schema))
	// Connections break, as when a server is replaced.
	if _, err := c.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'replaced'"); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the connections break", func() bool {
		_, err = s.Append(t.Context(), batch("a", 0))
		return err == nil || errors.Is(err, eventstore.ErrReplaced)
	})
	if !errors.Is(err, eventstore.ErrReplaced) {
		t.Fatalf("%v, want ErrReplaced", err)
	}
}
