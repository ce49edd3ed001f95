package connect_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/connect"
	broker "github.com/millrace/millrace/test/servers/kafka"
	"github.com/millrace/millrace/test/servers/process"
)

var (
	cluster broker.Cluster
	worker  connect.Worker
)

func TestMain(m *testing.M) { os.Exit(process.RunTests(m, worker.Stop, cluster.Stop)) }

// TestRestartAfterKill kills the sink while records arrive. After a restart, it must have
// landed each record once.
func TestRestartAfterKill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	worker.Brokers = cluster.Brokers(t)
	cfg := kafka.Config{Brokers: worker.Brokers, Replicas: 1}
	if err := kafka.EnsureTopics(ctx, cfg, kafka.Topic{Name: "rows", Partitions: 2},
		kafka.Topic{Name: "control", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	db := database(t, filepath.Join(dir, "catalog.db"))
	begun := time.Now()
	worker.URL(t)
	t.Logf("ready in %v", time.Since(begun).Round(time.Millisecond))
	produce(ctx, t, cfg, 0, 1000)

	begun = time.Now()
	err := worker.Create(ctx, connect.Sink{
		Name: "sink", Topic: "rows", ControlTopic: "control", Tasks: 1, Table: "lake.rows", Commit: time.Second,
		Catalog: catalog.Catalog{Name: "test", JDBC: "jdbc:sqlite:" + filepath.Join(dir, "catalog.db"),
			Warehouse: "file://" + dir},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("its task runs after %v", time.Since(begun).Round(time.Millisecond))
	awaitRows(ctx, t, db, 1000)
	mb, err1 := worker.PeakMB()
	cpu, err2 := worker.CPU()
	t.Logf("1000 rows landed after %v: %d MB at most, %v computed (%v)",
		time.Since(begun).Round(time.Millisecond), mb, cpu, errors.Join(err1, err2))

	produce(ctx, t, cfg, 1000, 3000)
	if err := worker.Kill(); err != nil {
		t.Fatal(err)
	}
	produce(ctx, t, cfg, 3000, 4000)
	if err := worker.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	awaitRows(ctx, t, db, 4000)
	if err := worker.Delete(ctx, "sink"); err != nil {
		t.Fatal(err)
	}
	if err := worker.Failed(ctx, "sink"); err == nil {
		t.Error("a deleted sink has a status")
	}
}

func database(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := catalog.Create(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return db
}

func produce(ctx context.Context, t *testing.T, cfg kafka.Config, from, to int) {
	t.Helper()
	p, err := kafka.NewTransactionalProducer(cfg, fmt.Sprint("from-", from))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := errors.Join(p.Init(ctx), p.Begin()); err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i++ {
		if err := p.Produce(ctx,
			kafka.Record{Topic: "rows", Partition: int32(i % 2),
				Value: fmt.Appendf(nil, `{"id":%d,"name":"row %d"}`, i, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

// awaitRows returns once the table has this many rows, and fails if it has more.
func awaitRows(ctx context.Context, t *testing.T, db *sql.DB, want int64) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		commits, err := catalog.History(ctx, db, "test", "lake.rows")
		if err != nil {
			t.Fatal(err)
		}
		var have int64
		if len(commits) > 0 {
			have = commits[len(commits)-1].Total
		}
		if have > want {
			t.Fatalf("the table has %d rows, want %d", have, want)
		}
		if have == want {
			return
		}
		if err := worker.Failed(ctx, "sink"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d rows of %d\n%s", have, want, worker.LogTail())
		}
	}
}
