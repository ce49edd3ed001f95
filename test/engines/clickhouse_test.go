package engines_test

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/test/engines"
	chserver "github.com/millrace/millrace/test/servers/clickhouse"
)

var house chserver.Server

// clickHouse is a ClickHouse that finds the tables by the REST catalog itself, with its database engine for that.
func (s *system) clickHouse(t *testing.T) *clickhouse.Client {
	t.Helper()
	client, err := clickhouse.NewServerClient(house.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	c := s.catalog("python")
	bucket, _, _ := strings.Cut(strings.TrimPrefix(c.Warehouse, "s3://"), "/")
	create := "CREATE DATABASE IF NOT EXISTS lake ENGINE = DataLakeCatalog('" + c.REST + "/v1') SETTINGS catalog_type = 'rest', warehouse = '" + c.Warehouse +
		"', catalog_credential = '" + c.Credential + "', oauth_server_uri = '" + c.REST + "/v1/oauth/tokens', vended_credentials = 1, storage_endpoint = '" + c.S3.Endpoint + "/" +
		bucket + "'"
	if err := client.Exec(t.Context(), create, map[string]string{"allow_database_iceberg": "1"}); err != nil {
		t.Fatal(err)
	}
	return client
}

// sumClickHouse is what it sees in a table.
func sumClickHouse(t *testing.T, client *clickhouse.Client, table engines.Table) engines.Summed {
	t.Helper()
	rows, err := client.Query(t.Context(), clickHouseSum("lake.`"+table.Namespace+"."+table.Name+"`", table.Columns), "JSONEachRow", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(rows)
	if err != nil {
		t.Fatal(err)
	}
	var row struct{ N, H json.Number }
	if err := json.Unmarshal(b, &row); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return engines.Summed{Engine: "ClickHouse (DataLakeCatalog)", Count: row.N.String(), Hash: row.H.String()}
}
