package landing

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/tables"
	pgserver "github.com/millrace/millrace/test/servers/postgres"
	s3server "github.com/millrace/millrace/test/servers/s3"
)

// The servers that the tests need.
var (
	catalogs pgserver.Cluster
	objects  s3server.Server
)

// onEach runs a test for each kind of lake. fresh returns a new one.
func onEach(t *testing.T, test func(t *testing.T, fresh func(testing.TB) lake.Config)) {
	for name, fresh := range map[string]func(testing.TB) lake.Config{"local+sqlite": localLake, "s3+postgres": serverLake} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, fresh)
		})
	}
}

// localLake returns a new lake in a folder, with its catalog in a file.
func localLake(t testing.TB) lake.Config {
	t.Helper()
	dir := t.TempDir()
	return lake.Config{Warehouse: filepath.Join(dir, "warehouse"), Catalog: filepath.Join(dir, "catalog.db"), Tables: tables.All(), Logger: quiet()}
}

// serverLake returns a new lake in a folder of a bucket, with its catalog in a PostgreSQL schema.
func serverLake(t testing.TB) lake.Config {
	t.Helper()
	store := objects.Config(t)
	return lake.Config{
		Warehouse: fmt.Sprintf("s3://%s/%d", store.Bucket, places.Add(1)),
		S3:        lake.S3{Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: store.SecretKey},
		Catalog:   newCatalog(t, catalogs.ConnString(t)),
		Tables:    tables.All(),
		Logger:    quiet(),
	}
}

var places atomic.Int64 // made so far

// ordersOnly lands one table of each kind: events, facts and state. All must behave the same.
func ordersOnly(c lake.Config) lake.Config {
	c.Tables = []declare.Table{tables.OrdersEvents, tables.OrderLines, tables.OrdersCurrent}
	return c
}

// newCatalog creates an empty schema and returns the address that selects it.
func newCatalog(t testing.TB, conn string) string {
	t.Helper()
	db, err := postgres.Open(conn, "", "lake tests")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	schema := fmt.Sprintf("lake_%d", places.Add(1))
	if _, err := db.ExecContext(context.WithoutCancel(t.Context()), "CREATE SCHEMA "+schema); err != nil {
		t.Fatal(err)
	}
	params := url.Values{"search_path": {schema}}
	for _, pair := range strings.Fields(conn) { // host=… user=… dbname=…
		key, value, _ := strings.Cut(pair, "=")
		params.Set(key, value)
	}
	return "postgres:///?" + params.Encode()
}
