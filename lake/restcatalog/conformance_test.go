package restcatalog_test

import (
	"testing"

	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/catalog/catalogtest"
	"github.com/apache/iceberg-go/catalog/rest"
)

// client is iceberg-go's REST client.
func (p *fixture) client(t testing.TB, options ...rest.Option) *rest.Catalog {
	t.Helper()
	c, err := rest.NewCatalog(t.Context(), "test", p.url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// iceberg-go's own catalog tests pass through its REST client and this server.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, fresh := range map[string]func(testing.TB) *fixture{"sqlite": onSQLite, "postgres": onPostgres, "s3": onS3, "prefix": withPrefix} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			catalogtest.RunCatalogTests(t, catalogtest.Config{
				SupportsNamespaceProperties: true,
				NewCatalog:                  func(t *testing.T) catalog.Catalog { return fresh(t).serve(t).client(t) },
			})
		})
	}
}

func withPrefix(t testing.TB) *fixture {
	t.Helper()
	p := onSQLite(t)
	p.Prefix = "shop"
	return p
}
