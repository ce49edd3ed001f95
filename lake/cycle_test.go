package lake

import (
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// Walks of a cyclic history terminate.
func TestCyclicHistoryTerminates(t *testing.T) {
	t.Parallel()
	schema := iceberg.NewSchema(0, iceberg.NestedField{ID: 1, Name: "said", Type: iceberg.PrimitiveTypes.String})
	meta, err := table.NewMetadata(schema, iceberg.UnpartitionedSpec, table.UnsortedSortOrder, "file:///ring", iceberg.Properties{"format-version": "2"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.MetadataBuilderFromBase(meta, "")
	if err != nil {
		t.Fatal(err)
	}
	var ids []int64
	for i := range int64(3) {
		s := table.Snapshot{SnapshotID: i + 1, SequenceNumber: i + 1, TimestampMs: time.Now().UnixMilli(), Summary: &table.Summary{Operation: table.OpAppend}}
		if i > 0 {
			s.ParentSnapshotID = &ids[i-1]
		}
		ids = append(ids, s.SnapshotID)
		if err := b.AddSnapshot(&s); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.RemoveSnapshots(ids[:1], false); err != nil {
		t.Fatal(err)
	}
	head := ids[2]
	first := table.Snapshot{
		SnapshotID: ids[0], ParentSnapshotID: &head, SequenceNumber: 4, TimestampMs: time.Now().UnixMilli(), Summary: &table.Summary{Operation: table.OpAppend},
	}
	if err := b.AddSnapshot(&first); err != nil {
		t.Fatal(err)
	}
	if err := b.SetSnapshotRef(table.MainBranch, head, table.BranchRef); err != nil {
		t.Fatal(err)
	}
	if meta, err = b.Build(); err != nil {
		t.Fatal(err)
	}
	if n := len(lineage(meta)); n != 3 {
		t.Errorf("the lineage has %d snapshots, want 3", n)
	}
	if err := checkHistory(meta, meta); err != nil {
		t.Error(err)
	}
}
