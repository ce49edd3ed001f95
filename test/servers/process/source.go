package process

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var source sync.Once

// DependOnSource makes the result of a package's tests depend on every Go file below root, which is the
// root of the module. Tests of a program that they build themselves call it. Otherwise, go test takes an
// earlier result from its cache after a change of the program, because it only knows the packages that
// the tests import. It has no effect in TestMain: go test notes only what tests look at.
func DependOnSource(tb testing.TB, root string) {
	tb.Helper()
	source.Do(func() {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
				return fs.SkipDir // .git, .tools
			case !d.IsDir() && strings.HasSuffix(path, ".go"):
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	})
}
