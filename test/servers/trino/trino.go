// Package trino starts a private Trino node with Iceberg catalogs for tests, on loopback and in a
// temporary folder. It is heavy: some 0.9 GB, and 10 to 60 seconds to start.
//
// Server is one node, which is both coordinator and worker. Each of its catalogs becomes a
// properties file, which Trino reads only at the start. Kill, Pause, Restart and the rest come from
// process.Server. Nothing of the node's own survives a restart: the tables are in the catalogs.
package trino

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	client "github.com/trinodb/trino-go-client/trino"

	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
)

// Server is one Trino for a test binary, with the given catalogs. It starts with the first test
// that needs it, and TestMain stops it.
type Server struct {
	// Catalogs are those that queries can name. Set them before the start.
	Catalogs []catalog.Catalog

	// once makes the first call of Start the only one that starts something. Later calls return the
	// same error.
	once sync.Once
	err  error

	home string // installation folder
	java string
	dir  string // folder of this server
	port int

	// The client of Query. It is created before the server is ready, because readiness is a query.
	connections *http.Transport
	db          *sql.DB

	process.Server
}

// URL starts the server if necessary, and returns its address. If it is not installed, the test is
// skipped or fails: see process.SkipOrFail.
func (s *Server) URL(tb testing.TB) string {
	tb.Helper()
	process.SkipHeavy(tb, "Trino")
	url, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "Trino", err)
	}
	return url
}

// Start starts the server once, and returns its address.
func (s *Server) Start() (url string, err error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.url(), s.err
}

// Stop kills the server and removes its folder. Call it after the last test.
func (s *Server) Stop() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
		s.connections.CloseIdleConnections()
	}
	return errors.Join(err, s.Server.Stop())
}

// Query runs a statement and returns its rows. Values are those of trino-go-client: int64, float64,
// string (also decimals), bool, []byte, time.Time, or nil for null. Call it after Start or URL.
// Queries may run concurrently.
func (s *Server) Query(ctx context.Context, statement string) ([][]any, error) {
	rows, err := s.db.QueryContext(ctx, statement)
	if err != nil {
		return nil, fmt.Errorf("trino: %w: %.500s", err, statement)
	}
	defer rows.Close() //nolint:errcheck // read to the end, or failed anyhow
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	all := [][]any{}
	for rows.Next() {
		// Scan needs a pointer for each column. The row keeps the values.
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("trino: %w: %.500s", err, statement)
	}
	return all, nil
}

// url returns the address without starting the server.
func (s *Server) url() string { return fmt.Sprintf("http://127.0.0.1:%d", s.port) }

// start finds the programs, writes the configuration, and runs the server. The port is chosen once,
// so it remains the same after a Restart.
func (s *Server) start() error {
	var err error
	if s.home, err = process.InstallDir("trino"); err != nil {
		return err
	}
	if s.java, err = process.Java25(); err != nil {
		return err
	}
	if s.dir, err = s.Folder("millrace-trino-"); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	s.port = ports[0]
	if err := s.configure(); err != nil {
		return err
	}
	if err := s.connect(); err != nil {
		return err
	}
	return s.run(context.Background())
}

// connect creates the client. Its connections end with it, so no goroutine outlives the tests.
// trino-go-client finds an HTTP client by a name in a global registry, so each server registers one
// under the name of its folder.
func (s *Server) connect() error {
	s.connections = &http.Transport{MaxIdleConnsPerHost: 4}
	name := "millrace-" + filepath.Base(s.dir)
	if err := client.RegisterCustomClient(name, &http.Client{Transport: s.connections}); err != nil {
		return err
	}
	dsn, err := (&client.Config{ServerURI: fmt.Sprintf("http://millrace@127.0.0.1:%d", s.port),
		CustomClientName: name}).FormatDSN()
	if err != nil {
		return err
	}
	s.db, err = sql.Open("trino", dsn)
	return err
}

// startTimeout bounds a start, which is some 20 seconds of work, on a busy machine.
const startTimeout = 10 * time.Minute

// run launches the server. A small heap, one garbage collector thread and the first tier of the
// compiler suit short queries on small tables.
func (s *Server) run(ctx context.Context) error {
	return s.Launch(ctx, process.Command{
		Name: "Trino",
		Path: s.java,
		Args: []string{
			"-Xmx1G", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss1m", "-Djava.io.tmpdir=" + s.dir,
			"-Djdk.attach.allowAttachSelf=true", "-Dfile.encoding=UTF-8",
			"--add-modules=jdk.incubator.vector", "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow",
			"-Dconfig=" + s.file("config.properties"), "-Dlog.levels-file=" + s.file("log.properties"), "-Dlog.console-format=TEXT",
			"-cp", filepath.Join(s.home, "lib", "*"), "Launcher",
		},
		Dir: s.dir,
		// It accepts queries some time before it has a node to run them on. A query at that time
		// would fail, so readiness is a query of the nodes.
		Ready: func(ctx context.Context) error {
			if err := process.HTTPReady(s.url()+"/v1/info", http.StatusOK)(ctx); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			// A query during the start may take long, so this one has a deadline of its own.
			nodes, err := s.Query(ctx, "SELECT node_id FROM system.runtime.nodes WHERE state = 'active'")
			if err == nil && len(nodes) == 0 {
				err = errors.New("no node is active")
			}
			return err
		},
		StartTimeout: startTimeout,
	})
}

// file returns the path of one of the server's own files.
func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// configure writes the server's files, and one for each catalog. Only the owner may read them,
// because those of catalogs contain passwords.
func (s *Server) configure() error {
	catalogs := s.file("catalogs")
	if err := os.Mkdir(catalogs, 0o700); err != nil {
		return err
	}
	files := map[string]properties{
		s.file("log.properties"): {{"io.trino", "WARN"}, {"io.airlift", "WARN"}, {"Bootstrap", "WARN"}},
		// One node does everything. The memory of a query and the headroom must fit into the heap
		// together: otherwise Trino refuses to start.
		s.file("config.properties"): {
			{"node.environment", "test"}, {"node.bind-ip", "127.0.0.1"}, {"node.internal-address", "127.0.0.1"},
			{"coordinator", "true"}, {"node-scheduler.include-coordinator", "true"},
			{"discovery.uri", s.url()}, {"http-server.http.port", fmt.Sprint(s.port)},
			{"catalog.config-dir", catalogs}, {"plugin.dir", filepath.Join(s.home, "plugin")},
			{"query.max-memory-per-node", "400MB"}, {"memory.heap-headroom-per-node", "200MB"},
		},
	}
	for _, c := range s.Catalogs {
		if err := c.Check(); err != nil {
			return err
		}
		files[filepath.Join(catalogs, c.Name+".properties")] = iceberg(c)
	}
	for name, p := range files {
		if err := os.WriteFile(name, p.bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}
