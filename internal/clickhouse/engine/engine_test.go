package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

func TestMain(m *testing.M) { clickhousetest.Main(m) }

func answerOf(ctx context.Context, c *clickhouse.Client, sql, format string, settings map[string]string) (string, error) {
	body, err := c.Query(ctx, sql, format, settings)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(body)
	return string(b), errors.Join(err, body.Close())
}

func ask(t *testing.T, c *clickhouse.Client, sql string) string {
	t.Helper()
	answer, err := answerOf(t.Context(), c, sql, "TSV", nil)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.TrimSuffix(answer, "\n")
}

// running returns how many queries with this text are running.
func running(t *testing.T, c *clickhouse.Client, sql string) string {
	t.Helper()
	return ask(t, c, "SELECT count() FROM system.processes WHERE query = '"+sql+"'")
}

func wantCode(t *testing.T, err error, code int) {
	t.Helper()
	if e := (*clickhouse.Error)(nil); !errors.As(err, &e) || e.Code != code {
		t.Errorf("error %v, want code %d", err, code)
	}
}

// Statements of every kind return what ClickHouse returns.
func TestStatements(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	for _, s := range []struct{ sql, want string }{
		{"CREATE DATABASE statements", ""},
		{"CREATE TABLE statements.t (a Int64, s String) ENGINE = MergeTree ORDER BY a", ""},
		{"INSERT INTO statements.t SELECT number, 'ä''\\t' FROM numbers(3)", ""},
		{"SELECT * FROM statements.t ORDER BY a", "0\tä\\'\\t\n1\tä\\'\\t\n2\tä\\'\\t"},
		{"SHOW TABLES FROM statements", "t"},
		{"DESCRIBE statements.t FORMAT TSVRaw", "a\tInt64\t\t\t\t\t\ns\tString\t\t\t\t\t"},
		{"EXISTS statements.t", "1"},
		{"WITH 1 AS x SELECT x;", "1"},
		{"SELECT 1 AS format FORMAT CSVWithNames", "\"format\"\n1"},
		{"DROP DATABASE statements", ""},
	} {
		if got := ask(t, c, s.sql); got != s.want {
			t.Errorf("%s: %q, want %q", s.sql, got, s.want)
		}
	}
	if got, err := answerOf(t.Context(), c, "SELECT currentDatabase(), getSetting('max_threads'), timezone()", "CSV", map[string]string{"database": "system", "max_threads": "3"}); got != "\"system\",3,\"UTC\"\n" || err != nil {
		t.Errorf("settings: %q, %v", got, err)
	}
}

// Errors have ClickHouse's codes.
func TestErrors(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	for sql, code := range map[string]int{
		"SELECT * FROM nowhere":         60,
		"SELECT * FROM nowhere.nothing": 81,
		"SELECT nothing":                47,
		"SELECT (":                      62,
		"":                              62,
		"; ;":                           62,
		"SELECT 1; SELECT 2":            62,
		"SELECT 1 FORMAT Nothing":       73,
		"SELECT throwIf(1)":             395,
		"SELECT throwIf(number = 3000000) FROM numbers(10000000)":      395,
		"SELECT groupArray(repeat('x', 1000)) FROM numbers(100000000)": 241,
	} {
		_, err := answerOf(t.Context(), c, sql, "TSV", map[string]string{"max_memory_usage": "100000000"})
		if e := (*clickhouse.Error)(nil); !errors.As(err, &e) || e.Code != code {
			t.Errorf("%q: error %v, want code %d", sql, err, code)
		}
	}
	_, err := answerOf(t.Context(), c, "SELECT 1", "TSV", map[string]string{"no_such_setting": "1"})
	wantCode(t, err, 115)
	_, err = answerOf(t.Context(), c, "SELECT 1", "TSV", map[string]string{"max_threads = 1, readonly": "1"})
	wantCode(t, err, clickhouse.CodeBadArguments)
	_, err = answerOf(t.Context(), c, "SELECT 1", "TSV", map[string]string{"database": "nowhere"})
	wantCode(t, err, clickhouse.CodeUnknownDatabase)
	_, err = answerOf(t.Context(), clickhouse.NewClient(clickhousetest.Shared(t).Addr(), clickhouse.Admin, "guess"), "SELECT 1", "TSV", nil)
	wantCode(t, err, clickhouse.CodeAuthentication)
	_, err = answerOf(t.Context(), c.As("somebody"), "SELECT 1", "TSV", nil)
	wantCode(t, err, clickhouse.CodeAuthentication)
}

// chdb streams many small documents. Joined, they must equal its answer in one piece.
func TestStreamsFormOneDocument(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	const rows = "SELECT number AS n, toString(number) AS `a\"name\nof, \t two lines`, if(modulo(number, 2) = 0, NULL, 'x\ny\"z') AS s FROM numbers(%d) ORDER BY n"
	for _, format := range []string{
		"TSV", "TabSeparatedRaw", "CSV", "JSONEachRow", "JSONCompactEachRow", "JSONCompactStringsEachRow", "JSONStringsEachRow", "RowBinary", "TSKV",
		"TSVWithNames", "TabSeparatedWithNamesAndTypes", "CSVWithNames", "csvwithnamesandtypes", "JSONCompactEachRowWithNames",
		"JSONCompactEachRowWithNamesAndTypes", "JSONCompactStringsEachRowWithNames", "JSONCompactStringsEachRowWithNamesAndTypes",
		"TSVRawWithNames", "RowBinaryWithNamesAndTypes", "JSON", "PrettyCompactMonoBlock", "Values", "Vertical", "Markdown", "XML",
	} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			for _, n := range []int{0, 1, 50} {
				settings := map[string]string{"max_block_size": "1", "output_format_write_statistics": "0", "max_threads": "1"}
				streamed, err := answerOf(t.Context(), c, fmt.Sprintf(rows, n), format, settings)
				if err != nil {
					t.Fatal(err)
				}
				settings["wait_end_of_query"], settings["max_block_size"] = "1", "65536"
				whole, err := answerOf(t.Context(), c, fmt.Sprintf(rows, n), format, settings)
				if err != nil {
					t.Fatal(err)
				}
				if streamed != whole {
					t.Errorf("%d rows: %q, want %q", n, streamed, whole)
				}
			}
		})
	}
}

// An answer that is much larger than the engine may hold passes through it.
func TestLargeAnswer(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	body, err := c.Query(t.Context(), "SELECT repeat('x', 1023) FROM numbers(300000)", "TSV", map[string]string{"max_memory_usage": "100000000", "max_block_size": "1000"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, body)
	if err := errors.Join(err, body.Close()); err != nil || n != 1024*300_000 {
		t.Errorf("%d bytes, %v", n, err)
	}
	// This does not hold for a format that cannot be streamed.
	_, err = answerOf(t.Context(), c, "SELECT repeat(toString(number), 200) FROM numbers(300000)", "JSON", nil)
	wantCode(t, err, 396)
}

// A query ends when its client ends it, before its first row or while its answer is not read.
func TestCancel(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	for name, sql := range map[string]string{
		"before the first row": "SELECT count() FROM numbers_mt(1000000000000000) WHERE sipHash64(number) = 1",
		"in the middle":        "SELECT repeat(toString(number), 100) FROM numbers(1000000000000000)",
		"not streamed":         "SELECT count() AS format FROM numbers_mt(1000000000000000) WHERE sipHash64(number) = 2",
		"in its analysis":      "SELECT (SELECT count() FROM numbers_mt(1000000000000000) WHERE sipHash64(number) = 3)",
	} {
		for _, user := range []string{clickhouse.Admin, clickhouse.Reader} {
			t.Run(name+" as "+user, func(t *testing.T) {
				t.Parallel()
				sql := sql + " -- " + user
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() {
					body, err := c.As(user).Query(ctx, sql, "TSV", nil)
					if err == nil {
						<-ctx.Done()
						_, err = io.Copy(io.Discard, body)
						err = errors.Join(err, body.Close())
					}
					ended <- err
				}()
				polltest.Until(t, "it runs", func() bool { return running(t, c, sql) == "1" })
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
				polltest.Until(t, "it ends", func() bool { return running(t, c, sql) == "0" })
			})
		}
	}
	t.Run("by closing", func(t *testing.T) {
		t.Parallel()
		const sql = "SELECT repeat(toString(number), 101) FROM numbers(1000000000000000)"
		body, err := c.Query(t.Context(), sql, "TSV", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
			t.Error(err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		polltest.Until(t, "it ends", func() bool { return running(t, c, sql) == "0" })
	})
}

// Concurrent sessions keep their own settings, and every answer belongs to its query.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Shared(t).Client()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			user := []string{clickhouse.Admin, clickhouse.Reader}[i%2]
			want := fmt.Sprintf("%d\t%d\n", 1000+i, 5000*9999)
			got, err := answerOf(t.Context(), c.As(user), "SELECT getSetting('max_block_size'), sum(number) FROM numbers(10000)", "TSV", map[string]string{"max_block_size": fmt.Sprint(1000 + i)})
			if err != nil || got != want {
				t.Errorf("query %d: %q, %v; want %q", i, got, err, want)
			}
		})
	}
	wg.Wait()
}

// Requests of other clients get the status and headers of a real server.
func TestHTTP(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Shared(t)
	password := e.Client().Password()
	for name, c := range map[string]struct {
		method, target, body string
		header               map[string]string
		status               int
		want                 string            // part of the body
		answer               map[string]string // headers
	}{
		"ping without a password": {method: "GET", target: "/ping", header: map[string]string{"X-ClickHouse-Key": ""}, status: 200, want: "Ok.\n"},
		"query by GET":            {method: "GET", target: "/?query=SELECT+1", status: 200, want: "1\n", answer: map[string]string{"X-ClickHouse-Format": "TabSeparated", "Content-Type": "text/tab-separated-values; charset=UTF-8"}},
		"GET only reads":          {method: "GET", target: "/?query=CREATE+DATABASE+by_get", status: 403, want: "READONLY"},
		"query and body":          {method: "POST", target: "/?query=SELECT", body: "1", status: 200, want: "1\n"},
		"format by parameter":     {method: "POST", target: "/?default_format=JSONEachRow", body: "SELECT 1 AS a", status: 200, want: "{\"a\":1}\n", answer: map[string]string{"Content-Type": "application/x-ndjson; charset=UTF-8"}},
		"format by header":        {method: "POST", target: "/", header: map[string]string{"X-ClickHouse-Format": "CSV"}, body: "SELECT 'a'", status: 200, want: "\"a\"\n", answer: map[string]string{"X-ClickHouse-Format": "CSV"}},
		"database by header":      {method: "POST", target: "/", header: map[string]string{"X-ClickHouse-Database": "system"}, body: "SELECT currentDatabase()", status: 200, want: "system\n"},
		"user by basic auth":      {method: "POST", target: "/", header: map[string]string{"X-ClickHouse-Key": "", "Authorization": "basic"}, body: "SELECT 1", status: 200, want: "1\n"},
		"password by parameter":   {method: "POST", target: "/?user=default&password=" + password, header: map[string]string{"X-ClickHouse-Key": ""}, body: "SELECT 1", status: 200, want: "1\n"},
		"no password":             {method: "POST", target: "/", header: map[string]string{"X-ClickHouse-Key": ""}, body: "SELECT 1", status: 401, want: "Code: 516. DB::Exception: default: Authentication failed", answer: map[string]string{"X-ClickHouse-Exception-Code": "516"}},
		"unknown table":           {method: "POST", target: "/", body: "SELECT * FROM nowhere", status: 404, want: "(UNKNOWN_TABLE)", answer: map[string]string{"X-ClickHouse-Exception-Code": "60"}},
		"syntax error":            {method: "POST", target: "/", body: "SELECT (", status: 400, want: "(SYNTAX_ERROR)", answer: map[string]string{"X-ClickHouse-Exception-Code": "62"}},
		"session":                 {method: "POST", target: "/?session_id=a", body: "SELECT 1", status: 501, want: "session_id is not supported"},
		"parameter":               {method: "POST", target: "/?param_a=1", body: "SELECT {a:Int8}", status: 501, want: "param_a is not supported"},
		"compressed":              {method: "POST", target: "/?compress=1&network_compression_method=NONE", body: "SELECT 123", status: 200, want: "123\n"},
		"too large":               {method: "POST", target: "/", body: "SELECT '" + strings.Repeat("x", 1<<20) + "'", status: 413, want: "longer than"},
		"large":                   {method: "POST", target: "/", body: "SELECT length('" + strings.Repeat("'' ", 200_000) + "')", status: 200, want: "400000\n"},
		"other path":              {method: "POST", target: "/play", body: "SELECT 1", status: 404, want: "unknown path /play"},
		"other method":            {method: "DELETE", target: "/", body: "SELECT 1", status: 405, want: "GET or POST", answer: map[string]string{"Allow": "GET, POST"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+e.Addr()+c.target, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-ClickHouse-Key", password)
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			if req.Header.Get("Authorization") != "" {
				req.SetBasicAuth(clickhouse.Admin, password)
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err := errors.Join(err, resp.Body.Close()); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.Contains(string(body), c.want) {
				t.Errorf("%s %q, want %d %q", resp.Status, body, c.status, c.want)
			}
			for k, v := range c.answer {
				if got := resp.Header.Get(k); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			}
			if c.target != "/ping" && c.status != 404 && c.status != 405 && resp.Header.Get("X-ClickHouse-Query-Id") == "" {
				t.Error("no query id")
			}
		})
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
}

// A reader can read its databases, and nothing else.
func TestReader(t *testing.T) {
	t.Parallel()
	admin := clickhousetest.Shared(t).Client()
	reader := admin.As(clickhouse.Reader)
	secret := filepath.Join(t.TempDir(), "secret.txt")
	if err := os.WriteFile(secret, []byte("the secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"CREATE DATABASE lake_reader ENGINE = Memory",
		"CREATE TABLE lake_reader.t (a Int64) ENGINE = Memory",
		"INSERT INTO lake_reader.t SELECT 7",
		"CREATE TABLE lake_reader.secret ENGINE = File(LineAsString, '" + secret + "')",
		"CREATE DATABASE private_reader ENGINE = Memory",
		"CREATE TABLE private_reader.t (a Int64) ENGINE = Memory",
	} {
		ask(t, admin, sql)
	}
	t.Cleanup(func() {
		for _, name := range []string{"lake_reader", "private_reader"} {
			if err := admin.Exec(context.Background(), "DROP DATABASE "+name, nil); err != nil {
				t.Error(err)
			}
		}
	})
	if got := ask(t, admin, "SELECT file('"+secret+"')"); got != `the secret\n` {
		t.Fatalf("the test's own secret reads %q", got)
	}
	t.Run("sees no other caller's query", func(t *testing.T) {
		for _, sql := range []string{
			"SELECT query FROM system.processes", "SHOW PROCESSLIST", "SELECT * FROM `system`.`processes`", "SELECT * FROM `system` . /* */ \"processes\"", "SELECT * FROM loop('system', 'processes') LIMIT 1", "SELECT * FROM loop(system.processes) LIMIT 1",
			"SELECT * FROM cluster('default', 'system', 'processes')", "SELECT * FROM remote('127.0.0.1', 'system', 'processes')", "SELECT * FROM viewIfPermitted(SELECT query FROM system.processes ELSE null('query String'))",
			"SELECT 1 IN system.processes", "WITH a AS (SELECT * FROM system.processes) SELECT * FROM a", "show full processlist", "SHOW -- \nPROCESSLIST",
			"SELECT * FROM system.query_log", "SELECT * FROM system.metrics", "SELECT * FROM system.query_cache", "SELECT * FROM system.asynchronous_loader",
			"DESCRIBE (SELECT * FROM system.processes)", "SELECT (SELECT any(query) FROM system.processes)", "EXPLAIN SELECT query FROM system.processes",
			"SELECT * FROM system.user_processes", "SELECT * FROM system.sessions", "SELECT * FROM system.settings_profiles", "SELECT * FROM system.grants", "SELECT * FROM system.server_settings",
		} {
			body, err := reader.Query(t.Context(), sql, "TSV", nil)
			var shown []byte
			if err == nil {
				shown, err = io.ReadAll(body)
				_ = body.Close()
			}
			if e := new(clickhouse.Error); !errors.As(err, &e) || len(shown) > 0 {
				t.Errorf("%s: %v %.200q", sql, err, shown)
			}
		}
	})
	t.Run("may", func(t *testing.T) {
		for sql, want := range map[string]string{
			"SELECT a FROM lake_reader.t":           "7",
			"SELECT * FROM lake_reader.secret":      "the secret", // a table that was created for it
			"SHOW TABLES FROM lake_reader":          "secret\nt",
			"SELECT count() FROM numbers(10)":       "10",
			"SELECT 'file' AS x /* file */ -- file": "file",
			"SELECT $a$ file('x') $a$":              " file(\\'x\\') ",
			"SELECT arraySum(x -> x * 2, [1, 2])":   "6",
			"WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT sum(n) FROM r": "6",
			"SELECT currentRoles()":                    "['reader']",
			"SELECT getSetting('readonly')":            "1",
			"SELECT count() > 0 FROM system.functions": "1",
		} {
			if got := ask(t, reader, sql); got != want {
				t.Errorf("%s: %q, want %q", sql, got, want)
			}
		}
	})
	mayNot := map[string][]int{
		"SELECT * FROM private_reader.t": {clickhouse.CodeAccessDenied},
		"DESCRIBE private_reader.t":      {clickhouse.CodeAccessDenied},
		// Writes.
		"INSERT INTO lake_reader.t SELECT 8":                                   {clickhouse.CodeReadOnly},
		"INSERT INTO FUNCTION file('" + secret + "') SELECT 'x'":               {clickhouse.CodeReadOnly},
		"SELECT 1 INTO OUTFILE '" + secret + "' TRUNCATE":                      {clickhouse.CodeReadOnly},
		"SHOW TABLES INTO OUTFILE '" + secret + "' TRUNCATE":                   {clickhouse.CodeReadOnly},
		"CREATE TABLE lake_reader.x (a Int8) ENGINE = Memory":                  {clickhouse.CodeReadOnly},
		"CREATE TEMPORARY TABLE x (a Int8)":                                    {clickhouse.CodeReadOnly},
		"CREATE FUNCTION f AS x -> x":                                          {clickhouse.CodeReadOnly},
		"ALTER TABLE lake_reader.t DELETE WHERE 1":                             {clickhouse.CodeReadOnly},
		"TRUNCATE TABLE lake_reader.t":                                         {clickhouse.CodeReadOnly},
		"DROP TABLE lake_reader.t":                                             {clickhouse.CodeReadOnly},
		"DROP DATABASE lake_reader":                                            {clickhouse.CodeReadOnly},
		"RENAME TABLE lake_reader.t TO lake_reader.u":                          {clickhouse.CodeReadOnly},
		"OPTIMIZE TABLE lake_reader.t":                                         {clickhouse.CodeReadOnly},
		"BACKUP TABLE lake_reader.t TO File('" + secret + ".zip')":             {clickhouse.CodeReadOnly},
		"DROP TABLE lake_reader.t PARALLEL WITH DROP TABLE lake_reader.secret": {clickhouse.CodeReadOnly, clickhouse.CodeSyntax},
		// Changes of what limits the reader.
		"SET readonly = 0":                         {clickhouse.CodeReadOnly},
		"SET ROLE admin":                           {clickhouse.CodeReadOnly},
		"SET ROLE DEFAULT":                         {clickhouse.CodeReadOnly},
		"USE private_reader":                       {clickhouse.CodeReadOnly},
		"GRANT ALL ON *.* TO default":              {clickhouse.CodeReadOnly},
		"EXECUTE AS default SELECT 1":              {clickhouse.CodeReadOnly},
		"SYSTEM SHUTDOWN":                          {clickhouse.CodeReadOnly},
		"KILL QUERY WHERE 1":                       {clickhouse.CodeReadOnly},
		"SELECT 1 SETTINGS readonly = 0":           {clickhouse.CodeReadOnly},
		"SELECT 1 SETTINGS max_execution_time = 0": {clickhouse.CodeReadOnly},
		"SELECT 1; SET ROLE admin":                 {clickhouse.CodeSyntax},
		"EXPLAIN SELECT 1; SET ROLE admin":         {clickhouse.CodeSyntax},
		// Reads of files.
		"SELECT file('" + secret + "')":                                  {clickhouse.CodeAccessDenied},
		"SELECT `file`('" + secret + "')":                                {clickhouse.CodeAccessDenied},
		"SELECT \"file\"('" + secret + "')":                              {clickhouse.CodeAccessDenied},
		"SELECT “file”('" + secret + "')":                                {clickhouse.CodeAccessDenied, 46, 47},
		"SELECT file/**/ ('" + secret + "')":                             {clickhouse.CodeAccessDenied},
		"SELECT `\\x66ile`('" + secret + "')":                            {clickhouse.CodeAccessDenied},
		"SELECT \"fi\\x6ce\"('" + secret + "')":                          {clickhouse.CodeAccessDenied},
		"SELECT arrayMap(file, ['" + secret + "'])":                      {clickhouse.CodeAccessDenied},
		"SELECT arrayMap(x -> file(x), ['" + secret + "'])":              {clickhouse.CodeAccessDenied},
		"SELECT x.* APPLY file FROM (SELECT '" + secret + "') AS x":      {clickhouse.CodeAccessDenied},
		"SELECT x.* APPLY(file) FROM (SELECT '" + secret + "') AS x":     {clickhouse.CodeAccessDenied},
		"WITH (SELECT file('" + secret + "')) AS x SELECT x":             {clickhouse.CodeAccessDenied},
		"EXPLAIN SELECT file('" + secret + "')":                          {clickhouse.CodeAccessDenied},
		"file('" + secret + "')":                                         {clickhouse.CodeAccessDenied},
		"SELECT '/*', file('" + secret + "'), '*/'":                      {clickhouse.CodeAccessDenied},
		"SELECT $a$'$a$, file('" + secret + "')":                         {clickhouse.CodeAccessDenied},
		"SELECT '\\'', file('" + secret + "') -- '":                      {clickhouse.CodeAccessDenied},
		"SELECT {f:Identifier}('" + secret + "')":                        {clickhouse.CodeSyntax, 456},
		"SELECT * FROM eval('SELECT file(''" + secret + "'')')":          {344, clickhouse.CodeAccessDenied},
		"SELECT * FROM file('" + secret + "', 'LineAsString')":           {clickhouse.CodeAccessDenied},
		"DESCRIBE TABLE file('" + secret + "', 'LineAsString')":          {clickhouse.CodeAccessDenied},
		"SELECT * FROM default.`" + secret + "`":                         {clickhouse.CodeAccessDenied},
		"SELECT * FROM `" + secret + "`":                                 {clickhouse.CodeAccessDenied},
		"SELECT * FROM filesystem('" + filepath.Dir(secret) + "')":       {clickhouse.CodeAccessDenied},
		"SELECT * FROM icebergLocal('" + filepath.Dir(secret) + "')":     {clickhouse.CodeAccessDenied},
		"SELECT * FROM deltaLakeLocal('" + filepath.Dir(secret) + "')":   {clickhouse.CodeAccessDenied},
		"SELECT * FROM sqlite('" + secret + "', 'x')":                    {clickhouse.CodeAccessDenied},
		"SELECT * FROM executable('cat', 'LineAsString', 'line String')": {clickhouse.CodeAccessDenied, clickhouse.CodeReadOnly},
		"SELECT * FROM merge('private_reader', 't')":                     {clickhouse.CodeAccessDenied, clickhouse.CodeReadOnly, 636},
		"SELECT * FROM dictionary('x')":                                  {clickhouse.CodeAccessDenied, clickhouse.CodeReadOnly},
		// Network access.
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')":    {clickhouse.CodeAccessDenied},
		"SELECT * FROM s3('http://127.0.0.1:1/bucket/key', 'CSV')":    {clickhouse.CodeAccessDenied},
		"SELECT * FROM remote('127.0.0.1:1', 'system', 'one')":        {clickhouse.CodeAccessDenied, clickhouse.CodeReadOnly},
		"SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')":      {clickhouse.CodeAccessDenied},
		"SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')": {clickhouse.CodeAccessDenied},
		// Interrupting the threads of this process.
		"SELECT * FROM system.stack_trace": {clickhouse.CodeUnknownTable},
	}
	t.Run("may not", func(t *testing.T) {
		for _, sql := range slices.Sorted(maps.Keys(mayNot)) {
			answer, err := answerOf(t.Context(), reader, sql, "TSV", nil)
			e := new(clickhouse.Error)
			if !errors.As(err, &e) || !slices.Contains(mayNot[sql], e.Code) {
				t.Errorf("%s: %q, error %v; want one of %v", sql, answer, err, mayNot[sql])
			}
			if strings.Contains(answer, "the secret") || err != nil && strings.Contains(err.Error(), "the secret") {
				t.Errorf("%s: gives the secret away", sql)
			}
		}
	})
	if got, err := os.ReadFile(secret); string(got) != "the secret\n" || err != nil {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if got := ask(t, admin, "SELECT * FROM lake_reader.t"); got != "7" {
		t.Errorf("the table holds %q", got)
	}
	if _, err := answerOf(t.Context(), reader, "SELECT {f:Identifier}('"+secret+"')", "TSV", map[string]string{"param_f": "file"}); err == nil {
		t.Error("a parameter passes")
	}
}

// A query in a URL parameter is decoded once.
func TestQueryIsNotAURL(t *testing.T) {
	t.Parallel()
	const sql = "SELECT '100% & +'"
	if got, err := answerOf(t.Context(), clickhousetest.Shared(t).Client(), "", "TSV", map[string]string{"query": sql}); err != nil || got != "100% & +\n" {
		t.Errorf("%s: %q, %v", url.QueryEscape(sql), got, err)
	}
}

func BenchmarkSelectOne(b *testing.B) {
	admin := clickhousetest.Shared(b).Client()
	for _, user := range []string{clickhouse.Admin, clickhouse.Reader} {
		c := admin.As(user)
		b.Run(user, func(b *testing.B) {
			for b.Loop() {
				if _, err := answerOf(b.Context(), c, "SELECT 1", "TSV", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
