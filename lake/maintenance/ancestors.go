package maintenance

import (
	"fmt"

	"github.com/apache/iceberg-go/table"
)

// Ancestors returns a snapshot and its retained ancestors, newest first. Metadata is written by
// clients, so the parents may form a cycle: the result ends before the first repetition.
func Ancestors(meta table.Metadata, id int64) []table.Snapshot {
	return table.AncestorsOf(id, meta.SnapshotByID)
}

// History returns the current snapshot and its ancestors, newest first.
func History(meta table.Metadata) []table.Snapshot {
	head := meta.CurrentSnapshot()
	if head == nil {
		return nil
	}
	return Ancestors(meta, head.SnapshotID)
}

// CycleError reports that a snapshot is among its own ancestors.
type CycleError struct{ Snapshot int64 }

// Error names the snapshot at which the cycle was noticed.
func (e *CycleError) Error() string {
	return fmt.Sprintf("snapshot %d is its own ancestor", e.Snapshot)
}

// checkHistory returns a *CycleError if the history of a branch or tag has a cycle.
func checkHistory(t *table.Table) error {
	// Only histories that a reader can follow matter: those of branches and tags.
	for _, ref := range t.Metadata().Refs() {
		past := Ancestors(t.Metadata(), ref.SnapshotID)
		if len(past) == 0 {
			continue
		}
		oldest := past[len(past)-1]
		if oldest.ParentSnapshotID == nil {
			continue
		}
		// The walk ended although the parent exists, so the parent was visited before.
		if again := t.Metadata().SnapshotByID(*oldest.ParentSnapshotID); again != nil {
			return &CycleError{again.SnapshotID}
		}
	}
	return nil
}
