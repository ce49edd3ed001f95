package sql_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// Who may read one table reads that one, and finds no way to another.
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
	} {
		_, err := answerOf(t.Context(), some, query, lakesql.FormatCSV)
		var beyond *lakesql.ScopeError
		if !errors.As(err, &beyond) || !strings.Contains(err.Error(), "auth.rights") {
			t.Errorf("%s: %v", query, err)
		}
	}
	if answer := ask(t, some, "EXISTS customers", lakesql.FormatCSV); !strings.Contains(answer, "0") {
		t.Errorf("EXISTS customers: %s", answer)
	}
	// Those who may read everything are not narrowed by it.
	ask(t, all, "SELECT count() FROM merge(currentDatabase(), 'customers')", lakesql.FormatCSV)
	ask(t, all, "SELECT count() FROM customers", lakesql.FormatCSV)
}
