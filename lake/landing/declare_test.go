package landing

import (
	"errors"
	"fmt"
	"testing"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/tables"
)

// If the catalog refuses the change of a table to its declaration, for any reason, only this table
// stops, at start and during landing.
func TestRefusedDeclarationStopsItsTable(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.mustTrade(t, 10)
	config := ordersOnly(localLake(t))
	l := openLake(t, config)
	refuses := &refusing{Catalog: l.Catalog(), table: notes.Name}
	err := errors.New("the catalog does not like the columns")
	refuses.err.Store(&err)
	l.SetCatalog(refuses)
	if _, err := l.Create(t.Context(), notes); err == nil {
		t.Fatal("it was made")
	}
	refuses.err.Store(nil)
	if _, err := l.Create(t.Context(), notes); err != nil {
		t.Fatal(err)
	}
	refuses.err.Store(&err)
	wider := notes
	wider.Columns = append([]columnar.Field{{Name: "more", Type: iceberg.PrimitiveTypes.String}}, notes.Columns...)
	if err := l.Declare(t.Context(), wider); err != nil {
		t.Fatalf("the others are not opened: %v", err)
	}
	if all := l.Stopped(); len(all) != 1 || all[0].Table != notes.Name || all[0].Remedy != faults.RemedyCommit || !errors.Is(all[0], err) {
		t.Fatalf("stopped: %v", all)
	}
	stop := start(t, l, s.runConfig())
	eventually(t, func() error {
		if rows := stateOf(t, l, tables.OrdersEvents.Name).Rows; rows != int64(len(s.events[tables.OrdersEvents.Events])) {
			return fmt.Errorf("%d rows", rows)
		}
		return nil
	})
	mustStop(t, stop)
}
