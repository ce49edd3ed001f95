package history

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/test/servers/postgres"
)

var cluster postgres.Cluster

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		if err := victim(); err != nil {
			fmt.Fprintln(os.Stderr, "victim:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

// built is the folder with the binary under test.
var built string

func run(m *testing.M) (code int) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	var err error
	if built, err = os.MkdirTemp("", "millrace-history-"); err != nil {
		fail(err)
		return code
	}
	code = m.Run()
	fail(cluster.Stop())
	fail(os.RemoveAll(built))
	if code == 0 {
		fail(goleak.Find())
	}
	return code
}

// secondsVar is the environment variable with the duration of each run.
const secondsVar = "MILLRACE_HISTORY_SECONDS"

// duration returns the duration of a run. quick is the default.
func duration(quick time.Duration) time.Duration {
	text := os.Getenv(secondsVar)
	if text == "" {
		return quick
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 {
		panic(fmt.Sprintf("%s=%q: want a number of seconds, at least 1", secondsVar, text))
	}
	return time.Duration(seconds) * time.Second
}
