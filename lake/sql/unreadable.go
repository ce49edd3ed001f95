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

// UnreadableError reports that the engine cannot read a table in its current form, for example
// because of an unsupported column type. Queries of other tables are not affected.
type UnreadableError struct {
	Table string
	Err   error // the engine's reason
}

// Error names the table and the engine's reason.
func (e *UnreadableError) Error() string {
	return fmt.Sprintf("the SQL engine cannot read table %s: %v", cmp.Or(e.Table, "(unknown)"), e.Err)
}

// Unwrap returns the engine's reason.
func (e *UnreadableError) Unwrap() error { return e.Err }

// transient are errors about the engine's own state, not about a table that it is asked to create.
var transient = map[int]bool{
	clickhouse.CodeUnknownDatabase: true, clickhouse.CodeAccessDenied: true, clickhouse.CodeTimeout: true,
	clickhouse.CodeMemoryLimit: true,
}

// refusedTable reports whether the engine refuses a table for what it is. Temporary errors, such as
// an unreachable store, do not count.
func refusedTable(err error) bool {
	e := new(clickhouse.Error)
	return errors.As(err, &e) && !isGone(err) && !transient[e.Code] && !e.Busy() &&
		(!engineErrors[e.Code] || refused(e))
}

// unreadable returns the error for a query that failed because it refers to a table that the engine
// refused, or nil.
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

// tableOf returns the name of the table that a file belongs to, or "".
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

// Limits of the record of refused tables.
const (
	maxRefusals = 100
	refusalTTL  = time.Hour
)

// refusals has the tables that the engine refused recently.
type refusals struct {
	mu sync.Mutex
	by map[string]refusal
}

// refusal is the engine's reason to refuse a table, and when it last did.
type refusal struct {
	err error
	at  time.Time
}

// put records the result of showing a table to the engine. A nil error means that it can read the
// table.
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
	// Known tables are updated, new ones only up to the limit.
	if _, had := r.by[name]; had || len(r.by) < maxRefusals {
		r.by[name] = refusal{err, time.Now()}
	}
}

// Unreadable returns the tables that the engine could not read when they were last shown to it,
// within the past hour.
func (s *SQL) Unreadable() (all []*UnreadableError) {
	r := &s.snapshot.refusals
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, is := range r.by {
		if time.Since(is.at) > refusalTTL {
			delete(r.by, name)
			continue
		}
		all = append(all, &UnreadableError{name, is.err})
	}
	slices.SortFunc(all, func(a, b *UnreadableError) int { return strings.Compare(a.Table, b.Table) })
	return all
}
