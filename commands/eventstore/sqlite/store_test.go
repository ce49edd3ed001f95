package sqlite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	sqlitedb "github.com/millrace/millrace/internal/sqlite"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(victimPath); path != "" {
		if err := victim(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func open(tb testing.TB, path string) *sqlite.Store {
	tb.Helper()
	s, err := sqlite.Open(context.Background(), path, eventstoretest.Aggregate)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	eventstoretest.Run(t, func(t *testing.T) eventstoretest.Database {
		path := filepath.Join(t.TempDir(), "events?#%41.db") // the characters must not be taken for a URI
		return func(t *testing.T) eventstore.Store { return open(t, path) }
	})
}

// TestOpensBesideAWriter opens a store while another process holds its write lock. A busy writer can
// do so for a long time under load, since SQLite's lock is not fair.
func TestOpensBesideAWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sqlitedb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	tx, err := db.BeginTx(t.Context(), nil) // takes the write lock
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // rolled back below, unless the test has failed before
	s, err := sqlite.Open(t.Context(), path, eventstoretest.Aggregate)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "none", 0); err != nil {
		t.Error(err)
	}
	if err := tx.Rollback(); err != nil { // Close checkpoints the log, which needs the lock
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestCommitWakesWait checks that a commit of this process wakes Wait without polling.
func TestCommitWakesWait(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := open(t, filepath.Join(t.TempDir(), "events.db"))
	s.DisablePolling()
	waiting := make(chan error, 1)
	go func() { waiting <- s.Wait(ctx, event.Position{}) }()
	e := event.Event{ID: uuid.New(), Type: "t", OccurredAt: time.Now(), RecordedAt: time.Now()}
	if _, err := s.Append(ctx, eventstore.Batch{
		Streams: []eventstore.StreamAppend{{Stream: "s", Events: []event.Event{e}}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Several processes may open a new file at the same time. One of them creates the schema.
func TestConcurrentOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	const instances = 8
	errs := make(chan error, instances)
	for range instances {
		go func() {
			s, err := sqlite.Open(context.Background(), path, event.Order)
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

// Open rejects files that this store cannot use, and names the file and the reason.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine := filepath.Join(dir, "order.db")
	if err := open(t, mine).Close(); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.db")
	db, err := sqlitedb.Open(newer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged.db")
	if err := os.WriteFile(damaged, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path      string
		aggregate event.Aggregate
		want      string
	}{
		{mine, event.Stock, `contains events of "order", not of "stock"`},
		{newer, event.Order, "start a newer version"},
		{damaged, event.Order, "not a database"},
		{filepath.Join(dir, "nowhere", "order.db"), event.Order, "unable to open"},
	} {
		s, err := sqlite.Open(t.Context(), c.path, c.aggregate)
		if err == nil {
			t.Errorf("%s: opened", c.path)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: error %q does not contain %q", c.path, err, c.want)
		}
	}
}

// A file of an earlier schema gets an epoch and a secret, and keeps them.
func TestSchemaMigration(t *testing.T) {
	t.Parallel()
	for number, strip := range map[int]string{
		1: "ALTER TABLE store DROP COLUMN epoch; ALTER TABLE store DROP COLUMN secret; PRAGMA user_version = 1",
		2: "ALTER TABLE store DROP COLUMN secret; PRAGMA user_version = 2",
	} {
		path := filepath.Join(t.TempDir(), "order.db")
		if err := open(t, path).Close(); err != nil {
			t.Fatal(err)
		}
		db, err := sqlitedb.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.Exec(strip)
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		var epochs, secrets [2]string
		for i := range epochs {
			s := open(t, path)
			var secret []byte
			var err2 error
			epochs[i], err = s.Epoch(t.Context())
			secret, err2 = s.Secret(t.Context())
			secrets[i] = string(secret)
			if err := errors.Join(err, err2, s.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if epochs[0] == "" || epochs[0] != epochs[1] || len(secrets[0]) < 16 || secrets[0] != secrets[1] {
			t.Fatalf("schema %d: epochs %q, secrets of %d and %d bytes",
				number, epochs, len(secrets[0]), len(secrets[1]))
		}
	}
}

// The file is the only copy of the events. After Close it is complete without a write-ahead log. If
// it is damaged, the store does not open or reads fail. It must never silently have fewer events.
func TestDamageIsDetected(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "order.db")
	s := open(t, path)
	const events = 300
	for i := range events {
		e := event.Event{
			ID: uuid.New(), Type: "t", Data: make([]byte, 200), OccurredAt: time.Now(), RecordedAt: time.Now(),
		}
		batch := eventstore.Batch{
			Streams: []eventstore.StreamAppend{{Stream: strconv.Itoa(i), Events: []event.Event{e}}},
		}
		if _, err := s.Append(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	if len(whole) < 20*page {
		t.Fatalf("%d bytes of %d events are in the file", len(whole), events)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"whole":                  func(b []byte) []byte { return b },
		"truncated":              func(b []byte) []byte { return b[:len(b)/2] },
		"truncated to a page":    func(b []byte) []byte { return b[:len(b)/2/page*page] },
		"zeroed":                 func(b []byte) []byte { return make([]byte, len(b)) },
		"its beginning zeroed":   func(b []byte) []byte { clear(b[:page]); return b },
		"pages zeroed":           func(b []byte) []byte { clear(b[4*page : 10*page]); return b },
		"a bit of the magic":     func(b []byte) []byte { b[3] ^= 1; return b },
		"a bit of a page's kind": func(b []byte) []byte { b[2*page] ^= 1; return b },
		"garbage":                func([]byte) []byte { return []byte(strings.Repeat("no database ", 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "order.db")
			if err := os.WriteFile(path, damage(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := sqlite.Open(t.Context(), path, event.Order)
			if err != nil {
				if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") || name == "whole" {
					t.Fatalf("open: %v", err)
				}
				return
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			got, err := s.Read(t.Context(), event.Position{}, 2*events)
			if len(got) != events && err == nil {
				t.Errorf("%d events of %d, and no error", len(got), events)
			}
			if err != nil && name == "whole" {
				t.Error(err)
			}
		})
	}
}
