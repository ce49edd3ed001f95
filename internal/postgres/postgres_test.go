package postgres_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/internal/postgres"
	server "github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/process"
)

var shared server.Cluster

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, shared.Stop))
}

// Functions under one name run one after the other, whichever pool they come from.
func TestAlone(t *testing.T) {
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
			err = postgres.Alone(t.Context(), db, "test", func(ctx context.Context) error {
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
		t.Errorf("%d ran at once", most)
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
	if _, err := db.ExecContext(t.Context(), "SELECT * FROM nothing"); !postgres.NoTable(err) {
		t.Errorf("error %v", err)
	}
	if _, err := db.ExecContext(t.Context(), "SELECT 1 FROM"); err == nil || postgres.NoTable(err) {
		t.Errorf("error %v", err)
	}
	for _, bad := range []string{"postgres://me:hidden@host:port/db", "host=a port=b password=hidden"} {
		if _, err := postgres.Open(bad, "", "test"); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("error %v", err)
		}
	}
}
