// Package registry starts a private schema registry for tests: Apicurio, with Confluent's API, on
// loopback and in a temporary folder. Schemas survive Kill and Restart.
//
// Millrace uses only Confluent's API, which most registries have. Tests against Apicurio show that
// it does not depend on the registry of one vendor.
package registry

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

// Server is one registry for a test binary. The zero Server starts with the first test that needs
// it, and TestMain stops it. Kill, Pause, Restart and the rest come from process.Server.
type Server struct {
	once sync.Once
	err  error

	app            string // installation folder
	java           string
	dir            string // folder of this server
	port           int    // of the API
	managementPort int    // of its management interface, which is not used

	process.Server
}

// URL starts the registry if necessary, and returns the base of its Confluent API. If it is not
// installed, the test is skipped or fails: see process.SkipOrFail.
func (s *Server) URL(tb testing.TB) string {
	tb.Helper()
	url, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "Apicurio Registry", err)
	}
	return url
}

// Start starts the registry once, and returns the base of its Confluent API.
func (s *Server) Start() (url string, err error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.url(), s.err
}

func (s *Server) url() string { return fmt.Sprintf("http://127.0.0.1:%d/apis/ccompat/v7", s.port) }

// start finds the programs, chooses the ports, and runs the server. The ports remain the same after
// a Restart.
func (s *Server) start() error {
	var err error
	if s.app, err = process.InstallDir("registry"); err != nil {
		return err
	}
	if s.java, err = process.Java25(); err != nil {
		return err
	}
	if s.dir, err = s.Folder("millrace-registry-"); err != nil {
		return err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return err
	}
	s.port, s.managementPort = ports[0], ports[1]
	return s.run(context.Background())
}

// run launches the server with its database, H2 in a file. The installer's archive of loaded
// classes makes the start faster.
func (s *Server) run(ctx context.Context) error {
	run := filepath.Join(s.dir, "run") // for the log
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	return s.Launch(ctx, process.Command{
		Name: "Apicurio Registry",
		Path: s.java,
		Args: []string{
			"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:SharedArchiveFile=" + filepath.Join(s.app, "classes.jsa"),
			"-Dquarkus.http.host=127.0.0.1", "-Dquarkus.http.port=" + strconv.Itoa(s.port),
			"-Dquarkus.management.host=127.0.0.1", "-Dquarkus.management.port=" + strconv.Itoa(s.managementPort),
			"-Dquarkus.otel.sdk.disabled=true", "-Dquarkus.log.level=WARN",
			// Write to disk at once: kill -9 must not lose what was acknowledged.
			"-Dapicurio.datasource.url=jdbc:h2:file:" + filepath.Join(s.dir, "db") + ";WRITE_DELAY=0",
			"-Dapicurio.datasource.jdbc.initial-size=2", "-Dapicurio.datasource.jdbc.min-size=2",
			"-jar", filepath.Join(s.app, "app", "quarkus-run.jar"),
		},
		Dir: run,
		// Listing the subjects needs the database, so it succeeds only once that is open.
		// A start takes 4 s on an idle machine, and ten times as long on a busy one.
		Ready: process.HTTPReady(s.url()+"/subjects", http.StatusOK), StartTimeout: 3 * time.Minute,
	})
}
