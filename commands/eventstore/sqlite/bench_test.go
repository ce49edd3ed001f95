package sqlite_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/eventstoretest"
	sqlitedb "github.com/millrace/millrace/internal/sqlite"
)

func Benchmark(b *testing.B) {
	eventstoretest.Benchmark(b, func(b *testing.B) eventstore.Store { return open(b, filepath.Join(b.TempDir(), "events.db")) })
}

// BenchmarkCeiling measures upper bounds for appends: one sync of the disk each, one transaction
// per row, and all rows in one transaction.
func BenchmarkCeiling(b *testing.B) {
	row := make([]byte, 155)
	b.Run("sync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "file"))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := f.Write(make([]byte, 8192)); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "syncs/s")
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	})
	for _, name := range []string{"transaction per row", "one transaction"} {
		b.Run(name, func(b *testing.B) {
			db, err := sqlitedb.Open(filepath.Join(b.TempDir(), "rows.db"))
			if err != nil {
				b.Fatal(err)
			}
			db.SetMaxOpenConns(1)
			if _, err := db.Exec("CREATE TABLE rows (id INTEGER PRIMARY KEY, stream TEXT NOT NULL UNIQUE, data BLOB NOT NULL)"); err != nil {
				b.Fatal(err)
			}
			if name == "one transaction" {
				if _, err := db.Exec("BEGIN"); err != nil {
					b.Fatal(err)
				}
			}
			insert, err := db.Prepare("INSERT INTO rows (id, stream, data) VALUES (?, hex(randomblob(16)), ?)")
			if err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i++
				if _, err := insert.Exec(i, row); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
