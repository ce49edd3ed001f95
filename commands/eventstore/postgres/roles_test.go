package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/event"
	server "github.com/millrace/millrace/test/servers/postgres"
)

const secret = "s3cret+of /millrace"

// guarded is a server with the roles of deploy/postgres/roles.sql, and with databases that have
// migrated and empty stores. Roles belong to the whole server, so it is not shared with the other
// tests.
type guarded struct {
	server.Cluster
	databases atomic.Int64
}

const template = "guarded"

// newGuarded sets the server up as an operator does: it creates the roles and migrates the stores.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{}
	admin := g.connect(t, g.ConnString(t))
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	g.exec(t, admin, "CREATE DATABASE "+template)
	roles, err := os.ReadFile("../../../deploy/postgres/roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	inside := g.connect(t, g.ConnString(t)+" dbname="+template)
	g.exec(t, inside, string(roles))
	g.exec(t, inside, string(roles)) // it can be run again
	for _, role := range append([]string{"owner", "reader"}, services()...) {
		g.exec(t, admin, fmt.Sprintf("ALTER ROLE millrace_%s PASSWORD '%s'", role, secret))
	}
	if err := inside.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The service's role cannot create its tables, and the error says who can.
	_, err = postgres.Open(t.Context(), g.TLS("millrace_order", template), event.Order, postgres.WithPassword(secret))
	if err == nil || !strings.Contains(err.Error(), "millrace migrate") ||
		!strings.Contains(err.Error(), "millrace_order") {
		t.Fatalf("opened without tables: %v", err)
	}
	for _, a := range event.Aggregates() {
		for range 2 { // it can be run again
			if err := postgres.Migrate(t.Context(), g.TLS("millrace_owner", template), a, postgres.WithPassword(secret)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return g
}

func services() []string {
	var all []string
	for _, a := range event.Aggregates() {
		all = append(all, a.Service)
	}
	return all
}

// connect opens a connection that is closed at the end of the test.
func (g *guarded) connect(t *testing.T, conn string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(conn)
	if err != nil {
		t.Fatal(err)
	}
	if config.Password == "" {
		config.Password = secret
	}
	c, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // the server may be gone
	return c
}

func (g *guarded) exec(t *testing.T, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// database returns a database with empty stores.
func (g *guarded) database(t *testing.T) string {
	t.Helper()
	name := fmt.Sprint("test_", g.databases.Add(1))
	g.exec(t, g.connect(t, g.ConnString(t)), "CREATE DATABASE "+name+" TEMPLATE "+template)
	return name
}

func (g *guarded) open(t *testing.T, role, database string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), g.TLS(role, database), event.Order,
		postgres.WithPassword(secret), postgres.WithPoll(2*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLeastPrivilege runs everything that a store does with the service's own role, over TLS with a
// password. Then it tries what that role must not do.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	t.Run("conformance", func(t *testing.T) {
		eventstoretest.Run(t, func(t *testing.T) eventstoretest.Database {
			database := g.database(t)
			return func(t *testing.T) eventstore.Store { return g.open(t, "millrace_order", database) }
		})
	})

	t.Run("login", func(t *testing.T) { login(t, g) })

	database := g.database(t)
	s := g.open(t, "millrace_order", database)
	closeStore(t, s)
	b := batch("kept", 0)
	b.Answer.Key = "k"
	b.Snapshots = []eventstore.Snapshot{{Stream: "kept", Version: 1}}
	if _, err := s.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for role, forbidden := range map[string][]string{
		"millrace_order": {
			"UPDATE millrace_order.events SET data = ''",
			"DELETE FROM millrace_order.events",
			"TRUNCATE millrace_order.events",
			"DROP TABLE millrace_order.events",
			"ALTER TABLE millrace_order.events ADD COLUMN x int",
			"CREATE INDEX ON millrace_order.events (id)",
			"CREATE TABLE millrace_order.own ()",
			"CREATE TABLE public.own ()",
			"CREATE SCHEMA own",
			"DROP SCHEMA millrace_order CASCADE",
			"UPDATE millrace_order.answers SET response = ''",
			"DELETE FROM millrace_order.answers",
			"DELETE FROM millrace_order.snapshots",
			"UPDATE millrace_order.store SET server = 1",
			"INSERT INTO millrace_order.migrations (number, name) VALUES (99, '')",
			"SELECT * FROM millrace_inventory.events",
			"SELECT * FROM millrace_catalog.answers",
			"SET ROLE millrace_owner",
		},
		"millrace_reader": {
			"INSERT INTO millrace_order.store (one, aggregate) VALUES (true, '')",
			"INSERT INTO millrace_order.events DEFAULT VALUES",
			"DELETE FROM millrace_order.events",
			"SELECT * FROM millrace_order.answers",
			"SELECT * FROM millrace_order.snapshots",
			"CREATE TABLE millrace_order.own ()",
		},
	} {
		c := g.connect(t, g.TLS(role, database))
		for _, sql := range forbidden {
			if _, err := c.Exec(t.Context(), sql); !refused(err) {
				t.Errorf("%s: %s: %v, want permission denied", role, sql, err)
			}
		}
	}
	reader := g.open(t, "millrace_reader", database)
	closeStore(t, reader)
	if err := reader.Wait(t.Context(), event.Position{}); err != nil {
		t.Error(err)
	}
	if _, err := reader.Epoch(t.Context()); err != nil {
		t.Errorf("the reader cannot read the epoch: %v", err)
	}
	if events, err := reader.Read(t.Context(), event.Position{}, 10); err != nil || len(events) != 1 {
		t.Errorf("the reader read %d events (%v), want 1", len(events), err)
	}
	if _, err := reader.Append(t.Context(), batch("other", 0)); !refused(err) {
		t.Errorf("append as the reader: %v, want permission denied", err)
	}
}

// refused reports whether the server denied permission.
func refused(err error) bool {
	answer := (*pgconn.PgError)(nil)
	return errors.As(err, &answer) && answer.Code == "42501"
}

// login checks who can log in, and that no error contains the password.
func login(t *testing.T, g *guarded) {
	good := g.TLS("millrace_order", g.database(t))
	for name, c := range map[string]struct{ conn, password, want string }{
		"with the password": {good, secret, ""},
		"with another":      {good, secret + "x", "password authentication failed"},
		"without":           {good, "", "password authentication failed"},
		"without TLS":       {strings.Replace(good, "verify-full", "disable", 1), secret, "no encryption"},
		"with a wrong password in the connection string": {strings.Replace(good, "millrace_order@", "millrace_order:wr0ng@", 1), "", "password authentication failed"},
		"of an unknown authority":                        {good[:strings.Index(good, "&sslrootcert")], secret, "certificate"},
		"malformed":                                      {"postgres://shop:wr0ng@[::1", "", "cannot parse"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := postgres.Open(t.Context(), c.conn, event.Order, postgres.WithPassword(c.password))
			if err == nil {
				err = s.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v does not contain %q", err, c.want)
			case err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "wr0ng")):
				t.Errorf("the error contains the password: %v", err)
			}
		})
	}
}

// TestOpenRejectsDump checks that Open refuses a restored dump. It may lack events that Kafka has,
// and positions contain the server's transaction ids.
func TestOpenRejectsDump(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ change, want string }{
		"another server's": {"UPDATE store SET server = server + 1", "SET server = "},
		"restored here": {
			"CREATE TABLE restored (LIKE events INCLUDING ALL); INSERT INTO restored SELECT * FROM events; DROP TABLE events; ALTER TABLE restored RENAME TO events",
			"restored from a logical dump",
		},
		"ahead of the server": {"UPDATE events SET transaction = '99999999999'", "restore a physical backup"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := newSchema()
			s := open(t, schema)
			if _, err := s.Append(t.Context(), batch("s", 0)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			admin := connect(t, schema)
			if _, err := admin.Exec(t.Context(), c.change); err != nil {
				t.Fatal(err)
			}
			_, err := postgres.Open(t.Context(), cluster.ConnString(t), eventstoretest.Aggregate, postgres.WithSchema(schema))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v does not contain %q", err, c.want)
			}
			if _, remedy, ok := strings.Cut(err.Error(), "run as the schema's owner: "); ok { // the remedy in the error works
				if _, err := admin.Exec(t.Context(), remedy); err != nil {
					t.Fatal(err)
				}
				closeStore(t, open(t, schema))
			}
		})
	}
}
