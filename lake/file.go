package lake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
)

// fileWriter writes rows into data files of one table, those of one batch after those of the other.
//
// Rows of a table without partitions go into one file as they come. Those of a partitioned one wait in memory for the end of
// their batch, and are then written one partition after the other, so that one file is open at a time.
type fileWriter struct {
	columns     *columnar.Columns
	origin      origin
	ctx         context.Context // an object store writes a file as long as this holds
	table       *table.Table
	partitioned bool
	locations   table.LocationProvider
	properties  *parquet.WriterProperties

	// The file under way; parquet is nil until it has rows.
	location string
	at       io.WriteFileIO
	out      io.FileWriter
	abort    context.CancelFunc
	parquet  *pqarrow.FileWriter
}

// Rows are handed from the columns to the Parquet writer in chunks of this size.
const chunkRows = 4096

func newFileWriter(ctx context.Context, fields []columnar.Field, t *table.Table) (*fileWriter, error) {
	columns, err := columnar.New(fields)
	if err != nil {
		return nil, err
	}
	locations, err := t.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("where the table keeps its files: %w", err)
	}
	return &fileWriter{
		columns: columns, origin: originOf(columns), ctx: ctx, table: t, partitioned: !t.Spec().IsUnpartitioned(), locations: locations, properties: parquetProperties(fields),
	}, nil
}

// parquetProperties are measured choices: zstd above level 1 costs time for 2 % of size, and a dictionary pays only where
// values recur.
func parquetProperties(fields []columnar.Field) *parquet.WriterProperties {
	props := []parquet.WriterProperty{
		parquet.WithCompression(compress.Codecs.Zstd),
		parquet.WithCompressionLevel(1),
		parquet.WithDictionaryDefault(false),
		parquet.WithMaxRowGroupLength(256 << 10),
		parquet.WithCreatedBy("millrace"),
	}
	for _, f := range fields {
		if f.Repeats {
			props = append(props, parquet.WithDictionaryFor(f.Name, true), parquet.WithDictionaryCostFallbackFor(f.Name, true))
		}
	}
	return parquet.NewWriterProperties(props...)
}

// rows tells whether the batch has any.
func (w *fileWriter) rows() bool { return w.parquet != nil || w.columns.Rows() > 0 }

// append appends all rows of a record, or none.
func (w *fileWriter) append(ctx context.Context, rows Rows, r Record) (Appended, error) {
	mark := w.columns.Mark()
	appended, err := rows.Append(ctx, r)
	if err == nil {
		w.origin.append(r, appended.Rows)
		err = w.columns.Err()
	}
	if err != nil {
		w.columns.Rollback(mark)
	}
	return appended, err
}

// flush hands the rows in the columns to the file, once there are enough of them, and opens the file if need be.
func (w *fileWriter) flush(name string, atLeast int) error {
	if w.partitioned || w.columns.Rows() < atLeast {
		return nil
	}
	if w.parquet == nil {
		if err := w.open(name); err != nil {
			return err
		}
	}
	rec := w.columns.Record()
	defer rec.Release()
	defer w.columns.Reset()
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
	parquet, err := pqarrow.NewFileWriter(w.columns.Schema(), out, w.properties, pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		abort()
		_ = out.Close() // what there is of it is given up
		return errors.Join(fmt.Errorf("open data file %s: %w", w.location, err), w.removeAt(w.location))
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

// finish completes the batch's files and describes them for a commit; none where there were no rows.
func (w *fileWriter) finish(ctx context.Context, name string) ([]iceberg.DataFile, error) {
	if w.partitioned {
		return w.spread(ctx)
	}
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
	f, err := table.FileToDataFile(ctx, w.at, w.location, w.table.Schema(), w.table.Spec(), table.UnsortedSortOrderID, w.table.Properties())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read back data file %s: %w", w.location, err), w.removeAt(w.location))
	}
	return []iceberg.DataFile{f}, nil
}

// spread writes the rows of a partitioned table.
func (w *fileWriter) spread(ctx context.Context) ([]iceberg.DataFile, error) {
	if w.columns.Rows() == 0 {
		return nil, nil
	}
	rec := w.columns.Record() // released by its reader
	defer w.columns.Reset()
	once := func(yield func(arrow.RecordBatch, error) bool) { yield(rec, nil) }
	var files []iceberg.DataFile
	for f, err := range table.WriteRecords(ctx, w.table, w.columns.Schema(), once, table.WithClusteredWrite()) {
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write the partitions of a batch: %w", err), w.remove(files...))
		}
		files = append(files, f)
	}
	return files, nil
}

// close ends the writer; a file that was not finished is given up.
func (w *fileWriter) close() error {
	if w.parquet == nil {
		return nil
	}
	w.abort() // an object store sees nothing of an upload that does not end
	_ = w.parquet.Close()
	_ = w.out.Close() // where the above failed before
	return w.removeAt(w.location)
}

// remove removes data files that nothing refers to, even while the program stops.
func (w *fileWriter) remove(files ...iceberg.DataFile) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, w.removeAt(f.FilePath()))
	}
	return errors.Join(errs...)
}

func (w *fileWriter) removeAt(location string) error {
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
