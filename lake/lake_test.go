package lake

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEverythingLandsOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.mustTrade(t, 500)
	l := openLake(t, t.TempDir())
	stop := start(t, l, s.runConfig())
	s.landed(t, l)
	s.mustTrade(t, 300)
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
	checkFiles(t, l)
	s.mustTrade(t, 100)
	stop = start(t, l, s.runConfig()) // again, on what is there
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
	checkFiles(t, l)
}
