package spark_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/s3"
	"github.com/millrace/millrace/test/servers/spark"
)

var (
	session spark.Session
	bucket  s3.Server
)

func TestMain(m *testing.M) { os.Exit(process.RunTests(m, session.Stop, bucket.Stop)) }

// TestRestartAfterKill checks that commits to a folder and to S3 survive kill -9.
func TestRestartAfterKill(t *testing.T) {
	store := bucket.Config(t)
	dir := t.TempDir()
	session.Catalogs = []catalog.Catalog{
		{Name: "folder", JDBC: "jdbc:sqlite:" + filepath.Join(dir, "folder.db"), Warehouse: "file://" + dir},
		{Name: "bucket", JDBC: "jdbc:sqlite:" + filepath.Join(dir, "bucket.db"), Warehouse: "s3://" +
			store.Bucket + "/warehouse", S3: store},
	}
	begun := time.Now()
	session.MustQuery(t, "SELECT 1")
	started := time.Since(begun)
	mb, err := session.ResidentMB()
	t.Logf("ready in %v, %d MB (%v)", started.Round(time.Millisecond), mb, err)
	for _, c := range session.Catalogs {
		session.MustQuery(t, "CREATE NAMESPACE "+c.Name+".s")
		session.MustQuery(t,
			"CREATE TABLE "+c.Name+".s.t (id bigint, name string, price decimal(38,9), at timestamp, raw binary) USING iceberg")
		session.MustQuery(t,
			"INSERT INTO "+c.Name+".s.t VALUES (1, 'one', 1.5, timestamp'1970-01-01 00:00:01.000002', X'0aff'), (2, NULL, -2.000000001, NULL, NULL)")
	}
	mb, err = session.ResidentMB()
	t.Logf("after writing %d MB (%v)", mb, err)
	if err := session.Kill(); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	if err := session.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("started again in %v", time.Since(begun).Round(time.Millisecond))
	for _, c := range session.Catalogs {
		rows := session.MustQuery(t, "SELECT id, name, price, at, raw FROM "+c.Name+".s.t ORDER BY id")
		want := [][]any{
			{json.Number("1"), "one", "1.500000000", json.Number("1000002"), "0aff"},
			{json.Number("2"), nil, "-2.000000001", nil, nil},
		}
		if !reflect.DeepEqual(rows, want) {
			t.Errorf("%s has %v, want %v", c.Name, rows, want)
		}
	}
	if rows, err := session.Query(t.Context(), "SELECT * FROM folder.s.nothing"); err == nil {
		t.Errorf("a table that does not exist has %v", rows)
	}
	if rows := session.MustQuery(t, "SELECT 1"); len(rows) != 1 {
		t.Errorf("after an error it answers %v", rows)
	}
}
