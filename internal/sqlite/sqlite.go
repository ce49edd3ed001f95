// Package sqlite opens SQLite databases the one way Millrace uses them, so that what is committed
// survives a kill and a power cut, and so that one package alone knows the driver.
//
// The driver is modernc.org/sqlite, SQLite translated to Go: whatever is on it builds and tests
// without a C compiler, on every platform, in seconds. The C library itself (by mattn/go-sqlite3)
// runs about twice as fast on the processor, but a durable append waits for the disk, and the event
// store gathers many into one wait.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// How long to wait for another process's lock, and how often to look where SQLite does not do it.
const (
	patience = 10 * time.Second
	retry    = 5 * time.Millisecond
)

// How every connection is set up. In WAL mode readers and the writer do not wait for each other;
// with synchronous=FULL a commit returns after the log is on the disk.
var settings = url.Values{
	"_busy_timeout": {strconv.FormatInt(patience.Milliseconds(), 10)},
	"_foreign_keys": {"on"},
	"_dqs":          {"0"}, // "x" is a name, never a string
	"_pragma":       {"cache_size(-16384)", "journal_size_limit(67108864)"},
}

// Open opens the database file at path for reading and writing, and makes it where there is none. A
// transaction takes the write lock when it begins, unless it is read-only.
func Open(path string) (*sql.DB, error) {
	return open(path, url.Values{
		"_txlock":       {"immediate"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
	})
}

// OpenReadOnly opens an existing database file for reading.
func OpenReadOnly(path string) (*sql.DB, error) {
	return open(path, url.Values{"mode": {"ro"}})
}

func open(path string, more url.Values) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	for key, values := range settings {
		more[key] = values
	}
	uri := url.URL{Scheme: "file", Path: filepath.ToSlash(abs), RawQuery: more.Encode()}
	db, err := sql.Open("sqlite", uri.String())
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	db.SetMaxIdleConns(4) // setting a connection up costs more than keeping it
	if err := connect(db); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), db.Close())
	}
	return db, nil
}

// Full reports whether an error says that there is no room on the disk. Of the memory that
// processes share beside the log, which is a file too, SQLite says no more than that it did not get
// it.
func Full(err error) bool {
	var failed *sqlite.Error
	return errors.As(err, &failed) && (failed.Code()&0xff == sqlite3.SQLITE_FULL || failed.Code() == sqlite3.SQLITE_IOERR_SHMSIZE)
}

// Damaged reports whether an error says that the file is not a database, or not a whole one.
func Damaged(err error) bool {
	var failed *sqlite.Error
	return errors.As(err, &failed) && (failed.Code()&0xff == sqlite3.SQLITE_CORRUPT || failed.Code()&0xff == sqlite3.SQLITE_NOTADB)
}

// Checkpoint moves the write-ahead log of a database that was opened for writing into its file. It
// does nothing where the file is damaged, or while another process uses it.
func Checkpoint(db *sql.DB) error {
	_, err := db.ExecContext(context.Background(), "PRAGMA wal_checkpoint(TRUNCATE)")
	if busy := (*sqlite.Error)(nil); Damaged(err) || errors.As(err, &busy) && busy.Code()&0xff == sqlite3.SQLITE_BUSY {
		return nil
	}
	return err
}

// connect returns the first connection, which switches a new file to WAL. If another process is
// doing that, or is just removing the log as the last to close, SQLite says at once that the file
// is busy, whatever its timeout.
func connect(db *sql.DB) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(retry) {
		err := db.PingContext(context.Background())
		if busy := (*sqlite.Error)(nil); !errors.As(err, &busy) || busy.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return err
		}
	}
}
