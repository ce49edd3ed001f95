package sql_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// Impossible requests are the query's fault, with a reason that does not mention our code or files.
func TestQueryErrors(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 2, orderLine)
	s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	for _, c := range []struct{ query, says string }{
		// Numbers, texts and times with invalid values.
		{"SELECT intDiv(1, 0)", "Division by zero"},
		{"SELECT 1 % 0", "Division by zero"},
		{"SELECT toDecimal32(1, 2) / toDecimal32(0, 2)", "Division by zero"},
		{"SELECT toInt32('x')", "Cannot parse string 'x' as Int32"},
		{"SELECT toInt32(sku) FROM order_lines", "Cannot parse string 'sku-0' as Int32"},
		{"SELECT * FROM order_lines WHERE toInt32(sku) = 1", "Cannot parse string 'sku-0' as Int32"},
		{"SELECT toUUID('x')", "Cannot parse"},
		{"SELECT toDateTime('yesterday')", "Cannot"},
		{"SELECT toDecimal32('123456789012', 9)", ""},
		{"SELECT accurateCast(300, 'UInt8')", "cannot be safely converted"},
		{"SELECT CAST(NULL AS Int32)", "Cannot convert NULL to a non-nullable type"},
		{"SELECT CAST('b' AS Enum8('a' = 1))", "Enum"},
		{"SELECT '{'::JSON", "Cannot parse JSON object"},
		{"SELECT CAST(unhex('ff') AS AggregateFunction(sum, Int32))", "Cannot read all data"},
		{"SELECT base64Decode('!!!')", "cannot be decoded"},
		{"SELECT toTimeZone(now(), 'Nowhere/City')", ""},
		// Functions with invalid arguments and types.
		{"SELECT nosuch(1)", "Function with name `nosuch` does not exist"},
		{"SELECT lower('a', 'b')", "arguments"},
		{"SELECT 1 + 'x'", "Illegal types"},
		{"SELECT sum('x')", "Illegal type"},
		{"SELECT CAST(1 AS Nosuch)", "Unknown data type family: Nosuch"},
		{"SELECT match('x', '(')", "cannot compile"},
		{"SELECT * FROM order_lines WHERE match(sku, '(')", "cannot compile"},
		{"SELECT arrayMap((x, y) -> x, [1], [1, 2])", "equal size"},
		{"SELECT x -> x", "Lambda"},
		{"SELECT getMacro('x')", ""},
		{"SELECT catboostEvaluate('x', 1)", "are not available here"},
		{"SELECT throwIf(1, 'my reason')", "my reason"},
		{"SELECT * FROM order_lines WHERE throwIf(quantity > 0, 'my reason')", "my reason"},
		// Excessive requests.
		{"SELECT repeat('x', 100000000000)", "Too large string"},
		{"SELECT range(10000000000)", "array"},
		{"SELECT groupArray(repeat('x', 1000)) FROM numbers(100000000)", "emory limit"},
		{"SELECT sleep(4)", "maximum sleep time"},
		{"SELECT arrayWithConstant(100000000000, 1)", ""},
		// Settings and formats.
		{"SELECT 1 SETTINGS nosuch = 1", "nosuch"},
		{"SELECT 1 SETTINGS max_memory_usage = 1", "Cannot modify 'max_memory_usage' setting"},
		{"SELECT 1 FORMAT Nosuch", "Unknown format Nosuch"},
		{"SELECT 1 FORMAT Regexp", "not suitable for output"},
		{"SELECT NULL FORMAT ORC", "not supported"},
		// Names and grouping.
		{"SELECT nosuch FROM order_lines", "nosuch"},
		{"SELECT sku, count() FROM order_lines", "GROUP BY"},
		{"SELECT sum(sum(quantity)) FROM order_lines", "Aggregate function"},
		{"SELECT (SELECT number FROM numbers(2))", "more than one row"},
		{"SELECT 1 UNION ALL SELECT 1, 2", "UNION"},
		{"WITH t AS (SELECT * FROM t) SELECT * FROM t", `unknown table "t"`},
		{"SELECT * FROM order_lines FINAL", "FINAL"},
		{"SELECT * FROM order_lines SAMPLE 0.1", "sampling"},
		{"SELECT * FROM numbers('x')", "Illegal type"},
		// Syntax errors have their position.
		{"SELECT 1 AS `", "failed at position 13"},
		{"SELECT 1 AS \"a\" \"b\"", `failed at position 17 ("b")`},
		{"SELECT /* ", "failed at position 8"},
		{"SELECT count( FROM order_lines", "failed at position"},
	} {
		_, err := answerOf(t.Context(), s, c.query, lakesql.FormatJSON)
		fault := (*lakesql.QueryError)(nil)
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want %q", c.query, err, c.says)
			continue
		}
		for _, inside := range []string{w.dir, ".go:", "sql.", "clickhouse.", "*errors", "DB::"} {
			if strings.Contains(err.Error(), inside) {
				t.Errorf("%s: the error shows %q: %v", c.query, inside, err)
			}
		}
	}
}

// A damaged file is not the query's fault, whatever the engine's message is: the error has the
// table's name.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"short":     func(b []byte) []byte { return b[:len(b)-5] },
		"zeroes":    func(b []byte) []byte { return make([]byte, len(b)) },
		"body": func(b []byte) []byte {
			for i := 20; i < len(b)/2; i += 7 {
				b[i] ^= 0xff
			}
			return b
		},
		"footer": func(b []byte) []byte {
			for i := len(b) - 100; i < len(b)-10; i += 3 {
				b[i] ^= 0xff
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWarehouse(t)
			w.create("order_lines", orderLines)
			w.create("other", orderLines)
			w.append("order_lines", 200, orderLine)
			w.append("other", 2, orderLine)
			damaged := 0
			err := filepath.WalkDir(w.dir, func(path string, _ fs.DirEntry, err error) error {
				if err != nil || filepath.Ext(path) != ".parquet" || !strings.Contains(path, "/order_lines/") {
					return err
				}
				damaged++
				b, err := os.ReadFile(path)
				return errors.Join(err, os.WriteFile(path, damage(b), 0o600))
			})
			if err != nil || damaged != 1 {
				t.Fatalf("%d files are damaged, %v", damaged, err)
			}
			s := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
			_, err = answerOf(t.Context(), s, "SELECT sku, sum(quantity) FROM order_lines GROUP BY sku", lakesql.FormatJSON)
			if unreadable := (*lakesql.UnreadableError)(nil); !errors.As(err, &unreadable) || unreadable.Table != "order_lines" {
				t.Errorf("error %v", err)
			}
			if got := ask(t, s, "SELECT count() FROM other", lakesql.FormatCSV); got != "\"count()\"\n2\n" {
				t.Errorf("the other table: %s", got)
			}
		})
	}
}
