// Package elasticsearch starts a private Elasticsearch node for tests, on loopback and in a
// temporary folder. Data survives Kill and Restart. It has no security: tests of TLS or passwords
// put a proxy in front of it.
//
// It needs some 0.5 GB of heap at most, and starts in about 8 seconds on an idle machine. Tests of
// a package share it, so each uses indexes with names of its own.
package elasticsearch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
)

// Server is one Elasticsearch for a test binary. The zero Server starts with the first test that
// needs it, and TestMain stops it. Kill, Pause, Restart and the rest come from process.Server.
type Server struct {
	once sync.Once
	err  error

	home string // installation folder
	java string
	dir  string // folder of this server
	port int

	process.Server
}

// URL starts the server if necessary, and returns its address. If it is not installed, the test is
// skipped or fails: see process.SkipOrFail.
func (s *Server) URL(tb testing.TB) string {
	tb.Helper()
	url, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "Elasticsearch", err)
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

func (s *Server) url() string { return fmt.Sprintf("http://127.0.0.1:%d", s.port) }

// start finds the programs, chooses the port, and runs the server. The port remains the same after
// a Restart.
func (s *Server) start() error {
	var err error
	if s.home, err = process.InstallDir("elasticsearch"); err != nil {
		return err
	}
	if s.java, err = process.Java25(); err != nil {
		return err
	}
	if s.dir, err = s.Folder("millrace-elasticsearch-"); err != nil {
		return err
	}
	ports, err := process.FreePorts(1)
	if err != nil {
		return err
	}
	s.port = ports[0]
	return s.run(context.Background())
}

// startTimeout bounds a start, which is some 8 seconds of work, on a busy machine.
const startTimeout = 3 * time.Minute

// run launches the server. A launcher of the installer starts the node directly, without
// Elasticsearch's own scripts. A full disk of the machine does not make the node refuse writes, as
// it would by default.
func (s *Server) run(ctx context.Context) error {
	config := filepath.Join(s.dir, "config") // the log is beside it
	if err := os.MkdirAll(config, 0o700); err != nil {
		return err
	}
	return s.Launch(ctx, process.Command{
		Name: "Elasticsearch",
		Path: s.java,
		Args: []string{
			"-Xms256m", "-Xmx512m", "-Xss1m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
			"-Djna.nosys=true", "-Dio.netty.noUnsafe=true", "-Dlog4j2.disable.jmx=true", "-Djava.io.tmpdir=" + s.dir,
			"-Des.path.home=" + s.home, "-Des.distribution.type=zip",
			"--enable-native-access=ALL-UNNAMED,org.elasticsearch.nativeaccess,org.apache.lucene.core",
			"--add-modules=jdk.net,jdk.management.agent,ALL-MODULE-PATH",
			"--add-opens=org.apache.lucene.core/org.apache.lucene.codecs.lucene99=org.elasticsearch.server",
			"--add-opens=org.apache.lucene.core/org.apache.lucene.codecs.hnsw=org.elasticsearch.server",
			"--add-opens=org.apache.lucene.core/org.apache.lucene.internal.vectorization=org.elasticsearch.server",
			"--module-path", filepath.Join(s.home, "lib"), "-cp", filepath.Join(s.home, "launcher.jar"), "Launcher",
			config, "path.home=" + s.home, "path.data=" + filepath.Join(s.dir,
				"data"), "path.logs=" + filepath.Join(s.dir, "logs"),
			"network.host=127.0.0.1", "http.port=" + strconv.Itoa(s.port), "transport.port=0", "discovery.type=single-node",
			"cluster.routing.allocation.disk.threshold_enabled=false", "logger.level=warn",
		},
		Dir: s.dir,
		// Status yellow means that all previous data is available.
		Ready:        process.HTTPReady(s.url()+"/_cluster/health?wait_for_status=yellow&timeout=1s", http.StatusOK),
		StartTimeout: startTimeout,
	})
}
