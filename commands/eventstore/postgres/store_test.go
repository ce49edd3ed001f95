package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	server "github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/process"
)

// All tests share one server. Each has its own schema.
var (
	cluster server.Cluster
	schemas atomic.Int64
)

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, cluster.Stop))
}

// newSchema returns the name of a schema that must be quoted.
func newSchema() string { return fmt.Sprintf(`Millrace "%d"`, schemas.Add(1)) }

func open(tb testing.TB, schema string, opts ...postgres.Option) *postgres.Store {
	tb.Helper()
	s, err := postgres.Open(context.Background(), cluster.ConnString(tb), eventstoretest.Aggregate,
		append([]postgres.Option{postgres.WithSchema(schema), postgres.WithPoll(2 * time.Millisecond)}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// connect opens a plain connection that is closed at the end of the test.
func connect(t *testing.T, schema string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(cluster.ConnString(t))
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize()
	config.RuntimeParams["application_name"] = "blocker"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func closeStore(t *testing.T, s *postgres.Store) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	eventstoretest.Run(t, func(*testing.T) eventstoretest.Database {
		schema := newSchema()
		return func(t *testing.T) eventstore.Store { return open(t, schema) }
	})
}

func batch(stream string, version uint64) eventstore.Batch {
	now := event.Time(time.Now())
	return eventstore.Batch{Streams: []eventstore.StreamAppend{{Stream: stream, ExpectedVersion: version, Events: []event.Event{{
		ID: uuid.Must(uuid.NewV7()), Type: "t", Data: []byte(stream), OccurredAt: now, RecordedAt: now,
	}}}}}
}

// hold opens a transaction that has written an event and does not end. Its id, and so its event's
// position, is lower than those of all later appends.
func hold(t *testing.T, schema, stream string) pgx.Tx {
	t.Helper()
	tx, err := connect(t, schema).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO events (position, id, stream, version, type, data, occurred_at, recorded_at,
		correlation_id, causation_id, trace_parent) VALUES (1, gen_random_uuid(), $1, 1, 't', '', now(), now(), '', '', '')`, stream); err != nil {
		t.Fatal(err)
	}
	return tx
}

// TestOpenTransaction checks that events of later transactions are not readable while an earlier
// one is open. Otherwise a reader would have passed the earlier one's position when it commits.
func TestOpenTransaction(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(pgx.Tx) error{
		"committed":   func(tx pgx.Tx) error { return tx.Commit(context.Background()) },
		"rolled back": func(tx pgx.Tx) error { return tx.Rollback(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			schema := newSchema()
			s := open(t, schema)
			closeStore(t, s)
			before, err := s.Append(ctx, batch("before", 0))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Wait(ctx, event.Position{}); err != nil {
				t.Fatal(err)
			}

			tx := hold(t, schema, "held")
			later, err := s.Append(ctx, batch("later", 0))
			if err != nil {
				t.Fatal(err)
			}
			if loaded, err := s.Load(ctx, "later", 0); err != nil || len(loaded) != 1 {
				t.Errorf("Load returned %d events (%v): only Read may hold events back", len(loaded), err)
			}
			if got, err := s.Read(ctx, before.Position, 10); err != nil || len(got) != 0 {
				t.Fatalf("read %d events past an open transaction (%v)", len(got), err)
			}
			if head, err := s.Head(ctx); err != nil || head != before.Position {
				t.Errorf("the head is %v (%v), want %v", head, err, before.Position)
			}
			// A command that changes nothing depends on what it loaded, so its token has that
			// position.
			if p, err := s.Append(ctx, eventstore.Batch{Answer: eventstore.Answer{Key: "k"}}); err != nil ||
				p.Position != later.Position {
				t.Errorf("a batch without events has position %v (%v), want %v", p.Position, err, later.Position)
			}

			waiting := make(chan error, 1)
			go func() { waiting <- s.Wait(ctx, before.Position) }()
			if err := end(tx); err != nil {
				t.Fatal(err)
			}
			if err := <-waiting; err != nil {
				t.Fatal(err)
			}
			var streams []string
			for after := before.Position; after != later.Position; {
				got, err := s.Read(ctx, after, 1)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range got {
					after = e.Position
					streams = append(streams, e.Stream)
				}
			}
			want := map[string]string{"committed": "held later", "rolled back": "later"}[name]
			if got := strings.Join(streams, " "); got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		})
	}
}

// TestAppendWaitsForConcurrentTransaction appends at a version that an open transaction has already
// written. The result depends on how that transaction ends.
func TestAppendWaitsForConcurrentTransaction(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(pgx.Tx) error
		wins bool
	}{
		"committed":   {func(tx pgx.Tx) error { return tx.Commit(context.Background()) }, false},
		"rolled back": {func(tx pgx.Tx) error { return tx.Rollback(context.Background()) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := newSchema()
			s := open(t, schema)
			closeStore(t, s)
			tx := hold(t, schema, "raced")
			both := batch("raced", 0)
			both.Streams[0].Events = append(both.Streams[0].Events, batch("", 0).Streams[0].Events...)
			both.Streams = append(both.Streams, batch("beside", 0).Streams...)
			done := make(chan error, 1)
			go func() {
				_, err := s.Append(t.Context(), both)
				done <- err
			}()
			awaitBlocked(t, schema)
			if err := c.end(tx); err != nil {
				t.Fatal(err)
			}
			conflict := (*eventstore.ConflictError)(nil)
			if err := <-done; c.wins != (err == nil) ||
				(!c.wins && (!errors.As(err, &conflict) || conflict.Actual != 1)) {
				t.Errorf("append: %v", err)
			}
			raced, err1 := s.Load(t.Context(), "raced", 0)
			beside, err2 := s.Load(t.Context(), "beside", 0)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 2, false: 1}[c.wins]; len(raced) != want {
				t.Errorf("the stream has %d events, want %d", len(raced), want)
			}
			if (len(beside) == 1) != c.wins {
				t.Errorf("the batch's other stream has %d events", len(beside))
			}
		})
	}
}

// TestBrokenConnections closes all connections of a store. It must reconnect, and the idempotency
// key shows whether an append was stored.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	schema := newSchema()
	s, err := postgres.Open(ctx, cluster.ConnString(t)+" application_name=cut", event.Order, postgres.WithSchema(schema))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	killer := connect(t, schema)
	for version := range uint64(5) {
		if _, err := killer.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cut'"); err != nil {
			t.Fatal(err)
		}
		b := batch("s", version)
		b.Answer.Key = fmt.Sprint(version)
		for {
			_, err := s.Append(ctx, b)
			if err == nil || errors.As(err, new(*eventstore.AnsweredError)) {
				break
			}
			if ctx.Err() != nil || errors.As(err, new(*eventstore.ConflictError)) {
				t.Fatalf("version %d: %v", version, err)
			}
		}
	}
	for {
		events, err := s.Load(ctx, "s", 0)
		if err == nil {
			if len(events) != 5 {
				t.Errorf("the stream has %d events, want 5", len(events))
			}
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// awaitBlocked blocks until an insert of the store waits for another transaction.
func awaitBlocked(t *testing.T, schema string) {
	t.Helper()
	conn := connect(t, schema)
	for deadline := time.Now().Add(time.Minute); ; {
		var blocked bool
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_locks o USING (pid)
			WHERE NOT l.granted AND o.relation = 'events'::regclass)`).Scan(&blocked)
		if err != nil {
			t.Fatal(err)
		}
		if blocked {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the append is not blocked")
		}
	}
}

// logged collects log lines, and signals the first one.
type logged struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first chan struct{}
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() == 0 {
		close(l.first)
	}
	return l.text.Write(p)
}

// An open transaction that holds events back for too long is logged.
func TestBlockedWarning(t *testing.T) {
	t.Parallel()
	schema := newSchema()
	log := &logged{first: make(chan struct{})}
	s := open(t, schema, postgres.WithBlockedWarning(10*time.Millisecond),
		postgres.WithLogger(slog.New(slog.NewTextHandler(log, nil))))
	closeStore(t, s)
	tx := hold(t, schema, "held")
	if _, err := s.Append(t.Context(), batch("later", 0)); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- s.Wait(t.Context(), event.Position{}) }()
	select {
	case <-log.first:
	case <-time.After(time.Minute):
		t.Error("no warning was logged")
	}
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if text := log.text.String(); !strings.Contains(text, "held back") || !strings.Contains(text, "aggregate=order") {
		t.Errorf("logged %q", text)
	}
}

// Several instances of a service may open an empty schema at the same time. One of them migrates
// it.
func TestConcurrentOpen(t *testing.T) {
	t.Parallel()
	schema := newSchema()
	conn := cluster.ConnString(t)
	const instances = 4
	errs := make(chan error, instances)
	for range instances {
		go func() {
			s, err := postgres.Open(context.Background(), conn, event.Order, postgres.WithSchema(schema))
			if err == nil {
				err = s.Close()
			}
			errs <- err
		}()
	}
	for range instances {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Open rejects schemas and databases that this store cannot use, and names what to do.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	mine, newer := newSchema(), newSchema()
	for _, schema := range []string{mine, newer} {
		if err := open(t, schema).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connect(t, newer).Exec(t.Context(), "INSERT INTO migrations (number, name) VALUES (99, 'later')"); err != nil {
		t.Fatal(err)
	}
	western := fmt.Sprint("western", schemas.Add(1))
	if _, err := connect(t, mine).Exec(t.Context(), "CREATE DATABASE "+western+" ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		conn, schema string
		aggregate    event.Aggregate
		want         string
	}{
		{cluster.ConnString(t), mine, event.Stock, `contains events of "order", not of "stock"`},
		{cluster.ConnString(t), newer, event.Order, "start a newer version"},
		{cluster.ConnString(t) + " dbname=" + western, mine, event.Order, "ENCODING 'UTF8'"},
		{"host=/nowhere", mine, event.Order, "/nowhere"},
		{"postgres://a:b", mine, event.Order, "cannot parse"},
	} {
		s, err := postgres.Open(t.Context(), c.conn, c.aggregate, postgres.WithSchema(c.schema))
		if err == nil {
			t.Errorf("%s: opened, want %q", c.schema, c.want)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %q does not contain %q", err, c.want)
		}
	}
}

func Benchmark(b *testing.B) {
	eventstoretest.Benchmark(b, func(b *testing.B) eventstore.Store { return open(b, newSchema()) })
}
