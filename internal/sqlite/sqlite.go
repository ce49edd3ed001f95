// Package sqlite opens SQLite databases in the one way that Millrace uses them: a commit survives a
// kill and a power cut. It is the only package that imports the driver.
//
// The driver is modernc.org/sqlite, SQLite translated to Go. Packages that use it build and test
// without a C compiler, on every platform, in seconds. The C library (through mattn/go-sqlite3)
// needs about half the CPU time, but a durable append waits for the disk, and the event store
// combines many appends in one wait.
//
// Open and OpenReadOnly return a database. Full and Damaged classify errors. Checkpoint moves the
// write-ahead log into the file.
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

// How long to wait for another process's lock, and how often to retry where SQLite does not wait.
const (
	lockTimeout   = 10 * time.Second
	retryInterval = 5 * time.Millisecond
)

// settings of every connection. In WAL mode, readers and the writer do not block each other. With
// synchronous=FULL, a commit returns after the log is on disk.
var settings = url.Values{
	"_busy_timeout": {strconv.FormatInt(lockTimeout.Milliseconds(), 10)},
	"_foreign_keys": {"on"},
	"_dqs":          {"0"}, // "x" is an identifier, never a string
	"_pragma":       {"cache_size(-16384)", "journal_size_limit(67108864)"},
}

// Open opens the database file at path for reading and writing, and creates it if it does not
// exist. A transaction takes the write lock when it begins, unless it is read-only. A lock that is
// taken later could fail, because SQLite cannot wait for it without a deadlock.
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

// open opens a database with the common settings and more.
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
	db.SetMaxIdleConns(4) // opening a connection costs more than keeping it
	if err := connect(db); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), db.Close())
	}
	return db, nil
}

// Full reports whether an error means that the disk is full. The memory that processes share beside
// the log is also a file. If it cannot grow, SQLite only reports that it could not get the memory.
func Full(err error) bool {
	var failed *sqlite.Error
	return errors.As(err, &failed) &&
		(failed.Code()&0xff == sqlite3.SQLITE_FULL || failed.Code() == sqlite3.SQLITE_IOERR_SHMSIZE)
}

// Damaged reports whether an error means that the file is not a database, or is damaged.
func Damaged(err error) bool {
	var failed *sqlite.Error
	return errors.As(err, &failed) &&
		(failed.Code()&0xff == sqlite3.SQLITE_CORRUPT || failed.Code()&0xff == sqlite3.SQLITE_NOTADB)
}

// Checkpoint moves the write-ahead log of a database that was opened for writing into its file. It
// does nothing if the file is damaged, or while another process uses it.
func Checkpoint(db *sql.DB) error {
	_, err := db.ExecContext(context.Background(), "PRAGMA wal_checkpoint(TRUNCATE)")
	if busy := (*sqlite.Error)(nil); Damaged(err) || errors.As(err, &busy) && busy.Code()&0xff == sqlite3.SQLITE_BUSY {
		return nil
	}
	return err
}

// connect opens the first connection, which switches a new file to WAL. If another process is doing
// that, or is removing the log because it closes last, SQLite reports at once that the file is
// busy, regardless of its timeout. So connect retries.
func connect(db *sql.DB) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(retryInterval) {
		err := db.PingContext(context.Background())
		busy := (*sqlite.Error)(nil)
		if !errors.As(err, &busy) || busy.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return err
		}
	}
}
