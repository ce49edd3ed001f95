package history

import (
	"testing"

	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// Vectors equal those of a scan of all facts, to the last bit: with late facts, corrections and
// retractions, at and around the edges of windows and tiles, and as known at earlier times.
func TestVectorsEqualTheScan(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	h := open(t, w.config(clickhousetest.OpenStore(t)))
	running(t, h)
	for range 3 {
		w.trade(t, 60)
		w.filled(t, h)
		w.check(t, h, 25)
	}
}
