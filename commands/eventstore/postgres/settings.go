package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace/millrace/internal/settings"
)

// setting is a server setting that the store relies on.
type setting struct {
	want   string // the right value, for people
	remedy string // how to set it
	fatal  bool   // see settings.Fault
	// wrong returns the effect of a value, or "" if the value is right.
	wrong func(value string) (effect string)
}

// oneOf returns a check that accepts the given values.
func oneOf(effect string, values ...string) func(string) string {
	return func(value string) string {
		if slices.Contains(values, value) {
			return ""
		}
		return effect
	}
}

// atLeast returns a check for a timeout in milliseconds. It accepts 0, which means no timeout, and
// values of at least least.
func atLeast(least time.Duration, effect string) func(string) string {
	return func(value string) string {
		ms, err := strconv.ParseInt(value, 10, 64)
		if err != nil || ms == 0 || time.Duration(ms)*time.Millisecond >= least {
			return ""
		}
		return effect
	}
}

// checkedSettings are the settings that Settings checks, by name. The server's own settings can
// lose acknowledged events. Settings of a role or a database can interrupt the store's work.
var checkedSettings = map[string]setting{
	// Settings of the server that its own durability depends on.
	"fsync": {"on", "ALTER SYSTEM SET fsync = on", true,
		oneOf("a power cut loses acknowledged events, or damages the database", "on")},
	"full_page_writes": {"on", "ALTER SYSTEM SET full_page_writes = on", true,
		oneOf("a power cut may damage the database", "on")},
	"synchronous_commit": {"on",
		"ALTER ROLE … RESET synchronous_commit, or ALTER SYSTEM SET synchronous_commit = on", true,
		oneOf("a crash of the server loses acknowledged events", "on", "local", "remote_write", "remote_apply")},
	"default_transaction_read_only": {"off", "ALTER ROLE … SET default_transaction_read_only = off", false,
		oneOf("every append fails", "off")},
	// Timeouts must leave room for the store's own limits.
	"statement_timeout": {"0, or at least " + groupTimeout.String(), "ALTER ROLE … SET statement_timeout = 0", false,
		atLeast(groupTimeout, "appends and long reads are aborted on a busy server")},
	"lock_timeout": {"0, or at least 5s", "ALTER ROLE … SET lock_timeout = 0", false,
		atLeast(5*time.Second, "appends fail if two processes write to one stream")},
	"idle_session_timeout": {"0, or at least 1m", "ALTER ROLE … SET idle_session_timeout = 0", false,
		atLeast(time.Minute, "idle connections break")},
}

// Settings returns a fault for each setting, as seen by the store's role, that is not what the
// store relies on.
func (s *Store) Settings(ctx context.Context) ([]settings.Fault, error) {
	ctx, leave, err := s.enter(ctx, s.options.queryTimeout)
	if err != nil {
		return nil, err
	}
	defer leave()
	names := make([]string, 0, len(checkedSettings))
	for name := range checkedSettings {
		names = append(names, name)
	}
	rows, err := s.reads.Query(ctx, "SELECT name, setting FROM pg_settings WHERE name = ANY($1) ORDER BY name", names)
	if err != nil {
		return nil, fmt.Errorf("query PostgreSQL settings: %w", err)
	}
	var faults []settings.Fault
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		if c := checkedSettings[name]; c.wrong(value) != "" {
			faults = append(faults, settings.Fault{
				Resource: "postgres, store of " + s.aggregate.Service, Setting: name, Value: value, Want: c.want,
				Effect: c.wrong(value), Remedy: c.remedy, Fatal: c.fatal,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("query PostgreSQL settings: %w", err)
	}
	return faults, nil
}
