package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/internal/adapter"
	"github.com/millrace/millrace/event"
)

// writer stores groups of batches. Only the goroutine of adapter.Writer uses it, so it needs no
// lock.
type writer struct {
	pool      *pgxpool.Pool                            // has one connection, and replaces it if it breaks
	committed func(newest event.Position, id [16]byte) // called after each commit with its last event
}

const (
	// groupTimeout limits a group, so that a server that hangs does not block callers forever.
	groupTimeout   = 30 * time.Second
	connectTimeout = 5 * time.Second // if the connection string has no timeout
	maxAttempts    = 3               // of a transaction that the server aborted for a temporary reason
)

// insertEvents checks that a stream's first new event follows its last present one. The other new
// events follow the first, because newRows numbers them. Check and insert are one statement, so the
// check happens before the transaction has its id; see the package comment.
//
// ON CONFLICT covers the race: if another transaction inserts the same version after the check, the
// row is skipped, and store notices that it is missing.
const insertEvents = `
INSERT INTO events
       (position, id, stream, version, type, data, occurred_at, recorded_at, correlation_id, causation_id, trace_parent)
SELECT new.position, new.id, new.stream, new.version, new.type, new.data, new.occurred_at, new.recorded_at,
       new.correlation_id, new.causation_id, new.trace_parent
FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::bigint[], $5::boolean[], $6::text[], $7::bytea[],
            $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[])
     AS new (position, id, stream, version, first, type, data,
             occurred_at, recorded_at, correlation_id, causation_id, trace_parent)
WHERE NOT new.first OR new.version - 1 =
      (SELECT coalesce(max(present.version), 0) FROM events AS present WHERE present.stream = new.stream)
ORDER BY new.stream COLLATE "C", new.version
ON CONFLICT (stream, version) DO NOTHING
RETURNING transaction, position`

// newest selects the last event, visible to Read or not. A reader that must have seen it waits
// until it is visible.
const newest = `SELECT transaction, position FROM events ORDER BY transaction DESC, position DESC LIMIT 1`

// insertAnswers stores answers. An answer's position is that of the batch's last event (ordinal >
// 0), or that of the store's newest event if the batch has none.
const insertAnswers = `
INSERT INTO answers (key, fingerprint, response, stream, version, transaction, position)
SELECT new.key, new.fingerprint, new.response, new.stream, new.version,
       CASE WHEN new.ordinal > 0 THEN pg_current_xact_id() ELSE coalesce(newest.transaction, '0') END,
       CASE WHEN new.ordinal > 0 THEN new.ordinal ELSE coalesce(newest.position, 0) END
FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[])
     AS new (key, fingerprint, response, stream, version, ordinal)
     LEFT JOIN (` + newest + `) AS newest ON true
ORDER BY new.key COLLATE "C"
ON CONFLICT (key) DO NOTHING
RETURNING key`

// putSnapshots never replaces a snapshot by an older one.
const putSnapshots = `
INSERT INTO snapshots AS old (stream, version, schema, state)
SELECT new.stream, new.version, new.schema, new.state
FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::bytea[]) AS new (stream, version, schema, state)
ORDER BY new.stream COLLATE "C"
ON CONFLICT (stream) DO UPDATE SET version = excluded.version, schema = excluded.schema, state = excluded.state
WHERE excluded.version >= old.version`

// store stores calls that share no stream and no key in one transaction. If some of them lost to
// other transactions, it returns their indexes as lost, and nothing is stored.
func (w *writer) store(
	ctx context.Context, calls []*adapter.Call,
) (positions []event.Position, lost map[int]bool, err error) {
	// Convert the calls once: the rows do not depend on the attempt.
	r := newRows(calls)
	// Deadlocks and serialization failures are caused by other transactions, so a retry usually
	// succeeds.
	for range maxAttempts {
		if positions, lost, err = w.try(ctx, calls, r); !transient(err) {
			break
		}
	}
	// 53100 is disk_full.
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == "53100" {
		err = fmt.Errorf("%w: %w", eventstore.ErrFull, err)
	}
	return positions, lost, err
}

// transient reports whether the server aborted a transaction because of another one: a deadlock
// (40P01), or a serialization failure (40001).
func transient(err error) bool {
	refused := (*pgconn.PgError)(nil)
	return errors.As(err, &refused) && (refused.Code == "40P01" || refused.Code == "40001")
}

// try makes one attempt of store.
func (w *writer) try(
	ctx context.Context, calls []*adapter.Call, r *rows,
) (positions []event.Position, lost map[int]bool, err error) {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Release() // this closes a connection whose transaction an error left open

	var b pgx.Batch
	// By call: the position of its last event, how many events were inserted, and whether its
	// answer was.
	positions = make([]event.Position, len(calls))
	stored, answered := make([]int, len(calls)), make([]bool, len(calls))
	var last event.Position // last event of the transaction
	// The statements are pipelined. This is the first of two round trips.
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	if len(r.events.position) > 0 {
		b.Queue(insertEvents, r.events.args()...).Query(func(got pgx.Rows) error {
			var p event.Position
			_, err := pgx.ForEachRow(got, []any{&p.Transaction, &p.Sequence}, func() error {
				i := r.callOfEvent[p.Sequence-1]
				stored[i]++
				if p.Compare(last) > 0 {
					last = p
				}
				if p.Compare(positions[i]) > 0 {
					positions[i] = p
				}
				return nil
			})
			return err
		})
	}
	if len(r.answers.key) > 0 {
		b.Queue(insertAnswers, r.answers.args()...).Query(func(got pgx.Rows) error {
			var key string
			_, err := pgx.ForEachRow(got, []any{&key}, func() error {
				answered[r.callOfKey[key]] = true
				return nil
			})
			return err
		})
	}
	if len(r.snapshots.stream) > 0 {
		b.Queue(putSnapshots, r.snapshots.args()...).Exec(func(pgconn.CommandTag) error { return nil })
	}
	var head event.Position
	if r.withoutEvents {
		b.Queue(newest).QueryRow(func(row pgx.Row) error {
			if err := row.Scan(&head.Transaction, &head.Sequence); !noRows(err) {
				return err
			}
			return nil
		})
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, nil, fmt.Errorf("insert: %w", err)
	}

	// ON CONFLICT DO NOTHING makes a lost race a missing row. So a call lost if fewer rows came
	// back than it has.
	lost = map[int]bool{}
	for i, c := range calls {
		if stored[i] < countEvents(c) || (c.Batch.Answer.Key != "" && !answered[i]) {
			lost[i] = true
		}
		if countEvents(c) == 0 {
			positions[i] = head
		}
	}
	if len(lost) > 0 {
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return nil, nil, fmt.Errorf("roll back: %w", err)
		}
		return nil, lost, nil
	}
	// The second round trip. If its answer is lost, the transaction may be committed.
	if _, err := conn.Exec(ctx, "COMMIT"); err != nil {
		return nil, nil, fmt.Errorf("commit: batch may be stored, retry with the same idempotency key: %w", err)
	}
	// From now on, identity.check refuses a server without this event.
	if last.Sequence > 0 {
		w.committed(last, r.events.id[last.Sequence-1])
	}
	return positions, nil, nil
}

// refusals returns for each call why it cannot be stored, or nil if nothing prevents it any more.
func (w *writer) refusals(ctx context.Context, calls []*adapter.Call) ([]error, error) {
	if len(calls) == 0 {
		return nil, nil
	}
	var keys, streams []string
	for _, c := range calls {
		if c.Batch.Answer.Key != "" {
			keys = append(keys, c.Batch.Answer.Key)
		}
		for _, s := range c.Batch.Streams {
			streams = append(streams, s.Stream)
		}
	}
	answers, versions := map[string]eventstore.Answer{}, map[string]uint64{}
	var b pgx.Batch
	// Read the versions first. Each statement sees what was committed before it, so a key without
	// an answer now had none when its batch's conflict was seen.
	const selectVersions = "SELECT stream, max(version) FROM events WHERE stream = ANY($1) GROUP BY stream"
	b.Queue(selectVersions, streams).Query(func(rows pgx.Rows) error {
		var stream string
		var version uint64
		_, err := pgx.ForEachRow(rows, []any{&stream, &version}, func() error {
			versions[stream] = version
			return nil
		})
		return err
	})
	b.Queue(selectAnswers, keys).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scanAnswer)
		for _, a := range found {
			answers[a.Key] = a
		}
		return err
	})
	if err := w.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("read the cause of a conflict: %w", err)
	}
	refusals := make([]error, len(calls))
	for i, c := range calls {
		refusals[i] = refusal(&c.Batch, answers, versions)
	}
	return refusals, nil
}

// refusal returns the error for a batch, given the answers and versions in the store. The answer
// takes precedence: a command that is repeated conflicts with its own events.
func refusal(
	b *eventstore.Batch, answers map[string]eventstore.Answer, versions map[string]uint64,
) error {
	if a, answered := answers[b.Answer.Key]; answered {
		return &eventstore.AnsweredError{Answer: a}
	}
	for _, s := range b.Streams {
		if actual := versions[s.Stream]; actual != s.ExpectedVersion {
			return &eventstore.ConflictError{Stream: s.Stream, Expected: s.ExpectedVersion, Actual: actual}
		}
	}
	return nil
}
