package process

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Python returns the interpreter that scripts/python-tools sets up in the repository, with the
// outside clients of our tables and topics. Where it is not there the test is skipped, or fails, as
// SkipOrFail has it.
func Python(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for { // tests run in their package's folder
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			tb.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, ".tools", "python", "bin", "python")
	if _, err := os.Stat(path); err != nil {
		SkipOrFail(tb, "Python's clients", errors.Join(ErrMissing, err))
	}
	return path
}
