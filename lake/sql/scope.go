package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// ScopeError says that a query is more than its caller may ask.
type ScopeError struct {
	Message string
	Table   string // that was named, where one was
}

func (e *ScopeError) Error() string { return e.Message }

// Only is s for a caller who may read some tables: the others are not there for it, nor is anything
// that the engine tells of itself or of what others read.
func (s *SQL) Only(may func(table string) bool) *SQL {
	scoped := *s
	scoped.may = may
	return &scoped
}

// visible returns the tables that the caller may read.
func (s *SQL) visible(resolve Tables) Tables {
	if s.may == nil {
		return resolve
	}
	return func(ctx context.Context, wanted func(string) bool) ([]Table, error) {
		tables, err := resolve(ctx, func(name string) bool { return s.may(name) && wanted(name) })
		return slices.DeleteFunc(slices.Clone(tables), func(t Table) bool { return !s.may(t.Name) }), err
	}
}

// A query of somebody who may not read everything runs in a database with just the tables it may
// read, as a user who may read nothing but that database: ClickHouse itself holds the bound, in
// whatever way a query comes to a table (snapshots.acquire). What follows is a second wall before
// it, for what users and their grants do not cover: what the engine tells of itself, and names of
// other databases on a server that several processes ask.

// byText are functions that read what a text names.
var byText = []string{
	"merge", "loop", "dictionary", "cluster", "clusterallreplicas", "remote", "remotesecure", "joinget", "joingetornull", "hascolumnintable",
}

var shown = []string{"tables", "columns", "fields", "create", "full", "extended"}

// inScope refuses a query that may reach beyond the tables that its caller may read.
func (s *SQL) inScope(query string) error {
	if s.may == nil {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return &ScopeError{Message: fmt.Sprintf(format, args...) + ": who may read some tables only asks nothing but these (auth.rights)"}
	}
	var last token
	for t, ok := next(query, 0); ok; t, ok = next(query, t.end) {
		if t.kind == space {
			continue
		}
		text := t.text(query)
		name := strings.ToLower(strings.Trim(text, "`\""))
		switch {
		case t.kind == quoted && strings.Contains(text, `\`):
			return refuse("the name %s holds a backslash", text)
		case (t.kind == word || t.kind == quoted) && strings.HasPrefix(name, clickhouse.ReaderPrefix):
			return refuse("the name %s begins with %s", text, clickhouse.ReaderPrefix)
		case (t.kind == word || t.kind == quoted) && (name == "system" || name == "information_schema"):
			return refuse("%s tells of the engine and of what others ask", text)
		case t.kind == word && slices.Contains(byText, name) && significant(query, t.end).text(query) == "(",
			t.kind == word && strings.HasPrefix(name, "mergetree") && significant(query, t.end).text(query) == "(":
			return refuse("%s reads what a text names", text)
		case text == "{":
			return refuse("{ stands for a name that is not in the query")
		case strings.EqualFold(last.text(query), "show") && last.start == significant(query, 0).start && !slices.Contains(shown, name):
			return refuse("SHOW %s tells of the engine", text)
		}
		last = t
	}
	return nil
}

// missing is the error for a table that a caller names who may not read everything; nil where it may read that one, or
// is free.
func (s *SQL) missing(table string) error {
	table = strings.TrimPrefix(strings.NewReplacer("`", "", `"`, "").Replace(table), Namespace+".")
	if s.may == nil || s.may(table) {
		return nil
	}
	return &ScopeError{Table: table, Message: fmt.Sprintf("the table %q is not among those that this caller may read (auth.rights)", table)}
}
