package maintenance

import (
	"context"
	"errors"
	"fmt"
	stdfs "io/fs"
	"strings"

	"github.com/millrace/millrace/lake/location"
)

// restoreLocations makes the files of a table accessible at the exact locations that its metadata
// names. An earlier version decoded percent escapes when it wrote files of tables partitioned by
// strings, so other engines cannot find those files. Files that are already in place are skipped.
func (r *run) restoreLocations(ctx context.Context) error {
	t, err := r.loadTable(ctx)
	if err != nil {
		return err
	}
	head := t.CurrentSnapshot()
	if head == nil || strings.HasPrefix(t.Location(), "s3") {
		return nil // in an object store, the key is the location
	}
	files, err := t.FS(ctx)
	if err != nil {
		return fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	manifests, err := head.Manifests(files)
	if err != nil {
		return fmt.Errorf("read manifests of snapshot %d: %w", head.SnapshotID, err)
	}
	flat := map[int32]bool{} // unpartitioned specs: their file names have no values
	// Only file names of partitioned tables contain values, and so escapes.
	for _, spec := range t.Metadata().PartitionSpecs() {
		flat[int32(spec.ID())] = spec.IsUnpartitioned()
	}
	restored := 0
	for _, m := range manifests {
		if flat[m.PartitionSpecID()] {
			continue
		}
		for e, err := range m.Entries(files, true) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("read manifest %s: %w", m.FilePath(), err)
			}
			// Only locations with escapes were decoded differently.
			if file := e.DataFile().FilePath(); strings.Contains(file, "%") {
				made, err := location.Restore(files, file)
				if err != nil && !errors.Is(err, stdfs.ErrNotExist) { // readers report missing files
					return fmt.Errorf("restore file at its recorded location %s: %w", file, err)
				}
				if made {
					restored++
				}
			}
		}
	}
	if restored > 0 {
		r.Logger.Info("restored files at their recorded locations", "table", r.table, "files", restored)
	}
	return nil
}
