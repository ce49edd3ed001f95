// Package e2e runs the binary as a user does: the README's quick start, the import of a real shop's
// year with kill -9 at random moments, overload, full disks, damage, and readers of the tables that
// know nothing of Millrace.
//
// Each test starts a system, a running `millrace up`, on a data folder of its own. Many run twice:
// on the embedded default, and on real servers if they are installed. Systems on the real servers
// share the topics there, so never two of them run at the same time: of the tests that run in
// parallel, only one is on real servers. Tests that measure a loaded system, or restart one on the
// same ephemeral port, are not parallel.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/stack"
)

// root is the root of the repository, relative to this package.
const root = "../.."

var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "millrace-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // the system's temporary folder
		binary = filepath.Join(dir, "millrace")
		if err := process.Build(context.Background(), root, "./cmd/millrace", binary); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if library, err := filepath.Abs(root +
			"/.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so"); err == nil {
			_ = os.Setenv("MILLRACE_CLICKHOUSE_LIBRARY", library) // it is not beside the binary
		}
		end, err := process.Turn() // the build can be beside another package's tests
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer end()
		code := m.Run()
		if err := servers.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the real servers:", err)
			code = 1
		}
		return code
	}())
}

// servers are the real servers. They start with the first test that needs them.
var servers realServers

type realServers struct {
	once sync.Once
	all  stack.Stack
	err  error
}

// env returns the settings of a system on the real servers. If one is not installed, the test is
// skipped or fails: see process.SkipOrFail.
func (r *realServers) env(t *testing.T) []string {
	t.Helper()
	r.once.Do(func() { r.err = r.all.Start() })
	if r.err != nil {
		process.SkipOrFail(t, "real servers", r.err)
	}
	return r.all.Env()
}

func (r *realServers) stop() error { return r.all.Stop() }

const (
	startTimeout = 4 * time.Minute
	readyTimeout = 5 * time.Minute
	stopTimeout  = 2 * time.Minute
)

var servingLine = regexp.MustCompile(`^serving on http://(\S+), operations on http://(\S+);`)

// system is a running `millrace up`.
type system struct {
	t      *testing.T
	data   string
	addr   string // of the api listener
	admin  string // of the admin listener
	cmd    *exec.Cmd
	ended  chan error
	output *lockedBuffer
}

// up starts a system on a data folder and waits until it serves.
func up(t *testing.T, data, addr string, args ...string) *system {
	t.Helper()
	return upOn(t, nil, data, addr, args...)
}

// upOn is up with settings in the environment: those of real servers, or none.
func upOn(t *testing.T, env []string, data, addr string, args ...string) *system {
	t.Helper()
	return upBy(t, []string{binary}, env, data, addr, args...)
}

// upBy is upOn through another command, which runs the rest of its arguments.
func upBy(t *testing.T, by, env []string, data, addr string, args ...string) *system {
	t.Helper()
	process.DependOnSource(t, root)
	s := &system{t: t, data: data, ended: make(chan error, 1), output: &lockedBuffer{}}
	up := append(slices.Clone(by[1:]), "up", "--data", data, "--addr", addr, "--admin-addr", "127.0.0.1:0",
		"--tracking-addr", "127.0.0.1:0")
	s.cmd = exec.Command(by[0], append(up, args...)...)
	s.cmd.Env = append(append(os.Environ(), "MILLRACE_LOG_LEVEL=warn"), env...)
	s.cmd.Stderr = s.output
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan [2]string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(s.output, lines.Text())
			if m := servingLine.FindStringSubmatch(lines.Text()); m != nil {
				serving <- [2]string{m[1], m[2]}
			}
		}
		s.ended <- s.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("output of millrace up:\n%s", s.output)
		}
	})
	select {
	case doors := <-serving:
		s.addr, s.admin = doors[0], doors[1]
	case err := <-s.ended:
		t.Fatalf("millrace up exited: %v\n%s", err, s.output)
	case <-time.After(startTimeout):
		t.Fatalf("millrace up does not serve after %v\n%s", startTimeout, s.output)
	}
	return s
}

// ready waits until queries are answered completely. After an import, the views and the features may
// be minutes behind.
func (s *system) ready() {
	s.t.Helper()
	within(s.t, readyTimeout, "ready", func() bool {
		resp, err := http.Get("http://" + s.admin + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// stop stops the system, which must end without an error.
func (s *system) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Fatalf("Ctrl-C: %v\n%s", err, s.output)
		}
	case <-time.After(stopTimeout):
		s.t.Fatalf("Ctrl-C: still running after %v\n%s", stopTimeout, s.output)
	}
}

// kill ends the system with SIGKILL.
func (s *system) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
}

// run runs a subcommand against the system and returns its standard output.
func (s *system) run(args ...string) string {
	s.t.Helper()
	return run(s.t, append(args, "--addr", s.addr, "--admin-addr", s.admin)...)
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("millrace %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// rows runs a query and decodes its rows.
func (s *system) rows(query string) []map[string]any {
	s.t.Helper()
	return decodeRows(s.t, s.run("sql", "--output", "json", query))
}

func decodeRows(t *testing.T, out string) []map[string]any {
	t.Helper()
	var rows []map[string]any
	d := json.NewDecoder(strings.NewReader(out))
	d.UseNumber()
	for {
		var row map[string]any
		if err := d.Decode(&row); err == io.EOF {
			return rows
		} else if err != nil {
			t.Fatalf("decode %q: %v", out, err)
		}
		rows = append(rows, row)
	}
}

// verified runs verify, which must find no difference, and returns the number of items on each
// side.
func (s *system) verified() map[string]json.Number {
	s.t.Helper()
	var result struct {
		Equal      bool `json:"equal"`
		Aggregates []struct {
			Sides []struct {
				Side, Unit string
				Count      json.Number
			}
		}
	}
	out := s.run("verify", "--output", "json", "--wait", "5m")
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		s.t.Fatal(err)
	}
	if !result.Equal {
		s.t.Fatalf("not equal: %s", out)
	}
	counts := map[string]json.Number{}
	for _, a := range result.Aggregates {
		for _, side := range a.Sides {
			counts[side.Side+" "+side.Unit] = side.Count
		}
	}
	return counts
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	within(t, startTimeout, what, holds)
}

// within waits until a condition holds. It asks less and less often, so that it takes no time from a
// system that is busy for long.
func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for wait := 20 * time.Millisecond; !holds(); wait = min(wait*5/4, 500*time.Millisecond) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			t.Fatalf("timed out waiting for: %s, after %v", what, limit)
		}
	}
}

// lockedBuffer is a buffer for both outputs of a process.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
