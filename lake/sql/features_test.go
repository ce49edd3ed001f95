package sql_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	lakesql "github.com/millrace/millrace/lake/sql"
)

// Tables of features can be read beside the lake's, within the rights of the caller.
func TestFeatures(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 2, orderLine)
	store := clickhousetest.OpenStore(t)
	for _, name := range []string{"rfm", "secrets"} {
		table := clickhouse.Table{Database: clickhouse.Features, Name: name, Columns: []clickhouse.Column{{Name: "n", Type: "UInt64"}}}
		b, err := store.Batch(table, "")
		if err = errors.Join(err, b.Append(uint64(7)), store.CreateTable(t.Context(), table), b.Send(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	all := lakesql.New(w.tables, clickhousetest.Shared(t).Client(), lakesql.S3{})
	some := all.Only(func(table string) bool { return table == "order_lines" || table == "features.rfm" })
	every := all.Only(func(table string) bool { return strings.HasPrefix(table, "features.") })
	const both = "SELECT n, (SELECT count() FROM order_lines) AS lines FROM features.rfm"
	for name, c := range map[string]struct {
		caller      *lakesql.SQL
		query, want string
	}{
		"everything":          {all, both, "n,lines\n7,2\n"},
		"everything, secrets": {all, "SELECT n FROM features.secrets", "n\n7\n"},
		"some":                {some, both, "n,lines\n7,2\n"},
		"some, quoted":        {some, "SELECT r.n FROM `features`.\"rfm\" AS r", "n\n7\n"},
		"a pattern":           {every, "SELECT n FROM features.secrets", "n\n7\n"},
	} {
		got, err := answerOf(t.Context(), c.caller, c.query, lakesql.FormatCSV)
		if got = strings.ReplaceAll(got, `"`, ""); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	for _, query := range []string{
		"SELECT n FROM features.secrets", "SELECT n FROM `features`.secrets", "SELECT n FROM features . \"secrets\"",
		"SELECT n FROM `features.secrets`", "SELECT * FROM merge('features', '.*')", "DESCRIBE features.secrets",
		"SELECT n FROM features.rfm WHERE n IN features.secrets", "INSERT INTO features.rfm VALUES (1)", "DROP TABLE features.rfm",
	} {
		got, err := answerOf(t.Context(), some, query, lakesql.FormatCSV)
		if err == nil {
			t.Errorf("%s: answer %q", query, got)
		}
	}
	for _, query := range []string{"INSERT INTO features.rfm VALUES (1)", "TRUNCATE TABLE features.rfm"} {
		if _, err := answerOf(t.Context(), all, query, lakesql.FormatCSV); err == nil {
			t.Errorf("%s: it was run", query)
		}
	}
	// A view has the columns of the table at the time of the query.
	if err := store.Exec(t.Context(), "ALTER TABLE features.rfm ADD COLUMN more UInt8 DEFAULT 3"); err != nil {
		t.Fatal(err)
	}
	if got, err := answerOf(t.Context(), some, "SELECT more FROM features.rfm", lakesql.FormatCSV); err != nil || !strings.HasSuffix(got, "\n3\n") {
		t.Errorf("a new column: %q, %v", got, err)
	}
	for n := range 2 * clickhouse.ScopedReaders { // its users are free again
		if _, err := answerOf(t.Context(), some, fmt.Sprintf("SELECT n + %d FROM features.rfm", n), lakesql.FormatCSV); err != nil {
			t.Fatal(err)
		}
	}
}
