package postgres

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/event"
)

// Files are applied in the order of their names; one that was released never changes.
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the schema to this version, and checks that it is the aggregate's. Instances of a service may start
// at once: the first holds the lock.
func migrate(ctx context.Context, conn *pgx.Conn, schema string, aggregate event.Aggregate) error {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", "millrace "+schema); err != nil {
			return fmt.Errorf("wait for other instances' migration: %w", err)
		}
		applied, err := prepareSchema(ctx, tx, schema)
		if err != nil {
			return err
		}
		if applied > len(files) {
			return fmt.Errorf("it has %d migrations and this version knows %d: start a newer version", applied, len(files))
		}
		for i, name := range files[applied:] {
			sql, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, string(sql)); err != nil {
				return fmt.Errorf("apply %s: %w", name, err)
			}
			if _, err := tx.Exec(ctx, "INSERT INTO migrations (number, name) VALUES ($1, $2)", applied+i+1, name); err != nil {
				return fmt.Errorf("apply %s: %w", name, err)
			}
		}
		return claim(ctx, tx, aggregate)
	})
}

// prepareSchema makes the schema where it is missing (an operator may have made it for a role that must not) and tells how
// many migrations it has.
func prepareSchema(ctx context.Context, tx pgx.Tx, schema string) (applied int, err error) {
	var encoding string
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_encoding')").Scan(&encoding); err != nil {
		return 0, fmt.Errorf("read the database's encoding: %w", err)
	}
	if encoding != "UTF8" { // it would refuse some batches, and with them their whole group
		return 0, fmt.Errorf("the database is encoded in %s: create it with ENCODING 'UTF8'", encoding)
	}
	var exists bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).Scan(&exists); err != nil {
		return 0, fmt.Errorf("look for the schema: %w", err)
	}
	if !exists {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
			return 0, fmt.Errorf("create the schema: %w", err)
		}
	}
	const table = "CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
	if _, err := tx.Exec(ctx, table); err != nil {
		return 0, fmt.Errorf("create the table of migrations: %w", err)
	}
	if err := tx.QueryRow(ctx, "SELECT coalesce(max(number), 0) FROM migrations").Scan(&applied); err != nil {
		return 0, fmt.Errorf("read what is migrated: %w", err)
	}
	return applied, nil
}

func claim(ctx context.Context, tx pgx.Tx, aggregate event.Aggregate) error {
	if _, err := tx.Exec(ctx, "INSERT INTO store (aggregate) VALUES ($1) ON CONFLICT DO NOTHING", aggregate.Name); err != nil {
		return fmt.Errorf("say whose store it is: %w", err)
	}
	var owner string
	if err := tx.QueryRow(ctx, "SELECT aggregate FROM store").Scan(&owner); err != nil {
		return fmt.Errorf("read whose store it is: %w", err)
	}
	if owner != aggregate.Name {
		return fmt.Errorf("it holds the events of %q, not of %q: give each service a schema of its own", owner, aggregate.Name)
	}
	return nil
}
