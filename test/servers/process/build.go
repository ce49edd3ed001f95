package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// buildTimeout is how long Build waits for builds of other packages' tests and for its own.
const buildTimeout = 30 * time.Minute

// Build builds a program of this repository, with the flags of GOFLAGS and these build tags, and
// puts it at path. Packages whose tests run the same program link it only once: go build leaves a
// file that is up to date as it is, so one copy of each program remains in the user's cache folder.
// dir is any folder of the module.
func Build(ctx context.Context, dir, program, path string, tags ...string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	name := strings.Join(append([]string{filepath.Base(program)}, tags...), "-")
	kept := filepath.Join(cache, "millrace", "test-programs", name)
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return err
	}
	lock := flock.New(kept + ".lock")
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return fmt.Errorf("wait for the build of another package: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	// Without the version control's stamp, which changes with every commit.
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", //nolint:gosec // no outside input
		"-tags", strings.Join(tags, ","), "-o", kept, program)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", program, err, out)
	}
	// By another process: a child that a test starts meanwhile would inherit the open file, and a file
	// that is open for writing cannot be executed.
	if out, err := exec.CommandContext(ctx, "cp", kept, path).CombinedOutput(); err != nil { //nolint:gosec // as above
		return fmt.Errorf("cp %s %s: %w\n%s", kept, path, err, out)
	}
	return nil
}
