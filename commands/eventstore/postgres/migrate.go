package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace/millrace/event"
)

// migrations are applied in the order of their names. The table migrations counts them, so a
// released file never changes.
//
//go:embed migrations/*.sql
var migrations embed.FS

// grants is executed after the migrations, each time.
//
//go:embed grants.sql
var grants string

// Migrate migrates the schema of aggregate's store to this version, and grants the roles of
// deploy/postgres/roles.sql the rights that they need. Open does the same if its role may.
// Otherwise run Migrate as the schema's owner.
func Migrate(ctx context.Context, conn string, aggregate event.Aggregate, opts ...Option) error {
	o := newOptions(aggregate, opts)
	config, err := o.parse(conn, aggregate)
	if err == nil {
		var c *pgx.Conn
		if c, err = pgx.ConnectConfig(ctx, config.ConnConfig); err == nil {
			err = errors.Join(migrate(ctx, c, o.schema, aggregate), c.Close(ctx))
		}
	}
	if err != nil {
		return fmt.Errorf("migrate event store of %s in PostgreSQL schema %s: %w", aggregate.Name, o.schema, err)
	}
	return nil
}

// ensureSchema checks that the schema belongs to the aggregate, has this version and is on its own
// server. If the schema is missing or older, it migrates it, provided that the role may.
func ensureSchema(ctx context.Context, conn *pgx.Conn, schema string, aggregate event.Aggregate) error {
	files, err := migrationFiles()
	if err != nil {
		return err
	}
	applied, err := countApplied(ctx, conn, len(files))
	if err != nil {
		return err
	}
	if applied == len(files) {
		return checkOwner(ctx, conn, schema, aggregate)
	}
	err = migrate(ctx, conn, schema, aggregate)
	if permissionDenied(err) {
		return fmt.Errorf("the schema has %d of %d migrations, and role %q may not migrate it: "+
			"run `millrace migrate` as its owner (see deploy/postgres/roles.sql): %w",
			applied, len(files), conn.Config().User, err)
	}
	return err
}

// permissionDenied reports whether the server refused a statement for lack of a privilege.
func permissionDenied(err error) bool {
	refused := (*pgconn.PgError)(nil)
	return errors.As(err, &refused) && refused.Code == "42501"
}

// migrationFiles returns the migrations in order, because Glob sorts names.
func migrationFiles() ([]string, error) { return fs.Glob(migrations, "migrations/*.sql") }

// querier is a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// countApplied returns how many migrations the schema has. It returns 0 if the schema or its table
// of migrations does not exist, and an error if the schema has more than are known.
func countApplied(ctx context.Context, conn querier, known int) (applied int, err error) {
	// A schema that the role may not use is not in its search path, so the table seems not to
	// exist.
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('migrations') IS NOT NULL").Scan(&exists); err != nil || !exists {
		return 0, err
	}
	if err := conn.QueryRow(ctx, "SELECT coalesce(max(number), 0) FROM migrations").Scan(&applied); err != nil {
		return 0, fmt.Errorf("read the applied migrations: %w", err)
	}
	if applied > known {
		return 0, fmt.Errorf("the schema has %d migrations, but this version of Millrace has %d: start a newer version",
			applied, known)
	}
	return applied, nil
}

// migrate migrates the schema to this version and checks that it belongs to the aggregate. An
// advisory lock serialises instances of a service that start at the same time.
func migrate(ctx context.Context, conn *pgx.Conn, schema string, aggregate event.Aggregate) error {
	files, err := migrationFiles()
	if err != nil {
		return err
	}
	// All migrations are in one transaction, so an interrupted one leaves nothing.
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		const lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
		if _, err := tx.Exec(ctx, lock, "millrace "+schema); err != nil {
			return fmt.Errorf("lock the schema against other migrations: %w", err)
		}
		if err := prepareSchema(ctx, tx, schema); err != nil {
			return err
		}
		// Count again under the lock: another instance may have migrated meanwhile.
		applied, err := countApplied(ctx, tx, len(files))
		if err != nil {
			return err
		}
		for i, name := range files[applied:] {
			sql, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, string(sql)); err != nil {
				return fmt.Errorf("apply %s: %w", name, err)
			}
			const record = "INSERT INTO migrations (number, name) VALUES ($1, $2)"
			if _, err := tx.Exec(ctx, record, applied+i+1, name); err != nil {
				return fmt.Errorf("apply %s: %w", name, err)
			}
		}
		const own = "INSERT INTO store (aggregate) VALUES ($1) ON CONFLICT DO NOTHING"
		if _, err := tx.Exec(ctx, own, aggregate.Name); err != nil {
			return fmt.Errorf("record the store's aggregate: %w", err)
		}
		if _, err := tx.Exec(ctx, grants); err != nil {
			return fmt.Errorf("grant privileges to the roles: %w", err)
		}
		return checkOwner(ctx, tx, schema, aggregate)
	})
}

// prepareSchema creates the schema if it does not exist. An operator may have created it for a role
// that may not.
func prepareSchema(ctx context.Context, tx pgx.Tx, schema string) error {
	var encoding string
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_encoding')").Scan(&encoding); err != nil {
		return fmt.Errorf("read the database's encoding: %w", err)
	}
	if encoding != "UTF8" { // it would refuse some texts, and with them their whole group
		return fmt.Errorf("the database has encoding %s: create it with ENCODING 'UTF8'", encoding)
	}
	var exists bool
	const selectSchema = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
	if err := tx.QueryRow(ctx, selectSchema, schema).Scan(&exists); err != nil {
		return fmt.Errorf("look up the schema: %w", err)
	}
	if !exists {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
			return fmt.Errorf("create the schema: %w", err)
		}
	}
	const table = "CREATE TABLE IF NOT EXISTS migrations " +
		"(number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
	if _, err := tx.Exec(ctx, table); err != nil {
		return fmt.Errorf("create the table of migrations: %w", err)
	}
	return nil
}

// selectStore also returns whether the transaction id of the last event is ahead of this server. If
// so, the positions are another server's.
const selectStore = `SELECT aggregate, server, (pg_control_system()).system_identifier,
       relation = 'events'::regclass::oid,
       coalesce((SELECT transaction >= pg_snapshot_xmax(pg_current_snapshot())
                 FROM events ORDER BY transaction DESC, position DESC LIMIT 1), false)
FROM store`

// checkOwner checks that the store is the aggregate's, and that it is on the server whose
// transaction ids its positions contain.
//
// A dump that is restored elsewhere keeps the old positions, but new events would get lower ones,
// and a relay that has passed them would never read those. A dump that is restored on the same
// server may lack what was written after it. A physical backup, and a replica that takes over,
// count as the same server. If they lack events, the relay notices it, because the log has them.
func checkOwner(ctx context.Context, conn querier, schema string, aggregate event.Aggregate) error {
	var owner string
	var origin, here int64    // identifiers of the server that created the schema, and of this one
	var same, fromFuture bool // whether the table was not restored from a dump; see selectStore
	if err := conn.QueryRow(ctx, selectStore).Scan(&owner, &origin, &here, &same, &fromFuture); err != nil {
		return fmt.Errorf("read the store's aggregate: %w", err)
	}
	switch {
	case owner != aggregate.Name:
		return fmt.Errorf("the schema contains events of %q, not of %q: use a separate schema for each service",
			owner, aggregate.Name)
	case fromFuture:
		return errors.New("the transaction ids of its events are ahead of this server's, " +
			"so new events would get lower positions: restore a physical backup (pg_basebackup), not a dump")
	case origin != here:
		return fmt.Errorf("the schema was created on PostgreSQL server %d, but this is server %d, "+
			"and positions contain the server's transaction ids: "+
			"after a restore, use a physical backup (pg_basebackup), not a dump; "+
			"after pg_upgrade, which keeps the ids, run as the schema's owner: UPDATE %s SET server = %d",
			origin, here, pgx.Identifier{schema, "store"}.Sanitize(), here)
	case !same:
		return fmt.Errorf("the tables were restored from a logical dump, "+
			"so events written after the dump may be missing: "+
			"restore a physical backup (pg_basebackup) instead; or, to keep the dump's events "+
			"(the relay compares them with the log before it publishes), "+
			"run as the schema's owner: UPDATE %s SET relation = 'events'::regclass, epoch = gen_random_uuid()",
			pgx.Identifier{schema, "store"}.Sanitize())
	}
	return nil
}
