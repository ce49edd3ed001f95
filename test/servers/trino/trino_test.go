package trino_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/s3"
	"github.com/millrace/millrace/test/servers/trino"
)

var (
	server trino.Server
	bucket s3.Server
)

func TestMain(m *testing.M) { os.Exit(process.RunTests(m, server.Stop, bucket.Stop)) }

// TestRestartAfterKill checks that commits to a folder and to S3 survive kill -9.
func TestRestartAfterKill(t *testing.T) {
	store := bucket.Config(t)
	dir := t.TempDir()
	server.Catalogs = []catalog.Catalog{
		{Name: "folder", JDBC: "jdbc:sqlite:" + filepath.Join(dir, "folder.db"), Warehouse: "file://" + dir},
		{Name: "bucket", JDBC: "jdbc:sqlite:" + filepath.Join(dir, "bucket.db"), Warehouse: "s3://" +
			store.Bucket + "/warehouse", S3: store},
	}
	for _, c := range server.Catalogs {
		create(t, strings.TrimPrefix(c.JDBC, "jdbc:sqlite:"))
	}
	begun := time.Now()
	server.URL(t)
	started := time.Since(begun)
	mb, err := server.ResidentMB()
	t.Logf("ready in %v, %d MB (%v)", started.Round(time.Millisecond), mb, err)

	query := func(statement string) [][]any {
		t.Helper()
		rows, err := server.Query(t.Context(), statement)
		if err != nil {
			t.Fatalf("%v\n%s", err, server.LogTail())
		}
		return rows
	}
	for _, c := range server.Catalogs {
		query("CREATE SCHEMA " + c.Name + ".s")
		query("CREATE TABLE " + c.Name + ".s.t (id bigint, name varchar, price decimal(38,9))")
		query("INSERT INTO " + c.Name + ".s.t VALUES (1, 'one', DECIMAL '1.5'), (2, NULL, DECIMAL '-2.000000001')")
	}
	peak, err := server.PeakMB()
	t.Logf("%d MB at most (%v)", peak, err)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("started again in %v", time.Since(begun).Round(time.Millisecond))
	for _, c := range server.Catalogs {
		rows := query("SELECT id, name, price FROM " + c.Name + ".s.t ORDER BY id")
		want := [][]any{{int64(1), "one", "1.500000000"}, {int64(2), nil, "-2.000000001"}}
		if !equal(rows, want) {
			t.Errorf("%s has %v, want %v", c.Name, rows, want)
		}
	}
	if rows, err := server.Query(t.Context(), "SELECT * FROM folder.s.nothing"); err == nil {
		t.Errorf("a table that does not exist has %v", rows)
	}
}

func create(t *testing.T, path string) {
	t.Helper()
	db, err := sqlite.Open(path)
	if err == nil {
		err = errors.Join(catalog.Create(t.Context(), db), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func equal(a, b [][]any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if len(a[i]) != len(b[i]) {
			return false
		}
		for j := range a[i] {
			if a[i][j] != b[i][j] {
				return false
			}
		}
	}
	return true
}
