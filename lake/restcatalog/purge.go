package restcatalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/lake/location"
)

// purge deletes the files of a dropped table: files that it refers to, that are below its own
// location, and that no other table refers to. If a table that may refer to them cannot be read,
// nothing is deleted. If the process dies, unreferenced files remain, which is harmless.
func (s *Server) purge(ctx context.Context, t *table.Table) error {
	fio, err := s.files(ctx, t.MetadataLocation())
	if err != nil {
		return err
	}
	// The metadata was loaded before the drop.
	m := t.Metadata()
	// Files to delete. Others are removed from it before anything is deleted.
	own := map[string]string{} // location as written, by canonical location
	// Number of files that are not the table's own.
	left := 0
	add := func(file string) {
		// A table may refer to files outside its location, which may belong to other tables.
		if s.warehouse.covers(m.Location(), file) {
			own[location.Canonical(file)] = file
		} else {
			left++
		}
	}
	// One by one, so that an unreadable snapshot does not affect the others.
	for _, snapshot := range m.Snapshots() {
		only := func(x table.Snapshot) bool { return x.SnapshotID == snapshot.SnapshotID }
		if err := references(ctx, fio, m, only, map[string]bool{}, each(add)); err != nil {
			s.config.Logger.Warn("purge: cannot read a snapshot; files that only it refers to remain",
				"location", m.Location(), "snapshot", snapshot.SnapshotID, "error", err)
		}
	}
	for entry := range m.PreviousFiles() {
		add(entry.MetadataFile)
	}
	add(t.MetadataLocation())
	if left > 0 {
		s.config.Logger.Warn("purge: files outside of the table's location remain",
			"location", m.Location(), "files", left)
	}
	// Delete nothing that another table of the catalog refers to.
	if err := s.keepReferenced(ctx, m.Location(), own); err != nil {
		return fmt.Errorf("no files were removed: %w", err)
	}
	var errs []error
	removed := 0
	// Files that are already missing are not an error, as maintenance may run concurrently.
	for _, file := range own {
		if err := failpoint.Hit("restcatalog.purge.file"); err != nil {
			return err
		}
		if err := fio.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	s.config.Logger.Info("purged table", "location", m.Location(), "files", removed)
	return errors.Join(errs...)
}

// maxReads is the maximum number of attempts to read a table that keeps changing.
const maxReads = 20

// keepReferenced removes from files those that any table of the catalog refers to. Concurrent
// commits and expiries can delete what it is about to read. Then it reads the current state of that
// table again.
func (s *Server) keepReferenced(ctx context.Context, at string, files map[string]string) error {
	read := map[string]bool{} // tables, by name
	var last string
	// Each pass skips the tables that have already been read. Reading an earlier state is fine,
	// since new snapshots of other tables cannot refer to this table's files (see checkOwnFiles).
	for failures := 1; ; failures++ {
		tables, err := s.config.Swapper.Tables(ctx)
		if err != nil {
			return fmt.Errorf("list the catalog's tables: %w", err)
		}
		t, why := s.keepReferencedBy(ctx, tables, read, files)
		if why == nil {
			return nil
		}
		// Count the attempts per table.
		if t.name() != last {
			last, failures = t.name(), 1
		}
		now, err := s.config.Swapper.Tables(ctx)
		if err != nil {
			return fmt.Errorf("list the catalog's tables: %w", err)
		}
		// If the table has changed meanwhile, its old files may be gone. Read its new state then.
		still := slices.ContainsFunc(now, func(p TableEntry) bool { return p.Metadata == t.Metadata })
		lost := missing(why) && errors.Is(why, errMetadata)
		if still && lost && !s.warehouse.overlap(at, parent(parent(t.Metadata))) {
			// Its metadata file is missing and was outside of the purged location.
			read[t.name()] = true
			continue
		}
		// The table has not changed, so reading it again would not help.
		if still || failures == maxReads {
			return fmt.Errorf("cannot read table %s, which may refer to the same files: %w", t.name(), why)
		}
	}
}

// name returns the dotted name of the table.
func (p TableEntry) name() string { return strings.Join(p.Table, ".") }

// errMetadata distinguishes a missing metadata file from a missing manifest.
var errMetadata = errors.New("read its metadata")

// keepReferencedBy removes from files those of the tables that have not been read yet. It stops at
// the first table that cannot be read.
func (s *Server) keepReferencedBy(
	ctx context.Context, tables []TableEntry, read map[string]bool, files map[string]string,
) (failed TableEntry, err error) {
	// read also counts tables that cannot refer to the files. See keepReferenced.
	for _, t := range tables {
		if read[t.name()] {
			continue
		}
		fio, err := s.files(ctx, t.Metadata)
		if err != nil {
			return t, err
		}
		fixed := func(context.Context) (io.IO, error) { return fio, nil }
		other, err := table.NewFromLocation(ctx, t.Table, t.Metadata, fixed, nil)
		if err != nil {
			return t, fmt.Errorf("%w: %w", errMetadata, err)
		}
		keep := func(file string) { delete(files, location.Canonical(file)) }
		keep(t.Metadata)
		for entry := range other.Metadata().PreviousFiles() {
			keep(entry.MetadataFile)
		}
		if err := references(ctx, fio, other.Metadata(), all, map[string]bool{}, each(keep)); err != nil {
			return t, err
		}
		read[t.name()] = true
	}
	return TableEntry{}, nil
}

// each adapts fn to references.
func each(fn func(file string)) func(reference) error {
	return func(r reference) error {
		fn(r.file)
		return nil
	}
}

// missing reports whether an error means that a file does not exist, in any file system.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) ||
		strings.Contains(err.Error(), "NoSuchKey") || strings.Contains(err.Error(), "code=NotFound")
}
