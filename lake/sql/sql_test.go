package sql_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
	lakesql "github.com/millrace/millrace/lake/sql"
	chserver "github.com/millrace/millrace/test/servers/clickhouse"
	s3server "github.com/millrace/millrace/test/servers/s3"
)

func TestMain(m *testing.M) {
	clickhousetest.Main(m, objects.Stop, outside.Stop, catalogs.Stop)
}

func answerOf(ctx context.Context, s *lakesql.SQL, query, format string) (string, error) {
	body, err := s.Run(ctx, query, format)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(body)
	return string(b), errors.Join(err, body.Close())
}

func ask(t *testing.T, s *lakesql.SQL, query, format string) string {
	t.Helper()
	answer, err := answerOf(t.Context(), s, query, format)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// The servers that the tests need.
var (
	objects s3server.Server
	outside chserver.Server
)

func serverClient(t *testing.T) *clickhouse.Client {
	t.Helper()
	client, err := clickhouse.NewServerClient(outside.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestShop queries a warehouse with three tables: two lines in order_lines, none in empty, and 500
// in history's 50 snapshots. The warehouse is in a folder or in a bucket, and the engine is
// embedded or a server.
func TestShop(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) (*warehouse, lakesql.S3, *clickhouse.Client){
		"folder, embedded": func(t *testing.T) (*warehouse, lakesql.S3, *clickhouse.Client) {
			return newWarehouse(t), lakesql.S3{}, clickhousetest.Shared(t).Client()
		},
		"bucket, embedded": func(t *testing.T) (*warehouse, lakesql.S3, *clickhouse.Client) {
			w, store := newBucketWarehouse(t)
			return w, store, clickhousetest.Shared(t).Client()
		},
		"bucket, server": func(t *testing.T) (*warehouse, lakesql.S3, *clickhouse.Client) {
			w, store := newBucketWarehouse(t)
			return w, store, serverClient(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, store, client := open(t)
			for _, name := range []string{"order_lines", "empty", "history"} {
				w.create(name, orderLines)
			}
			w.append("order_lines", 2, orderLine)
			for i := range 50 {
				w.append("history", 10, func(b *array.RecordBuilder, j int) { orderLine(b, i*10+j) })
			}
			s := lakesql.New(w.tables, client, store)
			t.Run("answers", func(t *testing.T) { testAnswers(t, s) })
			t.Run("long table", func(t *testing.T) { testLongTable(t, s) })
			t.Run("faults", func(t *testing.T) { testQueryErrors(t, s) })
			t.Run("not the query's fault", func(t *testing.T) { testOtherErrors(t, w, client) })
			t.Run("cancel", func(t *testing.T) { testCancel(t, s, client) })
			t.Run("secret", func(t *testing.T) { testSecret(t, w, s, client, store) })
		})
	}
}

// No answer, plan or error shows the object store's secret, for any query and any failure of the
// store.
func testSecret(t *testing.T, w *warehouse, s *lakesql.SQL, client *clickhouse.Client, store lakesql.S3) {
	secret := store.SecretKey
	if secret == "" {
		secret = "nothing is hidden here"
	}
	for _, query := range []string{
		"SHOW CREATE TABLE order_lines", "SHOW CREATE TABLE order_lines SETTINGS format_display_secrets_in_show_and_select = 1",
		"SELECT * FROM system.tables FORMAT Vertical", "SELECT * FROM system.databases FORMAT Vertical", "SELECT * FROM system.processes FORMAT Vertical",
		"SELECT * FROM system.settings FORMAT Vertical", "SELECT * FROM system.named_collections", "SELECT * FROM system.query_log",
		"EXPLAIN SELECT * FROM order_lines", "EXPLAIN AST SELECT * FROM order_lines", "EXPLAIN SYNTAX SELECT * FROM order_lines",
		"EXPLAIN PLAN actions = 1, header = 1, description = 1 SELECT * FROM order_lines", "EXPLAIN PIPELINE SELECT * FROM order_lines",
		"EXPLAIN QUERY TREE SELECT * FROM order_lines", "SELECT _path, _file FROM order_lines", "SELECT order_lines FROM nowhere", "DESCRIBE order_lines",
	} {
		answer, err := answerOf(t.Context(), s, query, lakesql.FormatCSV)
		if strings.Contains(answer, secret) || err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s shows the secret: %s %v", query, answer, err)
		}
	}
	if store.SecretKey == "" {
		return
	}
	for name, broken := range map[string]lakesql.S3{
		"wrong secret":      {Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: "not-The/secret"},
		"nobody listens":    {Endpoint: "http://127.0.0.1:1", Region: store.Region, AccessKey: store.AccessKey, SecretKey: secret},
		"strange":           {Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: "a'b\\c`"},
		"no such server":    {Endpoint: "http://nowhere.invalid", Region: store.Region, AccessKey: store.AccessKey, SecretKey: secret},
		"no URL to be sure": {Endpoint: "http://", Region: store.Region, AccessKey: store.AccessKey, SecretKey: secret},
	} {
		begun := time.Now()
		_, err := lakesql.New(w.tables, client, broken).Run(t.Context(), "SELECT count() FROM order_lines", lakesql.FormatJSON)
		if fault := (*lakesql.QueryError)(nil); err == nil || errors.As(err, &fault) || strings.Contains(err.Error(), broken.SecretKey) {
			t.Errorf("%s: error %v", name, err)
		}
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("%s: told after %v", name, took)
		}
	}
}

// A server cannot see folders of this machine and says so, with what an administrator must do.
func TestServerNeedsObjectStore(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	_, err := lakesql.New(w.tables, serverClient(t), lakesql.S3{}).Run(t.Context(), "SELECT 1", lakesql.FormatJSON)
	if err == nil || !strings.Contains(err.Error(), "which the ClickHouse server at") || !strings.Contains(err.Error(), "lake.warehouse") {
		t.Errorf("error %v", err)
	}
	wrong := outside.Config(t)
	wrong.Password = "guess"
	client, err := clickhouse.NewServerClient(wrong)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // it never fails
	if err := client.Exec(t.Context(), "SELECT 1", nil); err == nil || strings.Contains(err.Error(), wrong.Password) {
		t.Errorf("error %v", err)
	}
}

func testAnswers(t *testing.T, s *lakesql.SQL) {
	for _, c := range []struct{ query, format, want string }{
		{"SELECT * FROM order_lines ORDER BY line", lakesql.FormatJSON, "" +
			`{"order_id":"order-0","line":1,"customer_id":null,"sku":"sku-0","quantity":0,"unit_price":0.000000001,"country":"country-0","ordered_at":"2010-12-01T08:26:00.123456Z","data":"` + "\\u0000\ufffd\\u0000\ufffd\\u0000\ufffd\\u0000\ufffd" + `","weight":null}` + "\n" +
			`{"order_id":"order-0","line":2,"customer_id":"customer-1","sku":"sku-1","quantity":1,"unit_price":1.000000001,"country":"country-1","ordered_at":"2010-12-01T08:26:00.123457Z","data":"` + "\\u0001\ufffd\\u0001\ufffd\\u0001\ufffd\\u0001\ufffd" + `","weight":0.5}` + "\n"},
		{"SELECT order_id, customer_id, unit_price, ordered_at, weight FROM order_lines ORDER BY line", lakesql.FormatCSV, "" +
			`"order_id","customer_id","unit_price","ordered_at","weight"` + "\n" +
			`"order-0",,0.000000001,"2010-12-01T08:26:00.123456Z",` + "\n" +
			`"order-0","customer-1",1.000000001,"2010-12-01T08:26:00.123457Z",0.5` + "\n"},
		{"SELECT sku, quantity, weight FROM order_lines ORDER BY line", lakesql.FormatTable, "" +
			"┌───────┬──────────┬────────┐\n" +
			"│ sku   │ quantity │ weight │\n" +
			"├───────┼──────────┼────────┤\n" +
			"│ sku-0 │        0 │   ᴺᵁᴸᴸ │\n" +
			"│ sku-1 │        1 │    0.5 │\n" +
			"└───────┴──────────┴────────┘\n2 rows\n"},
		{"SELECT toInt64(9223372036854775807) AS a, toUInt64(18446744073709551615) AS b, toInt128('-170141183460469231731687303715884105728') AS c, toDecimal128('12345678901234567890.123456789', 9) AS d, nan AS e, inf AS f, [nan, 1] AS g, 'ü\n' AS h, toDate('2011-12-09') AS i", lakesql.FormatJSON,
			`{"a":9223372036854775807,"b":18446744073709551615,"c":-170141183460469231731687303715884105728,"d":12345678901234567890.123456789,"e":null,"f":null,"g":[null,1],"h":"ü\n","i":"2011-12-09"}` + "\n"},
		{"SELECT '' AS a, NULL AS b, 'x\"y' AS c", lakesql.FormatCSV, "\"a\",\"b\",\"c\"\n\"\",,\"x\"\"y\"\n"},
		{"SELECT count(), sum(quantity), min(unit_price) FROM millrace.history", lakesql.FormatCSV, "\"count()\",\"sum(quantity)\",\"min(unit_price)\"\n500,124750,0.000000001\n"},
		{"SELECT count(), sum(quantity), max(customer_id) FROM empty", lakesql.FormatCSV, "\"count()\",\"sum(quantity)\",\"max(customer_id)\"\n0,0,\n"},
		{"SELECT sku FROM empty", lakesql.FormatJSON, ""},
		{"SELECT sku FROM empty", lakesql.FormatCSV, "\"sku\"\n"},
		{"SELECT sku FROM empty", lakesql.FormatTable, "┌─────┐\n│ sku │\n├─────┤\n└─────┘\n0 rows\n"},
		{"SELECT l.sku, h.quantity AS quantity FROM millrace.order_lines AS l JOIN `millrace`.history AS h ON h.sku = l.sku ORDER BY sku", lakesql.FormatCSV, "\"sku\",\"quantity\"\n\"sku-0\",0\n\"sku-1\",1\n"},
		{"SHOW TABLES", lakesql.FormatCSV, "\"name\"\n\"empty\"\n\"history\"\n\"order_lines\"\n"},
		{"SHOW TABLES FROM millrace", lakesql.FormatCSV, "\"name\"\n\"empty\"\n\"history\"\n\"order_lines\"\n"},
		{"DESCRIBE millrace.order_lines", lakesql.FormatTable, "" +
			"┌─────────────┬──────────────────────┐\n" +
			"│ name        │ type                 │\n" +
			"├─────────────┼──────────────────────┤\n" +
			"│ order_id    │ String               │\n" +
			"│ line        │ Int32                │\n" +
			"│ customer_id │ Nullable(String)     │\n" +
			"│ sku         │ String               │\n" +
			"│ quantity    │ Int64                │\n" +
			"│ unit_price  │ Decimal(38, 9)       │\n" +
			"│ country     │ String               │\n" +
			"│ ordered_at  │ DateTime64(6, 'UTC') │\n" +
			"│ data        │ String               │\n" +
			"│ weight      │ Nullable(Float64)    │\n" +
			"└─────────────┴──────────────────────┘\n10 rows\n"},
		{"SELECT 1 AS \"\x1b[31m\", 'a\x1b[2Jb' AS s", lakesql.FormatTable, "┌──────────┬───────────┐\n│ \\x1b[31m │ s         │\n├──────────┼───────────┤\n│        1 │ a\\x1b[2Jb │\n└──────────┴───────────┘\n1 row\n"},
		{"SELECT 1 AS a FORMAT TSV", lakesql.FormatJSON, "1\n"},
	} {
		if got := ask(t, s, c.query, c.format); got != c.want {
			t.Errorf("%s as %s:\n%s\nwant\n%s", c.query, c.format, got, c.want)
		}
	}
}

func testLongTable(t *testing.T, s *lakesql.SQL) {
	got := ask(t, s, "SELECT number AS n FROM numbers(1000000000000)", lakesql.FormatTable)
	if lines := strings.Count(got, "\n"); lines != lakesql.MaxTableRows+5 || !strings.HasSuffix(got, "\nthe first 10000 rows; use json or csv for all of them\n") {
		t.Errorf("%d lines, ending with %q", lines, got[max(0, len(got)-100):])
	}
	if got := ask(t, s, "SELECT number AS n FROM numbers(10000)", lakesql.FormatTable); !strings.HasSuffix(got, "\n10000 rows\n") {
		t.Errorf("it ends with %q", got[max(0, len(got)-100):])
	}
	if got := ask(t, s, "SELECT number AS n FROM numbers(10001)", lakesql.FormatCSV); strings.Count(got, "\n") != 10_002 {
		t.Errorf("csv has %d lines", strings.Count(got, "\n"))
	}
}

func testQueryErrors(t *testing.T, s *lakesql.SQL) {
	const tables = "; the tables are: empty, history, order_lines"
	for _, c := range []struct{ query, want string }{
		{"SELECT * FROM orders", `unknown table "orders"` + tables},
		{"SELECT * FROM millrace.orders", `unknown table "millrace.orders"` + tables},
		{"SELECT * FROM shop.orders", `Database shop does not exist` + tables},
		{"DESCRIBE orders", `unknown table "millrace.orders"` + tables},
		{"SELECT nothing FROM millrace.order_lines", "Unknown expression identifier `nothing` in scope SELECT nothing FROM millrace.order_lines"},
		{"SELECT 1; SELECT 2", "several statements in one request; send one at a time"},
		{"SELECT (", "Syntax error: failed at position 8 ((): (. Unmatched parentheses: ("},
		{"SELECT * FRM order_lines", "Syntax error: failed at position 14 (order_lines): order_lines"},
		{"", "Empty query"},
		{"DROP TABLE order_lines", "only statements that read are allowed: SELECT, SHOW, DESCRIBE, EXPLAIN, EXISTS"},
		{"INSERT INTO order_lines SELECT * FROM order_lines", "only statements that read are allowed: SELECT, SHOW, DESCRIBE, EXPLAIN, EXISTS"},
		{"SELECT * FROM url('http://127.0.0.1:1/')", "only the lake's tables can be read; this query needs the grant READ ON URL"},
		{"SELECT file('/etc/passwd')", "the name file is not allowed: the function reads files of the server"},
		{"SELECT 1 FORMAT TSV", "the table output does not support FORMAT: omit it, or choose json or csv output"},
		{"SELECT catboostEvaluate('x', 'y', 'z')", "a function of this query failed with these arguments"},
		{"SELECT showCertificate()", "a function of this query failed with these arguments"},
		{"SELECT * FROM mongodb('x', 'y', 'z')", ""},
		{"SELECT dictGetDescendants(NULL)", "Expected const String column"},
		{"SELECT dictGet('a', 'b', 1)", ""},
		{"SELECT\n  1 +\n  FRM FRM FRM", "Syntax error: failed at position"},
		{"SELECT count( FROM order_lines", "Syntax error: failed at position"},
		{"SELECT 'open", "Single quoted string is not closed: Syntax error: failed at position"},
		{"SELECT 1 FROM `" + strings.Repeat("t", 3000) + "`", "unknown table"},
		{"SELECT toUInt8OrZero(toDecimal32('x', 2))", ""},
		{"SELECT throwIf(number = 3) FROM numbers(10)", "Value passed to 'throwIf' function is non-zero"},
	} {
		_, err := answerOf(t.Context(), s, c.query, lakesql.FormatTable)
		if fault := (*lakesql.QueryError)(nil); !errors.As(err, &fault) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %s", c.query, err, c.want)
		}
	}
	_, err := s.Run(t.Context(), "SELECT 1", "xml")
	if fault := (*lakesql.QueryError)(nil); !errors.As(err, &fault) || fault.Message != `unknown output format "xml"; the formats are csv, json, parquet, table` {
		t.Errorf("error %v", err)
	}
	// After the first part of the answer.
	_, err = answerOf(t.Context(), s, "SELECT number, throwIf(number = 500000) FROM numbers(1000000)", lakesql.FormatJSON)
	if fault := (*lakesql.QueryError)(nil); !errors.As(err, &fault) || !strings.HasPrefix(fault.Message, "Value passed to 'throwIf'") {
		t.Errorf("error %v", err)
	}
}

// Errors that are not the query's fault are not QueryErrors.
func testOtherErrors(t *testing.T, w *warehouse, client *clickhouse.Client) {
	lost := errors.New("the catalog is away")
	s := lakesql.New(func(context.Context, func(string) bool) ([]lakesql.Table, error) { return nil, lost }, client, lakesql.S3{})
	if _, err := s.Run(t.Context(), "SELECT 1", lakesql.FormatJSON); !errors.Is(err, lost) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := lakesql.New(func(context.Context, func(string) bool) ([]lakesql.Table, error) { return w.tables(t.Context(), nil) }, client, lakesql.S3{}).Run(ctx, "SELECT 1", lakesql.FormatJSON)
	if fault := (*lakesql.QueryError)(nil); !errors.Is(err, context.Canceled) || errors.As(err, &fault) {
		t.Errorf("error %v", err)
	}
	for name, table := range map[string]lakesql.Table{
		"elsewhere":  {Name: "t", Location: "gs://bucket/t", MetadataLocation: "gs://bucket/t/metadata/1.json"},
		"outside":    {Name: "t", Location: "s3://bucket/t", MetadataLocation: "s3://bucket/u/metadata/1.json"},
		"without ID": {},
	} {
		s := lakesql.New(func(context.Context, func(string) bool) ([]lakesql.Table, error) { return []lakesql.Table{table}, nil }, client, lakesql.S3{})
		_, err := s.Run(t.Context(), "SELECT 1", lakesql.FormatJSON)
		if fault := (*lakesql.QueryError)(nil); err == nil || errors.As(err, &fault) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	// A table that the engine cannot read is not the query's fault, whether the query mentions the
	// table or not. See TestUnreadableTableIsOmitted.
	for name, queries := range map[string][]string{"t": {"SELECT * FROM t", "SELECT 1"}, "t`; DROP": {"SELECT 1"}} {
		table := lakesql.Table{Name: name, Location: "/nowhere/t", MetadataLocation: "/nowhere/t/metadata/1.metadata.json"}
		s := lakesql.New(func(context.Context, func(string) bool) ([]lakesql.Table, error) { return []lakesql.Table{table}, nil }, client, lakesql.S3{})
		for _, query := range queries {
			_, err := s.Run(t.Context(), query, lakesql.FormatJSON)
			if fault := (*lakesql.QueryError)(nil); errors.As(err, &fault) || err == nil && query != "SELECT 1" {
				t.Errorf("table %s, %s: error %v", name, query, err)
			}
		}
	}
}

// Whatever lands meanwhile, a query sees all tables, under either name, at one moment. Concurrent
// queries do not mix.
func TestOneMoment(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("a", orderLines)
	w.create("b", orderLines)
	s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	const rounds = 25
	landed := make(chan struct{})
	go func() {
		defer close(landed)
		for range rounds {
			w.mu.Lock()
			w.append("a", 3, orderLine)
			w.append("b", 3, orderLine)
			w.mu.Unlock()
		}
	}()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for last, done := 0, false; !done; {
				select {
				case <-landed:
					done = true // one more query, which must see everything
				default:
				}
				got, err := answerOf(t.Context(), s, "SELECT (SELECT count() FROM a), (SELECT count() FROM millrace.b), (SELECT sum(quantity) FROM millrace.a) FORMAT TSV", lakesql.FormatCSV)
				if err != nil {
					t.Error(err)
					return
				}
				var a, b, sum int
				if _, err := fmt.Sscan(strings.ReplaceAll(got, `\N`, "0"), &a, &b, &sum); err != nil || a != b || sum != a || a < last || done && a != 3*rounds {
					t.Errorf("%d and %d rows, sum %d, after %d rows: %q %v", a, b, sum, last, got, err)
					return
				}
				last = a
			}
		})
	}
	wg.Wait()
}

// The engine keeps the databases in use and the newest one. Dropping one deletes no table files.
func TestOldSnapshotsAreDropped(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Start(t)
	databases := func() []string {
		t.Helper()
		body, err := e.Client().Query(t.Context(), "SELECT name FROM system.databases WHERE startsWith(name, 'lake_') ORDER BY name", "TSV", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(b))
	}
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 10, orderLine)
	s := lakesql.New(w.tables, e.Client(), lakesql.S3{})
	held, err := s.Run(t.Context(), "SELECT l.order_id, n.number FROM numbers(300000) AS n CROSS JOIN order_lines AS l", lakesql.FormatCSV)
	if err != nil {
		t.Fatal(err)
	}
	first := databases()
	for i := range 5 {
		w.append("order_lines", 10, orderLine)
		if got, want := ask(t, s, "SELECT count() AS n FROM order_lines", lakesql.FormatJSON), fmt.Sprintf("{\"n\":%d}\n", 20+10*i); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	// The held one, the newest, and the previous one, which is dropped when the next is created.
	if now := databases(); len(now) != 3 || !slices.Contains(now, first[0]) {
		t.Errorf("databases %v; the held one is %v", now, first)
	}
	b, err := io.ReadAll(held)
	if lines := strings.Count(string(b), "\n"); err != nil || lines != 3_000_001 {
		t.Errorf("the held query gave %d lines, %v", lines, err)
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	w.append("order_lines", 10, orderLine)
	before := files(t, w.dir)
	ask(t, s, "SELECT count() FROM order_lines", lakesql.FormatJSON)
	if now := databases(); len(now) != 2 || slices.Contains(now, first[0]) {
		t.Errorf("databases %v; the one no longer held is %v", now, first)
	}
	if after := files(t, w.dir); !slices.Equal(before, after) {
		t.Errorf("the warehouse had %d files, and has %d", len(before), len(after))
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if !d.IsDir() && !strings.Contains(path, "catalog.db") {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A new engine process does not know the previous one's databases.
func TestEngineRestart(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Start(t)
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 10, orderLine)
	s := lakesql.New(w.tables, e.Client(), lakesql.S3{})
	for range 2 {
		if got := ask(t, s, "SELECT count() AS n FROM order_lines", lakesql.FormatJSON); got != "{\"n\":10}\n" {
			t.Errorf("answer %q", got)
		}
		pid := e.PID()
		running := make(chan error, 1)
		go func() {
			_, err := answerOf(t.Context(), s, "SELECT count() FROM numbers(1000000000000000) AS n CROSS JOIN order_lines WHERE sipHash64(n.number, quantity) = 1", lakesql.FormatTable)
			running <- err
		}()
		polltest.Until(t, "the query runs", func() bool {
			body, err := e.Client().Query(t.Context(), "SELECT count() FROM system.processes WHERE query LIKE '%CROSS%'", "TSV", nil)
			if err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(body)
			return errors.Join(err, body.Close()) == nil && strings.TrimSpace(string(said)) == "2" // and this one
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		err := <-running
		if fault := (*lakesql.QueryError)(nil); err == nil || errors.As(err, &fault) {
			t.Errorf("error %v", err)
		}
		polltest.Until(t, "another process", func() bool { now := e.PID(); return now != 0 && now != pid })
	}
}

// Maintenance may delete files between the catalog's answer and the query.
func TestDeletedFiles(t *testing.T) {
	t.Parallel()
	client := clickhousetest.Shared(t).Client()
	for name, take := range map[string]func(t lakesql.Table) error{
		"metadata":   func(t lakesql.Table) error { return os.Remove(strings.TrimPrefix(t.MetadataLocation, "file://")) },
		"everything": func(t lakesql.Table) error { return os.RemoveAll(strings.TrimPrefix(t.Location, "file://")) },
	} {
		for _, wasKnown := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known to the engine: %v", name, wasKnown), func(t *testing.T) {
				t.Parallel()
				known := wasKnown
				old, now := newWarehouse(t), newWarehouse(t)
				for _, w := range []*warehouse{old, now} {
					w.create("order_lines", orderLines)
				}
				old.append("order_lines", 1, orderLine)
				now.append("order_lines", 2, orderLine)
				stale, err1 := old.tables(t.Context(), nil)
				present, err2 := now.tables(t.Context(), nil)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				resolved := stale
				s := lakesql.New(func(context.Context, func(string) bool) ([]lakesql.Table, error) {
					answer := resolved
					if known {
						known = false // the first query below
					} else {
						resolved = present
					}
					return answer, nil
				}, client, lakesql.S3{})
				if known {
					if got := ask(t, s, "SELECT count() AS n FROM order_lines", lakesql.FormatJSON); got != "{\"n\":1}\n" {
						t.Fatalf("answer %q", got)
					}
				}
				if err := take(stale[0]); err != nil {
					t.Fatal(err)
				}
				want := "{\"n\":2,\"q\":1}\n"
				if name == "metadata" && wasKnown {
					want = "{\"n\":1,\"q\":0}\n" // the engine has it in memory, and the data is there
				}
				if got := ask(t, s, "SELECT count() AS n, sum(quantity) AS q FROM order_lines", lakesql.FormatJSON); got != want {
					t.Errorf("answer %q, want %q", got, want)
				}
			})
		}
	}
}

func testCancel(t *testing.T, s *lakesql.SQL, client *clickhouse.Client) {
	const query = "SELECT h.sku, n.number FROM numbers(1000000000000000) AS n CROSS JOIN history AS h"
	running := func() bool {
		body, err := client.As(clickhouse.Admin).Query(t.Context(), "SELECT count() FROM system.processes WHERE query = '"+query+"'", "TSV", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		return string(b) != "0\n"
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, err := s.Run(ctx, query, lakesql.FormatCSV)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if !running() {
		t.Error("the query is not there")
	}
	cancel()
	if _, err := io.Copy(io.Discard, body); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
	polltest.Until(t, "the query ends", func() bool { return !running() })
}
