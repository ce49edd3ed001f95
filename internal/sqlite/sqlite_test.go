package sqlite_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string, with func(string) (*sql.DB, error)) *sql.DB {
	t.Helper()
	db, err := with(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// TestSettings checks several connections, because a setting belongs to one.
func TestSettings(t *testing.T) {
	t.Parallel()
	db := open(t, filepath.Join(t.TempDir(), "a.db"), sqlite.Open)
	for range 3 {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}()
		for pragma, want := range map[string]string{
			"journal_mode": "wal", "synchronous": "2", "busy_timeout": "10000", "foreign_keys": "1",
		} {
			var got string
			if err := conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s is %s (%v), want %s", pragma, got, err, want)
			}
		}
	}
}

// A path may contain characters that have a meaning in a URI.
func TestPathsAreEscaped(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"plain.db", "ä ö.db", "a?mode=memory", "50%25.db", "#1;x&y", "file:x"} {
		path := filepath.Join(t.TempDir(), name)
		if _, err := open(t, path, sqlite.Open).Exec("CREATE TABLE t (x)"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: the file has another path: %v", name, err)
		}
	}
}

// A read-only database must exist and rejects writes.
func TestOpenReadOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.db")
	if db, err := sqlite.OpenReadOnly(path); err == nil {
		t.Errorf("opened a missing file (%v)", db.Close())
	}
	w := open(t, path, sqlite.Open)
	if _, err := w.Exec("CREATE TABLE t (x INTEGER)"); err != nil {
		t.Fatal(err)
	}
	r := open(t, path, sqlite.OpenReadOnly)
	if _, err := r.Exec("INSERT INTO t VALUES (1)"); err == nil {
		t.Error("wrote through a read-only database")
	}
	if _, err := w.Exec("INSERT INTO t VALUES (2)"); err != nil {
		t.Fatal(err)
	}
	var x int
	if err := r.QueryRow("SELECT x FROM t").Scan(&x); err != nil || x != 2 {
		t.Errorf("read %d (%v)", x, err)
	}
}
