package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Table defines a table of a Store: both its DDL and the columns of its inserts.
type Table struct {
	Database, Name string
	Columns        []Column
	// Engine is a table engine of the MergeTree family. Empty means MergeTree.
	Engine string
	// EngineArgs are the arguments of the engine, such as the version column of a
	// ReplacingMergeTree. On a cluster, they follow those of replication.
	EngineArgs  []string
	OrderBy     []string // expressions; none means no order
	PartitionBy string   // expression; empty means one partition
	TTL         string   // expression, such as "at + toIntervalDay(90)"; empty means none
	// Window is the number of inserts whose tokens are remembered. 0 means DefaultWindow.
	Window   int
	Settings map[string]string // of the engine, as they are in SQL
	Comment  string
}

// Column is a column of a table.
type Column struct {
	Name, Type string
	// Default is empty, or "DEFAULT expr", "MATERIALIZED expr" or "ALIAS expr".
	Default string
	Codec   string // empty means the server's, "ZSTD(1)" for example
}

// inserted reports whether inserts contain the column.
func (c Column) inserted() bool {
	kind, _, _ := strings.Cut(strings.TrimSpace(strings.ToUpper(c.Default)), " ")
	return kind != "MATERIALIZED" && kind != "ALIAS"
}

// DefaultWindow is the number of inserts whose tokens a table remembers. ClickHouse itself remembers
// none without replication, and then tokens have no effect.
const DefaultWindow = 10_000

// tokenDays is how long a replicated table remembers tokens. ClickHouse's default is an hour, which
// is shorter than an outage.
const tokenDays = 7

// plainName matches names that need no quotes.
var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ErrSchema means that a table exists with other columns than its definition.
var ErrSchema = errors.New("the table does not have the columns of its definition")

// FullName returns the quoted name, with the database.
func (t Table) FullName() string { return quoteName(t.Database) + "." + quoteName(t.Name) }

// check returns an error that names the part of the definition that is wrong.
func (t Table) check() error {
	switch {
	case !plainName.MatchString(t.Database):
		return fmt.Errorf("ClickHouse table %q: database %q is not a plain name", t.Name, t.Database)
	case !plainName.MatchString(t.Name):
		return fmt.Errorf("ClickHouse table: %q is not a plain name", t.Name)
	case len(t.Columns) == 0:
		return fmt.Errorf("ClickHouse table %s: it has no columns", t.Name)
	case t.Engine != "" && (!plainName.MatchString(t.Engine) || !strings.HasSuffix(t.Engine, "MergeTree")):
		return fmt.Errorf("ClickHouse table %s: engine %q is not of the MergeTree family", t.Name, t.Engine)
	case strings.HasPrefix(t.Engine, "Replicated"):
		return fmt.Errorf("ClickHouse table %s: engine %s: name it without Replicated; clickhouse.cluster adds it",
			t.Name, t.Engine)
	case t.Window < 0:
		return fmt.Errorf("ClickHouse table %s: window %d is negative", t.Name, t.Window)
	}
	seen := map[string]bool{}
	for _, c := range t.Columns {
		switch {
		case !plainName.MatchString(c.Name):
			return fmt.Errorf("ClickHouse table %s: column %q is not a plain name", t.Name, c.Name)
		case seen[c.Name]:
			return fmt.Errorf("ClickHouse table %s: column %s is defined twice", t.Name, c.Name)
		case c.Type == "":
			return fmt.Errorf("ClickHouse table %s: column %s has no type", t.Name, c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

// DDL returns the statement that creates the table, on a cluster if its name is not empty.
func (t Table) DDL(cluster string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TABLE IF NOT EXISTS %s%s (\n", t.FullName(), onCluster(cluster))
	for i, c := range t.Columns {
		fmt.Fprintf(&b, "  %s %s", quoteName(c.Name), c.Type)
		if c.Default != "" {
			b.WriteString(" " + c.Default)
		}
		if c.Codec != "" {
			fmt.Fprintf(&b, " CODEC(%s)", c.Codec)
		}
		if i < len(t.Columns)-1 {
			b.WriteString(",")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, ") ENGINE = %s\n", t.engine(cluster))
	if t.PartitionBy != "" {
		fmt.Fprintf(&b, "PARTITION BY %s\n", t.PartitionBy)
	}
	fmt.Fprintf(&b, "ORDER BY (%s)\n", strings.Join(t.OrderBy, ", "))
	if t.TTL != "" {
		fmt.Fprintf(&b, "TTL %s\n", t.TTL)
	}
	settings := t.settings(cluster)
	list := make([]string, 0, len(settings))
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		list = append(list, name+" = "+settings[name])
	}
	b.WriteString("SETTINGS " + strings.Join(list, ", "))
	if t.Comment != "" {
		b.WriteString("\nCOMMENT " + quote(t.Comment))
	}
	return b.String()
}

// engine returns the engine with its arguments.
func (t Table) engine(cluster string) string {
	name, args := t.Engine, slices.Clone(t.EngineArgs)
	if name == "" {
		name = "MergeTree"
	}
	if cluster != "" {
		// The server replaces the macros. Replicas of one shard share a path.
		path := "/clickhouse/tables/{shard}/" + t.Database + "/" + t.Name
		name, args = "Replicated"+name, append([]string{quote(path), quote("{replica}")}, args...)
	}
	return name + "(" + strings.Join(args, ", ") + ")"
}

// settings returns the settings of the engine, with the deduplication of inserts by token.
func (t Table) settings(cluster string) map[string]string {
	window := t.Window
	if window == 0 {
		window = DefaultWindow
	}
	settings := map[string]string{}
	if cluster == "" {
		settings["non_replicated_deduplication_window"] = strconv.Itoa(window)
	} else {
		settings["replicated_deduplication_window"] = strconv.Itoa(window)
		settings["replicated_deduplication_window_seconds"] = strconv.Itoa(tokenDays * 24 * 60 * 60)
	}
	maps.Copy(settings, t.Settings)
	return settings
}

// onCluster returns the clause that runs DDL on all replicas.
func onCluster(cluster string) string {
	if cluster == "" {
		return ""
	}
	return " ON CLUSTER " + quoteName(cluster)
}

// CreateTable creates a table and its database, unless they exist. If the table exists with other
// columns, the error is an ErrSchema.
func (s *Store) CreateTable(ctx context.Context, t Table) error {
	if err := t.check(); err != nil {
		return err
	}
	database := "CREATE DATABASE IF NOT EXISTS " + quoteName(t.Database) + onCluster(s.cluster)
	if err := s.Exec(ctx, database); err != nil {
		return fmt.Errorf("create ClickHouse database %s: %w", t.Database, err)
	}
	if err := s.Exec(ctx, t.DDL(s.cluster)); err != nil {
		return fmt.Errorf("create ClickHouse table %s.%s: %w", t.Database, t.Name, err)
	}
	return s.checkColumns(ctx, t)
}

// checkColumns compares the columns of an existing table with its definition. Further columns that
// the definition does not have are allowed.
func (s *Store) checkColumns(ctx context.Context, t Table) error {
	rows, err := s.Query(ctx, "SELECT name, type FROM system.columns WHERE database = ? AND table = ?",
		t.Database, t.Name)
	if err != nil {
		return fmt.Errorf("columns of ClickHouse table %s.%s: %w", t.Database, t.Name, err)
	}
	types := map[string]string{}
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			return errors.Join(err, rows.Close())
		}
		types[name] = kind
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("columns of ClickHouse table %s.%s: %w", t.Database, t.Name, err)
	}
	for _, c := range t.Columns {
		switch have := types[c.Name]; {
		case have == "":
			return fmt.Errorf("ClickHouse table %s.%s: %w: it has no column %s", t.Database, t.Name, ErrSchema, c.Name)
		case withoutSpace.Replace(have) != withoutSpace.Replace(c.Type):
			return fmt.Errorf("ClickHouse table %s.%s: %w: column %s is %s, not %s", t.Database, t.Name, ErrSchema,
				c.Name, have, c.Type)
		}
	}
	return nil
}

// withoutSpace removes spaces, which do not distinguish types.
var withoutSpace = strings.NewReplacer(" ", "")

// quote returns s as a string literal, and quoteName as a quoted identifier.
func quote(s string) string     { return "'" + sqlEscapes.Replace(s) + "'" }
func quoteName(s string) string { return "`" + sqlEscapes.Replace(s) + "`" }

// sqlEscapes escapes the content of literals and quoted identifiers.
var sqlEscapes = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "`", "\\`")
