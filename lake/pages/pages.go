// Package pages writes columns to Parquet files, page by page.
//
// A Writer writes one file after another: Begin, Write for each batch of rows, End. Each Write adds
// one page to every column chunk. Row groups are held in memory, compressed, until they are
// complete.
//
// The package replaces pqarrow for performance: a general writer took half of the time that a row
// took from wire format to file. This one knows its source, the buffers of package columnar, and
// copies each value once, into the page to be compressed. It only uses what is needed: data pages
// of version 1, PLAIN and RLE_DICTIONARY encoding, zstd. The schema and the footer come from
// arrow-go, so readers see the same files as from pqarrow.
//
//   - A column of any type uses a dictionary while that pays: if at most half of the values of its
//     first page are distinct. It continues without one when the dictionary is full.
//   - Long bounds are truncated, rounded up for the maximum, and marked as inexact.
//   - There are no page indexes and no bounds of pages. Readers can skip files by Iceberg's bounds,
//     and row groups by those in the footer.
package pages

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/arrow-go/v18/parquet/schema"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/lake/columnar"
)

// Limits of a row group, which is held in memory in compressed form. The last Write may exceed
// them.
const (
	groupRows  = 256 << 10
	groupBytes = 64 << 20
)

// magic begins and ends every Parquet file.
const magic = "PAR1"

// Writer writes Parquet files with the same columns, one after another. It must not be used by
// several goroutines at once.
type Writer struct {
	schema *schema.Schema
	stored string // serialised Arrow schema, from which Arrow readers restore exact types
	names  []string
	roots  []*node
	chunks []*chunk // of the leaves, in schema order
	shared shared

	// The current file.
	out   io.Writer
	file  *metadata.FileMetaDataBuilder
	rows  int   // in the current row group
	group int16 // index of the current row group
	at    int64 // offset in the file
	// err is the first error of the file, after which all calls fail.
	err error
}

// shared has the buffers that all chunks use in turn.
type shared struct {
	zstd       *zstd.Encoder
	body       []byte   // uncompressed content of the current page
	page       []byte   // the dictionary's page, with its header
	compressed []byte   // compressed content of the current page
	indices    []uint32 // dictionary indices of the current page
}

// File describes a finished file.
type File struct {
	Metadata *metadata.FileMetaData
	Size     int64
	NaNs     map[int]int64 // number of NaNs by column id, for floating-point columns
}

// properties are the settings of arrow-go that affect the schema and the footer.
var properties = parquet.NewWriterProperties(
	parquet.WithCompression(compress.Codecs.Zstd), parquet.WithStoreDecimalAsInteger(true),
	parquet.WithCreatedBy("millrace"))

// New returns a writer for columns with these fields.
func New(fields []columnar.Field) (*Writer, error) {
	fields = columnar.WithIDs(fields)
	of, err := columnar.ArrowSchema(fields)
	if err != nil {
		return nil, err
	}
	stored := base64.StdEncoding.EncodeToString(flight.SerializeSchema(of, memory.DefaultAllocator))
	w := &Writer{stored: stored, err: errNoFile}
	if w.schema, err = pqarrow.ToParquet(of, properties, pqarrow.DefaultWriterProps()); err != nil {
		return nil, fmt.Errorf("convert schema to Parquet: %w", err)
	}
	// Level 1: higher levels cost time and save only about 2 %.
	w.shared.zstd, err = zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	// Leaves are added to the chunks in schema order, as arrow-go numbers its columns.
	t := tree{writer: w}
	for _, f := range fields {
		root, err := t.node(f, levels{})
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Name, err)
		}
		w.roots, w.names = append(w.roots, root), append(w.names, f.Name)
	}
	return w, nil
}

// errNoFile is the error of calls without Begin, or after End.
var errNoFile = errors.New("pages: no file has been begun, or it has ended")

// Begin starts a file. An unfinished one is abandoned.
func (w *Writer) Begin(out io.Writer) {
	w.out, w.at, w.rows, w.group, w.err = out, 0, 0, 0, nil
	w.file = metadata.NewFileMetadataBuilder(w.schema, properties, nil)
	for _, c := range w.chunks {
		c.begin()
	}
	w.write([]byte(magic))
}

// Write writes all rows as one page per column. After an error, all further calls fail. It retains
// nothing of the columns. Pages of a few thousand rows compress well; larger ones bring no further
// benefit.
func (w *Writer) Write(rows *columnar.Columns) error {
	n := rows.Rows()
	if w.err != nil || n == 0 {
		return w.err
	}
	if w.err = rows.Err(); w.err != nil {
		return w.err
	}
	for i, root := range w.roots {
		// After an error, some columns have the page and others do not, so the file is lost.
		if err := w.column(root, rows.Column(i), n); err != nil {
			w.err = fmt.Errorf("column %s: %w", w.names[i], err)
			return w.err
		}
	}
	w.rows += n
	// A row group ends after the Write that fills it.
	if w.rows >= groupRows || w.held() >= groupBytes {
		w.endGroup()
	}
	return w.err
}

// column writes a page for each leaf of a column.
func (w *Writer) column(root *node, col columnar.Column, rows int) error {
	if col.Len() != rows {
		return fmt.Errorf("%d values in %d rows", col.Len(), rows)
	}
	return root.write(&w.shared, col, slots{n: rows})
}

// held returns the memory of the current row group in bytes.
func (w *Writer) held() int {
	n := 0
	for _, c := range w.chunks {
		n += len(c.pages)
	}
	return n
}

// endGroup writes the row group and adds it to the footer.
func (w *Writer) endGroup() {
	if w.rows == 0 || w.err != nil {
		return
	}
	// Chunks of a row group are written one after another, in schema order.
	group := w.file.AppendRowGroup()
	group.SetNumRows(w.rows)
	for _, c := range w.chunks {
		dictionary := c.end(&w.shared)
		// The chunk begins with its dictionary page.
		at := w.at
		w.write(dictionary)
		w.write(c.pages)
		if w.err == nil {
			w.err = c.describe(group.NextColumnChunk(), at, len(dictionary))
		}
		if w.err != nil {
			return
		}
		c.reset()
	}
	w.err = group.Finish(0, w.group)
	w.rows = 0
	w.group++
}

// write writes to the file, unless an earlier call failed.
func (w *Writer) write(b []byte) {
	if w.err != nil || len(b) == 0 {
		return
	}
	n, err := w.out.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	w.at += int64(n)
	w.err = err
}

// End completes the file. The caller must close the io.Writer.
func (w *Writer) End() (File, error) {
	w.endGroup()
	if w.err != nil {
		return File{}, w.err
	}
	// Readers of Arrow restore exact types from this entry.
	if err := w.file.AppendKeyValueMetadata("ARROW:schema", w.stored); err != nil {
		return File{}, err
	}
	f := File{NaNs: map[int]int64{}}
	for _, c := range w.chunks {
		if c.stats.float() {
			f.NaNs[c.id] = c.nans
		}
	}
	// The footer is encoded by arrow-go.
	footer := w.at
	if f.Metadata, w.err = w.file.Finish(); w.err == nil {
		_, w.err = f.Metadata.WriteTo(counted{w}, nil)
	}
	// The file ends with the size of the footer and the magic number.
	size := w.at - footer
	if size > math.MaxInt32 && w.err == nil {
		w.err = errors.New("footer exceeds 2 GiB")
	}
	w.write(append(binary.LittleEndian.AppendUint32(nil, uint32(size)), magic...))
	if w.err != nil {
		return File{}, w.err
	}
	f.Size, w.err = w.at, errNoFile
	return f, nil
}

// counted is a Writer's file as an io.Writer.
type counted struct{ *Writer }

// Write writes to the file and counts the bytes.
func (c counted) Write(b []byte) (int, error) {
	c.write(b)
	return len(b), c.err
}
