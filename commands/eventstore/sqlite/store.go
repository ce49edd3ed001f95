// Package sqlite is the event store in one SQLite file, the embedded default. internal/sqlite
// explains the choice of the driver: no C compiler, no server, one file.
//
// Store combines a writer, which has one connection, and a reader, which has several.
//
// Invariants:
//
//   - Durability: an acknowledged append is on disk. The database runs in WAL mode with
//     synchronous=FULL, so each commit syncs the log, and a kill -9 or a power cut loses nothing
//     that was acknowledged. A sync takes most of a millisecond, so appends are committed in
//     groups: one goroutine stores all waiting calls in one transaction. A batch that conflicts is
//     refused without affecting the others.
//   - Order: SQLite has one write transaction at a time, so events are committed in the order of
//     their positions. A reader that continues after the last position that it saw misses nothing.
//
// Several processes may open one file, for example the service and an operator's tool. Wait notices
// appends of its own process at once, and those of others within the polling interval.
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/sqlite"
)

// Store is an eventstore.Store in an SQLite file.
type Store struct {
	aggregate event.Aggregate
	// inFlight lets Close wait for calls, appends is the group commit, and committed wakes Wait
	// after a commit of this process.
	inFlight     *adapter.InFlight
	appends      *adapter.Writer
	committed    adapter.Broadcaster
	head         atomic.Int64  // last position committed by this process, or the head when it opened the file
	pollInterval time.Duration // for other processes' appends

	db     *sql.DB // for writing; the reader has its own pool
	writer *writer
	reader *reader
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the event store of aggregate in the file at path, and creates the file if it does not
// exist. It fails if the file has the events of another aggregate, or if a newer version of
// Millrace wrote it.
func Open(ctx context.Context, path string, aggregate event.Aggregate) (_ *Store, err error) {
	s := &Store{aggregate: aggregate, inFlight: adapter.NewInFlight(), pollInterval: pollInterval}
	defer func() {
		if err != nil {
			if sqlite.Damaged(err) {
				err = fmt.Errorf("%w: this file is the only copy of the events of service %s: "+
					"restore its newest backup, with the -wal file if there is one", err, aggregate.Service)
			}
			err = errors.Join(fmt.Errorf("open event store %s: %w", path, err), s.closeDatabase())
		}
	}()
	if s.db, err = sqlite.Open(path); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.db, aggregate); err != nil {
		return nil, err
	}
	if s.writer, err = newWriter(ctx, s.db); err != nil {
		return nil, err
	}
	if s.reader, err = newReader(ctx, path, aggregate); err != nil {
		return nil, err
	}
	// Without this, the first Wait for events that exist already would last until the next poll.
	head, err := s.reader.readHead(ctx)
	if err != nil {
		return nil, err
	}
	s.head.Store(head)
	s.appends = adapter.StartWriter(s.store)
	return s, nil
}

//go:embed schema.sql
var schema string

// schemaVersion is the version of schema.sql. The file stores it as its user_version.
const schemaVersion = 3

// migrations migrate the schema: migrations[0] from version 1 to 2, and migrations[1] from 2 to 3.
// A released migration never changes.
var migrations = [...]string{
	"ALTER TABLE store ADD COLUMN epoch TEXT NOT NULL DEFAULT ''",
	"ALTER TABLE store ADD COLUMN secret BLOB NOT NULL DEFAULT x''",
}

// migrate migrates the file to this version's schema and checks that it belongs to the aggregate. A
// current file is only read. SQLite's write lock is not fair: a busy process can hold it for longer
// than the busy timeout.
func migrate(ctx context.Context, db *sql.DB, aggregate event.Aggregate) error {
	version, err := readSchemaVersion(ctx, db)
	if err != nil {
		return err
	}
	if version == schemaVersion {
		return checkOwner(ctx, db, aggregate)
	}
	tx, err := db.BeginTx(ctx, nil) // takes the write lock, because two processes may start at once
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, its error adds nothing to the first
	// Read again: another process may have migrated the file meanwhile.
	if version, err = readSchemaVersion(ctx, tx); err != nil {
		return err
	}
	switch version {
	case 0: // a new file
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
		const insertStore = "INSERT INTO store (one, aggregate) VALUES (1, ?)"
		if _, err := tx.ExecContext(ctx, insertStore, aggregate.Name); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
	default:
		for _, step := range migrations[version-1:] {
			if _, err := tx.ExecContext(ctx, step); err != nil {
				return fmt.Errorf("migrate: %w", err)
			}
		}
	}
	if version < schemaVersion {
		if err := setIdentity(ctx, tx); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	if err := checkOwner(ctx, tx, aggregate); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// querier is a database, or a transaction in it.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readSchemaVersion returns the version of the file's schema: 0 for a new file. It fails if this
// version of Millrace does not support the schema.
func readSchemaVersion(ctx context.Context, q querier) (version int, err error) {
	if err := q.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	if version < 0 || version > schemaVersion {
		return 0, fmt.Errorf(
			"schema version is %d, but this version of Millrace supports at most %d: start a newer version",
			version, schemaVersion)
	}
	return version, nil
}

// checkOwner fails if the file contains events of another aggregate.
func checkOwner(ctx context.Context, q querier, aggregate event.Aggregate) error {
	var owner string
	if err := q.QueryRowContext(ctx, "SELECT aggregate FROM store").Scan(&owner); err != nil {
		return fmt.Errorf("read the store's aggregate: %w", err)
	}
	// A file that is opened for the wrong service must not be changed: an error also rolls back a
	// migration.
	if owner != aggregate.Name {
		return fmt.Errorf("the file contains events of %q, not of %q: use a separate file for each service",
			owner, aggregate.Name)
	}
	return nil
}

// setIdentity sets the store's epoch and secret if they are missing, and records the schema
// version.
func setIdentity(ctx context.Context, tx *sql.Tx) error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	// An interrupted or repeated migration must not change values that exist.
	if _, err := tx.ExecContext(ctx, "UPDATE store SET epoch = ? WHERE epoch = ''", uuid.NewString()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE store SET secret = ? WHERE secret = x''", secret); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(schemaVersion))
	return err
}

// Append implements eventstore.Store. The goroutine of s.appends calls store with the batch.
func (s *Store) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := s.inFlight.Enter(); err != nil {
		return eventstore.Appended{}, err
	}
	defer s.inFlight.Leave()
	return s.appends.Append(ctx, b)
}

// store commits a group and resolves its calls. It never returns calls for a retry: with one
// writer, every batch is either stored or refused.
func (s *Store) store(group []*adapter.Call) []*adapter.Call {
	outcomes, head, err := s.writer.store(group)
	if sqlite.Full(err) {
		err = fmt.Errorf("%w: %w", eventstore.ErrFull, err)
	}
	// Publish the head before waking waiters: they check it after waking up.
	if err == nil && head > s.head.Load() {
		s.head.Store(head)
		s.committed.Broadcast()
	}
	for i, c := range group {
		// Nothing was stored, so all calls fail with the group's error. A conflict of a single call
		// does not count either: it may be with another batch of the group.
		if err != nil {
			c.Resolve(eventstore.Appended{}, fmt.Errorf("append to the store of %s: %w", s.aggregate.Name, err))
		} else {
			c.Resolve(outcomes[i].appended, outcomes[i].refused)
		}
	}
	return nil
}

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, after uint64) ([]event.Event, error) {
	if err := s.inFlight.Enter(); err != nil {
		return nil, err
	}
	defer s.inFlight.Leave()
	return s.reader.load(ctx, stream, after)
}

// LoadSnapshot implements eventstore.Store.
func (s *Store) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, bool, error) {
	if err := s.inFlight.Enter(); err != nil {
		return eventstore.Snapshot{}, false, err
	}
	defer s.inFlight.Leave()
	return s.reader.loadSnapshot(ctx, stream)
}

// LoadAnswer implements eventstore.Store.
func (s *Store) LoadAnswer(ctx context.Context, key string) (eventstore.Answer, bool, error) {
	if err := s.inFlight.Enter(); err != nil {
		return eventstore.Answer{}, false, err
	}
	defer s.inFlight.Leave()
	a, ok, err := loadAnswer(ctx, s.reader.answer, key)
	if err != nil {
		return eventstore.Answer{}, false, fmt.Errorf("load answer %q: %w", key, err)
	}
	return a, ok, nil
}

// Read implements eventstore.Store.
func (s *Store) Read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	if err := s.inFlight.Enter(); err != nil {
		return nil, err
	}
	defer s.inFlight.Leave()
	return s.reader.read(ctx, after, limit)
}

// Head implements eventstore.Store.
func (s *Store) Head(ctx context.Context) (event.Position, error) {
	if err := s.inFlight.Enter(); err != nil {
		return event.Position{}, err
	}
	defer s.inFlight.Leave()
	head, err := s.reader.readHead(ctx)
	return position(head), err
}

// Stats implements eventstore.Store.
func (s *Store) Stats(ctx context.Context, after event.Position) (eventstore.Stats, error) {
	if err := s.inFlight.Enter(); err != nil {
		return eventstore.Stats{}, err
	}
	defer s.inFlight.Leave()
	return s.reader.readStats(ctx, after)
}

// Known implements eventstore.Store.
func (s *Store) Known(ctx context.Context, events []event.Event) ([]bool, error) {
	if err := s.inFlight.Enter(); err != nil {
		return nil, err
	}
	defer s.inFlight.Leave()
	return s.reader.known(ctx, events)
}

// Epoch implements eventstore.Store. A copy or a backup of the file has the same epoch.
func (s *Store) Epoch(context.Context) (string, error) {
	if err := s.inFlight.Enter(); err != nil {
		return "", err
	}
	defer s.inFlight.Leave()
	return s.reader.epoch, nil
}

// Secret implements eventstore.Store.
func (s *Store) Secret(context.Context) ([]byte, error) {
	if err := s.inFlight.Enter(); err != nil {
		return nil, err
	}
	defer s.inFlight.Leave()
	return s.reader.secret, nil
}

// pollInterval is how often Wait checks for appends of other processes. An append of this process
// wakes it at once.
const pollInterval = 250 * time.Millisecond

// Wait implements eventstore.Store.
func (s *Store) Wait(ctx context.Context, after event.Position) error {
	if err := s.inFlight.Enter(); err != nil {
		return err
	}
	defer s.inFlight.Leave()
	poll := time.NewTicker(s.pollInterval)
	defer poll.Stop()
	for {
		// Take the channel before reading the head, so that no commit is missed.
		commit := s.committed.Next()
		if position(s.head.Load()).Compare(after) > 0 {
			return nil
		}
		select {
		case <-commit:
		case <-poll.C:
			// Another process may have appended. s.head does not know its events.
			head, err := s.reader.readHead(ctx)
			if err != nil {
				return err
			}
			if position(head).Compare(after) > 0 {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.inFlight.Closing():
			return eventstore.ErrClosed
		}
	}
}

// Close implements eventstore.Store.
func (s *Store) Close() error {
	if !s.inFlight.Close() {
		return nil
	}
	// All calls have ended, so no Append can follow, and the queue can be closed.
	s.appends.Stop()
	if err := s.closeDatabase(); err != nil {
		return fmt.Errorf("close event store of %s: %w", s.aggregate.Name, err)
	}
	return nil
}

// closeDatabase checkpoints the write-ahead log into the file, so that the file alone is the
// complete store. SQLite does this by itself only if the last connection to close can write. So the
// reader, which cannot, is closed first.
func (s *Store) closeDatabase() error {
	var errs []error
	if s.reader != nil {
		errs = append(errs, s.reader.close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	if s.db != nil {
		errs = append(errs, sqlite.Checkpoint(s.db), s.db.Close())
	}
	return errors.Join(errs...)
}

// readers returns the maximum number of concurrent reads.
func readers() int { return max(4, runtime.GOMAXPROCS(0)) }
