package maintenance

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/compute"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/millrace/millrace/lake/internal/datafile"
)

// sorter is an external merge sort. It collects batches up to a memory budget, writes them sorted
// to a file (a run), and merges the runs as a stream. It holds at most about twice the budget: the
// batches and their sorted copy.
type sorter struct {
	ctx     context.Context
	keys    []keyField
	schema  *arrow.Schema
	dir     string // folder of the runs
	budget  int64
	spilled func() error // called after each run

	pending      []arrow.RecordBatch
	pendingKeys  []rowKeys // keys of each batch
	pendingBytes int64     // batches and keys
	runs         []string  // files of sorted rows
	files        int       // number of files written
}

// spillBatch is the approximate size of a batch in a run. Merging holds one batch per run.
const spillBatch = 256 << 10

// newSorter returns a sorter that spills to dir, which the caller removes.
func newSorter(
	ctx context.Context, keys []keyField, schema *arrow.Schema, dir string, budget int64, spilled func() error,
) *sorter {
	return &sorter{ctx: ctx, keys: keys, schema: schema, dir: dir, budget: budget, spilled: spilled}
}

// add adds a batch and retains it.
func (s *sorter) add(rec arrow.RecordBatch) error {
	keys, err := keysOf(s.keys, rec)
	if err != nil {
		return err
	}
	rec.Retain()
	s.pending = append(s.pending, rec)
	s.pendingKeys = append(s.pendingKeys, keys)
	// Keys count towards the budget, since they can be as large as the rows.
	s.pendingBytes += batchBytes(rec) + int64(cap(keys.bytes)+8*cap(keys.ends))
	if s.pendingBytes < s.budget {
		return nil
	}
	return s.spill()
}

// sorted passes all rows to each in order. A batch is valid only during the call.
func (s *sorter) sorted(each func(arrow.RecordBatch) error) error {
	if len(s.runs) == 0 {
		return s.drain(each)
	}
	// Treat the remaining rows like the other runs.
	if err := s.spill(); err != nil {
		return err
	}
	// Merging holds a batch per run, so too many runs are first merged into larger ones.
	// At least two runs have to be merged at a time to make progress.
	fanIn := int(max(2, s.budget/spillBatch))
	for len(s.runs) > fanIn {
		some := s.runs[:fanIn]
		merged, err := s.write(func(each func(arrow.RecordBatch) error) error { return s.merge(some, each) })
		if err != nil {
			return err
		}
		s.runs = append(s.runs[fanIn:], merged)
		for _, run := range some {
			if err := os.Remove(run); err != nil {
				return fmt.Errorf("sort: %w", err)
			}
		}
	}
	return s.merge(s.runs, each)
}

// close releases the pending batches.
func (s *sorter) close() {
	for _, rec := range s.pending {
		rec.Release()
	}
	s.pending, s.pendingKeys = nil, nil
}

// spill writes the pending rows to a run.
func (s *sorter) spill() error {
	if len(s.pending) == 0 {
		return nil
	}
	run, err := s.write(s.drain)
	if err != nil {
		return err
	}
	s.runs = append(s.runs, run)
	return s.spilled()
}

// drain passes the pending rows to each, sorted, in small batches.
func (s *sorter) drain(each func(arrow.RecordBatch) error) error {
	if len(s.pending) == 0 {
		return nil
	}
	// Rows of all pending batches are numbered consecutively.
	var rows []keyedRow
	for _, keys := range s.pendingKeys {
		for i := range keys.len() {
			rows = append(rows, keyedRow{keys.at(i), int64(len(rows))})
		}
	}
	// Sort keys with indices, then copy the rows once in sorted order.
	order := sortedIndices(rows)
	// concatenate copies or retains the rows, so the pending batches are released at once.
	all, err := concatenate(s.schema, s.pending)
	s.close()
	total := s.pendingBytes
	s.pendingBytes = 0
	if err != nil {
		return err
	}
	defer all.Release()
	// Estimate the rows per batch from the average size of a row.
	size := max(1, int(spillBatch*all.NumRows()/max(total, 1)))
	for part := range slices.Chunk(order, size) {
		if err := s.take(all, part, each); err != nil {
			return err
		}
	}
	return nil
}

// keyedRow is a row's key and its index before sorting.
type keyedRow struct {
	key []byte
	at  int64
}

// sortedIndices returns the indices of the rows in key order. Rows with equal keys keep their
// order.
func sortedIndices(rows []keyedRow) []int64 {
	slices.SortStableFunc(rows, func(a, b keyedRow) int { return bytes.Compare(a.key, b.key) })
	order := make([]int64, len(rows))
	for i, r := range rows {
		order[i] = r.at
	}
	return order
}

// take passes the given rows to each, in the given order.
func (s *sorter) take(from arrow.RecordBatch, rows []int64, each func(arrow.RecordBatch) error) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	// Arrow takes rows by index in one pass per column.
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	b.AppendValues(rows, nil)
	indices := b.NewArray()
	defer indices.Release()
	columns := make([]arrow.Array, from.NumCols())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i := range columns {
		var err error
		columns[i], err = compute.TakeArrayOpts(s.ctx, from.Column(i), indices, compute.TakeOptions{BoundsCheck: false})
		if err != nil {
			return fmt.Errorf("sort column %s: %w", from.ColumnName(i), err)
		}
	}
	rec := datafile.Labelled(s.schema, columns, int64(len(rows)))
	defer rec.Release()
	return each(rec)
}

// write writes a run and returns its path.
func (s *sorter) write(rows func(each func(arrow.RecordBatch) error) error) (_ string, err error) {
	s.files++
	// Runs are numbered, also those that are merged from others.
	name := filepath.Join(s.dir, fmt.Sprintf("run-%d", s.files))
	f, err := os.Create(name) //nolint:gosec // a folder of our own
	if err != nil {
		return "", fmt.Errorf("sort: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Batches are small, so writes are buffered.
	buffered := bufio.NewWriterSize(f, 256<<10)
	w := ipc.NewWriter(buffered, ipc.WithSchema(s.schema), ipc.WithLZ4())
	if err := rows(w.Write); err != nil {
		return "", errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return "", fmt.Errorf("sort: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return "", fmt.Errorf("sort: %w", err)
	}
	return name, nil
}

// source is a run that is being merged.
type source struct {
	file *os.File
	rows *ipc.Reader
	rec  arrow.RecordBatch // current batch; nil at the end
	keys rowKeys
	next int // next row of rec
}

// merge passes the rows of several runs to each, in order. Each round takes rows from the current
// batches up to the least of their last keys. No later row of any run can sort before those.
func (s *sorter) merge(runs []string, each func(arrow.RecordBatch) error) (err error) {
	var sources []*source
	defer func() {
		for _, src := range sources {
			err = errors.Join(err, src.close())
		}
	}()
	for _, run := range runs {
		src, err := s.open(run)
		if err != nil {
			return err
		}
		sources = append(sources, src)
	}
	for {
		// Runs that are exhausted are closed.
		sources = slices.DeleteFunc(sources, func(src *source) bool {
			if src.rec == nil {
				err = errors.Join(err, src.close())
			}
			return src.rec == nil
		})
		if err != nil || len(sources) == 0 {
			return err
		}
		if err := s.round(sources, each); err != nil {
			return err
		}
	}
}

// round performs one round of a merge.
func (s *sorter) round(sources []*source, each func(arrow.RecordBatch) error) error {
	// The least of the last keys: all rows up to it are in the current batches.
	bound := sources[0].last()
	for _, src := range sources[1:] {
		if last := src.last(); bytes.Compare(last, bound) < 0 {
			bound = last
		}
	}
	var parts []arrow.RecordBatch
	defer func() {
		for _, p := range parts {
			p.Release()
		}
	}()
	var rows []keyedRow
	var ended []*source
	for _, src := range sources {
		// The rows of this batch up to the bound are contiguous, because a run is sorted.
		end := src.next
		for end < src.keys.len() && bytes.Compare(src.keys.at(end), bound) <= 0 {
			rows = append(rows, keyedRow{src.keys.at(end), int64(len(rows))})
			end++
		}
		if end > src.next {
			parts = append(parts, src.rec.NewSlice(int64(src.next), int64(end)))
		}
		if src.next = end; end == src.keys.len() {
			ended = append(ended, src)
		}
	}
	// A single source is already in order.
	if len(parts) == 1 {
		if err := each(parts[0]); err != nil {
			return err
		}
	} else {
		all, err := concatenate(s.schema, parts)
		if err != nil {
			return err
		}
		defer all.Release()
		if err := s.take(all, sortedIndices(rows), each); err != nil {
			return err
		}
	}
	// Only now: parts and bound refer to the current batches.
	for _, src := range ended {
		if err := src.load(s.keys); err != nil {
			return err
		}
	}
	return nil
}

// open opens a run and reads its first batch.
func (s *sorter) open(run string) (*source, error) {
	f, err := os.Open(run) //nolint:gosec // a file of our own
	if err != nil {
		return nil, fmt.Errorf("sort: %w", err)
	}
	rows, err := ipc.NewReader(bufio.NewReaderSize(f, 32<<10), ipc.WithSchema(s.schema))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sort: %w", err), f.Close())
	}
	src := &source{file: f, rows: rows}
	if err := src.load(s.keys); err != nil {
		return nil, errors.Join(err, src.close())
	}
	return src, nil
}

// last returns the last key of the current batch.
func (src *source) last() []byte { return src.keys.at(src.keys.len() - 1) }

// load reads the next batch that has rows.
func (src *source) load(keys []keyField) error {
	for {
		rec, err := src.rows.Read()
		src.rec, src.next = nil, 0
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sort: %w", err)
		}
		if rec.NumRows() == 0 {
			continue
		}
		src.rec = rec // owned by the reader, valid until the next Read
		if src.keys, err = keysOf(keys, rec); err != nil {
			return err
		}
		return nil
	}
}

// close closes the file of the run. A second call does nothing.
func (src *source) close() error {
	if src.file == nil {
		return nil
	}
	src.rows.Release()
	err := src.file.Close()
	src.file = nil
	return err
}

// concatenate returns one batch with the rows of all, which must be released.
func concatenate(schema *arrow.Schema, recs []arrow.RecordBatch) (arrow.RecordBatch, error) {
	if len(recs) == 1 {
		recs[0].Retain()
		return recs[0], nil
	}
	columns := make([]arrow.Array, schema.NumFields())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	var rows int64
	for _, rec := range recs {
		rows += rec.NumRows()
	}
	parts := make([]arrow.Array, len(recs))
	for i := range columns {
		for j, rec := range recs {
			parts[j] = rec.Column(i)
		}
		var err error
		if columns[i], err = array.Concatenate(parts, memory.DefaultAllocator); err != nil {
			return nil, fmt.Errorf("concatenate column %s: %w", schema.Field(i).Name, err)
		}
	}
	return datafile.Labelled(schema, columns, rows), nil
}

// batchBytes returns the approximate memory of a batch. Slices count by their share.
func batchBytes(rec arrow.RecordBatch) (total int64) {
	for _, c := range rec.Columns() {
		total += int64(c.Data().SizeInBytes())
	}
	return total
}
