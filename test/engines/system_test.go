package engines_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/postgres"
	"github.com/millrace/millrace/test/engines"
	"github.com/millrace/millrace/test/servers/catalog"
	pgserver "github.com/millrace/millrace/test/servers/postgres"
	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/s3"
)

const realData = "../../../shared/data/online-retail.parquet"

// namespace is the namespace of the system's tables.
const namespace = "millrace"

// callers are the callers of the system. Each engine is one, with a right of its own.
var callers = map[string]string{"trino": "catalog.write", "spark": "catalog.admin", "python": "catalog.read",
	"owner": "all"}

func tokenOf(caller string) string { return caller + "-of-the-engines-tests" }

// system is the binary with all roles. Its catalog is in PostgreSQL and its tables are on S3. It
// requires tokens, and hands out keys to S3 that are not its own. The other parts are embedded,
// because no engine sees them.
type system struct {
	catalogs pgserver.Cluster
	store    s3.Server

	once sync.Once
	err  error

	dir, binary       string
	addr, admin, logs string
	brokers           string
	env               []string
	process           *process.Process
}

// running starts the system if necessary.
func (s *system) running(t *testing.T) *system {
	t.Helper()
	process.SkipHeavy(t, "Trino and Spark on the system's tables")
	s.once.Do(func() { s.err = s.start(context.WithoutCancel(t.Context())) })
	if s.err != nil {
		process.SkipOrFail(t, "the system", s.err)
	}
	return s
}

func (s *system) stop() error {
	var err error
	if s.process != nil {
		err = s.process.Stop(time.Minute)
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir) // a temporary folder
	}
	return errors.Join(err, s.catalogs.Stop(), s.store.Stop())
}

func (s *system) start(ctx context.Context) error {
	conn, err := s.catalogs.Start()
	if err != nil {
		return err
	}
	store, err := s.store.Start()
	if err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "millrace-engines-"); err != nil {
		return err
	}
	s.binary = filepath.Join(s.dir, "millrace")
	if err := process.Build(ctx, "../..", "./cmd/millrace", s.binary); err != nil {
		return err
	}
	where, err := s.createCatalog(ctx, conn)
	if err != nil {
		return err
	}
	tokens, rights := "", []string{}
	for caller, right := range callers {
		tokens += caller + ":" + tokenOf(caller) + "\n"
		rights = append(rights, caller+": ["+right+"]")
	}
	if err := os.WriteFile(filepath.Join(s.dir, "tokens"), []byte(tokens), 0o600); err != nil {
		return err
	}
	ports, err := process.FreePorts(3)
	if err != nil {
		return err
	}
	at := func(i int) string { return fmt.Sprint("127.0.0.1:", ports[i]) }
	s.addr, s.admin, s.brokers, s.logs = at(0), at(1), at(2), filepath.Join(s.dir, "system", "log")
	library, err := filepath.Abs("../../.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so")
	if err != nil {
		return err
	}
	s.env = []string{
		"MILLRACE_ADDR=" + s.addr, "MILLRACE_ADMIN_ADDR=" + s.admin, "MILLRACE_TRACKING_ADDR=127.0.0.1:0", "MILLRACE_KAFKA_LISTEN=" + s.brokers, "MILLRACE_DATA=" + filepath.Join(s.dir, "data"),
		"MILLRACE_LOG_LEVEL=info", "MILLRACE_COMMANDS_CURRENCIES={GBP: 3}", "MILLRACE_CLICKHOUSE_LIBRARY=" + library,
		"MILLRACE_AUTH_TOKENS=" + filepath.Join(s.dir, "tokens"), "MILLRACE_AUTH_TOKEN=" + tokenOf("owner"),
		"MILLRACE_LAKE_CATALOG=" + where, "MILLRACE_LAKE_WAREHOUSE=s3://" + store.Bucket + "/warehouse",
		"MILLRACE_LAKE_S3_ENDPOINT=" + store.Endpoint, "MILLRACE_LAKE_S3_REGION=" + store.Region,
		"MILLRACE_LAKE_S3_ACCESS_KEY=" + store.AccessKey, "MILLRACE_LAKE_S3_SECRET_KEY=" + store.SecretKey,
		"MILLRACE_LAKE_COMMIT_INTERVAL=200ms", "MILLRACE_LAKE_MAINTENANCE_EVERY=5s",
		"MILLRACE_AUTH_RIGHTS={" + strings.Join(rights, ", ") + "}",
	}
	for _, kind := range []string{"READ", "WRITE"} {
		s.env = append(s.env, "MILLRACE_LAKE_REST_"+kind+"_KEYS_ACCESS_KEY="+store.Other.AccessKey,
			"MILLRACE_LAKE_REST_"+kind+"_KEYS_SECRET_KEY="+store.Other.SecretKey)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "system"), 0o700); err != nil {
		return err
	}
	s.process, err = process.Start(ctx, process.Command{
		Name: "millrace up", Path: s.binary, Args: []string{"up"}, Env: s.env, Dir: filepath.Join(s.dir, "system"),
		Ready: process.HTTPReady("http://"+s.admin+"/readyz", http.StatusOK), StartTimeout: 5 * time.Minute,
	})
	return err
}

// createCatalog creates a schema for the catalog in a database, and returns the connection string.
func (s *system) createCatalog(ctx context.Context, conn string) (string, error) {
	db, err := postgres.Open(conn, "", "engines tests")
	if err != nil {
		return "", err
	}
	defer db.Close() //nolint:errcheck // it was asked one thing
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA lake"); err != nil {
		return "", err
	}
	params := url.Values{"search_path": {"lake"}}
	for _, pair := range strings.Fields(conn) { // host=… user=… dbname=…
		key, value, _ := strings.Cut(pair, "=")
		params.Set(key, value)
	}
	return "postgres:///?" + params.Encode(), nil
}

// catalog returns the system's REST catalog for a caller, with nothing but the address and the
// token. Only Trino also gets keys to S3, because it accepts temporary keys alone from a catalog.
func (s *system) catalog(caller string) catalog.Catalog {
	store, _ := s.store.Start() // already started
	c := catalog.Catalog{
		Name: "lake", REST: "http://" + s.addr + "/iceberg", Credential: caller + ":" + tokenOf(caller), Vended: caller != "trino",
		Warehouse: "s3://" + store.Bucket + "/warehouse", S3: s3.Config{Endpoint: store.Endpoint, Region: store.Region},
	}
	if !c.Vended {
		c.S3.AccessKey, c.S3.SecretKey = store.Other.AccessKey, store.Other.SecretKey
	}
	return c
}

// run runs a command of the binary.
func (s *system) run(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), s.binary, args...)
	cmd.Env, cmd.Stderr = append(os.Environ(), s.env...), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("millrace %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out
}

// verified runs verify, which must find no difference, once everything has arrived everywhere.
func (s *system) verified(t *testing.T) {
	t.Helper()
	out := s.run(t, "verify", "--output", "json", "--wait", "10m")
	if !bytes.Contains(out, []byte(`"equal": true`)) && !bytes.Contains(out, []byte(`"equal":true`)) {
		t.Fatalf("not equal: %s", out)
	}
}

// get requests a path of the REST catalog.
func (s *system) get(t *testing.T, path string, into any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/iceberg"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+tokenOf("owner"))
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(answer.Body)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v: %s", path, answer.Status, err, b)
	}
}

// loaded is a table as the REST catalog describes it.
type loaded struct {
	engines.Table
	Properties map[string]string
	Summary    map[string]string // of the current snapshot
}

// equalityDeletes reports whether rows are deleted by their keys.
func (l loaded) equalityDeletes() bool {
	n := l.Summary["total-equality-deletes"]
	return n != "" && n != "0"
}

// tables returns all tables of the catalog.
func (s *system) tables(t *testing.T) (all []loaded) {
	t.Helper()
	var listed struct {
		Identifiers []struct{ Name string }
	}
	s.get(t, "/v1/namespaces/"+namespace+"/tables", &listed)
	for _, i := range listed.Identifiers {
		all = append(all, s.table(t, i.Name))
	}
	return all
}

func (s *system) table(t *testing.T, name string) loaded {
	t.Helper()
	var is struct {
		Metadata struct {
			Properties map[string]string
			Schemas    []json.RawMessage
			Schema     int   `json:"current-schema-id"`
			Current    int64 `json:"current-snapshot-id"`
			Snapshots  []struct {
				ID      int64 `json:"snapshot-id"`
				Summary map[string]string
			}
		}
	}
	s.get(t, "/v1/namespaces/"+namespace+"/tables/"+name, &is)
	l := loaded{Table: engines.Table{Namespace: namespace, Name: name}, Properties: is.Metadata.Properties}
	for _, snapshot := range is.Metadata.Snapshots {
		if snapshot.ID == is.Metadata.Current {
			l.Summary = snapshot.Summary
		}
	}
	for _, raw := range is.Metadata.Schemas {
		var schema struct {
			ID int `json:"schema-id"`
		}
		if err := json.Unmarshal(raw, &schema); err != nil {
			t.Fatal(err)
		}
		if schema.ID != is.Metadata.Schema {
			continue
		}
		var err error
		if l.Columns, err = engines.ColumnsOf(raw); err != nil {
			t.Fatalf("table %s: %v", name, err)
		}
	}
	return l
}

// column returns the column of this name.
func (l loaded) column(t *testing.T, name string) engines.Column {
	t.Helper()
	i := slices.IndexFunc(l.Columns, func(c engines.Column) bool { return len(c.Path) == 1 && c.Path[0] == name })
	if i < 0 {
		t.Fatalf("table %s has no column %s", l.Name, name)
	}
	return l.Columns[i]
}

// log returns the system's log so far.
func (s *system) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(s.logs)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
