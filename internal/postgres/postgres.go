// Package postgres opens PostgreSQL for database/sql, which iceberg-go's catalog needs. The event
// store uses pgx directly.
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
	keepAlive      = 5 * time.Minute // pgx's own
	connectTimeout = 5 * time.Second // where the connection string says nothing
	connections    = 8               // at most; the rest wait
	idle           = time.Minute

	// silent is how long a statement may bring nothing. They are short here; one waits for another
	// process that has something to set up.
	silent = 2 * time.Minute
)

// Open returns a pool of connections by a connection string, a URL (postgres://user@host/database)
// or keywords (host=… dbname=…). A password that is not empty takes the place of the string's.
// Nothing is connected yet. No error shows a password.
func Open(conn, password, application string) (*sql.DB, error) {
	return open(conn, password, application, silent)
}

func open(conn, password, application string, silent time.Duration) (*sql.DB, error) {
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
	c.DialFunc = stall.Dialer(&net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: keepAlive}, silent)
	// The statements come with their values inside, each another text: preparing them would only
	// fill caches.
	c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	db := stdlib.OpenDB(*c)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxIdleTime(idle)
	return db, nil
}

// Alone runs f while no other process that uses Alone with this name in this database does. It
// costs a connection of db beside those that f uses.
func Alone(ctx context.Context, db *sql.DB, name string, f func(context.Context) error) (err error) {
	// The lock is the transaction's, not the session's, so that it works through a connection
	// pooler too.
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("wait for other processes: %w", err)
	}
	defer func() {
		if end := tx.Rollback(); end != nil && !errors.Is(end, sql.ErrTxDone) {
			err = errors.Join(err, end)
		}
	}()
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext($1))", name); err != nil {
		return fmt.Errorf("wait for other processes: %w", err)
	}
	return f(ctx)
}

// Denied reports whether a statement failed because a right is missing.
func Denied(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42501"
}

// NoTable reports whether a statement failed for a table that is not there.
func NoTable(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42P01"
}
