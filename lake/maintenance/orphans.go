package maintenance

import (
	"context"
	"errors"
	"fmt"
	stdfs "io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// Orphans is the result of removing orphans.
type Orphans struct {
	Files int
	Bytes int64
}

// RemoveOrphans deletes unreferenced files in the table's folder that are older than OrphanAge.
// Killed writers and failed commits leave such files. Only files that look like those of an Iceberg
// table are deleted, and none in the folder of a nested table.
//
// iceberg-go's DeleteOrphanFiles is not used. It lists the folder after reading the metadata, so it
// deletes files that are committed in between. It also deletes files of nested tables and unrelated
// files. TestOrphanCommittedMeanwhile and TestRemoveOrphans demonstrate both.
func RemoveOrphans(ctx context.Context, load Load, c Config, progress func(Progress)) (Orphans, error) {
	r, err := newRun(c, load, progress)
	if err != nil {
		return Orphans{}, err
	}
	return r.removeOrphans(ctx)
}

// removeOrphans finds orphans, then reads the table again, and deletes those that are still
// unreferenced.
func (r *run) removeOrphans(ctx context.Context) (did Orphans, err error) {
	t, err := r.loadTable(ctx)
	if err != nil {
		return did, err
	}
	if !collects(t) {
		r.skip("orphans", gcOff)
		return did, nil
	}
	found, err := r.findOrphans(ctx, t)
	if err != nil {
		return did, fmt.Errorf("find orphans: %w", err)
	}
	if len(found) == 0 {
		return did, nil
	}
	if err := r.at(ctx, stepOrphansFound); err != nil {
		return did, fmt.Errorf("remove orphans: %w", err)
	}
	// A commit that was delayed may have added an old file meanwhile.
	if t, err = r.loadTable(ctx); err != nil {
		return did, err
	}
	files, err := writable(ctx, t)
	if err != nil {
		return did, err
	}
	referred, err := referredFiles(ctx, t, files)
	if err != nil {
		return did, fmt.Errorf("find orphans: %w", err)
	}
	found = slices.DeleteFunc(found, func(f file) bool { return referred[path.Base(f.location)] })
	// In chunks, for progress and because object stores limit bulk deletes.
	for some := range slices.Chunk(found, 500) {
		if err := removeAll(ctx, files, some); err != nil {
			return did, fmt.Errorf("remove orphans: %w", err)
		}
		for _, f := range some {
			did.Files++
			did.Bytes += f.bytes
		}
		r.progress(Progress{Table: r.table, Step: "orphans", Done: int64(did.Files), Of: int64(len(found))})
	}
	return did, r.at(ctx, stepOrphansRemoved)
}

// removeAll removes files. Files that no longer exist are not an error.
func removeAll(ctx context.Context, files io.WriteFileIO, some []file) error {
	if bulk, ok := files.(io.BulkRemovableIO); ok {
		locations := make([]string, len(some))
		for i, f := range some {
			locations[i] = f.location
		}
		_, err := bulk.DeleteFiles(ctx, locations)
		return err
	}
	for _, f := range some {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := files.Remove(f.location); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// file is a file in the table's folder.
type file struct {
	location string
	bytes    int64
	changed  time.Time
}

// findOrphans returns the files that may be deleted.
func (r *run) findOrphans(ctx context.Context, t *table.Table) ([]file, error) {
	// List the folder before loading the table. A file that is listed and committed in between is
	// then either referenced or young.
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	listed, err := list(ctx, files, t.Location())
	if err != nil {
		return nil, err
	}
	if t, err = r.loadTable(ctx); err != nil {
		return nil, err
	}
	referred, err := referredFiles(ctx, t, files)
	if err != nil {
		return nil, err
	}
	return selectOrphans(listed, t.Location(), referred, r.now().Add(-r.OrphanAge)), nil
}

// selectOrphans selects the files that may be deleted.
func selectOrphans(listed []file, location string, referred map[string]bool, before time.Time) []file {
	root := plain(location)
	var others []string // folders of nested tables
	// A metadata file outside of this table's own metadata folder marks the folder of a nested
	// table.
	for _, f := range listed {
		p := plain(f.location)
		at := strings.LastIndex(p, "/metadata/")
		if at >= 0 && strings.HasSuffix(p, ".metadata.json") && p[:at] != root {
			others = append(others, p[:at]+"/")
		}
	}
	slices.Sort(others)
	others = slices.Compact(others)
	var found []file
	for _, f := range listed {
		p := plain(f.location)
		nested := slices.ContainsFunc(others, func(other string) bool { return strings.HasPrefix(p, other) })
		// All conditions are necessary: inside of this table, a known kind of file, old, and
		// unreferenced.
		if !nested && strings.HasPrefix(p, root+"/") && isTableFile(p[len(root):]) &&
			f.changed.Before(before) && !referred[path.Base(p)] {
			found = append(found, f)
		}
	}
	return found
}

// isTableFile reports whether a path in the table's folder looks like a file of an Iceberg table.
func isTableFile(name string) bool {
	switch {
	case strings.HasPrefix(name, "/data/"):
		return hasSuffix(name, ".parquet", ".orc", ".avro", ".puffin")
	case strings.HasPrefix(name, "/metadata/"):
		return hasSuffix(name, ".avro", ".metadata.json", ".stats", ".puffin", ".parquet")
	}
	return false
}

// hasSuffix reports whether s has one of the suffixes.
func hasSuffix(s string, suffixes ...string) bool {
	return slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(s, suffix) })
}

// plain normalises a location, since writers spell the same one differently.
func plain(location string) string {
	// A location without a scheme is a path.
	scheme, rest, ok := strings.Cut(location, ":/")
	if !ok {
		return path.Clean(location)
	}
	// Spark and Hadoop use other schemes and numbers of slashes for the same location.
	switch scheme {
	case "file":
		return path.Clean("/" + strings.TrimLeft(rest, "/"))
	case "s3a", "s3n":
		scheme = "s3"
	}
	return strings.TrimSuffix(scheme+":/"+rest, "/")
}

// list returns all files in a folder. Files may appear and disappear meanwhile.
func list(ctx context.Context, files io.IO, location string) ([]file, error) {
	listable, ok := files.(io.ListableIO)
	if !ok {
		return nil, fmt.Errorf("file system of %s does not support listing", location)
	}
	var listed []file
	err := listable.WalkDir(location, func(name string, d stdfs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A file or folder that disappears while it is listed is not an error.
		if errors.Is(err, stdfs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, stdfs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		listed = append(listed, file{location: name, bytes: info.Size(), changed: info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", location, err)
	}
	return listed, nil
}

// referredFiles returns the names of all files that the table's metadata refers to. Folders are
// omitted, because locations are spelled in several ways and file names are unique. A file with the
// same name as a referenced one is retained.
func referredFiles(ctx context.Context, t *table.Table, files io.IO) (map[string]bool, error) {
	referred := map[string]bool{}
	refer := func(location string) { referred[path.Base(location)] = true }
	meta := t.Metadata()
	refer(t.MetadataLocation())
	for f := range meta.PreviousFiles() {
		refer(f.MetadataFile)
	}
	for s := range meta.Statistics() {
		refer(s.StatisticsPath)
	}
	for s := range meta.PartitionStatistics() {
		refer(s.StatisticsPath)
	}
	manifests := map[string]iceberg.ManifestFile{}
	// Manifests of all retained snapshots count, not only of the current one.
	for _, s := range meta.Snapshots() {
		refer(s.ManifestList)
		all, err := s.Manifests(files)
		if err != nil {
			return nil, fmt.Errorf("read manifests of snapshot %d: %w", s.SnapshotID, err)
		}
		for _, m := range all {
			manifests[m.FilePath()] = m
		}
	}
	// Several snapshots share manifests, so read each once.
	for location, m := range manifests {
		refer(location)
		for e, err := range m.Entries(files, true) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, fmt.Errorf("read manifest %s: %w", location, err)
			}
			refer(e.DataFile().FilePath())
			// A delete file may refer to a data file that is not in the same manifest.
			if data := e.DataFile().ReferencedDataFile(); data != nil {
				refer(*data)
			}
		}
	}
	return referred, nil
}
