// Package registry starts a private schema registry for tests: Apicurio, which speaks Confluent's API, on loopback and in a
// temporary folder. What was registered stays through Kill and Restart.
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

// Server is one registry for a test binary. The zero Server starts with the first test that asks for it; TestMain stops it.
type Server struct {
	once sync.Once
	err  error

	app  string // where it is installed
	java string
	dir  string // its own
	port int    // of the API
	side int    // of its management, which nobody asks

	mu      sync.Mutex // of process
	process *process.Process
}

// URL starts the registry if need be, and is the base of its Confluent API. Where it is not installed the test is skipped, or
// fails, as process.SkipOrFail has it.
func (s *Server) URL(tb testing.TB) string {
	tb.Helper()
	url, err := s.Start()
	if err != nil {
		process.SkipOrFail(tb, "Apicurio Registry", err)
	}
	return url
}

// Start starts the registry, once, and is the base of its Confluent API.
func (s *Server) Start() (url string, err error) {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.url(), s.err
}

// Stop kills the registry and removes its data. Call it after the last test.
func (s *Server) Stop() error {
	err := s.Kill()
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Kill is kill -9.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.Kill()
}

// Restart starts the registry again, at the same address and with what it held, killing it first where it runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.run(ctx)
}

// Pause freezes the registry: connections are taken, and nothing answers.
func (s *Server) Pause() error { return s.with((*process.Process).Pause) }

// Resume lets a frozen registry go on.
func (s *Server) Resume() error { return s.with((*process.Process).Resume) }

func (s *Server) with(do func(*process.Process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("the registry has not been started")
	}
	return do(s.process)
}

// ResidentMB is the memory that the registry holds now, in MB.
func (s *Server) ResidentMB() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0, errors.New("the registry has not been started")
	}
	return s.process.ResidentMB()
}

func (s *Server) url() string { return fmt.Sprintf("http://127.0.0.1:%d/apis/ccompat/v7", s.port) }

func (s *Server) start() error {
	var err error
	if s.app, err = process.Cache("registry"); err != nil {
		return err
	}
	javas, err := filepath.Glob("/usr/lib/jvm/*25*/bin/java")
	if err != nil {
		return err
	}
	if len(javas) == 0 {
		return fmt.Errorf("there is no Java 25 under /usr/lib/jvm: %w", process.ErrMissing)
	}
	s.java = javas[0]
	if s.dir, err = os.MkdirTemp("", "millrace-registry-"); err != nil {
		return err
	}
	ports, err := process.FreePorts(2)
	if err != nil {
		return err
	}
	s.port, s.side = ports[0], ports[1]
	return s.run(context.Background())
}

func (s *Server) run(ctx context.Context) error {
	run := filepath.Join(s.dir, "run") // the log goes there
	if err := os.MkdirAll(run, 0o700); err != nil {
		return err
	}
	p, err := process.Start(ctx, process.Command{
		Name: "Apicurio Registry",
		Path: s.java,
		Args: []string{
			"-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:SharedArchiveFile=" + filepath.Join(s.app, "classes.jsa"),
			"-Dquarkus.http.host=127.0.0.1", "-Dquarkus.http.port=" + strconv.Itoa(s.port),
			"-Dquarkus.management.host=127.0.0.1", "-Dquarkus.management.port=" + strconv.Itoa(s.side),
			"-Dquarkus.otel.sdk.disabled=true", "-Dquarkus.log.level=WARN",
			// On disk, and there at once: kill -9 must not lose what was answered.
			"-Dapicurio.datasource.url=jdbc:h2:file:" + filepath.Join(s.dir, "db") + ";WRITE_DELAY=0",
			"-Dapicurio.datasource.jdbc.initial-size=2", "-Dapicurio.datasource.jdbc.min-size=2",
			"-jar", filepath.Join(s.app, "app", "quarkus-run.jar"),
		},
		Dir:     run,
		Scratch: s.dir,
		Ready:   s.ready, ReadyWithin: 3 * time.Minute, // 4 s on an idle machine, and ten times that on a busy one
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
	return nil
}

func (s *Server) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url()+"/subjects", nil)
	if err != nil {
		return err
	}
	answer, err := asker.Do(req)
	if err != nil {
		return err
	}
	if err := answer.Body.Close(); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", req.URL, answer.Status)
	}
	return nil
}

// asker keeps no connections, whose goroutines would outlive the tests.
var asker = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
