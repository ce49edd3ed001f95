package lake

import (
	"context"
	"errors"
	"fmt"

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
	table      *table.Table
	fs         io.WriteFileIO
	locations  table.LocationProvider
	schema     *arrow.Schema
	properties *parquet.WriterProperties

	location string              // of the file under way
	parquet  *pqarrow.FileWriter // nil until a file has rows
}

// Rows are handed from the builders to the Parquet writer in chunks of this size.
const chunkRows = 4096

func newFileWriter(ctx context.Context, decl Table, t *table.Table) (*fileWriter, error) {
	fs, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	writable, ok := fs.(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("%s cannot be written to", t.Location())
	}
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
		table:   t, fs: writable, locations: locations, schema: schema, properties: decl.parquetProperties(),
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
	w.location = w.locations.NewDataLocation(name + ".parquet")
	out, err := w.fs.Create(w.location)
	if err != nil {
		return fmt.Errorf("create data file: %w", err)
	}
	w.parquet, err = pqarrow.NewFileWriter(w.schema, out, w.properties, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return errors.Join(fmt.Errorf("open data file %s: %w", w.location, err), out.Close(), w.fs.Remove(w.location))
	}
	return nil
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
		return nil, fmt.Errorf("close data file %s: %w", w.location, err)
	}
	w.parquet = nil
	f, err := table.FileToDataFile(ctx, w.fs, w.location, w.table.Schema(), w.table.Spec(), 0, w.table.Properties())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read back data file %s: %w", w.location, err), w.remove(w.location))
	}
	return f, nil
}

// close ends the writer; a file that was not finished is removed.
func (w *fileWriter) close() error {
	w.columns.Release()
	if w.parquet == nil {
		return nil
	}
	return errors.Join(w.parquet.Close(), w.remove(w.location))
}

func (w *fileWriter) remove(location string) error {
	if err := w.fs.Remove(location); err != nil {
		return fmt.Errorf("remove data file: %w", err)
	}
	return nil
}
