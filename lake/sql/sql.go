// Package sql runs ClickHouse's SQL over the lake's tables by their names. It exists so that a
// query sees every table at one moment: names are resolved to the catalog's present metadata files
// when the query comes, and what lands while it runs does not reach it.
//
// The door is open to whoever reaches the gateway, so a query reads the lake's tables and nothing
// else: one statement of SELECT, SHOW, DESCRIBE, EXPLAIN or EXISTS. Refused are writing, changing
// settings, table functions that open files or the network (file, url, s3, remote, icebergLocal,
// …), the function file, and INTO OUTFILE. The engine holds that, not this package: see
// clickhouse.Reader.
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

// Table is an Iceberg table as its catalog knows it at one moment.
type Table struct {
	Name             string // as queries address it: "order_lines", or with its namespace where that is another: "web.clicks"
	MetadataLocation string // path or file:// URL of the metadata file, below Location
	Location         string // path or file:// URL of the table's folder
	TimePartitions   bool   // its files are spread by the hour, day, month or year of a column
}

// Namespace may stand before a table's name: millrace.order_lines.
const Namespace = "millrace"

// Formats of answers.
const (
	FormatTable = "table" // for people: at most MaxTableRows rows
	FormatJSON  = "json"  // one object a line; numbers of every size as numbers, times in ISO 8601, what is not finite as null
	FormatCSV   = "csv"   // with a header; null is empty, an empty string is ""
)

// S3 says how the engine reaches tables in an object store.
type S3 struct {
	Endpoint             string // http(s)://host:port, and the bucket is named in the path; empty: Amazon's of the region
	Region               string
	AccessKey, SecretKey string // empty: what the engine finds in its own environment
}

// Tables tells which tables there are at the moment of a query. Of those that it would have to look
// for, it may leave out what is not wanted: those that the query does not name.
type Tables func(ctx context.Context, wanted func(name string) bool) ([]Table, error)

// SQL runs queries. It is safe for concurrent use.
type SQL struct {
	tables   Tables
	reader   *clickhouse.Client
	store    S3
	snapshot *snapshots
	may      func(table string) bool // nil: everything
}

// New returns a SQL over the tables that the function names, which is called for every query. The
// client acts as clickhouse.Admin, on the embedded engine or on a server; people's queries run as
// clickhouse.Reader. The store is needed for tables at s3://, its secret goes to the engine alone:
// no error, plan or answer shows it.
func New(tables Tables, client *clickhouse.Client, store S3) *SQL {
	return &SQL{tables: tables, reader: client.As(clickhouse.Reader), store: store, snapshot: newSnapshots(client, store)}
}

// QueryError says that the query itself is at fault.
type QueryError struct {
	Message string
	Tables  []string // the tables there are, where the query names one that is not
	cause   error
}

func (e *QueryError) Error() string {
	if len(e.Tables) == 0 {
		return e.Message
	}
	return e.Message + "; the tables are: " + strings.Join(e.Tables, ", ")
}

func (e *QueryError) Unwrap() error { return e.cause }

// ErrBusy says that the engine runs as many queries as it can. The query did not begin.
var ErrBusy = errors.New("the SQL engine is busy; try again later")

// ErrCatalog says that it cannot be told which tables there are, as the catalog does not answer.
// The query may run later.
var ErrCatalog = errors.New("resolve the tables")

// ErrLost says that the engine does not find files of a table that the query reads, however often
// it looks.
var ErrLost = errors.New("files of a table are not there")

// How often a query is tried whose tables were taken away between their resolution and its start.
const attempts = 3

// Run runs one statement that reads and returns its answer in one of the Formats, which the caller
// must close. A query that is itself at fault gives a *QueryError: from Run, or from Read if it
// failed after the first part of the answer. Ending ctx, or closing early, ends the query.
func (s *SQL) Run(ctx context.Context, query, format string) (io.ReadCloser, error) {
	return s.tryRun(ctx, s.tables, query, format)
}

func (s *SQL) tryRun(ctx context.Context, tables Tables, query, format string) (io.ReadCloser, error) {
	var err error
	for range attempts {
		var answer io.ReadCloser
		answer, err = s.run(ctx, tables, query, format)
		if err == nil {
			return answer, nil
		}
		if !gone(err) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrLost, err)
}

func (s *SQL) run(ctx context.Context, resolve Tables, query, format string) (io.ReadCloser, error) {
	f, ok := formats[format]
	if !ok {
		return nil, &QueryError{Message: fmt.Sprintf("there is no output format %q; there are %s", format, strings.Join(slices.Sorted(maps.Keys(formats)), ", "))}
	}
	if err := s.inScope(query); err != nil {
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
	settings := maps.Clone(f.settings)
	settings["database"] = snap.database
	maps.Copy(settings, storeSettings)
	lower := strings.ToLower(query)
	anyTable := slices.ContainsFunc(byText, func(function string) bool { return mentions(lower, function) })
	if slices.ContainsFunc(tables, func(t Table) bool { return t.TimePartitions && (anyTable || mentions(query, t.Name)) }) {
		maps.Copy(settings, unpruned)
	}
	if firstWord(query) == "explain" {
		delete(settings, "limit") // it would show in the plan
	}
	body, err := s.reader.As(snap.reader).Query(ctx, qualify(query, snap.database, snap.others()), f.clickhouse, settings)
	if err != nil {
		s.snapshot.release(snap)
		if gone(err) {
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

// unpruned has the engine read tables without pruning files by their partitions. It takes the day
// of a partition for one of 1970 to 2149, as its type Date is, and so skips files of earlier and
// later times that have the rows (ClickHouse issue 119579).
var unpruned = map[string]string{"use_iceberg_partition_pruning": "0"}

// Lost reports whether an answer broke off because files of a table are missing.
func Lost(err error) bool { return gone(err) }

// gone reports whether a query failed for what the next attempt may find: the engine was started
// anew and knows none of our databases, or maintenance took files away between the catalog's answer
// and the query.
func gone(err error) bool {
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

var (
	unknownTable   = regexp.MustCompile("(?:Unknown table expression identifier '|Table )([^' ]+)(?:'| does not exist)")
	neededGrant    = regexp.MustCompile(`it's necessary to have the grant (.*)$`)
	badDate        = regexp.MustCompile(`Input value (-?\d+) is out of allowed Date32 range.* column: ([^:]+):`)
	expectedTokens = regexp.MustCompile(`(?s)\. Expected one of: .*`)
)

// explain turns ClickHouse's error into the user's terms.
func (s *SQL) explain(err error, snap *snapshot) error {
	s.store.hide(err)
	e := new(clickhouse.Error)
	if errors.As(err, &e) && e.Code == clickhouse.CodeAuthentication && s.reader.Outside() {
		return fmt.Errorf("run the query: %w; people's queries run as the user %s, which an administrator of ClickHouse makes once: %s",
			err, snap.reader, clickhouse.ReaderSetup(snap.reader))
	}
	switch {
	case !errors.As(err, &e):
		return fmt.Errorf("run the query: %w", err)
	case e.Busy():
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case damagedFile(e) != "":
		return &UnreadableError{snap.tableOf(damagedFile(e)), err}
	case ours[e.Code] && !refused(e):
		return fmt.Errorf("run the query: %w", err)
	}
	q := &QueryError{Message: strings.TrimSuffix(strings.ReplaceAll(inFile.ReplaceAllString(e.Message, ""), snap.database, Namespace), "."), cause: err}
	if m := badDate.FindStringSubmatch(e.Message); m != nil {
		days, _ := strconv.ParseInt(m[1], 10, 32) // digits; what is beyond 32 bits no table has
		q.Message = fmt.Sprintf("column %s has the date %s, and ClickHouse reads dates of the years 1900 to 2299 alone: leave the column out, or read it with another engine",
			m[2], time.Unix(days*86_400, 0).UTC().Format(time.DateOnly))
	}
	switch e.Code {
	case clickhouse.CodeStd:
		q.Message = "a function of this query fails with these arguments, or wants a model, a dictionary, a certificate or a program, which are not offered here"
	case clickhouse.CodeSyntax:
		q.Message = expectedTokens.ReplaceAllString(q.Message, "")
	case clickhouse.CodeAccessDenied:
		if m := neededGrant.FindStringSubmatch(q.Message); m != nil {
			if s.may != nil && (strings.HasPrefix(m[1], "SELECT") || strings.HasPrefix(m[1], "SHOW")) {
				return &ScopeError{Message: "this query reads more than the tables that its caller may read (auth.rights)"}
			}
			q.Message = "only the lake's tables can be read here; this query needs the right to " + m[1]
		}
	case clickhouse.CodeUnknownTable:
		if m := unknownTable.FindStringSubmatch(q.Message); m != nil {
			if err := s.missing(m[1]); err != nil {
				return err
			}
			q.Message = fmt.Sprintf("there is no table %q", m[1])
		}
		q.Tables = snap.tables
	case clickhouse.CodeUnknownDatabase:
		q.Tables = snap.tables
	}
	return q
}

// answer is a body in the user's terms that keeps its snapshot until it is closed.
type answer struct {
	sql     *SQL
	body    io.ReadCloser
	snap    *snapshot
	release func()
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = a.sql.explain(err, a.snap)
	}
	return n, err
}

func (a *answer) Close() error {
	defer a.release()
	return a.body.Close()
}
