// Package sqlite keeps one service's events in one SQLite file: the store of the embedded default.
//
// Why SQLite through modernc.org/sqlite, see internal/sqlite: no C compiler, no server, one file.
//
// Durability: an append that was acknowledged is on the disk. The database runs in WAL mode with synchronous=FULL, so
// each commit waits until the log is synced, and a kill -9 or a power cut at any moment loses nothing that Append
// answered. A sync costs the better part of a millisecond, therefore appends are committed in groups: one goroutine
// takes whatever calls wait, stores them in one transaction and answers them all. A batch that conflicts is refused
// alone.
//
// Order: SQLite lets one transaction write at a time, so events are committed in the order of their positions and a
// reader that asks for what stands after the last position it saw misses nothing.
//
// Several processes may open one file, an operator's tool beside the service. Wait hears of its own process's appends
// at once and of another's a moment later.
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
	gate      *adapter.Gate
	appends   *adapter.Writer
	committed adapter.Bell
	head      atomic.Int64 // last position that this process saw committed
	elsewhere time.Duration

	db     *sql.DB // for writing
	writer *writer
	reader *reader
}

var _ eventstore.Store = (*Store)(nil)

// Open opens the event store of aggregate in the file at path, and makes it where there is none. It fails where the
// file holds the events of another aggregate or was written by a newer version of Millrace.
func Open(ctx context.Context, path string, aggregate event.Aggregate) (_ *Store, err error) {
	s := &Store{aggregate: aggregate, gate: adapter.NewGate(), elsewhere: elsewhere}
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

const schemaNumber = 3

// Steps bring schema 1 to schema 2, and that to schema 3.
var steps = [...]string{
	"ALTER TABLE store ADD COLUMN epoch TEXT NOT NULL DEFAULT ''",
	"ALTER TABLE store ADD COLUMN secret BLOB NOT NULL DEFAULT x''",
}

// migrate brings the file to the schema of this version, and checks that it is the aggregate's. A current file is only
// read: SQLite's write lock is not fair, so another process that writes all the time can hold it for as long as it likes.
func migrate(ctx context.Context, db *sql.DB, aggregate event.Aggregate) error {
	number, err := schemaOf(ctx, db)
	if err != nil {
		return err
	}
	if number == schemaNumber {
		return checkOwner(ctx, db, aggregate)
	}
	tx, err := db.BeginTx(ctx, nil) // takes the write lock: two processes may start at once
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing; before, its error adds nothing to the first
	if number, err = schemaOf(ctx, tx); err != nil { // again: another process may have migrated the file
		return err
	}
	switch number {
	case 0:
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

// schemaOf returns the number of the file's schema: 0 for a new file. It fails if this version does not know the schema.
func schemaOf(ctx context.Context, q querier) (number int, err error) {
	if err := q.QueryRowContext(ctx, "PRAGMA user_version").Scan(&number); err != nil {
		return 0, fmt.Errorf("read the schema's number: %w", err)
	}
	if number < 0 || number > schemaNumber {
		return 0, fmt.Errorf("its schema is number %d and this version knows %d: start a newer version", number, schemaNumber)
	}
	return number, nil
}

// checkOwner fails if the store holds the events of another aggregate.
func checkOwner(ctx context.Context, q querier, aggregate event.Aggregate) error {
	var owner string
	if err := q.QueryRowContext(ctx, "SELECT aggregate FROM store").Scan(&owner); err != nil {
		return fmt.Errorf("read whose store it is: %w", err)
	}
	if owner != aggregate.Name {
		return fmt.Errorf("it holds the events of %q, not of %q: give each service a file of its own", owner, aggregate.Name)
	}
	return nil
}

// identify gives the store the epoch and the secret that it does not have yet.
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

// store commits a group of calls and settles them.
func (s *Store) store(group []*adapter.Call) []*adapter.Call {
	outcomes, head, err := s.writer.store(group)
	if sqlite.Full(err) {
		err = fmt.Errorf("%w: %w", eventstore.ErrFull, err)
	}
	if err == nil && head > s.head.Load() {
		s.head.Store(head)
		s.committed.Ring()
	}
	for i, c := range group {
		if err != nil { // nobody's outcome counts, not even a conflict: it may be one with the group itself
			c.Settle(eventstore.Appended{}, fmt.Errorf("append to the store of %s: %w", s.aggregate.Name, err))
		} else {
			c.Settle(outcomes[i].appended, outcomes[i].refused)
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

// elsewhere is how often Wait looks whether another process has appended.
const elsewhere = 250 * time.Millisecond

// Wait implements eventstore.Store.
func (s *Store) Wait(ctx context.Context, after event.Position) error {
	if err := s.gate.Enter(); err != nil {
		return err
	}
	defer s.gate.Leave()
	look := time.NewTicker(s.elsewhere)
	defer look.Stop()
	for {
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
	s.appends.Stop()
	if err := s.closeFiles(); err != nil {
		return fmt.Errorf("close event store of %s: %w", s.aggregate.Name, err)
	}
	return nil
}

// closeFiles moves the write-ahead log into the file, so that the file is the store, whole. SQLite does that by itself
// only where it sees a connection that can write close as the last one.
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

// readers is how many reads run at once.
func readers() int { return max(4, runtime.GOMAXPROCS(0)) }
