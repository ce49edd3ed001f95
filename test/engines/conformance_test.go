package engines_test

import (
	"fmt"
	"strings"
	"testing"
)

// TestSparkUsesTheCatalog has Spark use the REST catalog as its users do, with namespaces and
// tables. Changes to the landers' tables must be refused.
func TestSparkUsesTheCatalog(t *testing.T) {
	startEngines(t)
	ask := func(statement string) string {
		t.Helper()
		rows, err := session.Query(t.Context(), statement)
		if err != nil {
			t.Errorf("%.1000v", err)
		}
		return fmt.Sprint(rows)
	}
	is := func(statement, want string) {
		t.Helper()
		if got := ask(statement); got != want {
			t.Errorf("%s: %s, want %s", statement, got, want)
		}
	}
	refused := func(statement string, says ...string) {
		t.Helper()
		rows, err := session.Query(t.Context(), statement)
		if err == nil {
			t.Errorf("%s: allowed, and returned %v", statement, rows)
			return
		}
		for _, text := range says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %.600v, want an error with %s", statement, err, text)
			}
		}
	}

	ask("CREATE NAMESPACE lake.own WITH DBPROPERTIES ('keeper' = 'spark')")
	refused("CREATE NAMESPACE lake.own", "already exists")
	ask("CREATE NAMESPACE lake.own.inner")
	is("SHOW NAMESPACES IN lake.own", "[[own.inner]]")
	refused("DROP NAMESPACE lake.own", "NamespaceNotEmpty")
	ask("DROP NAMESPACE lake.own.inner")
	ask("ALTER NAMESPACE lake.own SET DBPROPERTIES ('keeper' = 'others')")
	if got := ask("DESCRIBE NAMESPACE EXTENDED lake.own"); !strings.Contains(got, "others") {
		t.Errorf("properties: %s", got)
	}

	ask("CREATE TABLE lake.own.a (id bigint NOT NULL, name string, at timestamp, price decimal(38,9)) USING iceberg PARTITIONED BY (bucket(2, id), days(at)) TBLPROPERTIES ('k' = 'v')")
	refused("CREATE TABLE lake.own.a (id bigint) USING iceberg", "already exists")
	ask("INSERT INTO lake.own.a SELECT id, concat('n', id), timestamp_micros(id * 86400000000), id / 8 FROM range(1, 101)")
	is("SELECT count(*), sum(id), sum(price) FROM lake.own.a", "[[100 5050 631.250000000]]")
	ask("CREATE TABLE lake.own.b USING iceberg AS SELECT id, name FROM lake.own.a WHERE id <= 10") // a staged create
	is("SELECT count(*) FROM lake.own.b", "[[10]]")
	refused("CREATE TABLE lake.own.failed USING iceberg AS SELECT CAST(raise_error('on the way') AS int) AS x FROM lake.own.a", "on the way")
	refused("SELECT * FROM lake.own.failed", "cannot be found")
	ask("REPLACE TABLE lake.own.b USING iceberg AS SELECT id AS other FROM lake.own.a WHERE id <= 3")
	is("SELECT sum(other) FROM lake.own.b", "[[6]]")
	is("SELECT count(*) FROM lake.own.b.snapshots", "[[2]]")
	ask("CREATE OR REPLACE TABLE lake.own.c USING iceberg AS SELECT 1 AS x")
	is("SELECT x FROM lake.own.c", "[[1]]")

	ask("ALTER TABLE lake.own.a ADD COLUMN note string")
	ask("ALTER TABLE lake.own.a RENAME COLUMN name TO called")
	ask("ALTER TABLE lake.own.a DROP COLUMN price")
	ask("ALTER TABLE lake.own.a ADD PARTITION FIELD truncate(1, called)")
	ask("ALTER TABLE lake.own.a WRITE ORDERED BY id DESC")
	ask("ALTER TABLE lake.own.a UNSET TBLPROPERTIES ('k')")
	ask("INSERT INTO lake.own.a VALUES (101, 'n101', timestamp'2020-01-01 00:00:00', 'new')")
	ask("UPDATE lake.own.a SET note = 'seen' WHERE id = 1")
	ask("DELETE FROM lake.own.a WHERE id BETWEEN 50 AND 59")
	ask("MERGE INTO lake.own.a t USING (SELECT 1 AS id UNION ALL SELECT 200) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET note = 'merged' WHEN NOT MATCHED THEN INSERT (id, called, at, note) VALUES (s.id, 'n', now(), 'inserted')")
	is("SELECT count(*), count(note), min(note), max(note) FROM lake.own.a", "[[92 3 inserted new]]")
	ask("INSERT OVERWRITE lake.own.c SELECT 2 AS x")
	is("SELECT x FROM lake.own.c", "[[2]]")
	ask("ALTER TABLE lake.own.c CREATE TAG second")
	ask("ALTER TABLE lake.own.c CREATE BRANCH side")
	ask("INSERT INTO lake.own.c.branch_side VALUES (3)")
	is("SELECT count(*) FROM lake.own.c", "[[1]]")
	ask("CALL lake.system.fast_forward('own.c', 'main', 'side')")
	is("SELECT count(*) FROM lake.own.c", "[[2]]")
	ask("ALTER TABLE lake.own.c RENAME TO own.d")
	refused("SELECT * FROM lake.own.c", "cannot be found")
	is("SELECT count(*) FROM lake.own.d", "[[2]]")
	is("SHOW VIEWS IN lake.own", "[]")
	is("SELECT count(*) FROM (SELECT DISTINCT 1 FROM lake.own.d.files)", "[[1]]")

	// Two commits for two tables: Spark has no transaction over both, so each is one of its own.
	before := strings.Count(ask("SHOW TABLES IN lake.own"), "own")
	ask("DROP TABLE lake.own.d PURGE")
	ask("DROP TABLE lake.own.b")
	if after := strings.Count(ask("SHOW TABLES IN lake.own"), "own"); after != before-2 {
		t.Errorf("%d of %d tables are left", after, before)
	}
	ask("DROP TABLE lake.own.a PURGE")
	ask("DROP NAMESPACE lake.own")
	refused("DESCRIBE NAMESPACE lake.own", "cannot be found")

	// The landers' tables are protected.
	const kept = "lake.millrace.order_lines"
	lines := ask("SELECT count(*) > 0 FROM " + kept)
	refused("DROP TABLE "+kept+" PURGE", "landers write this table")
	refused("DROP TABLE "+kept, "landers write this table")
	refused("ALTER TABLE "+kept+" RENAME TO millrace.renamed", "landers write this table")
	refused("ALTER TABLE "+kept+" DROP COLUMN sku", "sku", "landers")
	refused("ALTER TABLE "+kept+" RENAME COLUMN sku TO article", "sku", "landers")
	refused("ALTER TABLE "+kept+" ALTER COLUMN line TYPE bigint", "line", "landers")
	refused("ALTER TABLE "+kept+" SET TBLPROPERTIES ('millrace.next-offset.millrace.orders.0' = '0')",
		"millrace.next-offset")
	refused("CREATE OR REPLACE TABLE "+kept+" USING iceberg AS SELECT 1 AS x", "landers write this table")
	first := strings.Trim(ask("SELECT snapshot_id FROM "+kept+".snapshots ORDER BY committed_at LIMIT 1"), "[]")
	refused("CALL lake.system.rollback_to_snapshot('millrace.order_lines', "+first+")", "would not land again")
	if is := ask("SELECT count(*) > 0 FROM " + kept); is != lines {
		t.Errorf("rows: %s, before: %s", is, lines)
	}

	// Trino has the right to write, and no other.
	for _, statement := range []string{"CREATE SCHEMA lake.trinos", "DROP TABLE " + kept, "ALTER TABLE " + kept +
		" RENAME TO millrace.other"} {
		if _, err := server.Query(t.Context(), statement); err == nil {
			t.Errorf("Trino: %s: allowed", statement)
		}
	}
	if _, err := server.Query(t.Context(), "CREATE TABLE lake.millrace.trinos AS SELECT 1 AS x"); err != nil {
		t.Error(err)
	}
	ask("DROP TABLE lake.millrace.trinos PURGE")
}
