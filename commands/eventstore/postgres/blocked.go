package postgres

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// blockedLog logs which open transaction holds events back from Read. It logs after
// options.blockedAfter, and again each time that span has passed. One call of Wait uses it, so it
// needs no lock.
type blockedLog struct {
	store *Store
	since time.Time // when events were first held back, or when it last logged; zero while none are
}

// selectBlocker returns the open transaction with the oldest id. A prepared transaction has no
// session, so its name has to identify it.
const selectBlocker = `
SELECT coalesce(pid, 0), who, since FROM (
    SELECT pid, concat_ws(' ', datname, usename, application_name, state) AS who,
           xact_start AS since, age(backend_xid) AS age
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT NULL, 'prepared transaction ' || gid, prepared, age(transaction) FROM pg_prepared_xacts
) AS open ORDER BY age DESC LIMIT 1`

// observe records whether events are held back now, and logs if that has lasted too long.
func (a *blockedLog) observe(ctx context.Context, held bool) {
	switch {
	case !held:
		a.since = time.Time{}
	case a.since.IsZero():
		a.since = time.Now()
	case time.Since(a.since) >= a.store.options.blockedAfter:
		a.since = time.Now()
		a.warn(ctx)
	}
}

// warn logs the transaction that holds events back.
func (a *blockedLog) warn(ctx context.Context) {
	log := a.store.options.logger.With("aggregate", a.store.aggregate.Name)
	var pid int32
	var who string
	var since *time.Time // null for roles without pg_read_all_stats
	err := a.store.reads.QueryRow(ctx, selectBlocker).Scan(&pid, &who, &since)
	if noRows(err) {
		err = errors.New("this role cannot see the transaction: GRANT pg_read_all_stats to it")
	}
	if err != nil {
		log.WarnContext(ctx, "events are held back by an open transaction on the PostgreSQL server",
			slog.Any("error", err))
		return
	}
	if since == nil {
		since = new(time.Time)
	}
	log.WarnContext(ctx, "events are held back by an open transaction on the PostgreSQL server; end it",
		slog.Int("pid", int(pid)), slog.String("who", who), slog.Time("open_since", *since))
}
