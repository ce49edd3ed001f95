// Package sql runs ClickHouse SQL on the lake's tables, and on those of features beside them.
//
// A query sees all tables at one moment: table names are resolved to the catalog's current metadata
// files when the query starts, and later commits do not affect it. The resolved tables form a
// snapshot, which is a database of the engine (see snapshot.go). Queries that resolve to the same
// state share a snapshot.
//
// Queries come from users, so they can read the lake's tables and nothing else. One statement is
// allowed: SELECT, SHOW, DESCRIBE, EXPLAIN or EXISTS. Writing, changing settings, table functions
// that open files or connections (file, url, s3, remote, icebergLocal, …), the function file, and
// INTO OUTFILE are refused. The engine enforces this, not this package: see clickhouse.Reader.
// Callers with limited rights get a database of their own: see Only.
//
// Errors distinguish faults of the query (QueryError, ScopeError) from those of a table
// (UnreadableError, ErrLost) and from temporary conditions (ErrBusy, ErrCatalog).
package sql

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
)

// Table is an Iceberg table at one moment, as the catalog knows it.
type Table struct {
	Name             string // as in queries: "order_lines", or "web.clicks" in another namespace
	MetadataLocation string // path or URL of the metadata file, below Location
	Location         string // path or URL of the table's folder
	TimePartitions   bool   // partitioned by the hour, day, month or year of a column

	definition string // hash of the definition of a table of features; see features.go
}

// Namespace is the optional qualifier of own tables in queries: millrace.order_lines.
const Namespace = "millrace"

// Output formats.
const (
	FormatTable = "table" // for reading: at most MaxTableRows rows
	// FormatJSON is one object per line. All numbers are JSON numbers, times are in ISO 8601, and
	// NaN and infinities are null.
	FormatJSON = "json"
	FormatCSV  = "csv" // with header; null is empty, the empty string is ""
	// FormatParquet is a Parquet file with the types of the columns. It is complete before its first
	// byte is sent.
	FormatParquet = "parquet"
)

// S3 describes how the engine accesses tables in an object store.
type S3 struct {
	// Endpoint is http(s)://host:port, used with path-style addressing. If it is empty, Amazon's
	// endpoint of the region is used.
	Endpoint             string
	Region               string
	AccessKey, SecretKey string // empty: the engine's own environment
}

// Tables returns the tables that exist when a query starts. Tables that are expensive to find may
// be omitted unless wanted, which reports whether the query mentions them.
type Tables func(ctx context.Context, wanted func(name string) bool) ([]Table, error)

// SQL runs queries. It is safe for concurrent use.
type SQL struct {
	tables   Tables
	reader   *clickhouse.Client
	store    S3
	snapshot *snapshots
	may      func(table string) bool // rights to tables; nil: all
}

// New returns a SQL over the tables of a function, which is called for every query. The client acts
// as clickhouse.Admin, on the embedded engine or on a server; users' queries run as
// clickhouse.Reader. The store is needed for s3:// tables. Its secret is only sent to the engine
// and never appears in errors, plans or answers.
func New(tables Tables, client *clickhouse.Client, store S3) *SQL {
	return &SQL{
		tables: tables, reader: client.As(clickhouse.Reader), store: store, snapshot: newSnapshots(client, store),
	}
}

// QueryError reports that the query is at fault.
type QueryError struct {
	Message string
	Tables  []string // existing tables, if the query refers to one that does not exist
	cause   error
}

// Error returns the message, with the existing tables if that helps.
func (e *QueryError) Error() string {
	if len(e.Tables) == 0 {
		return e.Message
	}
	return e.Message + "; the tables are: " + strings.Join(e.Tables, ", ")
}

// Unwrap returns the engine's error.
func (e *QueryError) Unwrap() error { return e.cause }

// ErrBusy reports that the engine has reached its limit of concurrent queries. The query did not
// start.
var ErrBusy = errors.New("the SQL engine is busy; try again later")

// ErrCatalog reports that the tables could not be resolved because the catalog does not answer. The
// query may succeed later.
var ErrCatalog = errors.New("resolve the tables")

// ErrLost reports that files of a table that the query reads are missing, even after repeated
// attempts.
var ErrLost = errors.New("files of a table are missing")

// attempts is how often a query is tried if files of its tables are deleted between resolution and
// start.
const attempts = 3

// Run runs one reading statement and returns its answer in the given format. The caller must close
// the answer. If the query is at fault, the error is a *QueryError, from Run or later from Read.
// Cancelling ctx or closing the answer ends the query.
func (s *SQL) Run(ctx context.Context, query, format string) (io.ReadCloser, error) {
	return s.tryRun(ctx, s.withFeatures(s.tables), query, format)
}

// tryRun runs a query and resolves its tables again if their files disappear before it starts.
func (s *SQL) tryRun(ctx context.Context, tables Tables, query, format string) (io.ReadCloser, error) {
	var err error
	for range attempts {
		var answer io.ReadCloser
		answer, err = s.run(ctx, tables, query, format)
		if err == nil {
			return answer, nil
		}
		if !isGone(err) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrLost, err)
}

// run resolves the tables, acquires their snapshot, and starts the query in it. The answer holds
// the snapshot until it is closed.
func (s *SQL) run(ctx context.Context, resolve Tables, query, format string) (io.ReadCloser, error) {
	f, ok := formats[format]
	if !ok {
		names := strings.Join(slices.Sorted(maps.Keys(formats)), ", ")
		return nil, &QueryError{Message: fmt.Sprintf("unknown output format %q; the formats are %s", format, names)}
	}
	// Callers with limited rights: refuse suspicious queries before anything is resolved.
	if err := s.checkScope(query); err != nil {
		return nil, err
	}
	tables, err := s.visible(resolve)(ctx, func(name string) bool { return mentions(query, name) })
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCatalog, err)
	}
	snap, err := s.snapshot.acquire(ctx, tables, s.may != nil)
	if e := (*clickhouse.Error)(nil); errors.As(err, &e) && e.Busy() {
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	// The format's own settings are shared by all queries.
	settings := maps.Clone(f.settings)
	settings["database"] = snap.database
	maps.Copy(settings, storeSettings)
	lower := strings.ToLower(query)
	// Such functions may read tables that the query does not mention by identifier.
	anyTable := slices.ContainsFunc(tablesByString, func(function string) bool { return mentions(lower, function) })
	readsTimePartitions := slices.ContainsFunc(tables, func(t Table) bool {
		return t.TimePartitions && (anyTable || mentions(query, t.Name))
	})
	if readsTimePartitions {
		maps.Copy(settings, withoutPruning)
	}
	if firstWord(query) == "explain" {
		delete(settings, "limit") // it would appear in the plan
	}
	qualified := qualify(query, snap.database, snap.others())
	body, err := s.reader.As(snap.reader).Query(ctx, qualified, f.clickhouse, settings)
	if err != nil {
		s.snapshot.release(snap)
		if isGone(err) {
			s.snapshot.forget(snap)
		}
		if err := snap.unreadable(query, err); err != nil {
			return nil, err
		}
		return nil, s.explain(err, snap)
	}
	answer := &answer{sql: s, body: body, snap: snap, release: sync.OnceFunc(func() { s.snapshot.release(snap) })}
	if f.render == nil {
		return answer, nil
	}
	return f.render(answer)
}

// withoutPruning disables partition pruning. ClickHouse limits partition days to its Date type,
// 1970 to 2149, and so wrongly skips files with earlier and later times (ClickHouse issue 119579).
var withoutPruning = map[string]string{"use_iceberg_partition_pruning": "0"}

// Lost reports whether an answer broke off because files of a table are missing.
func Lost(err error) bool { return isGone(err) }

// isGone reports whether another attempt may succeed: the engine was restarted and has lost our
// databases, or maintenance deleted files between resolution and start.
func isGone(err error) bool {
	e := new(clickhouse.Error)
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case clickhouse.CodeUnknownDatabase:
		return strings.Contains(e.Message, clickhouse.ReaderPrefix)
	case clickhouse.CodeFileDoesntExist:
		return true
	case clickhouse.CodeStd:
		return strings.Contains(e.Message, "No such file")
	case clickhouse.CodeS3:
		return strings.Contains(e.Message, "HTTP response code: 404") || strings.Contains(e.Message, "does not exist")
	}
	return false
}

// Patterns of ClickHouse's error messages. They only improve messages: if one does not match, the
// original text is shown.
var (
	unknownTable   = regexp.MustCompile("(?:Unknown table expression identifier '|Table )([^' ]+)(?:'| does not exist)")
	neededGrant    = regexp.MustCompile(`it's necessary to have the grant (.*)$`)
	badDate        = regexp.MustCompile(`Input value (-?\d+) is out of allowed Date32 range.* column: ([^:]+):`)
	expectedTokens = regexp.MustCompile(`(?s)\. Expected one of: .*`)
)

// explain converts an error of ClickHouse to the user's terms.
func (s *SQL) explain(err error, snap *snapshot) error {
	s.store.hide(err)
	e := new(clickhouse.Error)
	if errors.As(err, &e) && e.Code == clickhouse.CodeAuthentication && s.reader.External() {
		return fmt.Errorf("run the query: %w; "+
			"queries run as the user %s, which an administrator of ClickHouse must create: %s",
			err, snap.reader, clickhouse.ReaderSetup(snap.reader))
	}
	switch {
	case !errors.As(err, &e):
		return fmt.Errorf("run the query: %w", err)
	case e.Busy():
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case damagedFile(e) != "":
		return &UnreadableError{snap.tableOf(damagedFile(e)), err}
	case engineErrors[e.Code] && !refused(e):
		return fmt.Errorf("run the query: %w", err)
	}
	// Users know the namespace, not the database of the snapshot.
	message := strings.ReplaceAll(inFile.ReplaceAllString(e.Message, ""), snap.database, Namespace)
	q := &QueryError{Message: strings.TrimSuffix(message, "."), cause: err}
	if m := badDate.FindStringSubmatch(e.Message); m != nil {
		days, _ := strconv.ParseInt(m[1], 10, 32) // digits; no table has values beyond 32 bits
		q.Message = fmt.Sprintf("column %s has the date %s, and ClickHouse only supports the years 1900 to 2299; "+
			"omit the column, or read it with another engine",
			m[2], time.Unix(days*86_400, 0).UTC().Format(time.DateOnly))
	}
	switch e.Code {
	case clickhouse.CodeStd:
		q.Message = "a function of this query failed with these arguments, " +
			"or needs a model, dictionary, certificate or program, which are not available here"
	case clickhouse.CodeSyntax:
		q.Message = expectedTokens.ReplaceAllString(q.Message, "")
	case clickhouse.CodeAccessDenied:
		if m := neededGrant.FindStringSubmatch(q.Message); m != nil {
			if s.may != nil && (strings.HasPrefix(m[1], "SELECT") || strings.HasPrefix(m[1], "SHOW")) {
				return &ScopeError{Message: "this query reads tables that its caller may not read (auth.rights)"}
			}
			q.Message = "only the lake's tables can be read; this query needs the grant " + m[1]
		}
	case clickhouse.CodeUnknownTable:
		if m := unknownTable.FindStringSubmatch(q.Message); m != nil {
			if err := s.missing(m[1]); err != nil {
				return err
			}
			q.Message = fmt.Sprintf("unknown table %q", m[1])
		}
		q.Tables = snap.tables
	case clickhouse.CodeUnknownDatabase:
		q.Tables = snap.tables
	}
	return q
}

// answer is the output of a query. It holds its snapshot until it is closed, and explains errors
// that occur while it is read.
type answer struct {
	sql     *SQL
	body    io.ReadCloser
	snap    *snapshot
	release func()
}

// Read reads the output and explains errors.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = a.sql.explain(err, a.snap)
	}
	return n, err
}

// Close ends the query and releases its snapshot.
func (a *answer) Close() error {
	defer a.release()
	return a.body.Close()
}
