package maintenance

import (
	"context"
	"fmt"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/apache/iceberg-go/table/compaction"
)

// replacement is files that take the place of others.
//
// What must hold for deletes: the new files have the rows of the old ones as the base snapshot
// showed them. So every delete of the base is in them already, and every later one must still hit
// them. Deletes by equality do, because the new files get the base's sequence number: a delete hits
// what has a lower number than its own. Deletes by position name a file, so a later one that names
// a replaced file would be lost: then the replacement does not fit any more.
type replacement struct {
	sequence int64              // of the base snapshot
	old      map[string]bool    // paths
	parts    map[string]bool    // their partitions
	files    []iceberg.DataFile // the same
	added    []iceberg.DataFile

	deadDeletes int // files removed by the last stage
}

func newReplacement(base *table.Table, bins []bin, added []iceberg.DataFile) *replacement {
	r := &replacement{sequence: base.CurrentSnapshot().SequenceNumber, old: map[string]bool{}, parts: map[string]bool{}, added: added}
	for _, b := range bins {
		for _, task := range b.tasks {
			r.old[task.File.FilePath()] = true
			r.parts[partitionKey(task.File)] = true
			r.files = append(r.files, task.File)
		}
	}
	return r
}

func (r *replacement) stage(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
	dead, err := r.check(ctx, t)
	if err != nil {
		return err
	}
	r.deadDeletes = len(dead)
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

// withoutNames takes back that iceberg-go names the columns in a property where the table has none,
// which is none of our business.
func withoutNames(t *table.Table, tx *table.Transaction) error {
	if _, had := t.Properties()[table.DefaultNameMappingKey]; !had {
		return tx.RemoveProperties([]string{table.DefaultNameMappingKey})
	}
	return nil
}

// check finds whether the replacement still fits the table, and which files of deletes are dead
// after it.
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
	live := 0
	sequences := map[string]int64{} // of the files of deletes
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
			if f.ContentType() == iceberg.EntryContentPosDeletes && e.SequenceNum() > r.sequence && r.mayHit(f) {
				return nil, fmt.Errorf("%w: rows were deleted from it", errStale)
			}
		}
	}
	if live != len(r.old) {
		return nil, fmt.Errorf("%w: of %d data files %d are left", errStale, len(r.old), live)
	}
	if len(sequences) == 0 {
		return nil, nil
	}
	equality, err := idleEqualityDeletes(ctx, t, r.old)
	if err != nil {
		return nil, err
	}
	for _, f := range equality {
		// The new files are as old as the base.
		if sequences[f.FilePath()] <= r.sequence {
			dead = append(dead, f)
		}
	}
	paths := map[string]struct{}{}
	for path := range r.old {
		paths[path] = struct{}{}
	}
	position, err := compaction.CollectDeadPositionDeletes(ctx, files, head, paths)
	if err != nil {
		return nil, fmt.Errorf("find dead deletes: %w", err)
	}
	return append(dead, position...), nil
}

// The path of the data file, in files of deletes by position.
const positionPathID = 2147483546

// mayHit reports whether deletes by position may be of a file that is replaced.
func (r *replacement) mayHit(f iceberg.DataFile) bool {
	if path := f.ReferencedDataFile(); path != nil {
		return r.old[*path]
	}
	low, high := string(f.LowerBoundValues()[positionPathID]), string(f.UpperBoundValues()[positionPathID])
	if low != "" && low == high {
		for path := range r.old {
			if strings.HasPrefix(path, low) { // bounds may be cut short
				return true
			}
		}
		return false
	}
	return r.parts[partitionKey(f)]
}
