package landing

import (
	"testing"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/tables"
)

// Other engines can write beside landers: they retry commits, and a DELETE covers the rows that
// existed when it began. Older tables are changed accordingly, but values set by users are kept.
func TestTablePropertiesForOtherEngines(t *testing.T) {
	t.Parallel()
	config := localLake(t)
	l := openLake(t, config)
	ident := tables.OrderLines.Identifier()
	const remove, update, merge = "write.delete.isolation-level", "write.update.isolation-level", "write.merge.isolation-level"
	check := func(want iceberg.Properties) {
		t.Helper()
		have, err := l.Load(t.Context(), ident)
		if err != nil {
			t.Fatal(err)
		}
		if retries, ok := have.Properties()[table.CommitNumRetriesKey]; ok {
			t.Errorf("%s is %s", table.CommitNumRetriesKey, retries)
		}
		for key, value := range want {
			if got := have.Properties()[key]; got != value {
				t.Errorf("%s is %q, want %q", key, got, value)
			}
		}
	}
	check(iceberg.Properties{remove: "snapshot", update: "snapshot", merge: "snapshot"})
	_, _, err := clients(t, l).CommitTable(t.Context(), ident, nil, []table.Update{
		table.NewRemovePropertiesUpdate([]string{remove, merge}),
		table.NewSetPropertiesUpdate(iceberg.Properties{update: "serializable", table.CommitNumRetriesKey: "0"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	openLake(t, config)
	check(iceberg.Properties{remove: "snapshot", update: "serializable", merge: "snapshot"})
}
