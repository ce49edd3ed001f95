package process

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// RunTests runs a package's tests, stops its servers, checks that no goroutine is left, and returns
// the exit code. The servers stop first, because a goroutine waits for the end of each.
func RunTests(m *testing.M, stops ...func() error) (code int) {
	code = m.Run()
	var errs []error
	for _, stop := range stops {
		errs = append(errs, stop())
	}
	err := errors.Join(errs...)
	if err == nil && code == 0 {
		err = goleak.Find(bufferPools)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// bufferPools is a goroutine of LevelDB in the embedded Redis, which ends a second after the
// database is closed.
var bufferPools = goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")
