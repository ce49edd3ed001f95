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

// A reference is a file that a table's metadata names, directly or through its manifests.
type reference struct {
	what string // "data file", …
	file string
}

// references calls fn with every file that the snapshots for which of is true name, and with those
// that the metadata itself names. Manifests in known are passed over, and added to it. An error is
// fn's, or that of a file that cannot be read.
func references(ctx context.Context, fio io.IO, m table.Metadata, of func(table.Snapshot) bool, known map[string]bool, fn func(reference) error) (err error) {
	defer guard(&err) // a manifest is what a client has written
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

func all(table.Snapshot) bool { return true }

// covers reports whether a file is below a location, both in the warehouse.
func (w warehouse) covers(base, name string) bool {
	return w.has(name) && location.Inside(base, name)
}

// overlap reports whether one of two locations is below the other, or is it.
func (w warehouse) overlap(a, b string) bool {
	a, b = strings.TrimRight(location.Canonical(a), "/")+"/", strings.TrimRight(location.Canonical(b), "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// ownFiles fails if metadata brings a file that does not lie below the table's location: it is
// another table's, or may become one's. Who reads this table would read it, and who cleans up after
// this table would remove it. What before names already is not looked at again; before is nil for a
// new table.
func (s *Server) ownFiles(ctx context.Context, before, after table.Metadata) error {
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
	fresh := func(snapshot table.Snapshot) bool { // an id alone does not say that it names the same files
		was, ok := had[snapshot.SnapshotID]
		return !ok || was.ManifestList != snapshot.ManifestList || !slices.Equal(was.ManifestLocations, snapshot.ManifestLocations)
	}
	fio, err := s.files(ctx, after.Location())
	if err != nil {
		return notNow(err)
	}
	// The manifests of the state before stay, as a rule, and were looked at when they came.
	if before != nil && before.CurrentSnapshot() != nil {
		manifests, err := before.CurrentSnapshot().Manifests(fio)
		if err != nil {
			return notNow(err)
		}
		for _, m := range manifests {
			known[m.FilePath()] = s.warehouse.covers(after.Location(), m.FilePath()) // another's is refused whenever it is seen
		}
	}
	err = references(ctx, fio, after, fresh, known, func(r reference) error {
		if named[r.file] || s.warehouse.covers(after.Location(), r.file) {
			return nil
		}
		return forbidden("%s: %s is not below the table's location, %s: a table names files of its own only", r.what, r.file, after.Location())
	})
	if err == nil {
		return nil
	}
	if f, ok := asFailure(err); ok {
		return f
	}
	return badRequest("updates: what the table's new snapshots name cannot be read: %v", err)
}
