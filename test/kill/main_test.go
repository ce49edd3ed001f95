// Package kill is the kill matrix. It puts a running system under load, breaks one thing at one
// step of its work, repairs it, and waits for the system to settle. Then every acknowledged command
// must be on every side exactly once and in order.
//
//	go test ./test/kill                                        the quick part
//	go test ./test/kill -kill.full -timeout 120m               the whole matrix; writes docs/kill-matrix.md and resumes a stopped run
//	go test ./test/kill -kill.role lake                        the rows of one role; writes docs/kill-matrix-lake.md and resumes likewise
//	go test ./test/kill -run 'TestMatrix/^relay$/before_commit' some rows of it: role/step/fault
//
// A row combines a fault with a step of a role, or with a server. A testbed is a system on which
// several rows run one after the other. The recorder is a reverse proxy in front of the roles. It
// records every command in the ledger. The audit compares the ledger with every side: the store,
// the topic, the table and the view of each aggregate.
//
// The processes under test are the real binary, built with the tag failpoints. Failpoints are armed
// over HTTP, so no row depends on timing.
package kill

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/test/servers/process"
)

// root is the root of the repository, relative to this package.
const root = "../.."

var (
	full = flag.Bool("kill.full", os.Getenv("MILLRACE_KILL") == "full",
		"run every row, not only the quick part (also MILLRACE_KILL=full)")
	only  = flag.String("kill.role", "", "run every row of one role: commands, relay, views, lake, features, tracking or iceberg")
	write = flag.Bool("kill.write", false,
		"write docs/kill-matrix.md even if rows are missing (the whole matrix always writes it)")
	year = flag.String("kill.year", root+"/../shared/data/online-retail.parquet",
		"the Online Retail data set that some rows import (also MILLRACE_KILL_YEAR)")

	built   = flag.String("kill.binary", "", "path of millrace, built with -tags failpoints (default: build it)")
	binary  string // path of the binary under test
	scratch string // folder for all files of the run
)

func TestMain(m *testing.M) {
	flag.Parse()
	*full = *full || *only != ""
	if path := os.Getenv("MILLRACE_KILL_YEAR"); path != "" {
		*year = path
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "millrace-kill-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // the system's temporary folder
		scratch = dir
		if binary = *built; binary == "" {
			binary = filepath.Join(dir, "millrace")
			if err := process.Build(context.Background(), root, "./cmd/millrace", binary, "failpoints"); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
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
		for _, g := range testbeds {
			if err := g.stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stop the system:", err)
				code = 1
			}
		}
		return code
	}())
}

// runPattern returns the value of -run.
func runPattern() string { return flag.Lookup("test.run").Value.String() }

func freePort() (int, error) {
	ports, err := process.FreePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}
