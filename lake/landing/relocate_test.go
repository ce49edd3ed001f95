package landing

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/test/servers/process"
)

// After its folder was moved, a lake is readable row for row by us, PyIceberg and DuckDB. Landers
// continue, and maintenance leaves no old metadata behind.
func TestRelocate(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	s := newShop(t)
	config := localLake(t)
	config.Tables = tables.All()
	for i := range config.Tables {
		if config.Tables[i].Name == tables.OrderLines.Name { // values of partitions have types of their own in manifests
			config.Tables[i].Partition = []declare.Partition{
				{Column: "ordered_at", Transform: iceberg.DayTransform{}}, {Column: "country", Transform: iceberg.IdentityTransform{}},
				{Column: "unit_price", Transform: iceberg.TruncateTransform{Width: 10}}, {Column: "order_id", Transform: iceberg.BucketTransform{NumBuckets: 2}},
			}
		}
	}
	l := openLake(t, config)
	stop := start(t, l, s.runConfig())
	s.mustTrade(t, 300)
	s.landed(t, l)
	mustStop(t, stop)
	if _, err := l.Maintain(t.Context(), tables.OrderLines.Identifier(), maintenance.Config{DutyCycle: 1}, nil); err != nil {
		t.Fatal(err)
	}
	before := config.Warehouse
	config.Warehouse = filepath.Join(t.TempDir(), "elsewhere", "warehouse")
	if err := os.MkdirAll(filepath.Dir(config.Warehouse), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(before, config.Warehouse); err != nil {
		t.Fatal(err)
	}
	bare := config
	bare.Tables = []declare.Table{}
	moved, err := lake.Open(t.Context(), bare)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := moved.Relocate(t.Context(), before+"2"); err == nil || !strings.Contains(err.Error(), "no table") {
		t.Errorf("from where it was not: %v", err)
	}
	for _, wrong := range []string{config.Warehouse, filepath.Dir(config.Warehouse)} {
		if _, err := moved.Relocate(t.Context(), wrong); err == nil {
			t.Errorf("from %s: it is done", wrong)
		}
	}
	did, err := moved.Relocate(t.Context(), before)
	if err != nil || len(did) != len(tables.All()) {
		t.Fatalf("%d tables, %v", len(did), err)
	}
	for _, d := range did {
		if d.To != "file://"+config.Warehouse+strings.TrimPrefix(d.From, "file://"+before) {
			t.Errorf("%s from %s to %s", d.Table, d.From, d.To)
		}
	}
	if err := moved.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLake(t, config)
	s.check(t, l)
	if _, err := os.Stat(before); err == nil {
		t.Error("something was written where it was before")
	}
	for _, have := range readOutside(t, interpreter, config, []string{"order_lines", "orders_events"}) {
		switch have.Table {
		case tables.OrderLines.Name:
			compareLines(t, s, have)
		default:
			compareEvents(t, s, have)
		}
	}
	stop = start(t, l, s.runConfig())
	s.mustTrade(t, 100)
	s.landed(t, l)
	mustStop(t, stop)
	s.check(t, l)
}
