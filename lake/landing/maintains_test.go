package landing

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
)

// TestMaintenanceIsSwitchedOff switches the maintenance of one of two tables off, and on again.
func TestMaintenanceIsSwitchedOff(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	config := localLake(t)
	off, on := tables.OrdersEvents, tables.OrderLines
	config.Tables = []declare.Table{off, on}
	l := openLake(t, config)
	var switched atomic.Bool
	var asked atomic.Int64
	c := s.runConfig()
	c.Maintenance = &maintenance.Config{DutyCycle: 1, SmallFiles: 2, Every: 20 * time.Millisecond}
	c.Maintains = func(table string) bool {
		if table != off.DisplayName() {
			return true
		}
		asked.Add(1)
		return switched.Load()
	}
	stop := start(t, l, c)
	compacted := func(of declare.Table) bool {
		t.Helper()
		have, err := l.Load(t.Context(), of.Identifier())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(have.Metadata().Snapshots(), func(s table.Snapshot) bool {
			return s.Summary.Operation == table.OpReplace
		})
	}
	// Landers write several files, of which the second table's are merged.
	eventually(t, func() error {
		s.mustTrade(t, 20)
		if !compacted(on) || asked.Load() < 5 {
			return fmt.Errorf("table %s is not compacted yet, or %s was not asked about", on.Name, off.Name)
		}
		return nil
	})
	s.landed(t, l)
	if compacted(off) {
		t.Errorf("table %s was maintained", off.Name)
	}
	switched.Store(true)
	eventually(t, func() error {
		s.mustTrade(t, 20)
		if !compacted(off) {
			return fmt.Errorf("table %s is not compacted yet", off.Name)
		}
		return nil
	})
	mustStop(t, stop)
}
