// Package datafile writes the files of a table: Parquet data files and equality delete files.
//
// A Writer turns the rows of one batch after another into data files and returns their manifest
// entries. Stage adds these to a commit. WriteDeletes writes the delete file of a keyed table.
//
// Writable and WritableNow check that a table accepts such files by writing samples into memory
// with the same code.
package datafile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/pages"
)

// Writer writes the rows of batches into data files of one table. It is not safe for concurrent
// use.
//
// In an unpartitioned table, the rows of a batch are streamed to one file. In a partitioned table,
// they are buffered until the end of the batch and then written partition by partition, so that
// only one file is open at a time.
type Writer struct {
	Columns *columnar.Columns
	// origin fills the last columns. It is unset for sample rows.
	origin origin
	bytes  int             // size of the values whose rows are buffered
	ctx    context.Context // cancelling it aborts uploads to an object store
	Table  *table.Table
	// partitioned reports whether the table had partition fields when it was loaded.
	partitioned bool
	locations   table.LocationProvider
	pages       *pages.Writer

	// The current file. out is nil while there is none.
	location string
	out      io.FileWriter
	abort    context.CancelFunc
}

// Buffered columns become a page of the file at ChunkRows rows or chunkBytes bytes. That many rows
// are enough for a dictionary to prove useful, and the bytes bound the memory.
const (
	ChunkRows  = 16 << 10
	chunkBytes = 16 << 20
)

// New returns a writer for a table. The last three fields must be the origin columns.
func New(ctx context.Context, fields []columnar.Field, t *table.Table) (*Writer, error) {
	w, err := openFileWriter(ctx, fields, t)
	if err != nil {
		return nil, err
	}
	w.origin = originOf(w.Columns)
	return w, nil
}

// openFileWriter is New without origin columns, which sample rows do not need.
func openFileWriter(ctx context.Context, fields []columnar.Field, t *table.Table) (*Writer, error) {
	columns, err := columnar.New(fields)
	if err != nil {
		return nil, err
	}
	parquet, err := pages.New(fields)
	if err != nil {
		return nil, err
	}
	locations, err := t.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("find the locations of the table's files: %w", err)
	}
	return &Writer{
		Columns: columns, ctx: ctx, Table: t, partitioned: !t.Spec().IsUnpartitioned(), locations: locations,
		pages: parquet,
	}, nil
}

// HasRows reports whether the current batch has any rows.
func (w *Writer) HasRows() bool { return w.out != nil || w.Columns.Rows() > 0 }

// Append appends all rows of a record, or none if it fails.
func (w *Writer) Append(ctx context.Context, rows declare.Rows, r declare.Record) (declare.Appended, error) {
	// A record that fails in the middle must leave no partial row.
	mark := w.Columns.Mark()
	appended, err := rows.Append(ctx, r)
	if err == nil {
		w.origin.append(r, appended.Rows)
		err = w.Columns.Err()
	}
	if err != nil {
		w.Columns.Rollback(mark)
		return appended, err
	}
	// Records without rows occupy no memory here.
	if appended.Rows > 0 {
		w.bytes += len(r.Value)
	}
	return appended, nil
}

// AppendRow appends one row, or none if it fails.
func (w *Writer) AppendRow(row func(), from declare.Record) error {
	mark := w.Columns.Mark()
	row()
	w.origin.append(from, 1)
	if err := w.Columns.Err(); err != nil {
		w.Columns.Rollback(mark)
		return err
	}
	return nil
}

// Flush writes the buffered rows to the file, opening it if necessary, if there are at least
// atLeast rows or enough bytes. It does nothing for a partitioned table.
func (w *Writer) Flush(name string, atLeast int) error {
	rows := w.Columns.Rows()
	// Rows of a partitioned table stay buffered until Finish.
	if w.partitioned || rows == 0 || rows < atLeast && w.bytes < chunkBytes {
		return nil
	}
	if w.out == nil {
		if err := w.open(name); err != nil {
			return err
		}
	}
	defer w.reset()
	if err := w.pages.Write(w.Columns); err != nil {
		return faults.AsRowsError(fmt.Errorf("write data file %s: %w", w.location, err))
	}
	return nil
}

// reset discards the buffered rows.
func (w *Writer) reset() {
	w.Columns.Reset()
	w.bytes = 0
}

// open creates the batch's data file.
func (w *Writer) open(name string) error {
	ctx, abort := context.WithCancel(w.ctx)
	files, err := w.files(ctx)
	if err != nil {
		abort()
		return err
	}
	// The name starts with the commit's id, so it is unique and an orphan can be traced to its
	// commit.
	w.location = w.locations.NewDataLocation(name + ".parquet")
	out, err := files.Create(w.location)
	if err != nil {
		abort()
		return fmt.Errorf("create data file: %w", err)
	}
	w.out, w.abort = out, abort
	w.pages.Begin(out)
	return nil
}

// files returns the table's file system.
func (w *Writer) files(ctx context.Context) (io.WriteFileIO, error) { return Files(ctx, w.Table) }

// Finish completes the batch's files and returns their manifest entries. It returns none if there
// were no rows.
func (w *Writer) Finish(ctx context.Context, name string) ([]iceberg.DataFile, error) {
	if w.partitioned {
		return w.writePartitions(ctx, name)
	}
	if err := w.Flush(name, 1); err != nil {
		return nil, err
	}
	if w.out == nil {
		return nil, nil
	}
	// Writes the footer. The file becomes visible in an object store only with Close.
	written, err := w.pages.End()
	if err == nil {
		err = w.out.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("close data file %s: %w", w.location, err) // Close discards it
	}
	defer w.abort()
	w.out = nil
	f, err := w.describe(written)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe data file %s: %w", w.location, err), w.removeAt(w.location))
	}
	return []iceberg.DataFile{f}, nil
}

// describe returns the manifest entry of a file. Its metadata is known, so the file is not read
// back.
func (w *Writer) describe(written pages.File) (iceberg.DataFile, error) {
	spec := w.Table.Spec()
	f, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: w.Table.Schema(), Spec: spec, Format: iceberg.ParquetFile, Metadata: written.Metadata,
		FilePath: w.location, FileSize: written.Size,
		Content: iceberg.EntryContentData, SortOrderID: table.UnsortedSortOrderID, Properties: w.Table.Properties(),
		FormatVersion: w.Table.Metadata().Version(),
	})
	// The usual case: nothing to add to iceberg-go's entry.
	if err != nil || len(written.NaNs) == 0 && spec.NumFields() == 0 {
		return f, err
	}
	partition := map[int]any{} // nulls: a table with fields here has only dropped (void) ones
	for _, field := range spec.Fields() {
		partition[field.FieldID] = nil
	}
	// Parquet footers do not count NaNs, so iceberg-go does not know them.
	nans := maps.Clone(written.NaNs)
	maps.DeleteFunc(nans, func(id int, _ int64) bool { _, counted := f.ValueCounts()[id]; return !counted })
	b, err := iceberg.NewDataFileBuilder(spec, f.ContentType(), f.FilePath(), f.FileFormat(), partition, nil, nil,
		f.Count(), f.FileSizeBytes())
	if err != nil {
		return nil, err
	}
	return b.ColumnSizes(f.ColumnSizes()).ValueCounts(f.ValueCounts()).
		NullValueCounts(f.NullValueCounts()).NaNValueCounts(nans).
		LowerBoundValues(f.LowerBoundValues()).UpperBoundValues(f.UpperBoundValues()).
		SplitOffsets(f.SplitOffsets()).Build(), nil
}

// writePartitions writes the rows of a partitioned table. iceberg-go puts partition values into
// file names. Readers do not need them and interpret their escapes differently, so the files get
// plain names.
func (w *Writer) writePartitions(ctx context.Context, name string) ([]iceberg.DataFile, error) {
	if w.Columns.Rows() == 0 {
		return nil, nil
	}
	// iceberg-go needs the source columns to compute partitions.
	rec, err := w.withSources(w.Columns.Record()) // released by its reader
	if err != nil {
		return nil, err
	}
	defer w.reset()
	names := &renaming{given: map[string]string{}, rename: func(n int) string {
		return w.locations.NewDataLocation(fmt.Sprintf("%s-%d.parquet", name, n))
	}}
	// The same table with a file system that renames new files.
	renamedFS := func(ctx context.Context) (io.IO, error) {
		files, err := w.files(ctx)
		if err != nil {
			return nil, err
		}
		return renamed{files, names}, nil
	}
	under := table.New(w.Table.Identifier(), w.Table.Metadata(), w.Table.MetadataLocation(), renamedFS, nil)
	once := func(yield func(arrow.RecordBatch, error) bool) { yield(rec, nil) }
	var files []iceberg.DataFile
	// Clustered: partition by partition, so that one file is open at a time.
	for f, err := range table.WriteRecords(ctx, under, rec.Schema(), once, table.WithClusteredWrite()) {
		if err == nil {
			f, err = relocated(f, w.Table, names.of(f.FilePath()))
		}
		if err != nil {
			err = fmt.Errorf("write the partitions of a batch: %w", err)
			// Remove all files that were begun, including unfinished ones.
			for _, made := range names.all() {
				err = errors.Join(err, w.removeAt(made))
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Remove removes data files that nothing refers to. It works even while the program stops.
func (w *Writer) Remove(files ...iceberg.DataFile) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, w.removeAt(f.FilePath()))
	}
	return errors.Join(errs...)
}

// withSources adds the columns that the table is partitioned by but that are not written, as nulls.
func (w *Writer) withSources(rec arrow.RecordBatch) (arrow.RecordBatch, error) {
	schema, spec := w.Table.Schema(), w.Table.Spec()
	// Columns are compared by id, since they may have been renamed.
	written := map[int]bool{}
	for _, f := range w.Columns.Fields() {
		written[f.ID] = true
	}
	var missing []iceberg.NestedField
	for _, f := range schema.Fields() { // the source may be a nested field
		inside := iceberg.NewSchema(0, f)
		// A field must be added as a whole if any nested source is in it.
		isSource := false
		for _, p := range spec.Fields() {
			_, ok := inside.FindFieldByID(p.SourceID())
			isSource = isSource || ok
		}
		if isSource && !written[f.ID] {
			missing = append(missing, f)
		}
	}
	if len(missing) == 0 {
		return rec, nil
	}
	defer rec.Release()
	nulls, err := table.SchemaToArrowSchema(iceberg.NewSchema(0, missing...), nil, true, false)
	if err != nil {
		return nil, fmt.Errorf("add the columns that the table is partitioned by: %w", err)
	}
	arrays := slices.Clone(rec.Columns())
	for _, f := range nulls.Fields() {
		a := array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, int(rec.NumRows()))
		defer a.Release()
		arrays = append(arrays, a)
	}
	// All rows are null in these columns, and so belong to the null partition of their fields.
	all := arrow.NewSchema(slices.Concat(rec.Schema().Fields(), nulls.Fields()), nil)
	return array.NewRecordBatch(all, arrays, rec.NumRows()), nil
}

// Close closes the writer and discards an unfinished file.
func (w *Writer) Close() error {
	if w.out == nil {
		return nil
	}
	w.abort()         // an object store discards an upload that is not completed
	_ = w.out.Close() // the content is discarded anyway
	w.out = nil
	return w.removeAt(w.location)
}

// removeTimeout limits the removal of a file.
const removeTimeout = 30 * time.Second

// removeAt removes a file. A missing file is not an error. It ignores cancellation, because files
// are also removed during a shutdown.
func (w *Writer) removeAt(location string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), removeTimeout)
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

// origin fills the last three columns: topic, partition, offset.
type origin struct {
	topic     *columnar.Bytes
	partition *columnar.Int32s
	offset    *columnar.Int64s
}

// originOf returns the writer of the last three columns.
func originOf(c *columnar.Columns) origin {
	// Package declare puts the origin columns last.
	n := len(c.Fields())
	return origin{
		c.Column(n - 3).(*columnar.Bytes), c.Column(n - 2).(*columnar.Int32s), c.Column(n - 1).(*columnar.Int64s),
	}
}

// append repeats the record's coordinates for each of its rows.
func (o origin) append(r declare.Record, rows int) {
	for range rows {
		o.topic.AppendString(r.Topic)
		o.partition.Append(r.Partition)
		o.offset.Append(r.Offset)
	}
}
