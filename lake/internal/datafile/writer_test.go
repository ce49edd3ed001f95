package datafile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sqlcatalog "github.com/apache/iceberg-go/catalog/sql"

	"github.com/millrace/millrace/internal/sqlite"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
)

// measurements are rows of a number and a text per record.
type measurements struct{ to *columnar.Columns }

func (m measurements) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	v := float64(r.Offset)
	if r.Offset%3 == 0 {
		v = math.NaN()
	}
	m.to.Column(0).(*columnar.Float64s).Append(v)
	m.to.Column(1).(*columnar.Bytes).Append(r.Value)
	return declare.Appended{Rows: 1}, nil
}

// newMeasurements creates a table of measurements and a writer of its files.
func newMeasurements(t *testing.T) (*table.Table, *Writer, declare.Rows) {
	t.Helper()
	fields := columnar.WithIDs(append([]columnar.Field{
		{Name: "value", Type: iceberg.PrimitiveTypes.Float64}, {Name: "unit", Type: iceberg.PrimitiveTypes.String},
	}, declare.Table{}.OriginColumns()...))
	schema, err := columnar.Schema(fields)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	db, err := sqlite.Open(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	c, err := sqlcatalog.NewCatalog("millrace", db, sqlcatalog.SQLite, iceberg.Properties{"warehouse": "file://" + dir, "init_catalog_tables": "true"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateNamespace(t.Context(), table.Identifier{declare.Namespace}, nil); err != nil {
		t.Fatal(err)
	}
	have, err := c.CreateTable(t.Context(), table.Identifier{declare.Namespace, "measurements"}, schema)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(t.Context(), fields, have)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return have, w, measurements{w.Columns}
}

// A manifest entry agrees with what readers find in the file, and also has the number of NaNs.
func TestFilesAreDescribed(t *testing.T) {
	t.Parallel()
	have, w, rows := newMeasurements(t)
	for name, n := range map[string]int64{"few": 10, "many": 3*ChunkRows + 1} {
		for i := range n {
			if _, err := w.Append(t.Context(), rows, declare.Record{Topic: "t", Offset: i, Value: []byte("kg")}); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(name, ChunkRows); err != nil {
				t.Fatal(err)
			}
		}
		files, err := w.Finish(t.Context(), name)
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		f := files[0]
		store, err := have.FS(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want, err := table.FileToDataFile(t.Context(), store, f.FilePath(), have.Schema(), have.Spec(), table.UnsortedSortOrderID, have.Properties())
		if err != nil {
			t.Fatal(err)
		}
		if have, want := fmt.Sprint(described(f)), fmt.Sprint(described(want)); have != want {
			t.Errorf("%s: the file is described as\n%s\nnot\n%s", name, have, want)
		}
		if nans := f.NaNValueCounts(); len(nans) != 1 || nans[1] != (n+2)/3 {
			t.Errorf("%s: of %d values are no number: %v", name, n, nans)
		}
	}
}

func described(f iceberg.DataFile) []any {
	return []any{
		f.Count(), f.FileSizeBytes(), f.ColumnSizes(), f.ValueCounts(), f.NullValueCounts(), f.LowerBoundValues(), f.UpperBoundValues(),
		f.SplitOffsets(), f.SortOrderID(), f.Partition(), f.ContentType(), f.FileFormat(),
	}
}

// However large records are, the buffered columns are bounded in bytes.
func TestLargeRecordsAreFlushed(t *testing.T) {
	t.Parallel()
	_, w, rows := newMeasurements(t)
	large := []byte(strings.Repeat("x", 1<<20))
	for i := range int64(40) {
		if _, err := w.Append(t.Context(), rows, declare.Record{Topic: "t", Offset: i, Value: large}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush("large", ChunkRows); err != nil {
			t.Fatal(err)
		}
		if w.Columns.Bytes() > chunkBytes+len(large) {
			t.Fatalf("%d bytes are in the columns", w.Columns.Bytes())
		}
	}
	if files, err := w.Finish(t.Context(), "large"); err != nil || files[0].Count() != 40 {
		t.Error(files, err)
	}
}

// A file that cannot be written is abandoned, and the next one is complete.
func TestFileThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	_, w, rows := newMeasurements(t)
	add := func() {
		t.Helper()
		if _, err := w.Append(t.Context(), rows, declare.Record{Topic: "t", Value: []byte("kg")}); err != nil {
			t.Fatal(err)
		}
	}
	add()
	if err := w.Flush("first", 1); err != nil {
		t.Fatal(err)
	}
	if err := w.out.Close(); err != nil { // as if the disk were gone
		t.Fatal(err)
	}
	if _, err := w.Finish(t.Context(), "first"); !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("the error is %v", err)
	}
	broken := w.location
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(strings.TrimPrefix(broken, "file://")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", broken, err)
	}
	add()
	files, err := w.Finish(t.Context(), "second")
	if err != nil || len(files) != 1 || files[0].Count() != 1 {
		t.Fatal(files, err)
	}
	if err := w.Remove(slices.Clone(files)...); err != nil {
		t.Error(err)
	}
}
