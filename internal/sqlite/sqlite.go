// Package sqlite opens SQLite databases the one way Millrace uses them, so that what is committed survives a kill and a
// power cut, and so that one package alone knows the driver.
//
// The driver is modernc.org/sqlite, SQLite translated to Go: whatever stands on it builds and tests without a C compiler,
// on every platform, in seconds. The C library itself (by mattn/go-sqlite3) runs about twice as fast on the processor, but
// a durable append waits for the disk, and the event store gathers many into one wait.
package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver
)

// How every connection is set up. In WAL mode readers and the writer do not wait for each other; with synchronous=FULL a
// commit returns after the log is on the disk. A writer waits ten seconds for another process's write lock.
var settings = url.Values{
	"_busy_timeout": {"10000"},
	"_foreign_keys": {"on"},
	"_dqs":          {"0"}, // "x" is a name, never a string
	"_pragma":       {"cache_size(-16384)", "journal_size_limit(67108864)"},
}

// Open opens the database file at path for reading and writing, and makes it where there is none. A transaction takes the
// write lock when it begins, unless it is read-only.
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
	// The first connection switches the file to WAL, which it can do only while it is alone.
	if err := db.Ping(); err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), db.Close())
	}
	return db, nil
}
