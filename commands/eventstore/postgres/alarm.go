package postgres

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// alarm logs which transaction holds events back. It logs after alarmAfter, and again each time
// that span has passed.
type alarm struct {
	store *Store
	since time.Time // when events were first held back, or when it last logged; zero while none are
}

// selectCulprit returns the open transaction with the oldest id. A prepared transaction has no
// session, so its name has to identify it.
const selectCulprit = `
SELECT coalesce(pid, 0), who, since FROM (
    SELECT pid, concat_ws(' ', datname, usename, application_name, state) AS who, xact_start AS since, age(backend_xid) AS age
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT NULL, 'prepared transaction ' || gid, prepared, age(transaction) FROM pg_prepared_xacts
) AS open ORDER BY age DESC LIMIT 1`

// saw records whether events are held back now, and logs if that has lasted too long.
func (a *alarm) saw(ctx context.Context, held bool) {
	switch {
	case !held:
		a.since = time.Time{}
	case a.since.IsZero():
		a.since = time.Now()
	case time.Since(a.since) >= a.store.options.alarmAfter:
		a.since = time.Now()
		a.ring(ctx)
	}
}

// ring logs the transaction that holds events back.
func (a *alarm) ring(ctx context.Context) {
	log := a.store.options.logger.With("aggregate", a.store.aggregate.Name)
	var pid int32
	var who string
	var since *time.Time // null for roles without pg_read_all_stats
	err := a.store.reads.QueryRow(ctx, selectCulprit).Scan(&pid, &who, &since)
	if missing(err) {
		err = errors.New("whose, this role may not see: GRANT pg_read_all_stats lets it")
	}
	if err != nil {
		log.WarnContext(ctx, "events are held back by an open transaction of the PostgreSQL server", slog.Any("error", err))
		return
	}
	if since == nil {
		since = new(time.Time)
	}
	log.WarnContext(ctx, "events are held back by an open transaction of the PostgreSQL server: end it",
		slog.Int("pid", int(pid)), slog.String("who", who), slog.Time("open_since", *since))
}
