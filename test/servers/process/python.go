package process

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Python returns the interpreter that scripts/python-tools installs in the repository, with
// external clients of topics and tables. If it is missing, the test is skipped or fails: see
// SkipOrFail.
func Python(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for { // tests run in the folder of their package
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
