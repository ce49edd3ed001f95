// Package kill is the kill matrix. It puts a running system under load, breaks one thing at one
// moment, repairs it, and waits for the system to settle. Then every acknowledged command must be
// on every side exactly once and in order.
//
//	go test ./test/kill                                        the quick part
//	go test ./test/kill -kill.full -timeout 120m               the whole matrix; writes docs/kill-matrix.md and resumes a stopped run
//	go test ./test/kill -kill.role lake                        the rows of one role; writes docs/kill-matrix-lake.md and resumes likewise
//	go test ./test/kill -run 'TestMatrix/^relay$/before_commit' some rows of it: role/step/fault
//
// A row is a step or a server, and a fault. A stage is a system that several rows use one after the
// other. The ledger records every command at the door, in front of the roles, and the audit
// compares it with every side.
//
// The processes under test are the real binary, built with the tag failpoints. Points are armed
// over HTTP when they are needed, so nothing depends on timing.
package kill

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/millrace/millrace/test/servers/process"
)

// root is the root of the repository, relative to this package.
const root = "../.."

var (
	full  = flag.Bool("kill.full", os.Getenv("MILLRACE_KILL") == "full", "run every row, not the quick part alone (also MILLRACE_KILL=full)")
	only  = flag.String("kill.role", "", "run every row of one role: commands, relay, views, lake or iceberg")
	write = flag.Bool("kill.write", false, "write docs/kill-matrix.md (the whole matrix always does)")
	year  = flag.String("kill.year", root+"/../shared/data/online-retail.parquet", "the real year that some rows import (also MILLRACE_KILL_YEAR)")

	built   = flag.String("kill.binary", "", "millrace, built with -tags failpoints; empty: it is built here")
	binary  string // the same
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
			build := exec.Command("go", "build", "-buildvcs=false", "-tags", "failpoints", "-o", binary, "./cmd/millrace")
			build.Dir, build.Stdout, build.Stderr = root, os.Stdout, os.Stderr
			if err := build.Run(); err != nil {
				fmt.Fprintln(os.Stderr, "build the binary:", err)
				return 1
			}
		}
		if library, err := filepath.Abs(root + "/.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so"); err == nil {
			_ = os.Setenv("MILLRACE_CLICKHOUSE_LIBRARY", library) // it is not beside the binary
		}
		code := m.Run()
		for _, g := range stages {
			if err := g.strike(); err != nil {
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
