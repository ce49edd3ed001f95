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

// purge removes the files of a table that is dropped: those that it names, that lie below its own location, and that no
// other table of the catalog names. Where another table that may name them cannot be read, nothing is removed. A
// process that dies on the way leaves files that nothing names, and no harm.
func (s *Server) purge(ctx context.Context, t *table.Table) error {
	fio, err := s.files(ctx, t.MetadataLocation())
	if err != nil {
		return err
	}
	m := t.Metadata()
	own := map[string]string{} // canonical name: as it is written
	left := 0
	add := func(file string) {
		if s.warehouse.covers(m.Location(), file) {
			own[location.Canonical(file)] = file
		} else {
			left++
		}
	}
	for _, snapshot := range m.Snapshots() { // one by one: a snapshot that cannot be read does not keep the others' files
		only := func(x table.Snapshot) bool { return x.SnapshotID == snapshot.SnapshotID }
		if err := references(ctx, fio, m, only, map[string]bool{}, each(add)); err != nil {
			s.config.Logger.Warn("purge: a snapshot cannot be read; files that it alone names are left", "location", m.Location(), "snapshot", snapshot.SnapshotID, "error", err)
		}
	}
	for entry := range m.PreviousFiles() {
		add(entry.MetadataFile)
	}
	add(t.MetadataLocation())
	if left > 0 {
		s.config.Logger.Warn("purge: files that are not below the table's location are left", "location", m.Location(), "files", left)
	}
	if err := s.spareOthers(ctx, m.Location(), own); err != nil {
		return fmt.Errorf("no file is removed: %w", err)
	}
	var errs []error
	removed := 0
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
	s.config.Logger.Info("purged", "location", m.Location(), "files", removed)
	return errors.Join(errs...)
}

// mostReadings is how often purge reads the catalog's tables while they change.
const mostReadings = 5

// spareOthers removes from files what any table of the catalog names. A table whose snapshots expire while it is read
// is read again, as it is then.
func (s *Server) spareOthers(ctx context.Context, at string, files map[string]string) error {
	tables, err := s.config.Swapper.Tables(ctx)
	for reading := 1; err == nil; reading++ {
		failed, why := s.spareAll(ctx, tables, at, files)
		if why == nil {
			return nil
		}
		tables, err = s.config.Swapper.Tables(ctx)
		if err == nil && (failed.in(tables) || reading == mostReadings) {
			return fmt.Errorf("table %s, which may name the same files, cannot be read: %w", strings.Join(failed.Table, "."), why)
		}
	}
	return fmt.Errorf("list the catalog's tables: %w", err)
}

// spareAll removes from files what tables name. It stops at a table that cannot be read.
func (s *Server) spareAll(
	ctx context.Context, tables []Placed, at string, files map[string]string,
) (failed Placed, err error) {
	var lost []Placed
	for _, t := range tables {
		fio, err := s.files(ctx, t.Metadata)
		if err != nil {
			return t, err
		}
		other, err := table.NewFromLocation(ctx, t.Table, t.Metadata, func(context.Context) (io.IO, error) { return fio, nil }, nil)
		if err != nil {
			if missing(err) && !s.warehouse.overlap(at, parent(parent(t.Metadata))) {
				lost = append(lost, t) // it names nothing, unless it has moved on
				continue
			}
			return t, err
		}
		spare := func(file string) { delete(files, location.Canonical(file)) }
		spare(t.Metadata)
		for entry := range other.Metadata().PreviousFiles() {
			spare(entry.MetadataFile)
		}
		if err := references(ctx, fio, other.Metadata(), all, map[string]bool{}, each(spare)); err != nil {
			return t, err
		}
	}
	if len(lost) == 0 {
		return Placed{}, nil
	}
	now, err := s.config.Swapper.Tables(ctx)
	if err != nil {
		return Placed{}, fmt.Errorf("list the catalog's tables: %w", err)
	}
	for _, t := range lost {
		if !t.in(now) {
			return t, errMoved
		}
	}
	return Placed{}, nil
}

var errMoved = errors.New("it changes too often")

// in reports whether a table with the same metadata file is among tables.
func (p Placed) in(tables []Placed) bool {
	return slices.ContainsFunc(tables, func(t Placed) bool { return t.Metadata == p.Metadata })
}

// each makes of fn what references wants.
func each(fn func(file string)) func(reference) error {
	return func(r reference) error {
		fn(r.file)
		return nil
	}
}

// missing reports whether an error says that a file is not there, in whichever file system's words.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "NoSuchKey") || strings.Contains(err.Error(), "code=NotFound")
}
