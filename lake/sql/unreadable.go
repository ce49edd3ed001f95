package sql

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
)

// UnreadableError says that the engine cannot read a table as it is, such as one with a column of a
// type that it does not hold. Queries of other tables are not concerned.
type UnreadableError struct {
	Table string
	Err   error // the engine's reason
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("the SQL engine cannot read table %s as it is: %v", cmp.Or(e.Table, "(unknown)"), e.Err)
}

func (e *UnreadableError) Unwrap() error { return e.Err }

// passing are the engine's errors that are of its own state, and not of the table that it was asked
// to show.
var passing = map[int]bool{
	clickhouse.CodeUnknownDatabase: true, clickhouse.CodeAccessDenied: true, clickhouse.CodeTimeout: true,
	clickhouse.CodeMemoryLimit: true,
}

// refusedTable reports whether the engine refuses a table for what it is. What may pass, such as a
// store that is away, is not of the table.
func refusedTable(err error) bool {
	e := new(clickhouse.Error)
	return errors.As(err, &e) && !gone(err) && !passing[e.Code] && !e.Busy() && (!ours[e.Code] || refused(e))
}

// unreadable returns the error of a query that failed because it names a table that the snapshot
// was made without; nil where it did not.
func (s *snapshot) unreadable(query string, err error) error {
	e := new(clickhouse.Error)
	if !errors.As(err, &e) || e.Code != clickhouse.CodeUnknownTable && e.Code != clickhouse.CodeUnknownDatabase {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.refused)) {
		if mentions(query, name) {
			return &UnreadableError{name, s.refused[name]}
		}
	}
	return nil
}

// tableOf returns the table that a file belongs to; empty if it is none of the snapshot's.
func (s *snapshot) tableOf(file string) string {
	for _, t := range s.pinned {
		_, path, _ := strings.Cut(t.Location, "://")
		if path == "" {
			path = t.Location
		}
		if strings.Contains(file, strings.Trim(path, "/")+"/") {
			return t.Name
		}
	}
	return ""
}

// Bounds of what is remembered of refused tables.
const (
	mostRefusals = 100
	refusalHolds = time.Hour
)

// refusals are the tables that the engine has refused of late.
type refusals struct {
	mu sync.Mutex
	by map[string]refusal
}

type refusal struct {
	err error
	at  time.Time
}

// put notes how the engine took a table: a nil error says that it reads it.
func (r *refusals) put(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.by, name)
		return
	}
	if r.by == nil {
		r.by = map[string]refusal{}
	}
	if _, had := r.by[name]; had || len(r.by) < mostRefusals {
		r.by[name] = refusal{err, time.Now()}
	}
}

// Unreadable returns the tables that the engine could not read when it was last shown them, in the
// past hour.
func (s *SQL) Unreadable() (all []*UnreadableError) {
	r := &s.snapshot.refusals
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, is := range r.by {
		if time.Since(is.at) > refusalHolds {
			delete(r.by, name)
			continue
		}
		all = append(all, &UnreadableError{name, is.err})
	}
	slices.SortFunc(all, func(a, b *UnreadableError) int { return strings.Compare(a.Table, b.Table) })
	return all
}
