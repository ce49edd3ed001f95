package lake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
)

// fileWriter writes rows into data files of one table, one file after the other.
type fileWriter struct {
	columns    columns
	ctx        context.Context // an object store writes a file as long as this holds
	table      *table.Table
	locations  table.LocationProvider
	schema     *arrow.Schema
	properties *parquet.WriterProperties

	// The file under way; parquet is nil until it has rows.
	location string
	at       io.WriteFileIO
	out      io.FileWriter
	abort    context.CancelFunc
	parquet  *pqarrow.FileWriter
}

// Rows are handed from the builders to the Parquet writer in chunks of this size.
const chunkRows = 4096

func newFileWriter(ctx context.Context, decl Table, t *table.Table) (*fileWriter, error) {
	locations, err := t.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("where table %s keeps its files: %w", decl.Name, err)
	}
	schema, err := table.SchemaToArrowSchema(t.Schema(), nil, true, false)
	if err != nil {
		return nil, fmt.Errorf("schema of table %s: %w", decl.Name, err)
	}
	return &fileWriter{
		columns: columns{RecordBuilder: array.NewRecordBuilder(memory.DefaultAllocator, schema)},
		ctx:     ctx, table: t, locations: locations, schema: schema, properties: decl.parquetProperties(),
	}, nil
}

// parquetProperties are measured choices: zstd above level 1 costs time for 2 % of size, and a dictionary pays only where
// values recur.
func (t Table) parquetProperties() *parquet.WriterProperties {
	props := []parquet.WriterProperty{
		parquet.WithCompression(compress.Codecs.Zstd),
		parquet.WithCompressionLevel(1),
		parquet.WithDictionaryDefault(false),
		parquet.WithMaxRowGroupLength(256 << 10),
		parquet.WithCreatedBy("millrace"),
	}
	for _, c := range t.columns {
		if c.repeats {
			props = append(props, parquet.WithDictionaryFor(c.name, true), parquet.WithDictionaryCostFallbackFor(c.name, true))
		}
	}
	return parquet.NewWriterProperties(props...)
}

// flush hands the rows in the columns to the file, once there are enough of them, and opens the file if need be.
func (w *fileWriter) flush(name string, atLeast int) error {
	if w.columns.rows < atLeast {
		return nil
	}
	if w.parquet == nil {
		if err := w.open(name); err != nil {
			return err
		}
	}
	rec := w.columns.NewRecordBatch()
	defer rec.Release()
	w.columns.rows = 0
	if err := w.parquet.WriteBuffered(rec); err != nil {
		return fmt.Errorf("write data file %s: %w", w.location, err)
	}
	return nil
}

func (w *fileWriter) open(name string) error {
	ctx, abort := context.WithCancel(w.ctx)
	files, err := w.files(ctx)
	if err != nil {
		abort()
		return err
	}
	w.location = w.locations.NewDataLocation(name + ".parquet")
	out, err := files.Create(w.location)
	if err != nil {
		abort()
		return fmt.Errorf("create data file: %w", err)
	}
	parquet, err := pqarrow.NewFileWriter(w.schema, out, w.properties, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		abort()
		_ = out.Close() // what there is of it is given up
		return errors.Join(fmt.Errorf("open data file %s: %w", w.location, err), w.remove(w.location))
	}
	w.at, w.out, w.abort, w.parquet = files, out, abort, parquet
	return nil
}

// files is where the table's files are.
func (w *fileWriter) files(ctx context.Context) (io.WriteFileIO, error) {
	fs, err := w.table.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", w.table.Location(), err)
	}
	writable, ok := fs.(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("%s cannot be written to", w.table.Location())
	}
	return writable, nil
}

// finish completes the file and describes it for a commit; nil where there were no rows.
func (w *fileWriter) finish(ctx context.Context, name string) (iceberg.DataFile, error) {
	if err := w.flush(name, 1); err != nil {
		return nil, err
	}
	if w.parquet == nil {
		return nil, nil
	}
	if err := w.parquet.Close(); err != nil {
		return nil, fmt.Errorf("close data file %s: %w", w.location, err) // and close gives it up
	}
	defer w.abort()
	w.parquet = nil
	f, err := table.FileToDataFile(ctx, w.at, w.location, w.table.Schema(), w.table.Spec(), 0, w.table.Properties())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read back data file %s: %w", w.location, err), w.remove(w.location))
	}
	return f, nil
}

// close ends the writer; a file that was not finished is given up.
func (w *fileWriter) close() error {
	w.columns.Release()
	if w.parquet == nil {
		return nil
	}
	w.abort() // an object store sees nothing of an upload that does not end
	_ = w.parquet.Close()
	_ = w.out.Close() // where the above failed before
	return w.remove(w.location)
}

// remove removes a data file where there is one, even while the program stops.
func (w *fileWriter) remove(location string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), commitTimeout)
	defer cancel()
	files, err := w.files(ctx)
	if err != nil {
		return err
	}
	if err := files.Remove(location); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove data file: %w", err)
	}
	return nil
}
