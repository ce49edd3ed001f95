package maintenance

import (
	"fmt"

	"github.com/apache/iceberg-go/table"
)

// Ancestors returns a snapshot and those before it that are still there, the newest first. Metadata
// is what a client wrote, so the parents may form a cycle: the walk then ends where it would begin
// again.
func Ancestors(meta table.Metadata, id int64) []table.Snapshot {
	return table.AncestorsOf(id, meta.SnapshotByID)
}

// History returns the current snapshot and its ancestors, the newest first.
func History(meta table.Metadata) []table.Snapshot {
	head := meta.CurrentSnapshot()
	if head == nil {
		return nil
	}
	return Ancestors(meta, head.SnapshotID)
}

// CycleError says that a snapshot is among its own ancestors.
type CycleError struct{ Snapshot int64 }

func (e *CycleError) Error() string {
	return fmt.Sprintf("snapshot %d is its own ancestor", e.Snapshot)
}

// checkHistory returns a *CycleError where the history of the table, or of a branch or tag of it,
// does not end.
func checkHistory(t *table.Table) error {
	for _, ref := range t.Metadata().Refs() {
		past := Ancestors(t.Metadata(), ref.SnapshotID)
		if len(past) == 0 {
			continue
		}
		oldest := past[len(past)-1]
		if oldest.ParentSnapshotID == nil {
			continue
		}
		if again := t.Metadata().SnapshotByID(*oldest.ParentSnapshotID); again != nil {
			return &CycleError{again.SnapshotID}
		}
	}
	return nil
}
