package process

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// RunTests runs a package's tests, stops its servers, sees that no goroutine is left, and tells the
// code to exit with. The servers go first: while one runs, a goroutine waits for its end.
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

// A goroutine of LevelDB, in the embedded Redis, releases its buffers and ends a second after it
// was closed.
var bufferPools = goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")
