// Package postgres opens PostgreSQL for database/sql, which iceberg-go's SQL catalog requires. The
// event store uses pgx directly.
//
// Open returns a pool, WithLock runs a function under a lock of the database, and Denied and
// UndefinedTable classify errors.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/millrace/millrace/internal/stall"
)

const (
	keepAlive      = 5 * time.Minute // TCP keep-alive, as in pgx
	connectTimeout = 5 * time.Second // if the connection string has no timeout
	maxConnections = 8               // maximum number of connections; further callers wait
	idleTimeout    = time.Minute     // idle connections are closed after this

	// stallTimeout is how long a statement may run without any bytes moving. Statements here are
	// short; only one waits for another process that sets up the catalog.
	stallTimeout = 2 * time.Minute
)

// Open returns a pool for a connection string, which is a URL (postgres://user@host/database) or
// keywords (host=… dbname=…). A password that is not empty replaces the string's. Open does not
// connect. Its errors do not contain the password.
func Open(conn, password, application string) (*sql.DB, error) {
	return open(conn, password, application, stallTimeout)
}

// open is Open with a limit for stalled connections.
func open(conn, password, application string, stallTimeout time.Duration) (*sql.DB, error) {
	c, err := pgx.ParseConfig(conn)
	if err != nil {
		return nil, err
	}
	if password != "" {
		c.Password = password
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = application
	}
	c.DialFunc = stall.Dialer(&net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: keepAlive}, stallTimeout)
	// Statements arrive with their values inlined, so each text is different. Preparing them would
	// only fill caches.
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	db := stdlib.OpenDB(*c)
	db.SetMaxOpenConns(maxConnections)
	db.SetMaxIdleConns(maxConnections)
	db.SetConnMaxIdleTime(idleTimeout)
	return db, nil
}

// WithLock runs f under an advisory lock: no other process runs WithLock with this name in this
// database meanwhile. It uses one connection of db in addition to those that f uses.
func WithLock(ctx context.Context, db *sql.DB, name string, f func(context.Context) error) (err error) {
	// The lock belongs to the transaction and not to the session, so that it also works through a
	// connection pooler.
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("lock the database: %w", err)
	}
	defer func() {
		if end := tx.Rollback(); end != nil && !errors.Is(end, sql.ErrTxDone) {
			err = errors.Join(err, end)
		}
	}()
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext($1))", name); err != nil {
		return fmt.Errorf("lock the database: %w", err)
	}
	return f(ctx)
}

// Denied reports whether a statement failed because a privilege is missing.
func Denied(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42501"
}

// UndefinedTable reports whether a statement failed because a table does not exist.
func UndefinedTable(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42P01"
}
