package lake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdio "io"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"

	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
	"github.com/twmb/avro/ocf"

	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/location"
	"github.com/millrace/millrace/lake/restcatalog"
)

// Relocated describes a relocated table.
type Relocated struct {
	Table     string
	From, To  string // folder of the table
	Manifests int    // number of manifests rewritten
}

// Relocate repairs tables whose files were moved together with their warehouse. from is the folder
// or s3:// location that the warehouse had before.
//
// Iceberg metadata contains absolute locations in three layers: table metadata, manifest lists, and
// manifests. Relocate writes new copies of all three beside the old ones and leaves data files
// unchanged. Then it switches the catalog to the new metadata, for all tables in one transaction.
// Until then nothing has changed, so an interrupted run can be repeated. Nothing may land
// meanwhile.
func (l *Lake) Relocate(ctx context.Context, from string) ([]Relocated, error) {
	from, err := warehouseURL(from)
	if err != nil {
		return nil, err
	}
	// If one folder contained the other, rewritten locations could not be told from old ones.
	if location.Inside(from, l.warehouse.url) || location.Inside(l.warehouse.url, from) || from == l.warehouse.url {
		return nil, fmt.Errorf("cannot relocate from %s to the warehouse %s: pass the location that the tables "+
			"had before; neither may contain the other", from, l.warehouse.url)
	}
	if err := location.Plain(strings.TrimPrefix(strings.TrimPrefix(l.warehouse.url, "file://"), s3Scheme)); err != nil {
		return nil, fmt.Errorf("warehouse %s: %w", l.warehouse.url, err)
	}
	swapper, err := restcatalog.NewSQL(ctx, l.db, l.dialect, CatalogName)
	if err != nil {
		return nil, err
	}
	tables, err := swapper.Tables(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the lake's tables: %w", err)
	}
	files, err := l.warehouse.files(ctx)
	if err != nil {
		return nil, err
	}
	var all []Relocated
	var moves []restcatalog.Move
	// Tables that are elsewhere, or were relocated before, are skipped.
	for _, t := range tables {
		if !location.Inside(from, t.Metadata) {
			continue
		}
		r := &relocation{files: files, from: from, to: l.warehouse.url, manifests: map[string]rewritten{}}
		did, file, err := r.table(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("relocate table %s: %w", strings.Join(t.Table, "."), err)
		}
		all, moves = append(all, did), append(moves, restcatalog.Move{Table: t.Table, From: t.Metadata, To: file})
	}
	if len(moves) == 0 {
		return nil, fmt.Errorf("no table of the catalog is at %s: pass the warehouse's previous location", from)
	}
	// One transaction: all tables move, or none does.
	if err := swapper.Swap(ctx, moves, nil); err != nil {
		return nil, fmt.Errorf("switch the catalog to the new locations (stop the landers and run this again): %w", err)
	}
	return all, nil
}

// warehouseURL returns the prefix of all locations in a warehouse.
func warehouseURL(at string) (string, error) {
	if strings.Contains(at, "://") {
		return strings.TrimRight(at, "/"), nil
	}
	dir, err := filepath.Abs(at)
	return "file://" + filepath.ToSlash(dir), err
}

// files returns the warehouse's file system.
func (w *warehouse) files(ctx context.Context) (io.WriteFileIO, error) {
	files, err := io.LoadFS(fencedCatalog{aws: w.aws}.storageContext(ctx), w.props, w.url+"/")
	if err != nil {
		return nil, fmt.Errorf("open the file system of %s: %w", w.url, err)
	}
	writable, ok := location.Fence(files, w.url).(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("%s is not writable", w.url)
	}
	return writable, nil
}

// relocation rewrites the metadata of one table.
type relocation struct {
	files    io.WriteFileIO
	from, to string
	folder   string // current metadata folder
	// manifests are those already rewritten: several snapshots share a manifest.
	manifests map[string]rewritten
}

// rewritten is a rewritten metadata file: its location and its size in bytes.
type rewritten struct {
	location string
	bytes    int64
}

// moved returns the new location of a file. Locations outside of the old warehouse are returned
// unchanged.
func (r *relocation) moved(at string) string {
	// Writers spell local locations in three ways.
	for _, spelling := range []string{
		r.from, strings.Replace(r.from, "file://", "file:", 1), strings.TrimPrefix(r.from, "file://"),
	} {
		if rest, ok := strings.CutPrefix(at, spelling+"/"); ok {
			return r.to + "/" + rest
		}
	}
	return at
}

// table rewrites the metadata of a table and returns the new metadata file.
func (r *relocation) table(ctx context.Context, t restcatalog.TableEntry) (did Relocated, file string, err error) {
	now := r.moved(t.Metadata)
	old, err := table.NewFromLocation(ctx, t.Table, now, func(context.Context) (io.IO, error) { return r.files, nil },
		nil)
	if errors.Is(err, fs.ErrNotExist) {
		return did, "", fmt.Errorf("%s does not exist: move the whole warehouse to %s first: %w", now, r.to, err)
	}
	if err != nil {
		return did, "", err
	}
	r.folder = now[:strings.LastIndex(now, "/")]
	// The metadata is edited as generic JSON, because iceberg-go's own type is immutable.
	b, err := json.Marshal(old.Metadata())
	if err != nil {
		return did, "", fmt.Errorf("encode metadata: %w", err)
	}
	var meta map[string]any
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber() // float64 would lose digits of 64-bit ids
	if err := decoder.Decode(&meta); err != nil {
		return did, "", fmt.Errorf("decode metadata: %w", err)
	}
	// Layer one: locations in the table metadata itself.
	r.field(meta, "location")
	properties, _ := meta["properties"].(map[string]any)
	for _, key := range datafile.LocationProperties {
		r.field(properties, key)
	}
	for list, key := range map[string]string{
		"metadata-log": "metadata-file", "statistics": "statistics-path", "partition-statistics": "statistics-path",
	} {
		for _, entry := range entriesIn(meta[list]) {
			r.field(entry, key)
		}
	}
	// Layers two and three: the manifest list of each snapshot, and its manifests.
	for _, snapshot := range entriesIn(meta["snapshots"]) {
		if err := ctx.Err(); err != nil {
			return did, "", err
		}
		if at, ok := snapshot["manifest-list"].(string); ok {
			if snapshot["manifest-list"], err = r.list(r.moved(at)); err != nil {
				return did, "", fmt.Errorf("manifest list %s: %w", at, err)
			}
		}
	}
	if b, err = json.Marshal(meta); err != nil {
		return did, "", fmt.Errorf("encode metadata: %w", err)
	}
	// Keep the version number, from which the next commit continues.
	version, _, _ := strings.Cut(strings.TrimPrefix(now[strings.LastIndex(now, "/")+1:], "v"), "-")
	file = fmt.Sprintf("%s/%s-%s.metadata.json", r.folder, version, uuid.New())
	if !isNumber(version) {
		file = fmt.Sprintf("%s/00000-%s.metadata.json", r.folder, uuid.New())
	}
	if err := r.files.WriteFile(file, b); err != nil {
		return did, "", fmt.Errorf("write metadata: %w", err)
	}
	did = Relocated{
		Table: strings.Join(t.Table, "."), From: old.Location(), To: r.moved(old.Location()),
		Manifests: len(r.manifests),
	}
	return did, file, nil
}

func isNumber(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c < '0' || c > '9' })
}

// field updates a location in a JSON or Avro object.
func (r *relocation) field(of map[string]any, key string) {
	if at, ok := of[key].(string); ok {
		if at == r.from {
			of[key] = r.to
			return
		}
		of[key] = r.moved(at)
	}
}

// entriesIn returns the objects in a JSON list.
func entriesIn(list any) (all []map[string]any) {
	entries, _ := list.([]any)
	for _, entry := range entries {
		if object, ok := entry.(map[string]any); ok {
			all = append(all, object)
		}
	}
	return all
}

// list rewrites a manifest list and the manifests that it refers to, and returns its new location.
func (r *relocation) list(at string) (string, error) {
	out, err := r.rewrite(at, "snap", func(entry map[string]any) error {
		path, ok := entry["manifest_path"].(string)
		if !ok {
			return errors.New("an entry has no manifest_path")
		}
		m, err := r.manifest(r.moved(path))
		if err != nil {
			return fmt.Errorf("manifest %s: %w", path, err)
		}
		entry["manifest_path"], entry["manifest_length"] = m.location, m.bytes
		return nil
	})
	return out.location, err
}

// errPositions reports position deletes. Their files contain the paths of data files, and Relocate
// does not rewrite those.
var errPositions = errors.New("it has position deletes, whose files contain the paths of data files: " +
	"move the warehouse back, run `millrace lake maintain --delete-share 0`, and move it again")

// manifest rewrites one manifest, unless another manifest list has already caused it.
func (r *relocation) manifest(at string) (rewritten, error) {
	if m, ok := r.manifests[at]; ok {
		return m, nil
	}
	m, err := r.rewrite(at, "m", func(entry map[string]any) error {
		file, ok := entry["data_file"].(map[string]any)
		if !ok {
			return errors.New("an entry has no data_file")
		}
		// Numeric codes of the manifest format: status 2 is a deleted entry, content 1 is a
		// position delete file. Deleted entries are harmless.
		const gone, byPosition = 2, 1
		if fmt.Sprint(file["content"]) == fmt.Sprint(byPosition) && fmt.Sprint(entry["status"]) != fmt.Sprint(gone) {
			return errPositions
		}
		r.field(file, "file_path")
		r.field(file, "referenced_data_file")
		return nil
	})
	if err == nil {
		r.manifests[at] = m
	}
	return m, err
}

// rewrite copies an Avro file with the same schema and header, after change has modified each
// entry.
func (r *relocation) rewrite(at, kind string, change func(entry map[string]any) error) (out rewritten, err error) {
	f, err := r.files.Open(at)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	in, err := ocf.NewReader(f)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	// Keep Iceberg's entries of the header. The writer sets those of Avro.
	header := maps.Clone(in.Metadata())
	maps.DeleteFunc(header, func(key string, _ []byte) bool { return strings.HasPrefix(key, "avro.") })
	var b bytes.Buffer
	w, err := ocf.NewWriter(&b, in.Schema(), ocf.WithMetadata(header), ocf.WithCodec(ocf.DeflateCodec(-1)))
	if err != nil {
		return out, err
	}
	for {
		var entry map[string]any
		if err := in.Decode(&entry); errors.Is(err, stdio.EOF) {
			break
		} else if err != nil {
			return out, err
		}
		if err := change(entry); err != nil {
			return out, err
		}
		if err := w.Encode(entry); err != nil {
			return out, err
		}
	}
	if err := w.Close(); err != nil {
		return out, err
	}
	out = rewritten{fmt.Sprintf("%s/%s-%s.avro", r.folder, kind, uuid.New()), int64(b.Len())}
	return out, r.files.WriteFile(out.location, b.Bytes())
}
