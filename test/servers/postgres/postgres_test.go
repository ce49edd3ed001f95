package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/postgres"
)

// victimEnv is an environment variable that turns the test binary into a process that is killed
// while its cluster runs.
const victimEnv = "MILLRACE_TEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	var c postgres.Cluster
	fmt.Println(c.Start())
	select {} // until killed
}

// TestKillAndPause observes the server from outside: what answers, and what survives kill -9.
func TestKillAndPause(t *testing.T) {
	t.Parallel()
	var c postgres.Cluster
	conn := c.ConnString(t)
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	psql := func(ctx context.Context, conn, sql string) (string, error) {
		out, err := exec.CommandContext(ctx, "psql", "--no-psqlrc", "-qAt", "-d", conn, "-c", sql).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	must := func(sql string) string {
		t.Helper()
		out, err := psql(t.Context(), conn, sql)
		if err != nil {
			t.Fatalf("%s: %v: %s", sql, err, out)
		}
		return out
	}
	must("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1); CREATE ROLE guest LOGIN PASSWORD 'open sesame'")
	// A busy session must end with a killed server.
	busy := exec.CommandContext(t.Context(), "psql", "--no-psqlrc", "-d", conn, "-c", "SELECT pg_sleep(1000)")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the session is busy", func() bool {
		return must("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(1000)' AND pid <> pg_backend_pid()") == "1"
	})
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := busy.Wait(); err == nil {
		t.Error("a session outlived the server")
	}
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	if got := must("SELECT n FROM kept"); got != "1" {
		t.Errorf("after the restart the table has %q, want 1", got)
	}

	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if out, err := psql(soon, conn, "SELECT 1"); err == nil {
		t.Errorf("a paused server answered %q", out)
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	must("SELECT 1")

	// TCP requires TLS and a password.
	t.Run("over TCP", func(t *testing.T) {
		good := c.TLS("guest", "postgres")
		for _, try := range []struct{ conn, rejection string }{
			{strings.Replace(good, "guest@", "guest:open%20sesame@", 1), ""},
			{strings.Replace(good, "guest@", "guest:wrong@", 1), "password authentication failed"},
			{strings.Replace(strings.Replace(good, "guest@", "guest:open%20sesame@", 1), "verify-full", "disable",
				1), "no encryption"},
		} {
			out, err := psql(t.Context(), try.conn, "SELECT 1")
			if (err == nil) != (try.rejection == "") || !strings.Contains(out, try.rejection) {
				t.Errorf("%s: %v: %s", try.conn, err, out)
			}
		}
	})
}

// TestServerEndsWithTestProcess kills a test binary. Its server must end, and its directory must be
// removed.
func TestServerEndsWithTestProcess(t *testing.T) {
	t.Parallel()
	// It skips or fails the test if PostgreSQL is missing.
	var own postgres.Cluster
	own.ConnString(t)
	if err := own.Stop(); err != nil {
		t.Error(err)
	}

	victim := exec.CommandContext(t.Context(), os.Args[0])
	victim.Env = append(os.Environ(), victimEnv+"=1")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read the victim's output %q: %v", line, err)
	}
	dir, _, _ := strings.Cut(strings.TrimPrefix(line, "host="), " ")
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the victim's server is not at %q: %v", dir, err)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); !errors.As(err, new(*exec.ExitError)) {
		t.Errorf("the victim ended with %v", err)
	}
	polltest.Until(t, dir+" is gone with its process", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}
