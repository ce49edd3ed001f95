package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// ScopeError reports that a query exceeds the caller's rights.
type ScopeError struct {
	Message string
	Table   string // the table that the query mentions, if known
}

// Error returns the message, which does not reveal whether a table exists.
func (e *ScopeError) Error() string { return e.Message }

// Only returns a SQL for a caller that may read some tables. Other tables do not exist for it, and
// neither does information about the engine or other callers' queries.
func (s *SQL) Only(may func(table string) bool) *SQL {
	scoped := *s
	scoped.may = may
	return &scoped
}

// visible limits a table function to the tables that the caller may read.
func (s *SQL) visible(resolve Tables) Tables {
	if s.may == nil {
		return resolve
	}
	return func(ctx context.Context, wanted func(string) bool) ([]Table, error) {
		tables, err := resolve(ctx, func(name string) bool { return s.may(name) && wanted(name) })
		return slices.DeleteFunc(slices.Clone(tables), func(t Table) bool { return !s.may(t.Name) }), err
	}
}

// A query of a caller with limited rights runs in a database that only has the tables that it may
// read, as a ClickHouse user that may only read this database. So ClickHouse itself enforces the
// limit, however a query refers to a table (see snapshots.acquire). The following is a second line
// of defence for what grants do not cover: information about the engine, and names of other
// databases on a shared server.

// tablesByString are table functions whose arguments name the table to read as a string.
var tablesByString = []string{
	"merge", "loop", "dictionary", "cluster", "clusterallreplicas", "remote", "remotesecure",
	"joinget", "joingetornull", "hascolumnintable",
}

// shown are the SHOW statements that only concern tables.
var shown = []string{"tables", "columns", "fields", "create", "full", "extended"}

// checkScope returns a ScopeError for a query that might reach beyond the caller's tables.
func (s *SQL) checkScope(query string) error {
	if s.may == nil {
		return nil
	}
	refuse := func(format string, args ...any) error {
		reason := fmt.Sprintf(format, args...)
		return &ScopeError{Message: reason + "; callers with rights to some tables may only read those (auth.rights)"}
	}
	var last token // the previous token other than space
	for t, ok := next(query, 0); ok; t, ok = next(query, t.end) {
		if t.kind == space {
			continue
		}
		text := t.text(query)
		name := strings.ToLower(strings.Trim(text, "`\""))
		switch {
		case t.kind == quoted && strings.Contains(text, `\`):
			return refuse("name %s contains a backslash", text)
		case (t.kind == word || t.kind == quoted) && strings.HasPrefix(name, clickhouse.ReaderPrefix):
			return refuse("name %s begins with %s", text, clickhouse.ReaderPrefix)
		case (t.kind == word || t.kind == quoted) && (name == "system" || name == "information_schema"):
			return refuse("%s shows information about the engine and other callers", text)
		case t.kind == word && slices.Contains(tablesByString, name) && significant(query, t.end).text(query) == "(",
			t.kind == word && strings.HasPrefix(name, "mergetree") && significant(query, t.end).text(query) == "(":
			return refuse("%s reads a table whose name is a string", text)
		case text == "{":
			return refuse("{ may insert a name that is not in the query")
		case strings.EqualFold(last.text(query), "show") && last.start == significant(query, 0).start &&
			!slices.Contains(shown, name):
			return refuse("SHOW %s shows information about the engine", text)
		}
		last = t
	}
	return nil
}

// missing returns the error for a table that does not exist for the caller, or nil if the caller
// may read everything or that table.
func (s *SQL) missing(table string) error {
	table = strings.TrimPrefix(strings.NewReplacer("`", "", `"`, "").Replace(table), Namespace+".")
	if s.may == nil || s.may(table) {
		return nil
	}
	return &ScopeError{Table: table, Message: fmt.Sprintf("this caller may not read table %q (auth.rights)", table)}
}
