package pages

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/apache/arrow-go/v18/parquet/schema"

	"github.com/millrace/millrace/lake/columnar"
)

// chunk is a column chunk: the pages of a column in the current row group.
type chunk struct {
	column *schema.Column
	id     int
	width  int // bytes of a value; 0 for byte arrays and booleans

	pages         []byte // with headers, compressed
	size          int    // uncompressed
	plain, coded  int32  // number of pages without and with the dictionary
	values, nulls int
	stats         bounds
	nans          int64 // of the whole file

	dictionary dictionary
	use        dictionaryUse
}

// dictionaryUse is the state of a chunk's dictionary.
type dictionaryUse uint8

// The states of a dictionary. It starts as untried in each row group, unless it is never used.
const (
	never   dictionaryUse = iota // disabled for this file
	untried                      // not yet used in this row group
	inUse                        // all pages so far refer to it
	full                         // disabled for the rest of the row group
)

// minRepetition is the minimum ratio of values to distinct values in the first page for which a
// dictionary is used.
const minRepetition = 2

// newChunk returns the chunk of a leaf column.
func newChunk(f columnar.Field, column *schema.Column) (*chunk, error) {
	// Booleans are bits, and byte arrays vary in length.
	c := &chunk{column: column, id: f.ID, stats: bounds{of: column}}
	switch column.PhysicalType() {
	case parquet.Types.Int32, parquet.Types.Float:
		c.width = 4
	case parquet.Types.Int64, parquet.Types.Double:
		c.width = 8
	case parquet.Types.FixedLenByteArray:
		c.width = column.TypeLength()
	case parquet.Types.Boolean, parquet.Types.ByteArray:
	default:
		return nil, fmt.Errorf("unsupported physical type %s", column.PhysicalType())
	}
	return c, nil
}

// begin starts a file.
func (c *chunk) begin() {
	c.nans, c.use = 0, untried
	if c.column.PhysicalType() == parquet.Types.Boolean {
		c.use = never
	}
	c.reset()
}

// reset starts a row group.
func (c *chunk) reset() {
	c.pages, c.size, c.plain, c.coded, c.values, c.nulls = c.pages[:0], 0, 0, 0, 0, 0
	c.stats.reset()
	c.dictionary.reset()
	// Every row group has its own dictionary.
	if c.use != never {
		c.use = untried
	}
}

// page writes a page. Its encoded levels are already in the body. n is the number of levels.
func (c *chunk) page(s *shared, n int, col columnar.Column) error {
	levels, present := len(s.body), col.Len()-col.Nulls()
	c.values += n
	c.nulls += n - present
	coded, err := c.encode(s, col, present)
	if err != nil {
		return err
	}
	encoding := parquet.Encodings.RLEDict
	// Values of the dictionary are added to the bounds once, in end.
	if coded {
		c.coded++
	} else {
		encoding = parquet.Encodings.Plain
		c.stats.add(s.body[levels:], present)
		c.plain++
	}
	if len(s.body) > math.MaxInt32 {
		return errors.New("page exceeds 2 GiB: write fewer rows at once")
	}
	// The levels of a page of version 1 are compressed together with its values.
	s.compressed = s.zstd.EncodeAll(s.body, s.compressed[:0])
	begin := len(c.pages)
	c.pages = appendDataHeader(c.pages, n, encoding, len(s.body), len(s.compressed))
	c.size += len(c.pages) - begin + len(s.body)
	c.pages = append(c.pages, s.compressed...)
	return nil
}

// encode appends the non-null values to the body, and reports whether they are encoded as
// dictionary indices.
func (c *chunk) encode(s *shared, col columnar.Column, present int) (coded bool, err error) {
	levels := len(s.body)
	text, _ := col.(*columnar.Bytes)
	if text == nil {
		if s.body, err = c.appendPlain(s.body, col); err != nil {
			return false, err
		}
	}
	values := s.body[levels:]
	// NaNs are not part of the bounds, so Iceberg counts them separately.
	if c.stats.float() {
		c.nans += countNaNs(values, c.width)
	}
	coded = c.lookUp(present, func(d *dictionary) bool {
		s.indices = slices.Grow(s.indices[:0], present)[:present]
		if text != nil {
			return d.strings(s.indices, text, text.Validity())
		}
		return d.fixed(s.indices, values, c.width)
	})
	switch {
	case coded:
		width := max(1, bits.Len(uint(c.dictionary.len()-1)))
		s.body = appendHybrid(append(s.body[:levels], byte(width)), s.indices, width)
	// Strings were not encoded before the lookup, to avoid copying recurring ones.
	case text != nil:
		s.body = appendStrings(s.body, text, text.Validity())
	}
	return coded, nil
}

// lookUp looks up values in the dictionary and adds new ones, unless it is disabled. The first page
// decides whether the dictionary pays. If it becomes too large later, the entries of the unfinished
// page are removed.
func (c *chunk) lookUp(values int, find func(*dictionary) bool) bool {
	d := &c.dictionary
	known := d.len() // entries of earlier pages
	switch {
	case values == 0 || c.use == never || c.use == full:
		return false
	case c.use == untried:
		// In the first page, more distinct values than this mean that a dictionary does not pay.
		d.maxEntries = min(dictionaryEntries, values/minRepetition)
	default:
		d.maxEntries = dictionaryEntries
	}
	switch {
	case find(d):
		c.use = inUse
		return true
	case c.use == untried:
		c.use = never
		d.reset()
	default:
		c.use = full
		// Entries of earlier pages are still referred to. Only those of this page are removed.
		d.truncate(known)
	}
	return false
}

// end returns the dictionary's page, which begins the chunk, or nothing if there is no dictionary.
// The result is valid until the next call.
func (c *chunk) end(s *shared) []byte {
	if c.coded == 0 {
		return nil
	}
	d := &c.dictionary
	c.stats.add(d.plain, d.len())
	s.compressed = s.zstd.EncodeAll(d.plain, s.compressed[:0])
	s.page = appendDictionaryHeader(s.page[:0], d.len(), len(d.plain), len(s.compressed))
	c.size += len(s.page) + len(d.plain)
	s.page = append(s.page, s.compressed...)
	return s.page
}

// describe adds the chunk to the footer. at is its offset in the file, and dictionary the size of
// the dictionary's page.
func (c *chunk) describe(m *metadata.ColumnChunkMetaDataBuilder, at int64, dictionary int) error {
	// The dictionary's page comes first, followed by the data pages.
	info := metadata.ChunkMetaInfo{
		NumValues: int64(c.values), IndexPageOffset: -1, DataPageOffset: at + int64(dictionary),
		CompressedSize: int64(dictionary + len(c.pages)), UncompressedSize: int64(c.size),
	}
	stats := metadata.EncodingStats{DataEncodingStats: map[parquet.Encoding]int32{}}
	if c.plain > 0 {
		stats.DataEncodingStats[parquet.Encodings.Plain] = c.plain
	}
	if c.coded > 0 {
		info.DictPageOffset = at
		stats.DataEncodingStats[parquet.Encodings.RLEDict] = c.coded
		stats.DictEncodingStats = map[parquet.Encoding]int32{parquet.Encodings.Plain: 1}
	}
	m.SetStats(c.statistics())
	if c.stats.some { // arrow-go has no setter for these
		have := m.Contents().MetaData.Statistics
		if _, exact := c.stats.lower(); !exact {
			have.IsMinValueExact = &exact
		}
		if _, exact := c.stats.upper(); !exact {
			have.IsMaxValueExact = &exact
		}
	}
	return m.Finish(info, c.coded > 0, c.coded > 0 && c.plain > 0, stats)
}

// statistics returns the chunk's statistics for the footer. Without any value they have no bounds.
func (c *chunk) statistics() metadata.EncodedStatistics {
	stats := metadata.EncodedStatistics{
		HasNullCount: true, NullCount: int64(c.nulls), Signed: c.column.SortOrder() == schema.SortSIGNED,
	}
	if c.stats.some {
		low, _ := c.stats.lower()
		high, _ := c.stats.upper()
		stats.SetMin(low).SetMax(high)
	}
	return stats
}
