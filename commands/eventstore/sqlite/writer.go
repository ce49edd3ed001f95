package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
)

// writer stores groups of batches on one connection. Only the goroutine of adapter.Writer uses it,
// so it needs no lock.
type writer struct {
	conn                    *sql.Conn
	begin, commit, rollback *sql.Stmt
	answer, version, head   *sql.Stmt // checks of a batch, inside the transaction
	insertEvent             *sql.Stmt
	insertAnswer            *sql.Stmt
	putSnapshot             *sql.Stmt
}

const (
	selectAnswer  = "SELECT fingerprint, response, stream, version, position FROM answers WHERE key = ?"
	selectVersion = "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?"
	selectHead    = "SELECT coalesce(max(position), 0) FROM events"

	// Without a position: SQLite assigns the next one.
	insertEvent = `INSERT INTO events
(id, stream, version, type, data, occurred_at, recorded_at, correlation_id, causation_id, trace_parent)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	insertAnswer = `INSERT INTO answers (key, fingerprint, response, stream, version, position)
VALUES (?, ?, ?, ?, ?, ?)`
	// An older snapshot never replaces a newer one.
	putSnapshot = `INSERT INTO snapshots (stream, version, schema, state) VALUES (?, ?, ?, ?)
ON CONFLICT (stream) DO UPDATE SET version = excluded.version, schema = excluded.schema, state = excluded.state
WHERE excluded.version >= snapshots.version`
)

// newWriter opens the connection and prepares the statements.
func newWriter(ctx context.Context, db *sql.DB) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect the writer: %w", err)
	}
	w := &writer{conn: conn}
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&w.begin, "BEGIN IMMEDIATE"}, {&w.commit, "COMMIT"}, {&w.rollback, "ROLLBACK"},
		{&w.answer, selectAnswer}, {&w.version, selectVersion}, {&w.head, selectHead},
		{&w.insertEvent, insertEvent}, {&w.insertAnswer, insertAnswer}, {&w.putSnapshot, putSnapshot},
	} {
		*p.stmt, err = conn.PrepareContext(ctx, p.query) //nolint:sqlclosecheck // closed with its connection
		if err != nil {
			return nil, errors.Join(fmt.Errorf("prepare %q: %w", p.query, err), conn.Close())
		}
	}
	return w, nil
}

// close closes the connection and with it its statements.
func (w *writer) close() error { return w.conn.Close() }

// outcome is the result of one batch: it was stored, or it was refused and the rest of the group
// was stored.
type outcome struct {
	appended eventstore.Appended
	refused  error
}

// store stores a group in one transaction. It returns the outcome of each call, and the position of
// the last event. After an error, nothing of the group is stored.
func (w *writer) store(group []*adapter.Call) (outcomes []outcome, head int64, err error) {
	// The group belongs to all callers, so no caller's context may abort it.
	ctx := context.Background()
	if _, err := w.begin.ExecContext(ctx); err != nil {
		return nil, 0, fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err != nil { // SQLite may have rolled back by itself; then this fails, which does not matter
			_, _ = w.rollback.ExecContext(ctx)
		}
	}()
	// The batches are appended one after the other, so each sees the events of those before it.
	outcomes = make([]outcome, len(group))
	for i, c := range group {
		if outcomes[i], err = w.append(ctx, &c.Batch); err != nil {
			return nil, 0, err
		}
		head = max(head, int64(outcomes[i].appended.Position.Sequence))
	}
	if _, err := w.commit.ExecContext(ctx); err != nil {
		return nil, 0, fmt.Errorf("commit: %w", err)
	}
	return outcomes, head, nil
}

// append checks a batch before it writes anything, so a refused batch leaves nothing in the
// transaction.
func (w *writer) append(ctx context.Context, b *eventstore.Batch) (outcome, error) {
	// Check the answer before the versions: a retried command would conflict with its own events.
	if b.Answer.Key != "" {
		first, answered, err := loadAnswer(ctx, w.answer, b.Answer.Key)
		if err != nil {
			return outcome{}, fmt.Errorf("look up answer %q: %w", b.Answer.Key, err)
		}
		if answered {
			return outcome{refused: &eventstore.AnsweredError{Answer: first}}, nil
		}
	}
	for i := range b.Streams {
		s := &b.Streams[i]
		var actual uint64
		if err := w.version.QueryRowContext(ctx, s.Stream).Scan(&actual); err != nil {
			return outcome{}, fmt.Errorf("read the version of stream %q: %w", s.Stream, err)
		}
		// Versions without gaps follow from this check, because the transaction holds the write
		// lock.
		if actual != s.ExpectedVersion {
			return outcome{refused: &eventstore.ConflictError{
				Stream: s.Stream, Expected: s.ExpectedVersion, Actual: actual,
			}}, nil
		}
	}
	last, err := w.write(ctx, b)
	return outcome{appended: eventstore.Appended{Position: position(last)}}, err
}

// write writes a batch and returns the position of its last event, or the head if it has none.
func (w *writer) write(ctx context.Context, b *eventstore.Batch) (last int64, err error) {
	for i := range b.Streams {
		s := &b.Streams[i]
		for j := range s.Events {
			if last, err = w.writeEvent(ctx, s.Stream, s.ExpectedVersion+uint64(j)+1, &s.Events[j]); err != nil {
				return 0, fmt.Errorf("write an event of stream %q: %w", s.Stream, err)
			}
		}
	}
	// A batch without events gets the head as its position: it depends on nothing later.
	if last == 0 {
		if err := w.head.QueryRowContext(ctx).Scan(&last); err != nil {
			return 0, fmt.Errorf("read the head: %w", err)
		}
	}
	if a := &b.Answer; a.Key != "" {
		_, err := w.insertAnswer.ExecContext(
			ctx, a.Key, blob(a.Fingerprint), blob(a.Response), a.Stream, a.Version, last)
		if err != nil {
			return 0, fmt.Errorf("write answer %q: %w", a.Key, err)
		}
	}
	for i := range b.Snapshots {
		s := &b.Snapshots[i]
		if _, err := w.putSnapshot.ExecContext(ctx, s.Stream, s.Version, s.Schema, blob(s.State)); err != nil {
			return 0, fmt.Errorf("write the snapshot of stream %q: %w", s.Stream, err)
		}
	}
	return last, nil
}

// writeEvent inserts an event and returns its position. SQLite assigns it: it is the rowid, and
// AUTOINCREMENT never reuses one.
func (w *writer) writeEvent(ctx context.Context, stream string, version uint64, e *event.Event) (int64, error) {
	done, err := w.insertEvent.ExecContext(ctx, e.ID[:], stream, version, e.Type, blob(e.Data),
		e.OccurredAt.UnixMicro(), e.RecordedAt.UnixMicro(), e.CorrelationID, e.CausationID, e.TraceParent)
	if err != nil {
		return 0, err
	}
	return done.LastInsertId()
}

// blob returns an empty slice for nil, which would be stored as NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
