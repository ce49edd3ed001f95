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

// Orphans is what a removal of orphans did.
type Orphans struct {
	Files int
	Bytes int64
}

// RemoveOrphans deletes files below the table's folder that nothing refers to and that are older
// than OrphanAge: what killed writers and failed commits left. It deletes only what looks like a
// file of an Iceberg table, and nothing in the folder of another table within.
//
// iceberg-go's DeleteOrphanFiles is not used. It lists the folder beside metadata that it read
// before, so it deletes a file that is committed meanwhile. It also deletes files of tables within
// the folder, and files that are not Iceberg's. TestOrphanCommittedMeanwhile and TestRemoveOrphans
// find both.
func RemoveOrphans(ctx context.Context, load Load, c Config, progress func(Progress)) (Orphans, error) {
	r, err := newRun(c, load, progress)
	if err != nil {
		return Orphans{}, err
	}
	return r.removeOrphans(ctx)
}

func (r *run) removeOrphans(ctx context.Context) (did Orphans, err error) {
	t, err := r.look(ctx)
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
	// A commit that waited for long may have brought in an old file meanwhile.
	if t, err = r.look(ctx); err != nil {
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

// removeAll removes files; those that are gone already are not error.
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

// file is a file below the table's folder.
type file struct {
	location string
	bytes    int64
	changed  time.Time
}

func (r *run) findOrphans(ctx context.Context, t *table.Table) ([]file, error) {
	// The folder is listed first: a file that is listed and committed meanwhile is then among those
	// referred to, or young.
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	listed, err := list(ctx, files, t.Location())
	if err != nil {
		return nil, err
	}
	if t, err = r.look(ctx); err != nil {
		return nil, err
	}
	referred, err := referredFiles(ctx, t, files)
	if err != nil {
		return nil, err
	}
	return orphansAmong(listed, t.Location(), referred, r.now().Add(-r.OrphanAge)), nil
}

// orphansAmong picks the files that may go.
func orphansAmong(listed []file, location string, referred map[string]bool, before time.Time) []file {
	root := plain(location)
	var others []string // roots of tables within the folder
	for _, f := range listed {
		p := plain(f.location)
		if at := strings.LastIndex(p, "/metadata/"); at >= 0 && strings.HasSuffix(p, ".metadata.json") && p[:at] != root {
			others = append(others, p[:at]+"/")
		}
	}
	slices.Sort(others)
	others = slices.Compact(others)
	var found []file
	for _, f := range listed {
		p := plain(f.location)
		foreign := slices.ContainsFunc(others, func(other string) bool { return strings.HasPrefix(p, other) })
		if !foreign && strings.HasPrefix(p, root+"/") && ofTable(p[len(root):]) && f.changed.Before(before) && !referred[path.Base(p)] {
			found = append(found, f)
		}
	}
	return found
}

// ofTable reports whether a file, by its place in the table's folder and its name, is of the kinds
// that a table has.
func ofTable(place string) bool {
	switch {
	case strings.HasPrefix(place, "/data/"):
		return hasSuffix(place, ".parquet", ".orc", ".avro", ".puffin")
	case strings.HasPrefix(place, "/metadata/"):
		return hasSuffix(place, ".avro", ".metadata.json", ".stats", ".puffin", ".parquet")
	}
	return false
}

func hasSuffix(s string, suffixes ...string) bool {
	return slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(s, suffix) })
}

// plain returns the ways in which writers spell the same place alike.
func plain(location string) string {
	scheme, rest, ok := strings.Cut(location, ":/")
	if !ok {
		return path.Clean(location)
	}
	switch scheme {
	case "file":
		return path.Clean("/" + strings.TrimLeft(rest, "/"))
	case "s3a", "s3n":
		scheme = "s3"
	}
	return strings.TrimSuffix(scheme+":/"+rest, "/")
}

// list lists all files of a folder. Files may come and go meanwhile.
func list(ctx context.Context, files io.IO, location string) ([]file, error) {
	listable, ok := files.(io.ListableIO)
	if !ok {
		return nil, fmt.Errorf("%s cannot be listed", location)
	}
	var listed []file
	err := listable.WalkDir(location, func(name string, d stdfs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
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

// referredFiles returns the names of all files that the table's metadata refers to: names without
// folders, as those are spelt in several ways and names are not given twice. A name that is in use
// keeps its namesakes.
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
			if data := e.DataFile().ReferencedDataFile(); data != nil {
				refer(*data)
			}
		}
	}
	return referred, nil
}
