package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/sqlite"
)

// reader reads on its own connections. In WAL mode, readers and the writer do not block each other.
// The pool keeps all of its connections open, because opening one costs more than a read.
type reader struct {
	aggregate event.Aggregate
	db        *sql.DB
	epoch     string // read once, since it does not change while the file is open
	secret    []byte // like epoch

	// Prepared once per connection. database/sql prepares them again on connections that it opens.
	at, stream, all, head, stats, snapshot, answer *sql.Stmt
}

const (
	// The position is the table's rowid, so reads by position need no other index.
	selectEvents = `SELECT position, id, stream, version, type, data, occurred_at, recorded_at,
       correlation_id, causation_id, trace_parent
FROM events `
	selectStream   = selectEvents + "WHERE stream = ? AND version > ? ORDER BY version"
	selectAll      = selectEvents + "WHERE position > ? ORDER BY position LIMIT ?"
	selectAt       = "SELECT id, position FROM events WHERE stream = ? AND version = ?"
	selectStats    = "SELECT count(*), coalesce(max(recorded_at), 0) FROM events WHERE position > ?"
	selectSnapshot = "SELECT version, schema, state FROM snapshots WHERE stream = ?"
)

// newReader opens the connections and prepares the statements.
func newReader(ctx context.Context, path string, aggregate event.Aggregate) (*reader, error) {
	db, err := sqlite.OpenReadOnly(path)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(readers())
	db.SetMaxIdleConns(readers())
	r := &reader{aggregate: aggregate, db: db}
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&r.at, selectAt}, {&r.stream, selectStream}, {&r.all, selectAll}, {&r.head, selectHead},
		{&r.stats, selectStats}, {&r.snapshot, selectSnapshot}, {&r.answer, selectAnswer},
	} {
		*p.stmt, err = db.PrepareContext(ctx, p.query) //nolint:sqlclosecheck // closed with its connection
		if err != nil {
			return nil, errors.Join(fmt.Errorf("prepare %q: %w", p.query, err), db.Close())
		}
	}
	if err := db.QueryRowContext(ctx, "SELECT epoch, secret FROM store").Scan(&r.epoch, &r.secret); err != nil {
		return nil, errors.Join(fmt.Errorf("read the store's epoch and secret: %w", err), db.Close())
	}
	return r, nil
}

// close closes the connections and with them their statements.
func (r *reader) close() error { return r.db.Close() }

// load returns a stream's events after a version.
func (r *reader) load(ctx context.Context, stream string, after uint64) ([]event.Event, error) {
	// SQLite's integers are signed, so no version is higher.
	if after >= math.MaxInt64 {
		return nil, nil
	}
	events, err := r.query(ctx, r.stream, stream, after)
	if err != nil {
		return nil, fmt.Errorf("load stream %q: %w", stream, err)
	}
	return events, nil
}

// read returns at most limit events after a position.
func (r *reader) read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	// Not a position of this store, whose transactions are all 0: it is after every event.
	if after.Compare(position(math.MaxInt64)) >= 0 {
		return nil, nil
	}
	// To SQLite, a negative limit means no limit.
	events, err := r.query(ctx, r.all, after.Sequence, max(limit, 0))
	if err != nil {
		return nil, fmt.Errorf("read the events of %s after %v: %w", r.aggregate.Name, after, err)
	}
	return events, nil
}

// query runs a statement that selects events.
func (r *reader) query(ctx context.Context, stmt *sql.Stmt, args ...any) (events []event.Event, err error) {
	// A statement is a snapshot: events that are committed while it runs are not in it.
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		e := event.Event{Aggregate: r.aggregate.Name}
		var id []byte
		var occurred, recorded int64
		if err := rows.Scan(&e.Position.Sequence, &id, &e.Stream, &e.Version, &e.Type, &e.Data,
			&occurred, &recorded, &e.CorrelationID, &e.CausationID, &e.TraceParent); err != nil {
			return nil, err
		}
		if e.ID, err = uuid.FromBytes(id); err != nil {
			return nil, fmt.Errorf("id of event %d: %w", e.Position.Sequence, err)
		}
		e.OccurredAt, e.RecordedAt = time.UnixMicro(occurred).UTC(), time.UnixMicro(recorded).UTC()
		events = append(events, e)
	}
	return events, rows.Err()
}

// known reports for each event whether the store has it, with the same id, version and position.
func (r *reader) known(ctx context.Context, events []event.Event) ([]bool, error) {
	known := make([]bool, len(events))
	for i, e := range events {
		if e.Version > math.MaxInt64 { // the driver rejects it, and no event has it
			continue
		}
		var id []byte
		var at event.Position
		err := r.at.QueryRowContext(ctx, e.Stream, e.Version).Scan(&id, &at.Sequence)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up version %d of stream %q: %w", e.Version, e.Stream, err)
		}
		// A store that lost events may have other events at the same versions or positions.
		known[i] = bytes.Equal(id, e.ID[:]) && at == e.Position
	}
	return known, nil
}

// readHead returns the position of the last event, or 0.
func (r *reader) readHead(ctx context.Context) (head int64, err error) {
	if err := r.head.QueryRowContext(ctx).Scan(&head); err != nil {
		return 0, fmt.Errorf("read the head of the store of %s: %w", r.aggregate.Name, err)
	}
	return head, nil
}

// readStats counts the events after a position.
func (r *reader) readStats(ctx context.Context, after event.Position) (s eventstore.Stats, err error) {
	if after.Compare(position(math.MaxInt64)) >= 0 { // see read
		return s, nil
	}
	var newest int64
	if err := r.stats.QueryRowContext(ctx, after.Sequence).Scan(&s.Events, &newest); err != nil {
		return s, fmt.Errorf("count the events of %s after %v: %w", r.aggregate.Name, after, err)
	}
	if s.Events > 0 {
		s.NewestRecorded = time.UnixMicro(newest).UTC()
	}
	return s, nil
}

// loadSnapshot returns the snapshot of a stream, if there is one.
func (r *reader) loadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, bool, error) {
	s := eventstore.Snapshot{Stream: stream}
	err := r.snapshot.QueryRowContext(ctx, stream).Scan(&s.Version, &s.Schema, &s.State)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return eventstore.Snapshot{}, false, nil
	case err != nil:
		return eventstore.Snapshot{}, false, fmt.Errorf("load the snapshot of stream %q: %w", stream, err)
	}
	return s, true, nil
}

// loadAnswer loads the answer of a key. stmt is the reader's, or the writer's: within its
// transaction it also sees the answers of earlier batches of the same group.
func loadAnswer(ctx context.Context, stmt *sql.Stmt, key string) (eventstore.Answer, bool, error) {
	a := eventstore.Answer{Key: key}
	err := stmt.QueryRowContext(ctx, key).Scan(&a.Fingerprint, &a.Response, &a.Stream, &a.Version, &a.Position.Sequence)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return eventstore.Answer{}, false, nil
	case err != nil:
		return eventstore.Answer{}, false, err
	}
	return a, true, nil
}

// position returns the position of a row. Transactions are always 0 in this store.
func position(sequence int64) event.Position {
	return event.Position{Sequence: uint64(sequence)} // rowids start at 1
}
