package postgres

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// visible is the condition for events that Read returns. No later commit can precede them, because
// every transaction up to theirs has ended.
const visible = `transaction < pg_snapshot_xmin(pg_current_snapshot())`

const (
	// An event's position is its transaction's id and its number in that transaction.
	selectEvents = `SELECT transaction, position, id, stream, version, type, data, occurred_at, recorded_at,
       correlation_id, causation_id, trace_parent
FROM events `
	// A stream is read without the condition visible: the next version must follow the last
	// committed one, whether Read returns it or not.
	selectStream = selectEvents + `WHERE stream = $1 AND version > $2 ORDER BY version`
	selectAll    = selectEvents + `WHERE ` + visible + ` AND (transaction, position) > ($1, $2)
ORDER BY transaction, position LIMIT $3`
	selectHead = `SELECT transaction, position FROM events WHERE ` + visible + `
ORDER BY transaction DESC, position DESC LIMIT 1`
	selectStats = `SELECT count(*), max(recorded_at) FROM events
WHERE ` + visible + ` AND (transaction, position) > ($1, $2)`

	selectAnswers = `SELECT key, fingerprint, response, stream, version, transaction, position
FROM answers WHERE key = ANY($1)`
	selectSnapshot = `SELECT version, schema, state FROM snapshots WHERE stream = $1`
)

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, after uint64) ([]event.Event, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	events, err := s.query(ctx, selectStream, stream, bigint(after))
	if err != nil {
		return nil, fmt.Errorf("load stream %q: %w", stream, err)
	}
	return events, nil
}

// Read implements eventstore.Store.
func (s *Store) Read(ctx context.Context, after event.Position, limit int) ([]event.Event, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	events, err := s.query(ctx, selectAll, after.Transaction, bigint(after.Sequence), max(limit, 0))
	if err != nil {
		return nil, fmt.Errorf("read the events of %s after %v: %w", s.aggregate.Name, after, err)
	}
	return events, nil
}

// query runs a statement that selects events.
func (s *Store) query(ctx context.Context, sql string, args ...any) ([]event.Event, error) {
	rows, err := s.reads.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (event.Event, error) {
		e := event.Event{Aggregate: s.aggregate.Name}
		err := row.Scan(&e.Position.Transaction, &e.Position.Sequence, (*[16]byte)(&e.ID),
			&e.Stream, &e.Version, &e.Type, &e.Data, &e.OccurredAt, &e.RecordedAt,
			&e.CorrelationID, &e.CausationID, &e.TraceParent)
		e.OccurredAt, e.RecordedAt = e.OccurredAt.UTC(), e.RecordedAt.UTC()
		return e, err
	})
}

// Head implements eventstore.Store.
func (s *Store) Head(ctx context.Context) (event.Position, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return event.Position{}, err
	}
	defer leave()
	var head event.Position
	if err := s.reads.QueryRow(ctx, selectHead).Scan(&head.Transaction, &head.Sequence); err != nil && !noRows(err) {
		return event.Position{}, fmt.Errorf("read the head of the store of %s: %w", s.aggregate.Name, err)
	}
	return head, nil
}

// Stats implements eventstore.Store.
func (s *Store) Stats(ctx context.Context, after event.Position) (eventstore.Stats, error) {
	ctx, leave, err := s.enter(ctx, s.options.scanTimeout)
	if err != nil {
		return eventstore.Stats{}, err
	}
	defer leave()
	var stats eventstore.Stats
	var newest *time.Time // NULL if there are no events
	err = s.reads.QueryRow(ctx, selectStats, after.Transaction, bigint(after.Sequence)).Scan(&stats.Events, &newest)
	if err != nil {
		return eventstore.Stats{}, fmt.Errorf("count the events of %s after %v: %w", s.aggregate.Name, after, err)
	}
	if newest != nil {
		stats.NewestRecorded = newest.UTC()
	}
	return stats, nil
}

// selectKnown asks for all events in one query. The result has the order of the parameters.
const selectKnown = `
SELECT EXISTS (SELECT FROM events e WHERE e.stream = k.stream AND e.version = k.version AND e.id = k.id
	AND e.transaction = k.transaction AND e.position = k.position)
FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::xid8[], $5::bigint[]) WITH ORDINALITY
	AS k (stream, version, id, transaction, position, n)
ORDER BY n`

// Known implements eventstore.Store.
func (s *Store) Known(ctx context.Context, events []event.Event) ([]bool, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	streams, ids := make([]string, len(events)), make([][16]byte, len(events))
	versions, sequences := make([]int64, len(events)), make([]int64, len(events))
	transactions := make([]uint64, len(events))
	for i, e := range events {
		// The server would refuse the whole query for an invalid id. No event has the empty id.
		if utf8.ValidString(e.Stream) && !strings.ContainsRune(e.Stream, 0) {
			streams[i] = e.Stream
		}
		versions[i], ids[i] = bigint(e.Version), e.ID
		transactions[i], sequences[i] = e.Position.Transaction, bigint(e.Position.Sequence)
	}
	rows, err := s.reads.Query(ctx, selectKnown, streams, versions, ids, transactions, sequences)
	if err == nil {
		var known []bool
		if known, err = pgx.CollectRows(rows, pgx.RowTo[bool]); err == nil {
			return known, nil
		}
	}
	return nil, fmt.Errorf("look up events of %s: %w", s.aggregate.Name, err)
}

// selectEpoch adds the server's timeline, the first 8 digits of a WAL file's name, to the epoch in
// the tables. A server that was promoted, or restored to a point in time, continues on a new
// timeline.
const selectEpoch = `SELECT epoch || '/' || CASE WHEN pg_is_in_recovery() THEN 'standby'
       ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END
FROM store`

// Epoch implements eventstore.Store. It asks the server each time, because a connection may be to
// another one.
func (s *Store) Epoch(ctx context.Context) (epoch string, err error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return "", err
	}
	defer leave()
	if err := s.reads.QueryRow(ctx, selectEpoch).Scan(&epoch); err != nil {
		return "", fmt.Errorf("read the epoch of the store of %s: %w", s.aggregate.Name, err)
	}
	return epoch, nil
}

// Secret implements eventstore.Store.
func (s *Store) Secret(ctx context.Context) ([]byte, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	var secret [16]byte
	if err := s.reads.QueryRow(ctx, "SELECT secret FROM store").Scan(&secret); err != nil {
		return nil, fmt.Errorf("read the secret of the store of %s: %w", s.aggregate.Name, err)
	}
	return secret[:], nil
}

// LoadSnapshot implements eventstore.Store.
func (s *Store) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, bool, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return eventstore.Snapshot{}, false, err
	}
	defer leave()
	snap := eventstore.Snapshot{Stream: stream}
	err = s.reads.QueryRow(ctx, selectSnapshot, stream).Scan(&snap.Version, &snap.Schema, &snap.State)
	switch {
	case noRows(err):
		return eventstore.Snapshot{}, false, nil
	case err != nil:
		return eventstore.Snapshot{}, false, fmt.Errorf("load the snapshot of stream %q: %w", stream, err)
	}
	return snap, true, nil
}

// LoadAnswer implements eventstore.Store.
func (s *Store) LoadAnswer(ctx context.Context, key string) (eventstore.Answer, bool, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return eventstore.Answer{}, false, err
	}
	defer leave()
	rows, err := s.reads.Query(ctx, selectAnswers, []string{key})
	if err != nil {
		return eventstore.Answer{}, false, fmt.Errorf("load answer %q: %w", key, err)
	}
	a, err := pgx.CollectExactlyOneRow(rows, scanAnswer)
	switch {
	case noRows(err):
		return eventstore.Answer{}, false, nil
	case err != nil:
		return eventstore.Answer{}, false, fmt.Errorf("load answer %q: %w", key, err)
	}
	return a, true, nil
}

// scanAnswer reads a row of selectAnswers.
func scanAnswer(row pgx.CollectableRow) (a eventstore.Answer, err error) {
	err = row.Scan(&a.Key, &a.Fingerprint, &a.Response, &a.Stream, &a.Version,
		&a.Position.Transaction, &a.Position.Sequence)
	return a, err
}

// bigint returns n, or the greatest bigint if n is greater. No version and no position exceeds it.
func bigint(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// Wait implements eventstore.Store. It checks after each append of this process. It also polls, for
// appends of other processes and for events that open transactions held back. LISTEN and NOTIFY
// would be worse: a notification in every writing transaction makes them queue at commit.
func (s *Store) Wait(ctx context.Context, after event.Position) error {
	if err := s.inFlight.Enter(); err != nil {
		return err
	}
	defer s.inFlight.Leave()
	poll := time.NewTicker(s.options.poll)
	defer poll.Stop()
	blocked := blockedLog{store: s}
	for {
		// Take the channel before polling, so that no commit is missed.
		commit := s.committed.Next()
		ready, held, err := s.poll(ctx, after)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case ready:
			return nil
		}
		// Events that are held back for long are an operational problem, so the cause is logged.
		blocked.observe(ctx, held)
		select {
		case <-commit:
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.inFlight.Closing():
			return eventstore.ErrClosed
		}
	}
}

// selectWaiting compares the last visible event and the last event with a position. It reads one
// event each, which the index finds.
const selectWaiting = `
SELECT coalesce((SELECT (transaction, position) > ($1, $2) FROM events WHERE ` + visible + `
                 ORDER BY transaction DESC, position DESC LIMIT 1), false),
       coalesce((SELECT (transaction, position) > ($1, $2) FROM events
                 ORDER BY transaction DESC, position DESC LIMIT 1), false)`

// poll reports whether events after a position are visible, and whether there are any, visible or
// held back.
func (s *Store) poll(ctx context.Context, after event.Position) (ready, held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.queryTimeout)
	defer cancel()
	err = s.reads.QueryRow(ctx, selectWaiting, after.Transaction, bigint(after.Sequence)).Scan(&ready, &held)
	if err != nil {
		return false, false, fmt.Errorf("wait for events of %s after %v: %w", s.aggregate.Name, after, err)
	}
	return ready, held, nil
}
