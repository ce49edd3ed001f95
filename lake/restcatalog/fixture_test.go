package restcatalog_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apache/iceberg-go"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	icebergio "github.com/apache/iceberg-go/io"
	_ "github.com/apache/iceberg-go/io/gocloud/s3" // s3:// locations

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/lake/restcatalog"
	pgserver "github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/process"
	s3server "github.com/millrace/millrace/test/servers/s3"
)

// The servers that the tests need.
var (
	catalogs pgserver.Cluster
	objects  s3server.Server
	made     atomic.Int64 // schemas and folders
)

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, catalogs.Stop, objects.Stop))
}

// fixture is a catalog with its server, and clients of both.
type fixture struct {
	restcatalog.Config
	db      *sql.DB
	dialect sqlcatalog.SupportedDialect
	sql     *sqlcatalog.Catalog
	url     string
	log     *logged
}

// logged is a log that tests can read.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const catalogName = "millrace"

// onSQLite returns a catalog in a file, with its warehouse in a folder.
func onSQLite(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	db, err := sqlite.Open(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	return newFixture(t, db, sqlcatalog.SQLite, restcatalog.Config{Warehouse: "file://" + filepath.Join(dir, "warehouse")})
}

// onPostgres returns a catalog in a PostgreSQL schema, with its warehouse in a folder.
func onPostgres(t testing.TB) *fixture {
	t.Helper()
	return newFixture(t, openSchema(t), sqlcatalog.Postgres, restcatalog.Config{Warehouse: "file://" + t.TempDir()})
}

func openSchema(t testing.TB) *sql.DB {
	t.Helper()
	conn := catalogs.ConnString(t)
	schema := fmt.Sprintf("rest_%d", made.Add(1))
	admin, err := postgres.Open(conn, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	if _, err := admin.ExecContext(context.WithoutCancel(t.Context()), "CREATE SCHEMA "+schema); err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(conn+" search_path="+schema, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// onS3 returns a catalog in a file, with its warehouse in a folder of a bucket.
func onS3(t testing.TB) *fixture {
	t.Helper()
	store := objects.Config(t)
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	return newFixture(t, db, sqlcatalog.SQLite, restcatalog.Config{
		Warehouse: fmt.Sprintf("s3://%s/rest-%d", store.Bucket, made.Add(1)),
		Files: iceberg.Properties{
			icebergio.S3EndpointURL: store.Endpoint, icebergio.S3Region: store.Region, icebergio.S3ForceVirtualAddressing: "false",
			icebergio.S3AccessKeyID: store.AccessKey, icebergio.S3SecretAccessKey: store.SecretKey,
		},
		Storage: restcatalog.Storage{Endpoint: store.Endpoint, Region: store.Region},
		Access:  restcatalog.Access{WriteKeys: restcatalog.Keys{AccessKey: store.AccessKey, SecretKey: store.SecretKey}},
	})
}

func newFixture(t testing.TB, db *sql.DB, dialect sqlcatalog.SupportedDialect, c restcatalog.Config) *fixture {
	t.Helper()
	p := &fixture{Config: c, db: db, dialect: dialect, log: &logged{}}
	t.Cleanup(func() { _ = db.Close() })
	props := iceberg.Properties{"warehouse": c.Warehouse}
	for k, v := range c.Files {
		props[k] = v
	}
	var err error
	if p.sql, err = sqlcatalog.NewCatalog(catalogName, db, dialect, props); err != nil {
		t.Fatal(err)
	}
	swapper, err := restcatalog.NewSQL(t.Context(), db, dialect, catalogName)
	if err != nil {
		t.Fatal(err)
	}
	p.Catalog, p.Swapper, p.Name = p.sql, swapper, catalogName
	p.Logger = slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return p
}

// serve starts the server with its current settings.
func (p *fixture) serve(t testing.TB) *fixture {
	t.Helper()
	h, err := restcatalog.New(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	return p.serveAs(t, h)
}

func (p *fixture) serveAs(t testing.TB, h http.Handler) *fixture {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// answer is the response to a call.
type answer struct {
	status int
	header http.Header
	body   string
}

// into decodes the response.
func (a answer) into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// kind returns the type of an error response, after comparing its code with the status.
func (a answer) kind(t testing.TB) string {
	t.Helper()
	var e struct {
		Error struct {
			Message, Type string
			Code          int
		}
	}
	a.into(t, &e)
	if e.Error.Code != a.status || e.Error.Message == "" {
		t.Errorf("status %d, error %+v", a.status, e.Error)
	}
	return e.Error.Type
}

// call sends a request. A string body is sent as it is, others as JSON. Headers are pairs of names
// and values.
func (p *fixture) call(t testing.TB, method, path string, body any, headers ...string) answer {
	t.Helper()
	text, isText := body.(string)
	if !isText && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, p.url+path, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	got, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = got.Body.Close() }()
	b, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{got.StatusCode, got.Header, string(b)}
}

// must calls and checks the status.
func (p *fixture) must(t testing.TB, status int, method, path string, body any, headers ...string) answer {
	t.Helper()
	a := p.call(t, method, path, body, headers...)
	if a.status != status {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.status, status, a.body)
	}
	return a
}
