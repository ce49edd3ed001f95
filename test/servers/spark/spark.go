// Package spark runs a Spark session with Iceberg catalogs for tests, in a process of its own and a
// temporary folder. It is heavy: some 1 GB in two processes, and 15 to 60 seconds to start.
//
// The process is Python (session.py), which starts Spark's JVM. A Session sends it one query at a
// time as a line of JSON and reads one line as the answer. Spark's own messages go to a log, so
// they cannot mix with answers.
//
// Invariant: an answer always belongs to the last query. If that is uncertain, because a query was
// given up, the session is killed.
package spark

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/test/servers/catalog"
	"github.com/millrace/millrace/test/servers/process"
)

// Session is one Spark for a test binary, with the given catalogs. It starts with the first test
// that needs it, and TestMain stops it. It runs one query at a time. Further queries block until it
// has been answered.
type Session struct {
	Catalogs []catalog.Catalog

	// Set by the first start, and then unchanged.
	once sync.Once
	err  error
	// home is the installation folder, shared by all sessions. dir is the session's own folder,
	// with its program, its log and Spark's temporary files.
	home string
	dir  string

	// mu serialises queries, kills and restarts. Queries hold it until they are answered.
	mu  sync.Mutex
	run *run // nil unless one runs
}

// run is a session's process with its input and output.
type run struct {
	cmd     *exec.Cmd
	input   io.WriteCloser
	answers *os.File // the process's output; supports deadlines
	lines   *bufio.Reader
	log     *os.File
}

// program is the Python side of the session. It is embedded, so a test finds it from any working
// directory.
//
//go:embed session.py
var program []byte

// MustQuery is Query, and starts the session if necessary. It fails the test if the query fails. If
// Spark is not installed, the test is skipped or fails: see process.SkipOrFail.
func (s *Session) MustQuery(tb testing.TB, statement string) [][]any {
	tb.Helper()
	process.SkipHeavy(tb, "Spark")
	if err := s.Start(); err != nil {
		process.SkipOrFail(tb, "Spark", err)
	}
	rows, err := s.Query(tb.Context(), statement)
	if err != nil {
		tb.Fatal(err)
	}
	return rows
}

// Start starts the session once, and returns when it answers.
func (s *Session) Start() error {
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.Stop())
		}
	})
	return s.err
}

// start prepares the folder and launches the first process.
func (s *Session) start() error {
	var err error
	if s.home, err = process.InstallDir("spark"); err != nil {
		return err
	}
	if s.dir, err = os.MkdirTemp("", "millrace-spark-"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "session.py"), program, 0o600); err != nil {
		return err
	}
	return s.launch(context.Background())
}

// startTimeout bounds a start, which is some 20 seconds of work, on a busy machine.
const startTimeout = 10 * time.Minute

// launch runs a process with the current catalogs, and returns once it has answered a query. Python
// is ready long before Spark, so only an answer shows that both are.
func (s *Session) launch(ctx context.Context) error {
	settings, err := s.settings()
	if err != nil {
		return err
	}
	r, err := s.startProcess(ctx, settings)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.run = r
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := s.Query(ctx, "SELECT 1"); err != nil {
		return errors.Join(fmt.Errorf("start Spark: %w", err), s.Kill())
	}
	return nil
}

// startProcess starts the Python process. It does not wait until Spark is ready.
func (s *Session) startProcess(ctx context.Context, settings string) (*run, error) {
	java, err := exec.LookPath("java")
	if err == nil {
		// /usr/bin/java is a chain of links, and JAVA_HOME must be the folder of the JDK itself.
		java, err = filepath.EvalSymlinks(java)
	}
	if err != nil {
		return nil, fmt.Errorf("java 17: %w", process.ErrMissing)
	}
	r := &run{}
	if r.log, err = os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	// Not StdoutPipe, because only an os.File supports the deadline that ends a read.
	answers, output, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, r.log.Close())
	}
	r.answers, r.lines = answers, bufio.NewReader(answers)
	r.cmd = exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(s.home, "python", "bin", "python"), "session.py", settings) //nolint:gosec // as installed
	r.cmd.Dir, r.cmd.Stdout, r.cmd.Stderr = s.dir, output, r.log
	r.cmd.Env = append(os.Environ(), "TZ=UTC", "JAVA_HOME="+strings.TrimSuffix(java, "/bin/java"),
		"SPARK_LOCAL_IP=127.0.0.1",
		"SPARK_LOCAL_DIRS="+s.dir, "PYTHONUNBUFFERED=1")
	if r.input, err = r.cmd.StdinPipe(); err == nil {
		// The process ends with its input, and so with the test process, however that ends. Its JVM
		// ends with it.
		err = r.cmd.Start()
	}
	// The child has its own copy of the output. While the parent keeps one open too, the end of the
	// child would not end a read.
	if err = errors.Join(err, output.Close()); err != nil {
		return nil, errors.Join(err, answers.Close(), r.log.Close())
	}
	return r, nil
}

// Query runs a statement and returns its rows. Values are json.Number, string (also decimals, and
// bytes in hexadecimal), bool, or nil for null. Times are microseconds since 1970. If ctx ends
// first, the session is killed, because its late answer would be taken for that of the next query.
func (s *Session) Query(ctx context.Context, statement string) ([][]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return nil, errors.New("spark does not run")
	}
	// An error here is one of the connection. A query that Spark rejects has an answer with an
	// error, and leaves the session usable.
	line, err := s.run.query(ctx, statement)
	if err != nil {
		tail := s.logTail()
		return nil, errors.Join(fmt.Errorf("spark: %w: %.500s\n%s", err, statement, tail), s.kill())
	}
	var answer struct {
		Rows  [][]any
		Error string
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	// A float64 would round large integers.
	decoder.UseNumber()
	if err := decoder.Decode(&answer); err != nil {
		return nil, fmt.Errorf("spark: decode answer %.200q: %w", line, err)
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("spark: %.2000s: %.500s", answer.Error, statement)
	}
	return answer.Rows, nil
}

// query sends one line and reads one line. The end of ctx interrupts the read.
func (r *run) query(ctx context.Context, statement string) ([]byte, error) {
	question, err := json.Marshal(map[string]string{"sql": statement})
	if err != nil {
		return nil, err
	}
	// A deadline in the past ends a read that is already blocked.
	stop := context.AfterFunc(ctx, func() { _ = r.answers.SetReadDeadline(time.Now()) })
	defer stop()
	if _, err := r.input.Write(append(question, '\n')); err != nil {
		return nil, err
	}
	line, err := r.lines.ReadBytes('\n')
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return line, err
}

// Kill kills the session and its JVM with SIGKILL. It may be called more than once.
func (s *Session) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kill()
}

// kill is Kill for callers that hold mu.
func (s *Session) kill() error {
	if s.run == nil {
		return nil
	}
	r := s.run
	s.run = nil
	var killed []error
	// List the children first: once the parent is dead, they can no longer be found through it.
	for _, pid := range append(children(r.cmd.Process.Pid), r.cmd.Process.Pid) {
		if p, err := os.FindProcess(pid); err == nil {
			killed = append(killed, ended(p.Kill()))
		}
	}
	_ = r.cmd.Wait() // ended by the signal
	return errors.Join(append(killed, r.answers.Close(), r.log.Close())...)
}

// ended ignores the error of a process that has already ended.
func ended(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Restart starts the session again, and kills it first if it runs.
func (s *Session) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.launch(ctx)
}

// Stop kills the session and removes its folder. Call it after the last test.
func (s *Session) Stop() error {
	err := s.Kill()
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// ResidentMB returns the current memory of the session and its JVM, in MB.
func (s *Session) ResidentMB() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return 0, errors.New("spark does not run")
	}
	sum := 0
	for _, pid := range append(children(s.run.cmd.Process.Pid), s.run.cmd.Process.Pid) {
		mb, err := process.ResidentMB(pid)
		if err != nil {
			return 0, err
		}
		sum += mb
	}
	return sum, nil
}

// children returns the child processes of a process. Linux lists them by the thread that started
// them.
func children(pid int) (pids []int) {
	// Glob fails only if the pattern is malformed.
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task) //nolint:gosec // empty if the thread has ended
		for word := range strings.FieldsSeq(string(list)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// logTail returns the end of the log, for error messages: Spark explains a failed start only there.
func (s *Session) logTail() string {
	const most = 4 << 10
	log, _ := os.ReadFile(filepath.Join(s.dir, "log")) // best effort
	return string(log[max(0, len(log)-most):])
}
