package maintenance

import (
	"context"
	"errors"
	"fmt"
	stdfs "io/fs"
	"path"
	"slices"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/location"
)

// LostError reports missing files that a table's current state needs. Landers that only append
// would not notice, but readers would miss rows.
type LostError struct {
	Files []string // locations
}

// Error names one of the files.
func (e *LostError) Error() string {
	if len(e.Files) == 1 {
		return "file " + e.Files[0] + " is missing"
	}
	return fmt.Sprintf("%d files are missing, such as %s", len(e.Files), e.Files[0])
}

// Unwrap makes LostError a kind of fs.ErrNotExist.
func (e *LostError) Unwrap() error { return stdfs.ErrNotExist }

// CheckFiles returns a *LostError if files of the table's current state are missing, and a
// *CycleError if its history has a cycle. It lists the table's folder and reads manifests, but no
// data files.
func CheckFiles(ctx context.Context, load Load) error {
	var lost []string
	// Maintenance and other engines may replace files between loading the table and listing its
	// folder.
	for range 2 { // twice, because a file may be replaced between the reads
		t, err := load(ctx)
		if err != nil {
			return fmt.Errorf("load table: %w", err)
		}
		if err := checkHistory(t); err != nil {
			return err
		}
		found, err := missingFiles(ctx, t)
		if err != nil {
			return fmt.Errorf("check files of table: %w", err)
		}
		if lost == nil {
			lost = found
		}
		// Only files that are missing in both reads are lost.
		if lost = slices.DeleteFunc(lost, func(f string) bool { return !slices.Contains(found, f) }); len(lost) == 0 {
			return nil
		}
	}
	return &LostError{Files: lost}
}

// maxLost limits the number of missing files that are checked and reported one by one.
const maxLost = 1000

// missingFiles returns the missing files of one state of a table.
func missingFiles(ctx context.Context, t *table.Table) (lost []string, err error) {
	head := t.CurrentSnapshot()
	if head == nil {
		return nil, nil
	}
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	listed, err := list(ctx, files, t.Location())
	if err != nil {
		return nil, err
	}
	present := map[string]bool{} // file names; locations are spelled in several ways
	for _, f := range listed {
		present[path.Base(f.location)] = true
	}
	// A file outside of the listing may still exist: it is checked directly.
	missing := func(file string) (bool, error) {
		if present[path.Base(file)] && location.Inside(t.Location(), file) {
			return false, nil
		}
		// Not in the listing: it may have been added after the listing, or be in another folder of
		// the table.
		stat, ok := files.(io.StatIO)
		if !ok {
			return false, nil // unknown: do not report what cannot be checked
		}
		_, err := stat.Stat(file)
		if errors.Is(err, stdfs.ErrNotExist) {
			return true, nil
		}
		return false, err
	}
	manifests, err := head.Manifests(files)
	// Without the manifest list, nothing else of the snapshot can be checked.
	if errors.Is(err, stdfs.ErrNotExist) {
		return []string{head.ManifestList}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read manifests of snapshot %d: %w", head.SnapshotID, err)
	}
	for _, m := range manifests {
		for e, err := range m.Entries(files, true) {
			// A missing manifest hides its entries: report the manifest itself.
			if errors.Is(err, stdfs.ErrNotExist) {
				lost = append(lost, m.FilePath())
				break
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, fmt.Errorf("read manifest %s: %w", m.FilePath(), err)
			}
			absent, err := missing(e.DataFile().FilePath())
			if err != nil {
				return nil, err
			}
			if absent {
				lost = append(lost, e.DataFile().FilePath())
			}
			if len(lost) == maxLost {
				return lost, nil
			}
		}
	}
	return lost, nil
}
