package landing

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/maintenance"
)

// ringed makes the history of the table of notes cyclic, bypassing the guards: its head becomes the
// parent of its first snapshot.
func ringed(t *testing.T, l *lake.Lake) {
	t.Helper()
	for range 3 {
		if err := landNote(t, l); err != nil {
			t.Fatal(err)
		}
	}
	meta := loadNotes(t, l)
	head := *meta.CurrentSnapshot()
	first := *meta.SnapshotByID(*meta.SnapshotByID(*head.ParentSnapshotID).ParentSnapshotID)
	first.ParentSnapshotID, first.SequenceNumber, first.TimestampMs = &head.SnapshotID, meta.LastSequenceNumber()+1, time.Now().UnixMilli()
	_, _, err := l.Catalog().CommitTable(t.Context(), notes.Identifier(), nil, []table.Update{
		table.NewRemoveSnapshotsUpdate([]int64{first.SnapshotID}, false), table.NewAddSnapshotUpdate(&first),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A table with a cyclic history is landed, read, maintained and guarded without endless loops, and
// the cycle is reported.
func TestCycleOfSnapshots(t *testing.T) {
	t.Parallel()
	config := localLake(t)
	config.Tables = []declare.Table{notes}
	l := openLake(t, config)
	ringed(t, l)
	meta := loadNotes(t, l)

	if is := findCommit(meta, "none", unknownBase); is != landUnknown {
		t.Errorf("a commit that is not there: %v", is)
	}
	if _, err := l.TablesAsOf(t.Context(), lake.AsOf{Time: time.Now()}, func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	if _, err := l.Snapshots(t.Context(), notes.Identifier()); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"check": l.Check(t.Context(), notes.Identifier()),
		"maintain": func() error {
			_, err := l.Maintain(t.Context(), notes.Identifier(), maintenance.Config{DutyCycle: 1}, nil)
			return err
		}(),
	} {
		var fault *faults.TableError
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), "its own ancestor") || fault.Remedy != faults.RemedyCycle {
			t.Errorf("%s: %v, want that it names the cycle", what, err)
		}
	}
	if _, broken, err := l.Report(t.Context()); err != nil || len(broken) != 1 || !strings.Contains(broken[0].Error(), "its own ancestor") {
		t.Errorf("%v %v, want that the lake names the cycle", broken, err)
	}
	// Clients can still change the table, and its landers continue.
	props := []table.Update{table.NewSetPropertiesUpdate(iceberg.Properties{"owner": "anna"})}
	if _, _, err := clients(t, l).CommitTable(t.Context(), notes.Identifier(), nil, props); err != nil {
		t.Error(err)
	}
	if err := landNote(t, l); err != nil {
		t.Error(err)
	}
}
