package engine_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

// post sends an insert as user and returns the status and the answer.
func post(t testing.TB, user, statement string, header http.Header, params url.Values, body io.Reader) (int, string) {
	t.Helper()
	e := clickhousetest.Shared(t)
	query := url.Values{"query": {statement}}
	for name, values := range params {
		query[name] = values
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+e.Addr()+"/?"+query.Encode(), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("X-ClickHouse-User", user)
	req.Header.Set("X-ClickHouse-Key", e.Client().Password())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// writerTable creates a table of features for a test.
func writerTable(t testing.TB, name, definition string) *clickhouse.Client {
	t.Helper()
	c := clickhousetest.Shared(t).Client().As(clickhouse.Writer)
	if err := c.Exec(context.Background(), "CREATE TABLE features."+name+" "+definition, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func frame(t testing.TB, method compress.Method, content []byte) []byte {
	t.Helper()
	w := compress.NewWriter(0, method)
	if err := w.Compress(content); err != nil {
		t.Fatal(err)
	}
	return w.Data
}

// Rows arrive in any input format and any encoding. Their bytes are not part of the statement.
func TestInsertBodies(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "bodies", "(s String) ENGINE = MergeTree ORDER BY s")
	var zipped, deflated bytes.Buffer
	z, d := gzip.NewWriter(&zipped), zlib.NewWriter(&deflated)
	for _, w := range []io.WriteCloser{z, d} {
		if _, err := io.WriteString(w, "text\n"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	into := func(format string) string { return "INSERT INTO features.bodies (s) FORMAT " + format }
	for name, b := range map[string]struct {
		statement string
		header    http.Header
		params    url.Values
		body      string
	}{
		"RowBinary with any byte":  {statement: into("RowBinary"), body: "\x04te\x00t"},
		"looks like SQL":           {statement: into("TSV"), body: "'); DROP TABLE features.bodies; --\n"},
		"JSON lines":               {statement: into("JSONEachRow"), body: `{"s": "text"}`},
		"lower case, line breaks":  {statement: "insert into\nfeatures.bodies (s)\n  format\tCSV ;\n", body: "\"te\nxt\"\n"},
		"gzip":                     {statement: into("TSV"), header: http.Header{"Content-Encoding": {"gzip"}}, body: zipped.String()},
		"deflate":                  {statement: into("TSV"), header: http.Header{"Content-Encoding": {"deflate"}}, body: deflated.String()},
		"frames":                   {statement: into("TSV"), params: url.Values{"decompress": {"1"}}, body: string(frame(t, compress.ZSTD, []byte("te"))) + string(frame(t, compress.LZ4, []byte("xt\n")))},
		"a column named format":    {statement: "INSERT INTO features.bodies (s) SETTINGS max_threads = 1 FORMAT TSV", body: "text\n"},
		"a statement in the body":  {body: "INSERT INTO features.bodies FORMAT TSV\ntext\n"},
		"VALUES, all in the URL":   {statement: "INSERT INTO features.bodies VALUES ('text')"},
		"SELECT, all in the URL":   {statement: "INSERT INTO features.bodies SELECT 'text'"},
		"larger than a statement":  {statement: into("TSV"), body: strings.Repeat("x", 3<<20) + "\n"},
		"in pieces of any size":    {statement: into("TSV"), body: strings.Repeat("y", 1<<20-1) + "\n"},
		"a setting in the URL":     {statement: into("TSV"), params: url.Values{"max_insert_threads": {"1"}}, body: "text\n"},
		"deduplicated, first time": {statement: into("TSV"), params: url.Values{"insert_deduplication_token": {"a"}}, body: "text\n"},
	} {
		before := ask(t, c, "SELECT count() FROM features.bodies")
		if status, answer := post(t, clickhouse.Writer, b.statement, b.header, b.params, strings.NewReader(b.body)); status != http.StatusOK || answer != "" {
			t.Errorf("%s: %d %.300s", name, status, answer)
		}
		if after := ask(t, c, "SELECT count() - 1 FROM features.bodies"); after != before {
			t.Errorf("%s: %s rows before, one less than %s after", name, before, after)
		}
	}
}

// States of aggregate functions are inserted as they are stored, or computed.
func TestInsertStates(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "states", "(k UInt8, n AggregateFunction(uniqExact, UInt64), q AggregateFunction(quantileTDigest, Float64)) ENGINE = AggregatingMergeTree ORDER BY k")
	if err := c.Exec(t.Context(), "INSERT INTO features.states SELECT 1, uniqExactState(number), quantileTDigestState(toFloat64(number)) FROM numbers(100)", nil); err != nil {
		t.Fatal(err)
	}
	stored, err := answerOf(t.Context(), c, "SELECT 2, n, q FROM features.states", "RowBinary", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, answer := post(t, clickhouse.Writer, "INSERT INTO features.states FORMAT RowBinary", nil, nil, strings.NewReader(stored)); status != http.StatusOK {
		t.Errorf("%d %s", status, answer)
	}
	if got := ask(t, c, "SELECT k, uniqExactMerge(n), round(quantileTDigestMerge(q)) FROM features.states GROUP BY k ORDER BY k"); got != "1\t100\t50\n2\t100\t50" && got != "1\t100\t49\n2\t100\t49" {
		t.Errorf("states: %q", got)
	}
}

// Bad inserts have ClickHouse's code, and insert nothing.
func TestBadInserts(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "bad", "(n UInt64) ENGINE = MergeTree ORDER BY n")
	const into = "INSERT INTO features.bad FORMAT "
	damaged := frame(t, compress.LZ4, []byte("1\n"))
	damaged[len(damaged)-1]++
	for name, b := range map[string]struct {
		user, statement string
		header          http.Header
		params          url.Values
		body            string
		status, code    int
	}{
		"not a number":       {statement: into + "TSV", body: "x\n", status: 400, code: 27},
		"cut row":            {statement: into + "RowBinary", body: "abc", status: 400, code: 33},
		"not native":         {statement: into + "Native", body: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", status: 500},
		"unknown format":     {statement: into + "Nothing", body: "1\n", status: 404, code: 73},
		"unknown table":      {statement: "INSERT INTO features.nothing FORMAT TSV", body: "1\n", status: 404, code: 60},
		"unknown column":     {statement: "INSERT INTO features.bad (m) FORMAT TSV", body: "1\n", status: 500, code: 16},
		"two statements":     {statement: "INSERT INTO features.bad VALUES (1); " + into + "TSV", body: "1\n", status: 400, code: 62},
		"damaged frame":      {statement: into + "TSV", params: url.Values{"decompress": {"1"}}, body: string(damaged), status: 500, code: 271},
		"no frame":           {statement: into + "TSV", params: url.Values{"decompress": {"1"}}, body: "1\n", status: 500, code: 271},
		"no gzip":            {statement: into + "TSV", header: http.Header{"Content-Encoding": {"gzip"}}, body: "1\n", status: 500, code: 271},
		"unknown encoding":   {statement: into + "TSV", header: http.Header{"Content-Encoding": {"br"}}, body: "1\n", status: 501, code: 48},
		"unknown setting":    {statement: into + "TSV", params: url.Values{"no_such_setting": {"1"}}, body: "1\n", status: 404, code: 115},
		"unknown revision":   {statement: into + "TSV", params: url.Values{"client_protocol_version": {"-1"}}, body: "1\n", status: 400, code: 36},
		"as a reader":        {user: clickhouse.Reader, statement: into + "TSV", body: "1\n", status: 403, code: 164},
		"in a lake database": {statement: "INSERT INTO lake_x.t FORMAT TSV", body: "1\n", status: 404, code: 81},
		"into a function":    {statement: "INSERT INTO FUNCTION url('http://127.0.0.1:1', TSV, 'n UInt8') FORMAT TSV", body: "1\n", status: 403, code: 497},
	} {
		if b.user == "" {
			b.user = clickhouse.Writer
		}
		status, answer := post(t, b.user, b.statement, b.header, b.params, strings.NewReader(b.body))
		if status != b.status || !strings.HasPrefix(answer, "Code: ") || b.code != 0 && !strings.HasPrefix(answer, fmt.Sprintf("Code: %d.", b.code)) {
			t.Errorf("%s: %d %.300s, want %d and code %d", name, status, answer, b.status, b.code)
		}
	}
	if got := ask(t, c, "SELECT count() FROM features.bad"); got != "0" {
		t.Errorf("%s rows were inserted", got)
	}
}

// A client that disappears in the middle of its rows inserts nothing.
func TestCutOffInsert(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "cut", "(n UInt64) ENGINE = MergeTree ORDER BY n")
	e := clickhousetest.Shared(t)
	conn, err := net.Dial("tcp", e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "POST /?query=%s HTTP/1.1\r\nHost: x\r\nX-ClickHouse-User: writer\r\nX-ClickHouse-Key: %s\r\nContent-Length: 1000\r\n\r\n%s",
		url.QueryEscape("INSERT INTO features.cut FORMAT TSV"), e.Client().Password(), strings.Repeat("1\n", 100))
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	// The next insert is after it, because it waits for the table's lock at most.
	polltest.Until(t, "no insert runs", func() bool {
		return ask(t, e.Client(), "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO features.cut%'") == "0"
	})
	if got := ask(t, c, "SELECT count() FROM features.cut"); got != "0" {
		t.Errorf("%s rows were inserted", got)
	}
}

// Damaged blocks are refused or inserted, and the engine survives them.
func TestDamagedBlocks(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "blocks", "(n UInt64, s LowCardinality(String), a Array(Nullable(Int64)), m Map(String, String), d Decimal(38, 9), t DateTime64(6), u UUID) ENGINE = MergeTree ORDER BY n")
	e := clickhousetest.Shared(t)
	pid := e.PID()
	block, err := answerOf(t.Context(), c, "SELECT number AS n, toLowCardinality(toString(n)) AS s, [n, NULL]::Array(Nullable(Int64)) AS a, map('a', s)::Map(String, String) AS m, "+
		"toDecimal128(n, 9) AS d, now64(6) AS t, generateUUIDv4() AS u FROM numbers(20)", "Native", nil)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		damaged := []byte(block)
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			damaged[rapid.IntRange(0, len(damaged)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
		}
		damaged = damaged[:rapid.IntRange(0, len(damaged)).Draw(rt, "length")]
		status, answer := post(t, clickhouse.Writer, "INSERT INTO features.blocks FORMAT Native", nil, url.Values{"max_memory_usage": {"100000000"}}, bytes.NewReader(damaged))
		if status != http.StatusOK && !strings.HasPrefix(answer, "Code: ") {
			rt.Fatalf("%d %s", status, answer)
		}
	})
	if ask(t, c, "SELECT 1") != "1" || e.PID() != pid {
		t.Errorf("the engine ended: process %d, then %d", pid, e.PID())
	}
}

// The writer can do everything with the tables of features, and nothing else.
func TestWriter(t *testing.T) {
	t.Parallel()
	c := writerTable(t, "writer", "(n UInt64) ENGINE = MergeTree ORDER BY n")
	admin := clickhousetest.Shared(t).Client()
	ask(t, admin, "CREATE DATABASE IF NOT EXISTS lake_writer ENGINE = Memory")
	ask(t, admin, "CREATE TABLE lake_writer.t (n UInt8) ENGINE = Memory")
	for _, sql := range []string{
		"INSERT INTO features.writer SELECT number FROM numbers(10)", "ALTER TABLE features.writer ADD COLUMN s String",
		"OPTIMIZE TABLE features.writer FINAL", "CREATE VIEW features.writer_view AS SELECT n FROM features.writer",
		"CREATE DATABASE IF NOT EXISTS features", "ALTER TABLE features.writer DELETE WHERE n = 3", "DROP VIEW features.writer_view",
		"SELECT name FROM system.parts WHERE table = 'writer'", "TRUNCATE TABLE features.writer", "EXISTS TABLE features.writer",
		"CREATE TABLE features.writer2 AS features.writer", "EXCHANGE TABLES features.writer2 AND features.writer", "DROP TABLE features.writer2",
	} {
		if _, err := answerOf(t.Context(), c, sql, "TSV", nil); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{
		"DROP DATABASE features", "CREATE DATABASE more", "CREATE TABLE default.t (n UInt8) ENGINE = Memory", "SELECT * FROM lake_writer.t", "INSERT INTO lake_writer.t VALUES (1)",
		"SELECT * FROM url('http://127.0.0.1:1', TSV, 'n UInt8')", "SELECT file('/etc/passwd')", "SELECT * FROM file('/etc/passwd', TSV, 's String')",
		"INSERT INTO FUNCTION file('/tmp/x', TSV, 'n UInt8') VALUES (1)", "CREATE TABLE features.f (s String) ENGINE = File(TSV)",
		"CREATE TABLE features.s (s String) ENGINE = S3('http://127.0.0.1:1/x', TSV)", "CREATE TABLE features.u (s String) ENGINE = URL('http://127.0.0.1:1', TSV)",
		"SYSTEM SHUTDOWN", "SET ROLE admin", "SET readonly = 0", "GRANT ALL ON *.* TO default", "CREATE USER x", "KILL QUERY WHERE 1", "SELECT * FROM system.processes", "SHOW PROCESSLIST",
		"SELECT 1 INTO OUTFILE '/tmp/x'", "BACKUP DATABASE features TO File('/tmp/x')", "ATTACH TABLE features.y FROM '/tmp' (n UInt8) ENGINE = MergeTree ORDER BY n",
	} {
		if got, err := answerOf(t.Context(), c, sql, "TSV", nil); err == nil {
			t.Errorf("%s: it was run, answer %q", sql, got)
		}
	}
}
