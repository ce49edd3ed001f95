package process

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"
)

// Parallel lets n tests of the package run at the same time, on a machine with fewer processors
// too. TestMain calls it before it runs the tests. It is for packages whose tests wait for servers
// most of the time: the default, one test for each processor, leaves the processors idle. The flag
// -parallel overrides it.
func Parallel(n int) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err)
	}
}

// turnTimeout is how long Turn waits.
const turnTimeout = time.Hour

// Turn waits until no other package's tests on this machine hold the turn, and takes it. It is for
// TestMain of packages whose tests start whole systems and use every processor: beside each other,
// both take longer than one after the other, and their waits time out. The turn also ends with the
// process.
func Turn() (end func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), turnTimeout)
	defer cancel()
	lock := flock.New(filepath.Join(os.TempDir(), "millrace-test-turn.lock"))
	if _, err := lock.TryLockContext(ctx, 200*time.Millisecond); err != nil {
		return nil, fmt.Errorf("wait for the tests of another package: %w", err)
	}
	return func() { _ = lock.Unlock() }, nil // fails only for a file that was closed
}
