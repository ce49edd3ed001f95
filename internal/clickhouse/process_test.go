package clickhouse_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
	"github.com/millrace/millrace/internal/polltest"
)

// envParent makes the test binary a process that starts an engine in the folder it names, prints
// the engine's id and waits to be killed.
const envParent = "MILLRACE_TEST_ENGINE_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(envParent) != "" && os.Getenv(clickhouse.EnvListener) == "" {
		flag.Parse()
		c, err := clickhousetest.Config()
		if err == nil {
			c.DataDir = os.Getenv(envParent)
			var e *clickhouse.Engine
			if e, err = clickhouse.StartEngine(context.Background(), c); err == nil {
				fmt.Println(e.PID())
				select {}
			}
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	clickhousetest.Main(m)
}

// ask runs a query and returns its answer without the last line break.
func ask(t *testing.T, c *clickhouse.Client, sql string) string {
	t.Helper()
	answer, err := answerOf(t.Context(), c, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func answerOf(ctx context.Context, c *clickhouse.Client, sql string) (string, error) {
	body, err := c.Query(ctx, sql, "TSV", nil)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(body)
	return strings.TrimSuffix(string(b), "\n"), errors.Join(err, body.Close())
}

// endless runs for hours before its first row.
const endless = "SELECT count() FROM numbers_mt(1000000000000000) WHERE sipHash64(number) = 1"

// running reports whether a query with this text runs.
func running(t *testing.T, c *clickhouse.Client, sql string) bool {
	t.Helper()
	return ask(t, c, "SELECT count() FROM system.processes WHERE query = '"+sql+"'") == "1"
}

// A killed engine is replaced at the same address.
func TestKilledEngineRestarts(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Start(t)
	addr, killed := e.Addr(), e.PID()
	failed := make(chan error, 1)
	go func() {
		_, err := answerOf(t.Context(), e.Client(), endless)
		failed <- err
	}()
	polltest.Until(t, "the query runs", func() bool { return running(t, e.Client(), endless) })
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("the query outlived its engine")
	}
	polltest.Until(t, "another process", func() bool { pid := e.PID(); return pid != 0 && pid != killed })
	if got := ask(t, e.Client(), "SELECT 1"); got != "1" || e.Addr() != addr {
		t.Errorf("answer %q at %s, want 1 at %s", got, e.Addr(), addr)
	}
}

// A query that arrives while there is no process waits for the next one.
func TestQueryWaitsForRestart(t *testing.T) {
	t.Parallel()
	e := clickhousetest.Start(t)
	c := clickhouse.NewClient(e.Addr(), clickhouse.Admin, "") // has no connections to the process that is killed
	pid := e.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the process is gone", func() bool { return e.PID() != pid })
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// Close does not wait for running queries.
func TestCloseEndsQueries(t *testing.T) {
	t.Parallel()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	e, err := clickhouse.StartEngine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	pid := e.PID()
	failed := make(chan error, 1)
	go func() {
		_, err := answerOf(context.WithoutCancel(t.Context()), e.Client(), endless)
		failed <- err
	}()
	polltest.Until(t, "the query runs", func() bool { return running(t, e.Client(), endless) })
	if err := errors.Join(e.Close(), e.Close()); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("the query ended well")
	}
	if alive(pid) {
		t.Error("the process is still there")
	}
	if err := e.Client().Ping(t.Context()); err == nil {
		t.Error("a closed engine answers")
	}
}

// Tables on disk survive a restart.
func TestDataSurvivesRestart(t *testing.T) {
	t.Parallel()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir = t.TempDir()
	for want := range 3 {
		e, err := clickhouse.StartEngine(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		ask(t, e.Client(), "CREATE TABLE IF NOT EXISTS kept (n UInt64) ENGINE = MergeTree ORDER BY n")
		ask(t, e.Client(), "CREATE DATABASE lake_left ENGINE = Memory") // each run drops what the previous one left
		if got := ask(t, e.Client(), "SELECT count() FROM kept"); got != strconv.Itoa(want) {
			t.Errorf("run %d found %s rows", want, got)
		}
		ask(t, e.Client(), "INSERT INTO kept SELECT "+strconv.Itoa(want))
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Only one engine can use a folder. A second one waits a short time for the first to end.
func TestSecondEngineOnFolder(t *testing.T) {
	t.Parallel()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir = t.TempDir()
	first, err := clickhouse.StartEngine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := clickhouse.StartEngine(t.Context(), c); err == nil {
		t.Error(errors.Join(errors.New("two engines run on one folder"), second.Close()))
	} else if !strings.Contains(err.Error(), "another engine is using "+c.DataDir) {
		t.Errorf("error %v", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- first.Close() }()
	second, err := clickhouse.StartEngine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, second.Client(), "SELECT 1"); got != "1" {
		t.Errorf("answer %q", got)
	}
	if err := errors.Join(<-closed, second.Close()); err != nil {
		t.Error(err)
	}
}

// A start that cannot succeed fails with the reason.
func TestStartFails(t *testing.T) {
	t.Parallel()
	good, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	noLibrary := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(noLibrary, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*clickhouse.Config)
		want   string
	}{
		"not a library":    {func(c *clickhouse.Config) { c.Library = noLibrary }, "load "},
		"no such library":  {func(c *clickhouse.Config) { c.Library = "/nowhere" }, "clickhouse.library is /nowhere"},
		"no such command":  {func(c *clickhouse.Config) { c.Command = []string{"/nowhere"} }, "/nowhere"},
		"not on loopback":  {func(c *clickhouse.Config) { c.Listen = "0.0.0.0:0" }, "loopback address"},
		"not our command":  {func(c *clickhouse.Config) { c.Command = []string{"false"} }, "exit status 1"},
		"unusable address": {func(c *clickhouse.Config) { c.Listen = "127.0.0.1:none" }, "listen for the engine"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := good
			c.change(&config)
			e, err := clickhouse.StartEngine(t.Context(), config)
			if err == nil {
				t.Fatal(errors.Join(errors.New("it started"), e.Close()))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// A start is abandoned when its context ends.
func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c, err := clickhousetest.Config()
	if err != nil {
		t.Fatal(err)
	}
	c.Command = []string{"sleep", "600"} // never answers
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := clickhouse.StartEngine(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// When the parent is killed, the engine ends, too.
func TestEngineDiesWithParent(t *testing.T) {
	t.Parallel()
	parent := exec.CommandContext(t.Context(), os.Args[0])
	parent.Env = append(os.Environ(), envParent+"="+t.TempDir())
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(errors.Join(err, parent.Process.Kill(), parent.Wait()))
	}
	if !alive(pid) {
		t.Fatalf("process %d is no engine", pid)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed
	polltest.Until(t, "the engine is gone", func() bool { return !alive(pid) })
}

// Without the kernel's help, an engine ends orderly with its standard input or SIGTERM.
func TestEngineStops(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*exec.Cmd, io.Closer) error{
		"standard input ends": func(_ *exec.Cmd, stdin io.Closer) error { return stdin.Close() },
		"SIGTERM":             func(cmd *exec.Cmd, _ io.Closer) error { return cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close() //nolint:errcheck // the test is over
			socket, err := ln.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close() //nolint:errcheck // as above
			c, err := clickhousetest.Config()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), clickhouse.EnvListener+"=3", clickhouse.EnvLibrary+"="+c.Library, clickhouse.EnvData+"="+t.TempDir(), clickhouse.EnvPassword+"=secret")
			cmd.ExtraFiles = []*os.File{socket}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			client := clickhouse.NewClient(ln.Addr().String(), clickhouse.Admin, "secret")
			failed := make(chan error, 1)
			go func() {
				_, err := answerOf(t.Context(), client, endless)
				failed <- err
			}()
			polltest.Until(t, "the query runs", func() bool { return running(t, client, endless) })
			if err := stop(cmd, stdin); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the engine ended with %v", err)
			}
			if err := <-failed; err == nil {
				t.Error("the query ended well")
			}
		})
	}
}

// alive reports whether a process is running. A zombie is not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

func BenchmarkStart(b *testing.B) {
	c, err := clickhousetest.Config()
	if err != nil {
		b.Fatal(err)
	}
	c.Logger = slog.New(slog.DiscardHandler)
	for b.Loop() {
		e, err := clickhouse.StartEngine(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
