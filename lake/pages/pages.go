// Package pages writes columns into Parquet files, page by page.
//
// It is here in place of pqarrow for its cost: half of what a row took from the wire to the file
// went into a writer of any type from any source. This one knows its source, the buffers of package
// columnar, and copies each value once, into the page that is compressed next. The rest is as small
// as Parquet lets it be: data pages of version 1, PLAIN or RLE_DICTIONARY, zstd. The schema and the
// footer are arrow-go's, so the files are those that pqarrow writes from the same rows, and whoever
// reads those reads these.
//
//   - A column has a dictionary as long as that pays, whatever its type: where of the values of its first page no more than half are
//     distinct. It continues without one where it has become too large.
//   - Bounds that are long are cut, as a lower and an upper one must be, and say so.
//   - There are neither page indexes nor bounds of single pages: who wants to skip parts of a file has Iceberg's bounds of the file,
//     and those of its row groups.
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

// What a row group has at most, except for the rows of its last Write. It is in memory, compressed,
// until it is whole.
const (
	groupRows  = 256 << 10
	groupBytes = 64 << 20
)

const magic = "PAR1"

// Writer writes Parquet files of the same columns, one after the other. It is for one goroutine.
type Writer struct {
	schema *schema.Schema
	stored string // the Arrow schema, from which readers of Arrow's learn its finer types
	names  []string
	roots  []*node
	chunks []*chunk // of the leaves, in Parquet's order
	shared shared

	// The file under way.
	out   io.Writer
	file  *metadata.FileMetaDataBuilder
	rows  int   // of the row group under way
	group int16 // its number
	at    int64 // in the file
	err   error
}

// shared is what all chunks use, one after the other.
type shared struct {
	zstd       *zstd.Encoder
	body       []byte   // of the page under way
	other      []byte   // the same page in the other encoding
	compressed []byte   // the same page once more
	indices    []uint32 // of its values in the dictionary
}

// File describes a file that was written.
type File struct {
	Metadata *metadata.FileMetaData
	Size     int64
	NaNs     map[int]int64 // values that are not a number, by the ids of the columns that could have some
}

var properties = parquet.NewWriterProperties(
	parquet.WithCompression(compress.Codecs.Zstd), parquet.WithStoreDecimalAsInteger(true), parquet.WithCreatedBy("millrace"))

// New returns a writer for columns of these fields.
func New(fields []columnar.Field) (*Writer, error) {
	fields = columnar.WithIDs(fields)
	of, err := columnar.ArrowSchema(fields)
	if err != nil {
		return nil, err
	}
	w := &Writer{stored: base64.StdEncoding.EncodeToString(flight.SerializeSchema(of, memory.DefaultAllocator)), err: errNoFile}
	if w.schema, err = pqarrow.ToParquet(of, properties, pqarrow.DefaultWriterProps()); err != nil {
		return nil, fmt.Errorf("the schema in Parquet: %w", err)
	}
	// Level 1: those above cost time for 2 % of size.
	w.shared.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
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

// Errors of a caller that has begun no file, or wrote on after an end.
var errNoFile = errors.New("no file is begun")

// Begin begins a file. One that is under way is given up.
func (w *Writer) Begin(out io.Writer) {
	w.out, w.at, w.rows, w.group, w.err = out, 0, 0, 0, nil
	w.file = metadata.NewFileMetadataBuilder(w.schema, properties, nil)
	for _, c := range w.chunks {
		c.begin()
	}
	w.write([]byte(magic))
}

// Write writes all rows, as one page of each column, or fails, and then does so forever. It keeps
// nothing of the columns. Many rows at once compress well, and many thousands help no more.
func (w *Writer) Write(rows *columnar.Columns) error {
	n := rows.Rows()
	if w.err != nil || n == 0 {
		return w.err
	}
	if w.err = rows.Err(); w.err != nil {
		return w.err
	}
	for i, root := range w.roots {
		if err := w.column(root, rows.Column(i), n); err != nil {
			w.err = fmt.Errorf("column %s: %w", w.names[i], err)
			return w.err
		}
	}
	w.rows += n
	if w.rows >= groupRows || w.held() >= groupBytes {
		w.endGroup()
	}
	return w.err
}

func (w *Writer) column(root *node, col columnar.Column, rows int) error {
	if col.Len() != rows {
		return fmt.Errorf("it has %d values in %d rows", col.Len(), rows)
	}
	return root.write(&w.shared, col, slots{n: rows})
}

// held returns the memory that the row group under way takes.
func (w *Writer) held() int {
	n := 0
	for _, c := range w.chunks {
		n += len(c.pages)
	}
	return n
}

// endGroup writes the row group, and describes it for the footer.
func (w *Writer) endGroup() {
	if w.rows == 0 || w.err != nil {
		return
	}
	group := w.file.AppendRowGroup()
	group.SetNumRows(w.rows)
	for _, c := range w.chunks {
		dictionary := c.end(&w.shared)
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

// End writes what is left of the file. The io.Writer is the caller's to close.
func (w *Writer) End() (File, error) {
	w.endGroup()
	if w.err != nil {
		return File{}, w.err
	}
	if err := w.file.AppendKeyValueMetadata("ARROW:schema", w.stored); err != nil {
		return File{}, err
	}
	f := File{NaNs: map[int]int64{}}
	for _, c := range w.chunks {
		if c.stats.float() {
			f.NaNs[c.id] = c.nans
		}
	}
	footer := w.at
	if f.Metadata, w.err = w.file.Finish(); w.err == nil {
		_, w.err = f.Metadata.WriteTo(counted{w}, nil)
	}
	size := w.at - footer
	if size > math.MaxInt32 && w.err == nil {
		w.err = errors.New("the footer has more than 2 GiB")
	}
	w.write(append(binary.LittleEndian.AppendUint32(nil, uint32(size)), magic...))
	if w.err != nil {
		return File{}, w.err
	}
	f.Size, w.err = w.at, errNoFile
	return f, nil
}

// counted is the file as an io.Writer.
type counted struct{ *Writer }

func (c counted) Write(b []byte) (int, error) {
	c.write(b)
	return len(b), c.err
}
