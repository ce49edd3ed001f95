package maintenance

import (
	"context"
	"errors"
	"fmt"
	stdio "io"
	"io/fs"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/lake/internal/datafile"
)

// writer writes a stream of rows of one partition to data files. It starts a new file when the
// current one is large enough.
type writer struct {
	ctx        context.Context // cancelling it aborts uploads to an object store
	table      *table.Table
	spec       iceberg.PartitionSpec
	partition  map[int]any
	sortID     int // 0: the rows are unsorted
	fileBytes  int64
	groupBytes int64 // encoded size of a row group, which is held in memory

	locations  table.LocationProvider
	schema     *arrow.Schema // with field ids
	properties *parquet.WriterProperties

	// The current file. parquet is nil while there is none.
	location string
	abort    context.CancelFunc // cancels the upload of this file only
	out      *counting
	parquet  *pqarrow.FileWriter
	rows     int64

	done []iceberg.DataFile
	made []string // locations of all files that were begun
}

// counting is a file writer that counts the bytes written.
type counting struct {
	io.FileWriter
	bytes int64
}

// Write counts the bytes that were written, also after an error.
func (c *counting) Write(p []byte) (int, error) {
	n, err := c.FileWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// ReadFrom hides FileWriter's own ReadFrom, whose bytes would not be counted.
func (c *counting) ReadFrom(r stdio.Reader) (int64, error) {
	return stdio.Copy(struct{ stdio.Writer }{c}, r)
}

// newWriter returns a writer for the files of a bin. memory is the budget of the whole compaction;
// a row group gets an eighth of it at most.
func newWriter(ctx context.Context, t *table.Table, b bin, sortID int, memory int64) (*writer, error) {
	spec := t.Metadata().PartitionSpecByID(int(b.spec))
	if spec == nil {
		return nil, fmt.Errorf("partition spec %d is not in the table's metadata", b.spec)
	}
	locations, err := t.LocationProvider()
	if err != nil {
		return nil, fmt.Errorf("location provider: %w", err)
	}
	schema, err := table.SchemaToArrowSchema(t.Schema(), nil, true, false)
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	properties, err := parquetProperties(t.Properties(), schema)
	if err != nil {
		return nil, err
	}
	return &writer{
		ctx: ctx, table: t, spec: *spec, partition: b.partition, sortID: sortID,
		fileBytes: b.fileBytes, groupBytes: min(32<<20, memory/8),
		locations: locations, schema: schema, properties: properties,
	}, nil
}

// parquetProperties returns the table's settings, with the landers' defaults. Levels above 1 of
// zstd cost time and save only about 2 %. A dictionary is dropped where it does not pay.
func parquetProperties(props iceberg.Properties, schema *arrow.Schema) (*parquet.WriterProperties, error) {
	codecs := map[string]compress.Compression{
		"zstd": compress.Codecs.Zstd, "snappy": compress.Codecs.Snappy, "gzip": compress.Codecs.Gzip,
		"brotli": compress.Codecs.Brotli, "lz4": compress.Codecs.Lz4Raw, "uncompressed": compress.Codecs.Uncompressed,
	}
	name := strings.ToLower(props.Get(table.ParquetCompressionKey, "zstd"))
	codec, ok := codecs[name]
	if !ok {
		return nil, fmt.Errorf("table property %s: unknown codec %q", table.ParquetCompressionKey, name)
	}
	// The table's own limit applies if it is lower.
	groupRows := min(256<<10, max(1, props.GetInt(table.ParquetRowGroupLimitKey, 256<<10)))
	p := []parquet.WriterProperty{
		parquet.WithCompression(codec),
		parquet.WithMaxRowGroupLength(int64(groupRows)),
		parquet.WithDictionaryDefault(true),
		parquet.WithCreatedBy("millrace"),
	}
	if name == "zstd" {
		p = append(p, parquet.WithCompressionLevel(props.GetInt(table.ParquetCompressionLevelKey, 1)))
	}
	for _, f := range schema.Fields() {
		p = append(p, parquet.WithDictionaryCostFallbackFor(f.Name, true))
	}
	return parquet.NewWriterProperties(p...), nil
}

// write writes a batch. It completes the file when the size is reached.
func (w *writer) write(rec arrow.RecordBatch) error {
	if rec.NumRows() == 0 {
		return nil
	}
	// Files are opened on the first row, so that no empty one is written.
	if w.parquet == nil {
		if err := w.open(); err != nil {
			return err
		}
	} else if w.parquet.RowGroupTotalBytesWritten() >= w.groupBytes {
		// Starting a row group flushes the previous one and frees its memory.
		if err := w.parquet.NewBufferedRowGroupChecked(); err != nil {
			return w.failed(err)
		}
	}
	// The columns read may differ from the schema in nested nullability.
	named := datafile.Labelled(w.schema, rec.Columns(), rec.NumRows())
	defer named.Release()
	if err := w.parquet.WriteBuffered(named); err != nil {
		return w.failed(err)
	}
	w.rows += rec.NumRows()
	// Written bytes plus the estimate for the row group in memory.
	if w.out.bytes+w.parquet.RowGroupTotalCompressedBytes() < w.fileBytes {
		return nil
	}
	return w.finish()
}

// failed adds the name of the current file to an error.
func (w *writer) failed(err error) error {
	return fmt.Errorf("write data file %s: %w", w.location, err)
}

// open starts a new file under a unique name.
func (w *writer) open() error {
	ctx, abort := context.WithCancel(w.ctx)
	files, err := writable(ctx, w.table)
	if err != nil {
		abort()
		return err
	}
	w.location = w.locations.NewDataLocation("compacted-" + uuid.Must(uuid.NewV7()).String() + ".parquet")
	// Record the file before it exists, so that it is removed after any failure.
	w.made = append(w.made, w.location)
	out, err := files.Create(w.location)
	if err != nil {
		abort()
		return fmt.Errorf("create data file: %w", err)
	}
	w.out = &counting{FileWriter: out}
	arrowProperties := pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema())
	if w.parquet, err = pqarrow.NewFileWriter(w.schema, w.out, w.properties, arrowProperties); err != nil {
		abort()
		_ = out.Close() // the content is discarded anyway
		return w.failed(err)
	}
	w.abort, w.rows = abort, 0
	return nil
}

// writable returns the table's file system for writing.
func writable(ctx context.Context, t *table.Table) (io.WriteFileIO, error) {
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	w, ok := files.(io.WriteFileIO)
	if !ok {
		return nil, fmt.Errorf("file system of %s is read-only", t.Location())
	}
	return w, nil
}

// finish completes the current file and describes it for the commit. The row count is checked
// against the footer.
func (w *writer) finish() error {
	if w.parquet == nil {
		return nil
	}
	if err := w.parquet.Close(); err != nil {
		return w.failed(err) // close discards it
	}
	defer w.abort()
	// The footer has the statistics that the manifest needs, so the file is not read again.
	meta, err := w.parquet.FileMetadata()
	w.parquet = nil
	if err != nil {
		return w.failed(err)
	}
	f, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: w.table.Schema(), Spec: w.spec, Format: iceberg.ParquetFile, Metadata: meta,
		FilePath: w.location, FileSize: w.out.bytes, Content: iceberg.EntryContentData,
		PartitionValues: w.partition, SortOrderID: w.sortID, Properties: w.table.Properties(),
		FormatVersion: w.table.Metadata().Version(),
	})
	if err != nil {
		return fmt.Errorf("describe data file %s: %w", w.location, err)
	}
	// Guard against losing rows through an error in the Parquet writer.
	if f.Count() != w.rows {
		return fmt.Errorf("data file %s has %d rows, but %d were written", w.location, f.Count(), w.rows)
	}
	w.done = append(w.done, f)
	return nil
}

// close discards an unfinished file.
func (w *writer) close() {
	if w.parquet == nil {
		return
	}
	w.abort() // an object store discards an upload that is not completed
	_ = w.parquet.Close()
	_ = w.out.Close() // a second close is harmless
	w.parquet = nil
}

// remove removes files that no commit refers to. It is not cancelled with ctx, so that a run that
// is stopped still cleans up.
func remove(ctx context.Context, t *table.Table, locations []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	files, err := writable(ctx, t)
	if err != nil {
		return err
	}
	var errs []error
	for _, location := range locations {
		if err := files.Remove(location); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove data file: %w", err))
		}
	}
	return errors.Join(errs...)
}
