package engines_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/test/engines"
	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/spark"
	"github.com/millrace/millrace/test/servers/trino"
)

var (
	server  trino.Server
	session spark.Session
	world   system
	once    sync.Once
)

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, server.Stop, session.Stop, world.stop))
}

// startEngines starts the engines on two catalogs: the system's REST catalog, and a shared one.
func startEngines(t *testing.T) engines.Engines {
	t.Helper()
	s := world.running(t)
	once.Do(func() {
		file := filepath.Join(s.dir, "shared.db")
		db, err := sqlite.Open(file)
		if err == nil {
			err = errors.Join(catalog.Create(t.Context(), db), db.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		shared = catalog.Catalog{Name: "shared", JDBC: "jdbc:sqlite:" + file, Warehouse: "file://" +
			filepath.Join(s.dir, "shared")}
		server.Catalogs, session.Catalogs = []catalog.Catalog{shared,
			s.catalog("trino")}, []catalog.Catalog{shared, s.catalog("spark")}
	})
	server.URL(t)
	session.MustQuery(t, "SELECT 1")
	return engines.Engines{Trino: &server, Spark: &session, Python: process.Python(t), Script: "testdata/read.py"}
}

var shared catalog.Catalog

// TestEnginesAgree checks that every engine reads the same rows from a table, whichever engine
// wrote it.
func TestEnginesAgree(t *testing.T) {
	all, c := startEngines(t), shared

	query := func(statement string) {
		t.Helper()
		if _, err := server.Query(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	query("CREATE SCHEMA shared.lake")
	query(`CREATE TABLE shared.lake.by_trino (id bigint, n integer, name varchar, price decimal(38,9), ratio double, ok boolean,
		at timestamp(6) with time zone, raw varbinary)`)
	query(`INSERT INTO shared.lake.by_trino SELECT x, CAST(x AS integer), 'näme ' || CAST(x AS varchar), CAST(x AS decimal(38,9)) / 8, x / 3e0, x % 2 = 0,
		from_unixtime_nanos(x * 1000001000) , CAST(CAST(x AS varchar) AS varbinary) FROM UNNEST(sequence(1, 500)) AS t(x)`)
	query("INSERT INTO shared.lake.by_trino (id) VALUES (501)")
	query("DELETE FROM shared.lake.by_trino WHERE id BETWEEN 100 AND 149")
	session.MustQuery(t, `CREATE TABLE shared.lake.by_spark (id bigint, n int, name string, price decimal(38,9), ratio double, ok boolean, at timestamp, raw binary)
		USING iceberg`)
	session.MustQuery(t, `INSERT INTO shared.lake.by_spark SELECT id, CAST(id AS int), concat('näme ', id), CAST(id / 8 AS decimal(38,9)), id / 3D, id % 2 = 0,
		timestamp_micros(id * 1000001), CAST(CAST(id AS string) AS binary) FROM range(1, 501)`)
	session.MustQuery(t, "INSERT INTO shared.lake.by_spark (id) VALUES (501)")
	session.MustQuery(t, "DELETE FROM shared.lake.by_spark WHERE id BETWEEN 100 AND 149")

	for table, want := range map[string]int{"lake.by_trino": 451, "lake.by_spark": 451} {
		t.Run(table, func(t *testing.T) {
			views, err := all.Read(t.Context(), c, table)
			if errors.Is(err, process.ErrMissing) {
				process.SkipOrFail(t, "PyIceberg and DuckDB", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, v := range views {
				names = append(names, v.Engine)
			}
			if got := strings.Join(names, " "); got != "Trino Spark PyIceberg DuckDB" {
				t.Errorf("read by %s", got)
			}
			if len(views[0].Rows) != want {
				t.Errorf("Trino reads %d rows, want %d", len(views[0].Rows), want)
			}
			if err := engines.Differ(views); err != nil {
				t.Error(err)
			}
		})
	}
}
