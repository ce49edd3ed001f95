package engines_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace/millrace/test/engines"
	"github.com/millrace/millrace/test/servers/process"
)

// lines returns how many lines of the real year to import by default. 0 means all.
func lines(t *testing.T) int {
	t.Helper()
	text, ok := os.LookupEnv("MILLRACE_ENGINES_LINES")
	if !ok {
		return 20_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("MILLRACE_ENGINES_LINES: %v", err)
	}
	return n
}

// imported imports a part of the real year, and waits until it is everywhere.
func (s *system) imported(t *testing.T, lines int) {
	t.Helper()
	if _, err := os.Stat(realData); err != nil {
		t.Skipf("the real data is missing: %v", err)
	}
	s.run(t, "import", "online-retail", realData, "--limit", strconv.Itoa(lines), "--rejects", s.dir+"/rejects.csv")
	s.verified(t)
}

// origins are the columns by which a table of events is compared with its topic.
var origins = []string{"partition", "offset", "aggregate_id", "payload"}

// TestEveryEngineReadsEveryTable checks that every engine finds every table of the system through
// the REST catalog, and reads the same rows as the others and as Millrace's own SQL. A table of
// events must also have the rows of its topic.
func TestEveryEngineReadsEveryTable(t *testing.T) {
	s := world.running(t)
	all := startEngines(t)
	all.Python = process.Python(t)
	s.imported(t, lines(t))
	tables := s.tables(t)
	if len(tables) < 5 {
		t.Errorf("the catalog has %d tables", len(tables))
	}
	for _, table := range tables {
		t.Run(table.Name, func(t *testing.T) {
			sums := s.sums(t, all, table.Table)
			mine := sums[0]
			t.Logf("%s: %s rows, hash %s, of %d columns and parts of columns", table.Name, mine.Count, mine.Hash,
				len(table.Columns))
			if mine.Count == "0" {
				t.Error("the table has no rows to compare")
			}
			// Maintenance may have compacted the deletes away in the meantime.
			had, has := table.equalityDeletes(), s.table(t, table.Name).equalityDeletes()
			for _, other := range sums[1:] {
				switch {
				case other.Engine == "PyIceberg" && had && has && other.Refused == "":
					t.Errorf("%s reads a table with equality deletes, which it could not: it saw %+v; say so in docs/testing.md", other.Engine, other)
				case other.Engine == "PyIceberg" && (had || has) && other.Refused != "":
				case !other.Equal(engines.Summed{Count: mine.Count, Hash: mine.Hash}):
					t.Errorf("%s reads %+v, %s reads %+v", other.Engine, other, mine.Engine, mine)
				}
			}
			if strings.HasSuffix(table.Name, "_events") {
				s.compareWithTopic(t, all, table)
			}
		})
	}
	if lines(t) == 0 {
		t.Run("published figures", func(t *testing.T) { s.compareFigures(t, all) })
	}
}

// sums returns the results of Millrace's own SQL and of every engine for a table.
func (s *system) sums(t *testing.T, all engines.Engines, table engines.Table) []engines.Summed {
	t.Helper()
	sums, err := all.Sum(t.Context(), s.catalog("python"), table)
	if err != nil {
		t.Fatal(err)
	}
	return append([]engines.Summed{s.sql(t, table)}, sums...)
}

// sql returns the result of Millrace's own SQL.
func (s *system) sql(t *testing.T, table engines.Table) engines.Summed {
	t.Helper()
	var row struct{ N, H json.Number }
	if err := json.Unmarshal(s.run(t, "sql", "--output", "json", clickHouseSum(table.Name, table.Columns)),
		&row); err != nil {
		t.Fatal(err)
	}
	return engines.Summed{Engine: "ClickHouse (millrace sql)", Count: row.N.String(), Hash: row.H.String()}
}

// clickHouseSum returns the query with the sum as text, because it exceeds JSON's numbers.
func clickHouseSum(from string, columns []engines.Column) string {
	query := engines.ClickHouseSQL.Sum(from, columns)
	query = strings.Replace(query, "coalesce(sum(", "toString(sum(", 1)
	return strings.Replace(query, "), 0) AS h", ")) AS h", 1)
}

func (s *system) compareWithTopic(t *testing.T, all engines.Engines, table loaded) {
	t.Helper()
	var columns []engines.Column
	for _, name := range origins {
		columns = append(columns, table.column(t, name))
	}
	records, _ := s.topic(t, topicOf(t, table))
	var want engines.Hash
	for _, r := range records {
		want.Add(r.text())
	}
	for _, sum := range s.sums(t, all, engines.Table{Namespace: table.Namespace, Name: table.Name, Columns: columns}) {
		if !sum.Equal(want.Summed(sum.Engine)) && sum.Refused == "" {
			t.Errorf("the topic has %+v, but %s reads %+v", want.Summed("topic"), sum.Engine, sum)
		}
	}
}

// text returns a record as the columns of origins.
func (r record) text() []byte {
	return fmt.Appendf(nil, "%d|%d|%s|%s", r.partition, r.offset, r.key, hex.EncodeToString(r.value))
}

// topicOf returns the topic of a table, from the table's own properties.
func topicOf(t *testing.T, table loaded) string {
	t.Helper()
	for key := range table.Properties {
		if rest, ok := strings.CutPrefix(key, "millrace.next-offset."); ok {
			return rest[:strings.LastIndexByte(rest, '.')]
		}
	}
	t.Fatalf("table %s has no property for its topic", table.Name)
	return ""
}

// compareFigures compares every engine with the published figures of the real year. The demo's own
// orders are excluded.
func (s *system) compareFigures(t *testing.T, all engines.Engines) {
	t.Helper()
	const figures = "SELECT count(*), count(DISTINCT order_id), sum(quantity), sum(quantity * unit_price) FROM %s WHERE customer_id IS NOT NULL AND ordered_at < %s"
	for _, engine := range []struct {
		name string
		ask  func() ([][]any, error)
	}{
		{"Trino", func() ([][]any, error) {
			return all.Trino.Query(t.Context(),
				fmt.Sprintf(figures, "lake.millrace.order_lines", "TIMESTAMP '2012-01-01 00:00:00 UTC'"))
		}},
		{"Spark", func() ([][]any, error) {
			return all.Spark.Query(t.Context(),
				fmt.Sprintf(figures, "lake.millrace.order_lines", "TIMESTAMP '2012-01-01 00:00:00'"))
		}},
	} {
		rows, err := engine.ask()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Trim(fmt.Sprint(rows[0]),
			"[]"), "397884 18532 5167812 8911407.904"; !strings.HasPrefix(got, want) {
			t.Errorf("%s reads %s, want %s", engine.name, got, want)
		}
	}
}
