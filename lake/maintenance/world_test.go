package maintenance

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"
	"github.com/apache/iceberg-go/io"
	_ "github.com/apache/iceberg-go/io/gocloud/s3" // s3:// locations
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/sqlite"
	"github.com/millrace/millrace/test/servers/process"
	s3server "github.com/millrace/millrace/test/servers/s3"
)

var objects s3server.Server

func TestMain(m *testing.M) {
	if dir := os.Getenv(childFolder); dir != "" {
		if err := runChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	for name, value := range map[string]string{"rapid.checks": "5", "rapid.steps": "20"} { // a step takes tens of milliseconds
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(process.RunTests(m, objects.Stop))
}

// world is a catalog with one table in it.
type world struct {
	tb    testing.TB
	dir   string
	cat   catalog.Catalog
	ident table.Identifier

	mu     sync.Mutex
	fault  func() fault // of the next commit by maintenance; nil: works
	offset atomic.Int64 // of the next landing
}

// row is a row of the tests' tables: a key, a value, and a partition.
type row struct {
	key   int64
	value string
	part  int32
}

var testSchema = iceberg.NewSchema(0,
	iceberg.NestedField{ID: 1, Name: "key", Type: iceberg.PrimitiveTypes.Int64, Required: true},
	iceberg.NestedField{ID: 2, Name: "value", Type: iceberg.PrimitiveTypes.String},
	iceberg.NestedField{ID: 3, Name: "part", Type: iceberg.PrimitiveTypes.Int32, Required: true},
	iceberg.NestedField{ID: 4, Name: "at", Type: iceberg.PrimitiveTypes.TimestampTz},
)

var byKey = must(table.NewSortOrder(1, []table.SortField{
	{SourceIDs: []int{1}, Transform: iceberg.IdentityTransform{}, Direction: table.SortASC, NullOrder: table.NullsFirst},
	{SourceIDs: []int{2}, Transform: iceberg.IdentityTransform{}, Direction: table.SortDESC, NullOrder: table.NullsLast},
}))

var byPart = iceberg.NewPartitionSpec(iceberg.PartitionField{SourceIDs: []int{3}, FieldID: 1000, Name: "part", Transform: iceberg.IdentityTransform{}})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newWorld returns a table in a folder.
func newWorld(tb testing.TB, opts ...catalog.CreateTableOpt) *world {
	tb.Helper()
	dir := tb.TempDir()
	w := openWorld(tb, dir, iceberg.Properties{"warehouse": "file://" + filepath.Join(dir, "warehouse")})
	w.create(opts...)
	return w
}

// newBucket returns a table in a bucket.
func newBucket(tb testing.TB, opts ...catalog.CreateTableOpt) *world {
	tb.Helper()
	c := objects.Config(tb)
	w := openWorld(tb, tb.TempDir(), iceberg.Properties{
		"warehouse": fmt.Sprintf("s3://%s/%d", c.Bucket, time.Now().UnixNano()), io.S3EndpointURL: c.Endpoint, io.S3Region: c.Region,
		io.S3AccessKeyID: c.AccessKey, io.S3SecretAccessKey: c.SecretKey, io.S3ForceVirtualAddressing: "false",
	})
	w.create(opts...)
	return w
}

func openWorld(tb testing.TB, dir string, props iceberg.Properties) *world {
	tb.Helper()
	db, err := sqlite.Open(filepath.Join(dir, "catalog.db"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	cat, err := openCatalog(db, props)
	if err != nil {
		tb.Fatal(err)
	}
	return &world{tb: tb, dir: dir, cat: cat, ident: table.Identifier{"db", "t"}}
}

func openCatalog(db *sql.DB, props iceberg.Properties) (catalog.Catalog, error) {
	props["init_catalog_tables"] = "true"
	return sqlcatalog.NewCatalog("test", db, sqlcatalog.SQLite, props)
}

func (w *world) create(opts ...catalog.CreateTableOpt) {
	w.tb.Helper()
	ctx := context.Background()
	if err := w.cat.CreateNamespace(ctx, table.Identifier{"db"}, nil); err != nil && !errors.Is(err, catalog.ErrNamespaceAlreadyExists) {
		w.tb.Fatal(err)
	}
	opts = append([]catalog.CreateTableOpt{catalog.WithProperties(iceberg.Properties{
		table.CommitNumRetriesKey: "0", table.MetadataDeleteAfterCommitEnabledKey: "true", table.MetadataPreviousVersionsMaxKey: "20",
		"format-version": "2", offsetProperty: "0",
	})}, opts...)
	if _, err := w.cat.CreateTable(ctx, w.ident, testSchema, opts...); err != nil {
		w.tb.Fatal(err)
	}
}

const offsetProperty = "millrace.next-offset.topic.0"

// table returns the current table, as writers see it.
func (w *world) table() *table.Table {
	w.tb.Helper()
	t, err := w.cat.LoadTable(context.Background(), w.ident)
	if err != nil {
		w.tb.Fatal(err)
	}
	return t
}

// load returns the table as maintenance sees it, with commits that may be broken.
func (w *world) load(ctx context.Context) (*table.Table, error) {
	t, err := w.cat.LoadTable(ctx, w.ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, &faulty{Catalog: w.cat, w: w}), nil
}

type fault int

const (
	works   fault = iota
	refused       // not committed, with an error that says so
	fails         // not committed, with an error that does not say so
	lost          // committed, and answers with an error
)

var errFault = errors.New("broken on purpose")

// faulty is a catalog whose commits fail as the test demands.
type faulty struct {
	catalog.Catalog
	w *world
}

func (f *faulty) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	f.w.mu.Lock()
	kind := works
	if f.w.fault != nil {
		kind = f.w.fault()
	}
	f.w.mu.Unlock()
	switch kind {
	case refused:
		return nil, "", fmt.Errorf("%w: %w", table.ErrCommitFailed, errFault)
	case fails:
		return nil, "", errFault
	case lost:
		if _, _, err := f.Catalog.CommitTable(ctx, ident, reqs, updates); err != nil {
			return nil, "", err
		}
		return nil, "", errFault
	}
	return f.Catalog.CommitTable(ctx, ident, reqs, updates)
}

// injectFaults sets the fault of each later commit by maintenance.
func (w *world) injectFaults(f func() fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

// batches returns rows as batches.
func batches(t *table.Table, rows []row) (*arrow.Schema, []arrow.RecordBatch) {
	schema := must(table.SchemaToArrowSchema(t.Schema(), nil, true, false))
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, r := range rows {
		b.Field(0).(*array.Int64Builder).Append(r.key)
		if r.value == "" {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.StringBuilder).Append(r.value)
		}
		b.Field(2).(*array.Int32Builder).Append(r.part)
		b.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(r.key * 1000))
	}
	return schema, []arrow.RecordBatch{b.NewRecordBatch()}
}

// write writes a data file for each chunk of rows.
func (w *world) write(t *table.Table, chunks ...[]row) []iceberg.DataFile {
	w.tb.Helper()
	var files []iceberg.DataFile
	for _, rows := range chunks {
		schema, recs := batches(t, rows)
		for f, err := range table.WriteRecords(context.Background(), t, schema, func(yield func(arrow.RecordBatch, error) bool) {
			for _, rec := range recs {
				if !yield(rec, nil) {
					return
				}
			}
		}) {
			if err != nil {
				w.tb.Fatal(err)
			}
			files = append(files, f)
		}
	}
	return files
}

// land commits like a lander: on the head, with the next offset, and again if another commit came
// first.
func (w *world) land(stage func(t *table.Table, tx *table.Transaction) error) {
	w.tb.Helper()
	ctx := context.Background()
	for try := 0; ; try++ {
		t := w.table()
		tx := t.NewTransaction()
		if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
			w.tb.Fatal(err)
		}
		if err := stage(t, tx); err != nil {
			w.tb.Fatal(err)
		}
		if err := tx.SetProperties(iceberg.Properties{offsetProperty: fmt.Sprint(w.offset.Load() + 1)}); err != nil {
			w.tb.Fatal(err)
		}
		_, err := tx.Commit(ctx)
		if err == nil {
			w.offset.Add(1)
			return
		}
		if try > 200 {
			w.tb.Fatal(err)
		}
	}
}

// append lands rows, one file per chunk.
func (w *world) append(chunks ...[]row) {
	w.tb.Helper()
	files := w.write(w.table(), chunks...)
	w.land(func(_ *table.Table, tx *table.Transaction) error {
		return tx.AddDataFiles(context.Background(), files, iceberg.Properties{"millrace.commit-id": "x"}, table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
	})
}

// upsert lands rows that replace those with the same keys.
func (w *world) upsert(rows ...row) {
	w.tb.Helper()
	w.change(rows, rows)
}

// deleteKeys deletes the rows with the keys.
func (w *world) deleteKeys(keys ...int64) {
	w.tb.Helper()
	rows := make([]row, len(keys))
	for i, k := range keys {
		rows[i].key = k
	}
	w.change(rows, nil)
}

// change lands equality deletes for the keys of gone, together with the added rows.
func (w *world) change(gone, added []row) {
	w.tb.Helper()
	ctx := context.Background()
	w.land(func(t *table.Table, tx *table.Transaction) error {
		keys := must(t.Schema().Select(true, "key"))
		b := array.NewRecordBuilder(memory.DefaultAllocator, must(table.SchemaToArrowSchema(keys, nil, true, false)))
		defer b.Release()
		for _, r := range gone {
			b.Field(0).(*array.Int64Builder).Append(r.key)
		}
		rec := b.NewRecordBatch()
		deletes, err := tx.WriteEqualityDeletes(ctx, []int{1}, func(yield func(arrow.RecordBatch, error) bool) { yield(rec, nil) })
		if err != nil {
			return err
		}
		delta := tx.NewRowDelta(iceberg.Properties{"millrace.commit-id": "x"})
		delta.AddDeletes(deletes...)
		if len(added) > 0 {
			delta.AddRows(w.write(t, added)...)
		}
		return delta.Commit(ctx)
	})
}

// rows reads the table.
func (w *world) rows() []row {
	w.tb.Helper()
	return w.read(w.table())
}

func (w *world) read(t *table.Table, tasks ...table.FileScanTask) []row {
	w.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	scan := t.Scan()
	if tasks == nil {
		tasks = must(scan.PlanFiles(ctx))
	}
	_, records, err := scan.ReadTasks(ctx, tasks)
	if err != nil {
		w.tb.Fatal(err)
	}
	var rows []row
	for rec, err := range records {
		if err != nil {
			w.tb.Fatal(err)
		}
		for i := range int(rec.NumRows()) {
			r := row{key: rec.Column(0).(*array.Int64).Value(i), part: rec.Column(2).(*array.Int32).Value(i)}
			if v := rec.Column(1).(*array.String); v.IsValid(i) {
				r.value = strings.Clone(v.Value(i))
			}
			if at := rec.Column(3).(*array.Timestamp); at.IsNull(i) || int64(at.Value(i)) != r.key*1000 {
				w.tb.Fatalf("row %v has another time", r)
			}
			rows = append(rows, r)
		}
		rec.Release()
	}
	return rows
}

// hash returns a hash of the rows that is independent of their order.
func hash(rows []row) string {
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = fmt.Sprintf("%+v", r)
	}
	slices.Sort(lines)
	return fmt.Sprintf("%d rows, %x", len(rows), sha256.Sum256([]byte(strings.Join(lines, "\n"))))
}

// dataFiles returns the live data files.
func (w *world) dataFiles() []table.FileScanTask {
	w.tb.Helper()
	return must(w.table().Scan().PlanFiles(context.Background()))
}

// checkRows checks invariants of maintenance.
func (w *world) checkRows(want []row) {
	w.tb.Helper()
	if have := hash(w.rows()); have != hash(want) {
		w.tb.Errorf("the table has %s, want %s", have, hash(want))
	}
	t := w.table()
	if have := t.Properties()[offsetProperty]; have != fmt.Sprint(w.offset.Load()) {
		w.tb.Errorf("the offset is %s, want %d", have, w.offset.Load())
	}
	if _, ok := t.Properties()[table.DefaultNameMappingKey]; ok {
		w.tb.Error("maintenance has set a property")
	}
	w.filesExist()
}

// filesExist checks that every file that the metadata refers to exists.
func (w *world) filesExist() {
	w.tb.Helper()
	ctx := context.Background()
	t := w.table()
	fs := must(t.FS(ctx))
	check := func(location string) {
		f, err := fs.Open(location)
		if err != nil {
			w.tb.Errorf("a file that the table refers to is gone: %v", err)
			return
		}
		_ = f.Close()
	}
	seen := map[string]bool{}
	for _, s := range t.Metadata().Snapshots() {
		check(s.ManifestList)
		for _, m := range must(s.Manifests(fs)) {
			if seen[m.FilePath()] {
				continue
			}
			seen[m.FilePath()] = true
			for e, err := range m.Entries(fs, true) {
				if err != nil {
					w.tb.Error(err)
					continue
				}
				if p := e.DataFile().FilePath(); !seen[p] {
					seen[p] = true
					check(p)
				}
			}
		}
	}
}

// liveFiles counts the data files and delete files of the head.
func (w *world) liveFiles() (live int) {
	w.tb.Helper()
	t := w.table()
	fs := must(t.FS(context.Background()))
	if t.CurrentSnapshot() == nil {
		return 0
	}
	for _, m := range must(t.CurrentSnapshot().Manifests(fs)) {
		for _, err := range m.Entries(fs, true) {
			if err != nil {
				w.tb.Fatal(err)
			}
			live++
		}
	}
	return live
}

// listed returns the names of the files in the table's folder that have a suffix.
func (w *world) listed(suffix string) []string {
	w.tb.Helper()
	ctx := context.Background()
	t := w.table()
	var names []string
	for _, f := range must(list(ctx, must(t.FS(ctx)), t.Location())) {
		if strings.HasSuffix(f.location, suffix) {
			names = append(names, f.location)
		}
	}
	return names
}

// config has settings for small tables and fast tests.
func (w *world) config() Config {
	return Config{
		DutyCycle:   1, // tests do not pause
		TargetBytes: 1 << 20, KeepAge: time.Hour, OrphanAge: time.Hour, Scratch: w.tb.TempDir(), minAge: time.Nanosecond, tries: 60,
	}
}

func (w *world) mustRun(c Config) Report {
	w.tb.Helper()
	report, err := Run(context.Background(), w.load, c, nil)
	if err != nil {
		w.tb.Fatal(err)
	}
	return report
}

// sequenceOf returns rows from..to.
func sequenceOf(from, to int64) []row {
	var rows []row
	for k := from; k < to; k++ {
		rows = append(rows, row{key: k, value: fmt.Sprintf("value %d of this row", k*7919%10007)})
	}
	return rows
}

// later returns a time at which everything is old.
func later() time.Time { return time.Now().Add(25 * time.Hour) }

// orphan returns a file that nothing refers to.
func (w *world) orphan(name string) string {
	w.tb.Helper()
	t := w.table()
	location := t.Location() + "/" + name
	if err := must(writable(context.Background(), t)).WriteFile(location, []byte("x")); err != nil {
		w.tb.Fatal(err)
	}
	return location
}

// model is the expected content of a table with a key.
type model map[int64]row

func (m model) put(rows ...row) {
	for _, r := range rows {
		m[r.key] = r
	}
}

func (m model) rows() []row { return slices.Collect(maps.Values(m)) }
