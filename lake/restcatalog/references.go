package restcatalog

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/location"
)

// reference is a file that a table's metadata refers to, directly or through manifests.
type reference struct {
	what string // such as "data file"
	file string
}

// references calls fn for every file that the selected snapshots refer to, and for those that the
// metadata itself refers to. Manifests in known are skipped, and new ones are added to it. It stops
// at an error of fn or an unreadable file.
func references(
	ctx context.Context, fio io.IO, m table.Metadata, of func(table.Snapshot) bool,
	known map[string]bool, fn func(reference) error,
) (err error) {
	defer guard(&err) // manifests are written by clients
	// Statistics are referred to by the metadata, not by manifests.
	for s := range m.Statistics() {
		if err := fn(reference{"statistics", s.StatisticsPath}); err != nil {
			return err
		}
	}
	for s := range m.PartitionStatistics() {
		if err := fn(reference{"partition statistics", s.StatisticsPath}); err != nil {
			return err
		}
	}
	for _, snapshot := range m.Snapshots() {
		if !of(snapshot) {
			continue
		}
		if snapshot.ManifestList != "" {
			if err := fn(reference{"manifest list", snapshot.ManifestList}); err != nil {
				return err
			}
		}
		// Snapshots of format 1 may list their manifests without a manifest list.
		manifests, err := snapshot.Manifests(fio)
		if err != nil {
			return fmt.Errorf("manifest list %s: %w", snapshot.ManifestList, err)
		}
		for _, manifest := range manifests {
			if known[manifest.FilePath()] {
				continue
			}
			known[manifest.FilePath()] = true
			if err := fn(reference{"manifest", manifest.FilePath()}); err != nil {
				return err
			}
			// Deleted entries count as well: purge deletes their files, too.
			for entry, err := range manifest.Entries(fio, false) {
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					return fmt.Errorf("manifest %s: %w", manifest.FilePath(), err)
				}
				if err := fn(reference{"data file", entry.DataFile().FilePath()}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// all selects every snapshot.
func all(table.Snapshot) bool { return true }

// covers reports whether a file is below base and in the warehouse.
func (w warehouse) covers(base, name string) bool {
	return w.has(name) && location.Inside(base, name)
}

// overlap reports whether two locations are equal or one is below the other.
func (w warehouse) overlap(a, b string) bool {
	a, b = strings.TrimRight(location.Canonical(a), "/")+"/", strings.TrimRight(location.Canonical(b), "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// checkOwnFiles returns an error if new metadata refers to a file that is not below the table's
// location. Such a file belongs to another table, or may later: readers of this table would see it,
// and cleaning up this table would delete it. Files that before already refers to are not checked
// again. before is nil for a new table.
func (s *Server) checkOwnFiles(ctx context.Context, before, after table.Metadata) error {
	// had has the snapshots that were checked before, known the manifests, and named the
	// statistics.
	had, known := map[int64]table.Snapshot{}, map[string]bool{}
	named := map[string]bool{}
	if before != nil {
		for _, snapshot := range before.Snapshots() {
			had[snapshot.SnapshotID] = snapshot
		}
		for st := range before.Statistics() {
			named[st.StatisticsPath] = true
		}
		for st := range before.PartitionStatistics() {
			named[st.StatisticsPath] = true
		}
	}
	// The id alone does not identify a snapshot's files.
	isNew := func(snapshot table.Snapshot) bool {
		was, ok := had[snapshot.SnapshotID]
		return !ok || was.ManifestList != snapshot.ManifestList ||
			!slices.Equal(was.ManifestLocations, snapshot.ManifestLocations)
	}
	fio, err := s.files(ctx, after.Location())
	if err != nil {
		return unavailable(err)
	}
	// Most manifests are unchanged, and were checked when they were added.
	if before != nil && before.CurrentSnapshot() != nil {
		manifests, err := before.CurrentSnapshot().Manifests(fio)
		if err != nil {
			return unavailable(err)
		}
		for _, m := range manifests {
			// Manifests of other tables are not known, so that they are refused.
			known[m.FilePath()] = s.warehouse.covers(after.Location(), m.FilePath())
		}
	}
	// Files that the table had before stay allowed, wherever they are.
	err = references(ctx, fio, after, isNew, known, func(r reference) error {
		if named[r.file] || s.warehouse.covers(after.Location(), r.file) {
			return nil
		}
		return forbidden("%s: %s is not below the table's location, %s; a table may only refer to its own files",
			r.what, r.file, after.Location())
	})
	if err == nil {
		return nil
	}
	if f, ok := asAPIError(err); ok {
		return f
	}
	return badRequest("updates: cannot read the files of the new snapshots: %v", err)
}
