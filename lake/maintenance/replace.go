package maintenance

import (
	"context"
	"fmt"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/table/compaction"
)

// replacement replaces data files with others.
//
// Invariant for deletes: the new files have the rows of the old ones as of the base snapshot. So
// they already reflect every delete of the base, and every later delete must still apply to them.
// Equality deletes do, because the new files get the base's sequence number, and a delete applies
// to files with a lower number than its own. Position deletes refer to a file by path. A later one
// for a replaced file would be lost, so the replacement is then stale.
type replacement struct {
	sequence   int64              // of the base snapshot
	old        map[string]bool    // paths of the replaced files
	partitions map[string]bool    // their partitions
	files      []iceberg.DataFile // the replaced files
	added      []iceberg.DataFile

	deadDeletes int // delete files removed by the last attempt
}

// newReplacement returns the replacement of the files in bins, planned on base.
func newReplacement(base *table.Table, bins []bin, added []iceberg.DataFile) *replacement {
	r := &replacement{
		sequence: base.CurrentSnapshot().SequenceNumber, added: added,
		old: map[string]bool{}, partitions: map[string]bool{},
	}
	for _, b := range bins {
		for _, task := range b.tasks {
			r.old[task.File.FilePath()] = true
			r.partitions[partitionKey(task.File)] = true
			r.files = append(r.files, task.File)
		}
	}
	return r
}

// stage adds the replacement to a transaction if it is not stale.
func (r *replacement) stage(
	ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties,
) error {
	dead, err := r.check(ctx, t)
	if err != nil {
		return err
	}
	r.deadDeletes = len(dead)
	// The base's sequence number keeps later equality deletes in force. See replacement.
	rewrite := tx.NewRewrite(summary).DataSequenceNumber(r.sequence)
	for _, f := range r.files {
		rewrite.DeleteFile(f)
	}
	for _, f := range r.added {
		rewrite.AddDataFile(f)
	}
	for _, f := range dead {
		rewrite.DeleteFile(f)
	}
	if err := rewrite.Commit(ctx); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	return withoutNames(t, tx)
}

// withoutNames removes the name mapping that iceberg-go adds to tables without one. Compaction
// should not change properties.
func withoutNames(t *table.Table, tx *table.Transaction) error {
	if _, had := t.Properties()[table.DefaultNameMappingKey]; !had {
		return tx.RemoveProperties([]string{table.DefaultNameMappingKey})
	}
	return nil
}

// check returns errStale if the replacement no longer applies, or else the delete files that are
// dead after it.
func (r *replacement) check(ctx context.Context, t *table.Table) (dead []iceberg.DataFile, err error) {
	head := t.CurrentSnapshot()
	if head == nil {
		return nil, fmt.Errorf("%w: the table is empty", errStale)
	}
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	manifests, err := head.Manifests(files)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	// One pass over the manifests finds the replaced files and all delete files.
	// All replaced files must still be in the table.
	live := 0
	sequences := map[string]int64{} // of delete files
	for _, m := range manifests {
		for e, err := range m.Entries(files, true) {
			if err != nil {
				return nil, fmt.Errorf("read manifest %s: %w", m.FilePath(), err)
			}
			f := e.DataFile()
			if f.ContentType() == iceberg.EntryContentData {
				if r.old[f.FilePath()] {
					live++
				}
				continue
			}
			sequences[f.FilePath()] = e.SequenceNum()
			// A position delete that is younger than the base may refer to a replaced file and
			// would be lost.
			if f.ContentType() == iceberg.EntryContentPosDeletes && e.SequenceNum() > r.sequence && r.mayHit(f) {
				return nil, fmt.Errorf("%w: rows were deleted by position", errStale)
			}
		}
	}
	if live != len(r.old) {
		return nil, fmt.Errorf("%w: %d of %d data files remain", errStale, live, len(r.old))
	}
	if len(sequences) == 0 {
		return nil, nil
	}
	equality, err := deadEqualityDeletes(ctx, t, r.old)
	if err != nil {
		return nil, err
	}
	for _, f := range equality {
		// The new files have the base's sequence number, so younger deletes still apply.
		if sequences[f.FilePath()] <= r.sequence {
			dead = append(dead, f)
		}
	}
	paths := map[string]struct{}{}
	for path := range r.old {
		paths[path] = struct{}{}
	}
	// Position deletes are dead if all files that they refer to are replaced.
	position, err := compaction.CollectDeadPositionDeletes(ctx, files, head, paths)
	if err != nil {
		return nil, fmt.Errorf("find dead deletes: %w", err)
	}
	return append(dead, position...), nil
}

// positionPathID is the reserved field id of the data file's path in position delete files.
const positionPathID = 2147483546

// mayHit reports whether a position delete file may apply to a replaced file.
func (r *replacement) mayHit(f iceberg.DataFile) bool {
	if path := f.ReferencedDataFile(); path != nil {
		return r.old[*path]
	}
	// Equal bounds of the path column mean that all deletes are for one file.
	low, high := string(f.LowerBoundValues()[positionPathID]), string(f.UpperBoundValues()[positionPathID])
	if low != "" && low == high {
		for path := range r.old {
			if strings.HasPrefix(path, low) { // bounds may be truncated
				return true
			}
		}
		return false
	}
	// Unknown: any file of the partition may be affected.
	return r.partitions[partitionKey(f)]
}
