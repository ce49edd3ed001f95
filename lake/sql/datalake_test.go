package sql_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	icebergsql "github.com/apache/iceberg-go/catalog/sql"
	icebergio "github.com/apache/iceberg-go/io"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/lake/restcatalog"
)

// ClickHouse's own database engine for REST catalogs finds and reads our tables in a bucket, given
// only the catalog's address. It cuts the endpoint's text off the addresses that it has built, so
// the catalog has to write the endpoint as those begin.
func TestDataLakeCatalog(t *testing.T) {
	w, store := newBucketWarehouse(t)
	w.create("order_lines", orderLines)
	w.append("order_lines", 25, orderLine)
	have, err := w.tables(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	swapper, err := restcatalog.NewSQL(t.Context(), w.db, icebergsql.SQLite, "millrace")
	if err != nil {
		t.Fatal(err)
	}
	keys := restcatalog.Keys{AccessKey: store.AccessKey, SecretKey: store.SecretKey}
	handler, err := restcatalog.New(restcatalog.Config{
		Catalog: w.catalog, Swapper: swapper, Name: "millrace", Warehouse: have[0].Location[:strings.LastIndex(have[0].Location, "/")],
		Files: iceberg.Properties{
			icebergio.S3EndpointURL: store.Endpoint, icebergio.S3Region: store.Region,
			icebergio.S3AccessKeyID: store.AccessKey, icebergio.S3SecretAccessKey: store.SecretKey,
		},
		Storage: restcatalog.Storage{Endpoint: store.Endpoint, Region: store.Region}, Access: restcatalog.Access{ReadKeys: keys, WriteKeys: keys},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	engine := clickhousetest.Shared(t).Client()
	settings := map[string]string{"allow_database_iceberg": "1"}
	create := fmt.Sprintf("CREATE DATABASE lake ENGINE = DataLakeCatalog('%s/v1', '%s', '%s') SETTINGS catalog_type = 'rest', warehouse = 'millrace'",
		server.URL, store.AccessKey, store.SecretKey)
	if err := engine.Exec(t.Context(), create, settings); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := engine.Exec(t.Context(), "DROP DATABASE lake", settings); err != nil {
			t.Error(err)
		}
	}()
	body, err := engine.Query(t.Context(), "SELECT count(), sum(quantity) FROM lake.`millrace.order_lines`", "TSV", settings)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = body.Close() }()
	rows, err := io.ReadAll(body)
	if err != nil || string(rows) != "25\t300\n" {
		t.Errorf("it reads %q, %v", rows, err)
	}
}
