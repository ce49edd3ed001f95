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
	// gate counts calls, appends is the group commit, and committed wakes Wait after a commit of
	// this process.
	gate         *adapter.InFlight
	appends      *adapter.Writer
	committed    adapter.Broadcaster
	head         atomic.Int64  // last position that this process has committed
	pollInterval time.Duration // for other processes' appends

	db     *sql.DB // for writing; the reader has its own
	writer *writer
	reader *reader
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the event store of aggregate in the file at path, and creates the file if it does not
// exist. It fails if the file has the events of another aggregate, or if a newer version of
// Millrace wrote it.
func Open(ctx context.Context, path string, aggregate event.Aggregate) (_ *Store, err error) {
	s := &Store{aggregate: aggregate, gate: adapter.NewInFlight(), pollInterval: pollInterval}
	defer func() {
		if err != nil {
			if sqlite.Damaged(err) {
				err = fmt.Errorf("%w. The file is the events of the service %s, and nothing can replace it but a backup: "+
					"bring the newest one back, with its -wal file if there is one", err, aggregate.Service)
			}
			err = errors.Join(fmt.Errorf("open event store %s: %w", path, err), s.closeFiles())
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

// schemaNumber is the version of the schema, which the file stores as its user_version.
const schemaNumber = 3

// steps migrate the schema: steps[0] from 1 to 2, and steps[1] from 2 to 3.
var steps = [...]string{
	"ALTER TABLE store ADD COLUMN epoch TEXT NOT NULL DEFAULT ''",
	"ALTER TABLE store ADD COLUMN secret BLOB NOT NULL DEFAULT x''",
}

// migrate migrates the file to this version's schema and checks that it belongs to the aggregate.
func migrate(ctx context.Context, db *sql.DB, aggregate event.Aggregate) error {
	tx, err := db.BeginTx(ctx, nil) // takes the write lock, because two processes may start at once
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, its error adds nothing to the first
	var number int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&number); err != nil {
		return fmt.Errorf("read the schema's number: %w", err)
	}
	switch {
	case number < 0 || number > schemaNumber:
		return fmt.Errorf("its schema is number %d and this version knows %d: start a newer version", number, schemaNumber)
	case number == 0:
		if _, err := tx.ExecContext(ctx, schema); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO store (one, aggregate) VALUES (1, ?)", aggregate.Name); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
	default:
		for _, step := range steps[number-1:] {
			if _, err := tx.ExecContext(ctx, step); err != nil {
				return fmt.Errorf("migrate: %w", err)
			}
		}
	}
	if number < schemaNumber {
		if err := identify(ctx, tx); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	var owner string
	if err := tx.QueryRowContext(ctx, "SELECT aggregate FROM store").Scan(&owner); err != nil {
		return fmt.Errorf("read whose store it is: %w", err)
	}
	// A file that is opened for the wrong service must not be changed. The transaction is rolled
	// back.
	if owner != aggregate.Name {
		return fmt.Errorf("it holds the events of %q, not of %q: give each service a file of its own", owner, aggregate.Name)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// identify sets the store's epoch and secret if they are missing, and records the schema's version.
func identify(ctx context.Context, tx *sql.Tx) error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE store SET epoch = ? WHERE epoch = ''", uuid.NewString()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE store SET secret = ? WHERE secret = x''", secret); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(schemaNumber))
	return err
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := s.gate.Enter(); err != nil {
		return eventstore.Appended{}, err
	}
	defer s.gate.Leave()
	return s.appends.Append(ctx, b)
}

// store commits a group and settles its calls. It never returns calls to be retried.
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
		// Nothing was stored, so no single result counts. Not even a conflict does: it may be with
		// another batch of the group.
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
	if err := s.gate.Enter(); err != nil {
		return nil, err
	}
	defer s.gate.Leave()
	return s.reader.load(ctx, stream, after)
}

// LoadSnapshot implements eventstore.Store.
func (s *Store) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, bool, error) {
	if err := s.gate.Enter(); err != nil {
		return eventstore.Snapshot{}, false, err
	}
	defer s.gate.Leave()
	return s.reader.loadSnapshot(ctx, stream)
}

// LoadAnswer implements eventstore.Store.
func (s *Store) LoadAnswer(ctx context.Context, key string) (eventstore.Answer, bool, error) {
	if err := s.gate.Enter(); err != nil {
		return eventstore.Answer{}, false, err
	}
	defer s.gate.Leave()
	a, ok, err := loadAnswer(ctx, s.reader.answer, key)
	if err != nil {
		return eventstore.Answer{}, false, fmt.Errorf("load answer %q: %w", key, err)
	}
	return a, ok, nil
}

// Read implements eventstore.Store.
func (s *Store) Read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	if err := s.gate.Enter(); err != nil {
		return nil, err
	}
	defer s.gate.Leave()
	return s.reader.read(ctx, after, limit)
}

// Head implements eventstore.Store.
func (s *Store) Head(ctx context.Context) (event.Position, error) {
	if err := s.gate.Enter(); err != nil {
		return event.Position{}, err
	}
	defer s.gate.Leave()
	head, err := s.reader.readHead(ctx)
	return position(head), err
}

// Stats implements eventstore.Store.
func (s *Store) Stats(ctx context.Context, after event.Position) (eventstore.Stats, error) {
	if err := s.gate.Enter(); err != nil {
		return eventstore.Stats{}, err
	}
	defer s.gate.Leave()
	return s.reader.readStats(ctx, after)
}

// Known implements eventstore.Store.
func (s *Store) Known(ctx context.Context, events []event.Event) ([]bool, error) {
	if err := s.gate.Enter(); err != nil {
		return nil, err
	}
	defer s.gate.Leave()
	return s.reader.known(ctx, events)
}

// Epoch implements eventstore.Store.
func (s *Store) Epoch(context.Context) (string, error) {
	if err := s.gate.Enter(); err != nil {
		return "", err
	}
	defer s.gate.Leave()
	return s.reader.epoch, nil
}

// Secret implements eventstore.Store.
func (s *Store) Secret(context.Context) ([]byte, error) {
	if err := s.gate.Enter(); err != nil {
		return nil, err
	}
	defer s.gate.Leave()
	return s.reader.secret, nil
}

// pollInterval is how often Wait checks for appends of other processes.
const pollInterval = 250 * time.Millisecond

// Wait implements eventstore.Store.
func (s *Store) Wait(ctx context.Context, after event.Position) error {
	if err := s.gate.Enter(); err != nil {
		return err
	}
	defer s.gate.Leave()
	look := time.NewTicker(s.pollInterval)
	defer look.Stop()
	for {
		// Take the channel before reading the head, so that no commit is missed.
		commit := s.committed.Next()
		if position(s.head.Load()).Compare(after) > 0 {
			return nil
		}
		select {
		case <-commit:
		case <-look.C:
			head, err := s.reader.readHead(ctx)
			if err != nil {
				return err
			}
			if position(head).Compare(after) > 0 {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.gate.Closing():
			return eventstore.ErrClosed
		}
	}
}

// Close implements eventstore.Store.
func (s *Store) Close() error {
	if !s.gate.Close() {
		return nil
	}
	// All calls have ended, so no Append can follow.
	s.appends.Stop()
	if err := s.closeFiles(); err != nil {
		return fmt.Errorf("close event store of %s: %w", s.aggregate.Name, err)
	}
	return nil
}

// closeFiles checkpoints the write-ahead log into the file, so that the file alone is the complete
// store. SQLite does this by itself only if the last connection to close is one that can write.
func (s *Store) closeFiles() error {
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
