package maintenance

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// deleteFiles counts the table's delete files, including those that apply to nothing.
func (w *world) deleteFiles() (n int) {
	t := w.table()
	files := must(t.FS(w.tb.Context()))
	for _, m := range must(t.CurrentSnapshot().Manifests(files)) {
		for e, err := range m.Entries(files, true) {
			if err != nil {
				w.tb.Fatal(err)
			}
			if e.DataFile().ContentType() != iceberg.EntryContentData {
				n++
			}
		}
	}
	return n
}

// A file of old rows that no delete applies to does not keep deletes alive, and is not rewritten
// because of them.
func TestDeletesDoNotReachOldFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := sequenceOf(0, 5000)
	w.append(old)
	oldFile := w.dataFiles()[0].File.FilePath()
	young := sequenceOf(10_000, 10_010)
	w.append(young)
	for i := range young {
		young[i].value = "changed"
		w.upsert(young[i])
	}
	c := w.config()
	c.TargetBytes = 1024 // so that the old file is large
	report := w.mustRun(c)
	w.checkRows(append(old, young...))
	if n := w.deleteFiles(); n != 0 || report.Compacted.DeleteFiles != len(young) {
		t.Errorf("%d delete files remain, %v", n, report.Compacted)
	}
	if !slices.ContainsFunc(w.dataFiles(), func(f table.FileScanTask) bool { return f.File.FilePath() == oldFile }) {
		t.Error("the old file was rewritten")
	}
}

// Deletes that never applied to anything, or no longer do, are removed even if there is nothing to
// rewrite.
func TestDeadDeletesAreRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rows := sequenceOf(0, 100)
	w.append(rows)
	w.deleteKeys(5000, 6000)
	w.deleteKeys(7000)
	report := w.mustRun(w.config())
	w.checkRows(rows)
	if n := w.deleteFiles(); n != 0 || report.Compacted.DeleteFiles != 2 || report.Compacted.FilesBefore != 0 {
		t.Errorf("%d delete files remain, %v", n, report.Compacted)
	}
	before := w.table().CurrentSnapshot().SnapshotID
	w.mustRun(w.config())
	if w.table().CurrentSnapshot().SnapshotID != before {
		t.Error("a run with nothing to do created a snapshot")
	}
}

// Keep compacts between complete runs.
func TestKeepCompactsBetweenRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.append(sequenceOf(0, 10))
	c := w.config()
	c.Every, c.CompactEvery = time.Hour, 10*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	err := Keep(ctx, w.load, c, func(r Report, err error) {
		if err != nil {
			t.Error(err)
			cancel()
		}
		switch runs++; {
		case runs == 1: // the full run
			w.upsert(sequenceOf(0, 10)...)
		case r.Compacted.Commits > 0:
			cancel()
		case runs > 1000:
			t.Error("nothing is compacted")
			cancel()
		}
	})
	if err != nil {
		t.Error(err)
	}
	w.checkRows(sequenceOf(0, 10))
	if n := w.deleteFiles(); n != 0 {
		t.Errorf("%d delete files remain", n)
	}
}
