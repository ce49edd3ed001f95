package postgres_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/internal/stall"
	server "github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/process"
)

var shared server.Cluster

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, shared.Stop))
}

// Functions with one name run one after the other, whichever pool they use.
func TestWithLock(t *testing.T) {
	t.Parallel()
	conn := shared.ConnString(t)
	inside, most := 0, 0
	var mu sync.Mutex
	enter := func(by int) {
		mu.Lock()
		defer mu.Unlock()
		inside += by
		most = max(most, inside)
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			db, err := postgres.Open(conn, "", "test")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = db.Close() }()
			err = postgres.WithLock(t.Context(), db, "test", func(ctx context.Context) error {
				enter(1)
				defer enter(-1)
				_, err := db.ExecContext(ctx, "SELECT pg_sleep(0.02)")
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most != 1 {
		t.Errorf("%d functions ran at the same time", most)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	db, err := postgres.Open(shared.ConnString(t), "", "the name")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var name string
	if err := db.QueryRowContext(t.Context(), "SHOW application_name").Scan(&name); err != nil || name != "the name" {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := db.ExecContext(t.Context(), "SELECT * FROM nothing"); !postgres.UndefinedTable(err) {
		t.Errorf("error %v", err)
	}
	if _, err := db.ExecContext(t.Context(), "SELECT 1 FROM"); err == nil || postgres.UndefinedTable(err) {
		t.Errorf("error %v", err)
	}
	for _, bad := range []string{"postgres://me:hidden@host:port/db", "host=a port=b password=hidden"} {
		if _, err := postgres.Open(bad, "", "test"); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("error %v", err)
		}
	}
}

// A server that hangs does not block callers without a limit of their own. When it continues, they
// do, too.
func TestHungServer(t *testing.T) {
	t.Parallel()
	var own server.Cluster
	conn := own.ConnString(t)
	t.Cleanup(func() { _ = own.Stop() })
	db, err := postgres.OpenWithin(conn, "", "test", 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	one := func() error { return db.QueryRowContext(context.Background(), "SELECT 1").Scan(new(int)) }
	if err := one(); err != nil {
		t.Fatal(err)
	}
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := one(); !errors.Is(err, stall.ErrStalled) {
		t.Errorf("error %v", err)
	}
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the server answers again", func() bool { return one() == nil })
}
