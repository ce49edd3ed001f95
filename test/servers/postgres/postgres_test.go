package postgres_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/postgres"
)

// asVictim, in the environment, makes the test binary a process that is killed while its cluster runs.
const asVictim = "MILLRACE_TEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(asVictim) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	var c postgres.Cluster
	fmt.Println(c.Start())
	select {} // until killed
}

// TestEndsWithItsProcess kills a test binary: its server must end and its directory go.
func TestEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	var own postgres.Cluster // skips or fails as it must where PostgreSQL is missing
	own.ConnString(t)
	if err := own.Stop(); err != nil {
		t.Error(err)
	}

	victim := exec.CommandContext(t.Context(), os.Args[0])
	victim.Env = append(os.Environ(), asVictim+"=1")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the victim said %q: %v", line, err)
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
