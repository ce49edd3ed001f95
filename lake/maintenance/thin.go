package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/timeunit"
)

// Every commit reads and writes all snapshots in a table's metadata, so landers thin the history
// out. The newest states are all retained, of older ones the last of each minute, then of each
// hour. So as-of queries reach back a day, and the cost of commits stays constant. Checking is
// cheap, but removing takes a commit, so snapshots are only removed when historyCut of them have
// accumulated.
const (
	historyNewest  = 64
	historyMinutes = time.Hour
	historyHours   = 24 * time.Hour
	historyCut     = 16
)

// surplus returns the ids of snapshots that may be removed.
func surplus(snapshots []table.Snapshot, keep map[int64]bool, now time.Time) (ids []int64) {
	all := slices.Clone(snapshots)
	slices.SortStableFunc(all, func(a, b table.Snapshot) int { return int(b.SequenceNumber - a.SequenceNumber) })
	seen := map[string]bool{} // minutes and hours whose last state is retained
	// Newest first, so that the last state of each minute or hour is the one that is retained.
	for i, s := range all {
		// Ages count from the time of the commit.
		at := timeunit.Time(s.TimestampMs)
		age, span := now.Sub(at), ""
		switch {
		case i < historyNewest || keep[s.SnapshotID]:
			continue
		case age < historyMinutes:
			span = at.Format("02 15:04")
		case age < historyHours:
			span = at.Format("02 15")
		}
		if span == "" || seen[span] {
			ids = append(ids, s.SnapshotID)
		}
		seen[span] = true
	}
	return ids
}

// Thin removes surplus snapshots of a table if there are enough of them, with a commit through
// into. It deletes their manifest lists, and the manifests that no other snapshot uses. It deletes
// no data files: a reader may have planned a scan of a file that compaction replaced. Maintenance
// removes those files later.
func Thin(ctx context.Context, load Load, into table.CatalogIO) error {
	t, err := load(ctx)
	if err != nil {
		return err
	}
	pointed := map[int64]bool{} // by branches and tags
	for _, ref := range t.Metadata().Refs() {
		pointed[ref.SnapshotID] = true
	}
	// The cheap check comes first: most calls end here.
	now := time.Now()
	if len(surplus(t.Metadata().Snapshots(), pointed, now)) < historyCut {
		return nil
	}
	// The claim covers all snapshots, because thinning may remove any of them.
	held, done, err := Claim(ctx, t, now) // snapshots of running as-of queries are retained
	if err != nil {
		return err
	}
	defer done()
	maps.Copy(pointed, held)
	ids := surplus(t.Metadata().Snapshots(), pointed, now)
	if len(ids) == 0 {
		return nil
	}
	// If another commit comes first, this one is refused, and a later call tries again.
	head := t.CurrentSnapshot().SnapshotID
	_, _, err = into.CommitTable(ctx, t.Identifier(),
		[]table.Requirement{
			table.AssertTableUUID(t.Metadata().TableUUID()), table.AssertRefSnapshotID(table.MainBranch, &head),
		},
		[]table.Update{table.NewRemoveSnapshotsUpdate(ids, false)})
	if err != nil {
		return err
	}
	files, err := t.FS(ctx)
	if err != nil {
		return err
	}
	// t still has the metadata from before the commit, and so all of its snapshots.
	gone, used := map[string]bool{}, map[string]bool{}
	for _, s := range t.Metadata().Snapshots() {
		manifests, err := s.Manifests(files)
		if err != nil {
			return fmt.Errorf("read manifests of snapshot %d: %w", s.SnapshotID, err)
		}
		into := used
		if slices.Contains(ids, s.SnapshotID) {
			into = gone
			gone[s.ManifestList] = true
		}
		for _, m := range manifests {
			into[m.FilePath()] = true
		}
	}
	var errs []error
	// A file that cannot be deleted becomes an orphan. Manifests are shared between snapshots:
	// delete only those that no retained one uses.
	for path := range gone {
		if used[path] {
			continue
		}
		if err := files.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
