package sql_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// A caller that may read one table can read it, and cannot reach others.
func TestOnly(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 2, orderLine)
	w.create("customers", orderLines)
	w.append("customers", 2, orderLine)
	all := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	ask(t, all, "SELECT count() FROM customers", lakesql.FormatCSV)
	others := strings.TrimSpace(strings.TrimPrefix(ask(t, all, "SELECT currentDatabase() AS d", lakesql.FormatCSV), "\"d\"\n")) // as if one knew its name
	others = strings.Trim(others, `"`)
	some := all.Only(func(table string) bool { return table == "order_lines" })

	// A name defined in the query belongs to the query and hides no table.
	if got := ask(t, some, "WITH customers AS (SELECT 1 AS x) SELECT x FROM customers", lakesql.FormatJSON); got != "{\"x\":1}\n" {
		t.Errorf("a name of the query's own: %s", got)
	}
	for _, query := range []string{
		"SELECT count() FROM order_lines", "SELECT count() FROM millrace.order_lines", "SELECT count() FROM `order_lines` -- customers",
		"SELECT 'customers', count() FROM order_lines GROUP BY ALL", "WITH x AS (SELECT 1) SELECT * FROM x, order_lines",
		"DESCRIBE order_lines", "EXPLAIN SELECT * FROM order_lines", "EXISTS order_lines",
	} {
		ask(t, some, query, lakesql.FormatJSON)
	}
	if tables := strings.Fields(ask(t, some, "SHOW TABLES", lakesql.FormatCSV)); slices.ContainsFunc(tables, func(s string) bool { return strings.Contains(s, "customers") }) {
		t.Errorf("SHOW TABLES: %v", tables)
	}
	for _, query := range []string{
		"SELECT count() FROM customers",
		"SELECT count() FROM millrace.customers",
		"SELECT count() FROM `customers`",
		"SELECT count() FROM order_lines, customers",
		"SELECT * FROM order_lines WHERE sku IN (SELECT sku FROM customers)",
		"SELECT * FROM (SELECT * FROM order_lines UNION ALL SELECT * FROM customers)",
		"SELECT count() FROM " + others + ".customers",
		"SELECT count() FROM `" + others + "`.customers",
		"SELECT count() FROM \"" + others + "\" . \"customers\"",
		"SELECT count() FROM `\\x6c" + others[1:] + "`.customers",
		"SELECT count() FROM merge('l.ke_.*', 'customers')",
		"SELECT count() FROM merge /* */ ('l.ke_.*', 'customers')",
		"SELECT count() FROM loop('" + others + "', 'customers')",
		"SELECT count() FROM cluster('default', '" + others + "', 'customers')",
		"SELECT hasColumnInTable('" + others + "', 'customers', 'sku')",
		"SELECT count() FROM {t:Identifier}",
		"SELECT query FROM system.processes",
		"SELECT query FROM `system`.processes",
		"SELECT name FROM SYSTEM.databases",
		"SELECT name FROM system . tables",
		"SELECT table_name FROM information_schema.tables",
		"SHOW DATABASES", "SHOW PROCESSLIST", "show /* all */ databases", "SHOW TABLES FROM system", "SHOW GRANTS", "SHOW USERS", "SHOW SETTINGS LIKE '%'",
		"DESCRIBE " + others + ".customers",
		"EXPLAIN SELECT * FROM customers",
		"EXPLAIN QUERY TREE SELECT * FROM customers",
		"EXPLAIN QUERY TREE SELECT * FROM " + others + ".customers",
		"EXPLAIN QUERY TREE SELECT * FROM /*/* x */ */ " + others + ".customers",
		"WITH customers AS (SELECT * FROM millrace.customers) SELECT * FROM customers",
		"SELECT * FROM view(SELECT * FROM customers)",
		"SELECT * FROM merge(customers)",
		"SELECT * FROM order_lines SETTINGS additional_table_filters = {'customers': '1'}",
		"SELECT joinGet('customers', 'sku', 'x')",
	} {
		_, err := answerOf(t.Context(), some, query, lakesql.FormatCSV)
		var beyond *lakesql.ScopeError
		if !errors.As(err, &beyond) || !strings.Contains(err.Error(), "auth.rights") {
			t.Errorf("%s: %v", query, err)
		}
	}
	for _, query := range []string{"SELECT * FROM order_lines WHERE sku IN customers", "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT * FROM customers))"} {
		if answer, err := answerOf(t.Context(), some, query, lakesql.FormatCSV); err == nil {
			t.Errorf("%s: %s", query, answer)
		}
	}
	if answer := ask(t, some, "EXISTS customers", lakesql.FormatCSV); !strings.Contains(answer, "0") {
		t.Errorf("EXISTS customers: %s", answer)
	}
	// Callers that may read everything are not restricted.
	ask(t, all, "SELECT count() FROM merge(currentDatabase(), 'customers')", lakesql.FormatCSV)
	ask(t, all, "SELECT count() FROM customers", lakesql.FormatCSV)
}

// The engine itself enforces the limit: as the user of one database, no form of query reaches
// another one, whatever its text looks like. (EXPLAIN QUERY TREE requires no grant, and shows the
// columns of a table whose database can be named. Such names are secret, and checkScope refuses
// them.)
func TestScopedReadersAreConfined(t *testing.T) {
	t.Parallel()
	admin := clickhousetest.Shared(t).Client()
	mine, theirs := clickhouse.ScopedPrefix(14)+"mine", clickhouse.ScopedPrefix(15)+"theirs"
	for _, database := range []string{mine, theirs, clickhouse.ReaderPrefix + "confined"} {
		for _, sql := range []string{
			"CREATE DATABASE " + database + " ENGINE = Memory", "CREATE TABLE " + database + ".t (a String) ENGINE = Memory",
			"INSERT INTO " + database + ".t VALUES ('of " + database + "')", "CREATE TABLE " + database + ".j (a String, b String) ENGINE = Join(ANY, LEFT, a)",
			"CREATE VIEW " + database + ".v AS SELECT a FROM " + theirs + ".t",
		} {
			if err := admin.Exec(t.Context(), sql, nil); err != nil && !strings.Contains(sql, "VIEW") {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		defer func() {
			if err := admin.Exec(t.Context(), "DROP DATABASE "+database, nil); err != nil {
				t.Error(err)
			}
		}()
	}
	reader := admin.As(clickhouse.ScopedReader(14))
	read := func(query string) (string, error) {
		body, err := reader.Query(t.Context(), query, "TSV", map[string]string{"database": mine})
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(body)
		return string(b), errors.Join(err, body.Close())
	}
	for _, query := range []string{"SELECT a FROM t", "SELECT a FROM " + mine + ".t", "WITH t AS (SELECT 'of " + mine + "' AS a) SELECT a FROM t"} {
		if answer, err := read(query); err != nil || answer != "of "+mine+"\n" {
			t.Errorf("%s: %q, %v", query, answer, err)
		}
	}
	for _, other := range []string{theirs, clickhouse.ReaderPrefix + "confined"} {
		for _, query := range []string{
			"SELECT a FROM %s.t", "SELECT a FROM `%s`.`t`", "SELECT a FROM \"%s\".t", "SELECT a FROM /* */ %s /* */ . /* */ t", "SELECT a FROM %s.t SETTINGS max_threads = 1",
			"SELECT (SELECT a FROM %s.t)", "SELECT 1 WHERE 'x' IN (SELECT a FROM %s.t)", "SELECT 1 WHERE 'x' IN %s.t", "SELECT 1 WHERE 'x' GLOBAL IN %s.t",
			"WITH x AS (SELECT a FROM %s.t) SELECT * FROM x", "SELECT a FROM t UNION ALL SELECT a FROM %s.t", "SELECT a FROM t INTERSECT SELECT a FROM %s.t",
			"SELECT * FROM t JOIN %s.t AS o ON t.a = o.a", "SELECT * FROM view(SELECT a FROM %s.t)", "SELECT a FROM merge('%s', 't')", "SELECT a FROM merge('lake_.*', '^t$') WHERE a LIKE '%%%s'",
			"SELECT a FROM loop('%s', 't') LIMIT 1", "SELECT a FROM loop(%s.t) LIMIT 1", "SELECT a FROM cluster('default', %s.t)", "SELECT a FROM clusterAllReplicas('default', '%s', 't')",
			"SELECT a FROM remote('127.0.0.1', '%s', 't')", "SELECT a FROM remote('127.0.0.1', %s.t)", "SELECT hasColumnInTable('%s', 't', 'a')", "SELECT joinGet('%s.j', 'b', 'x')",
			"SELECT joinGetOrNull('%s.j', 'b', 'x')", "SELECT dictGet('%s.t', 'a', 'x')", "SELECT * FROM dictionary('%s.t')", "DESCRIBE %s.t", "DESCRIBE TABLE %s.t", "SHOW CREATE TABLE %s.t",
			"SHOW COLUMNS FROM t FROM %s", "SHOW INDEX FROM t FROM %s", "EXPLAIN SELECT a FROM %s.t", "EXPLAIN PLAN SELECT a FROM %s.t",
			"EXPLAIN PIPELINE SELECT a FROM %s.t", "EXPLAIN ESTIMATE SELECT a FROM %s.t", "EXPLAIN TABLE OVERRIDE mysql('127.0.0.1', '%s', 't', 'u', 'p')", "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT a FROM %s.t))",
			"SELECT * FROM mergeTreeIndex('%s', 't')", "SELECT * FROM mergeTreeProjection('%s', 't', 'p')", "FROM %s.t SELECT a", "SELECT * FROM executable('%s', 'TSV', 'a String')",
			"SELECT * FROM fuzzQuery('SELECT a FROM %s.t')", "SELECT a FROM %s.v", "SELECT a FROM \\`%s\\`.t", "SELECT * FROM icebergLocal('/%s')", "SELECT * FROM file('%s/t')", "SELECT * FROM url('http://127.0.0.1:1/%s')",
			"SELECT * FROM s3('http://127.0.0.1:1/%s/t')", "SELECT * FROM deltaLake('http://127.0.0.1:1/%s/t')", "SELECT * FROM postgresql('127.0.0.1:1', '%s', 't', 'u', 'p')", "SELECT * FROM sqlite('%s', 't')",
			"INSERT INTO FUNCTION file('x', 'TSV', 'a String') SELECT a FROM %s.t", "INSERT INTO t SELECT a FROM %s.t", "CREATE VIEW v AS SELECT a FROM %s.t", "USE %s", "SELECT * FROM timeSeriesData(%s.t)",
		} {
			query = fmt.Sprintf(query, other)
			if answer, err := read(query); strings.Contains(answer, "of "+other) || err == nil && answer != "" {
				t.Errorf("%s: %q", query, answer)
			}
		}
		for _, query := range []string{
			"SHOW DATABASES", "SELECT name FROM system.databases", "SELECT database FROM system.tables", "SELECT database FROM system.columns",
			"SELECT table_schema FROM information_schema.tables", "SELECT catalog_name FROM information_schema.schemata", "SELECT table_schema FROM information_schema.columns",
			"SELECT a FROM lake_nowhere.t", "SELECT a FROM lake_s15_their.t",
		} {
			if answer, err := read(query); strings.Contains(answer, other) || err != nil && strings.Contains(err.Error(), other) {
				t.Errorf("%s reveals another database: %q, %v", query, answer, err)
			}
		}
	}
}

// The number of users for callers with limited rights is fixed. They are returned, even after the
// engine was unavailable, so that callers with ever new rights get one.
func TestScopedReadersAreReleased(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	for i := range clickhouse.ScopedReaders + 4 {
		w.create(fmt.Sprintf("t%d", i), orderLines)
	}
	all := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	for range 2 {
		for i := range clickhouse.ScopedReaders + 4 {
			name := fmt.Sprintf("t%d", i)
			some := all.Only(func(table string) bool { return table == name })
			if got := ask(t, some, "SELECT count() AS n FROM "+name, lakesql.FormatJSON); got != "{\"n\":0}\n" {
				t.Errorf("%s: %s", name, got)
			}
		}
	}
	// As many as possible at a time; one more gets ErrBusy.
	var open []io.Closer
	var err error
	for i := range clickhouse.ScopedReaders + 1 {
		name := fmt.Sprintf("t%d", i)
		var body io.ReadCloser
		if body, err = all.Only(func(table string) bool { return table == name }).Run(t.Context(), "SELECT 1", lakesql.FormatJSON); err != nil {
			break
		}
		open = append(open, body)
	}
	if !errors.Is(err, lakesql.ErrBusy) || len(open) < clickhouse.ScopedReaders-1 {
		t.Errorf("after %d: %v", len(open), err)
	}
	for _, body := range open {
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
	ask(t, all.Only(func(table string) bool { return table == "t0" }), "SELECT count() FROM t0", lakesql.FormatJSON)
}
