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
)

// sorter sorts more rows than memory holds: it gathers batches up to a budget, writes them sorted
// to a file, and merges the files as a stream. It holds about twice the budget at most: the
// batches, and their sorted copy.
type sorter struct {
	ctx    context.Context
	keys   []keyField
	schema *arrow.Schema
	dir    string // of its files
	budget int64
	spilt  func() error // called after each file

	pending      []arrow.RecordBatch
	pendingKeys  []rowKeys // of each
	pendingBytes int64     // of both
	runs         []string  // files of sorted rows
	files        int       // made so far
}

// Batches in the files are about so large: a merge holds one of each file.
const spillBatch = 256 << 10

func newSorter(ctx context.Context, keys []keyField, schema *arrow.Schema, dir string, budget int64, spilt func() error) *sorter {
	return &sorter{ctx: ctx, keys: keys, schema: schema, dir: dir, budget: budget, spilt: spilt}
}

// add takes a batch and keeps it.
func (s *sorter) add(rec arrow.RecordBatch) error {
	keys, err := keysOf(s.keys, rec)
	if err != nil {
		return err
	}
	rec.Retain()
	s.pending = append(s.pending, rec)
	s.pendingKeys = append(s.pendingKeys, keys)
	s.pendingBytes += batchBytes(rec) + int64(cap(keys.bytes)+8*cap(keys.ends))
	if s.pendingBytes < s.budget {
		return nil
	}
	return s.spill()
}

// sorted hands all rows on in order. The batches are valid during the call only.
func (s *sorter) sorted(each func(arrow.RecordBatch) error) error {
	if len(s.runs) == 0 {
		return s.drain(each)
	}
	if err := s.spill(); err != nil {
		return err
	}
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

func (s *sorter) close() {
	for _, rec := range s.pending {
		rec.Release()
	}
	s.pending, s.pendingKeys = nil, nil
}

func (s *sorter) spill() error {
	if len(s.pending) == 0 {
		return nil
	}
	run, err := s.write(s.drain)
	if err != nil {
		return err
	}
	s.runs = append(s.runs, run)
	return s.spilt()
}

// drain hands on the pending rows, sorted, in small batches.
func (s *sorter) drain(each func(arrow.RecordBatch) error) error {
	if len(s.pending) == 0 {
		return nil
	}
	var rows []keyedRow
	for _, keys := range s.pendingKeys {
		for i := range keys.len() {
			rows = append(rows, keyedRow{keys.at(i), int64(len(rows))})
		}
	}
	order := inOrder(rows)
	all, err := concatenate(s.schema, s.pending)
	s.close()
	total := s.pendingBytes
	s.pendingBytes = 0
	if err != nil {
		return err
	}
	defer all.Release()
	size := max(1, int(spillBatch*all.NumRows()/max(total, 1)))
	for part := range slices.Chunk(order, size) {
		if err := s.take(all, part, each); err != nil {
			return err
		}
	}
	return nil
}

type keyedRow struct {
	key []byte
	at  int64
}

// inOrder reports where the rows are, in the order of their keys; those with the same key as they
// come.
func inOrder(rows []keyedRow) []int64 {
	slices.SortStableFunc(rows, func(a, b keyedRow) int { return bytes.Compare(a.key, b.key) })
	order := make([]int64, len(rows))
	for i, r := range rows {
		order[i] = r.at
	}
	return order
}

// take hands on the rows that are named, in that order.
func (s *sorter) take(from arrow.RecordBatch, rows []int64, each func(arrow.RecordBatch) error) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
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
		if columns[i], err = compute.TakeArrayOpts(s.ctx, from.Column(i), indices, compute.TakeOptions{BoundsCheck: false}); err != nil {
			return fmt.Errorf("sort column %s: %w", from.ColumnName(i), err)
		}
	}
	rec := labelled(s.schema, columns, int64(len(rows)))
	defer rec.Release()
	return each(rec)
}

// write returns a file of sorted rows.
func (s *sorter) write(rows func(each func(arrow.RecordBatch) error) error) (_ string, err error) {
	s.files++
	name := filepath.Join(s.dir, fmt.Sprintf("run-%d", s.files))
	f, err := os.Create(name) //nolint:gosec // a folder of our own
	if err != nil {
		return "", fmt.Errorf("sort: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
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

// source is a file of sorted rows being merged.
type source struct {
	file *os.File
	rows *ipc.Reader
	rec  arrow.RecordBatch // under way; nil at the end
	keys rowKeys
	next int // row of rec
}

// merge hands on the rows of several sorted files in order. In each round it takes, of the batch
// under way of each file, the rows up to the least of the batches' last keys: behind them nothing
// smaller can come.
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

func (s *sorter) round(sources []*source, each func(arrow.RecordBatch) error) error {
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
		if err := s.take(all, inOrder(rows), each); err != nil {
			return err
		}
	}
	for _, src := range ended {
		if err := src.load(s.keys); err != nil {
			return err
		}
	}
	return nil
}

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

func (src *source) last() []byte { return src.keys.at(src.keys.len() - 1) }

// load takes the next batch that has rows.
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
		src.rec = rec // of the reader, until its next
		if src.keys, err = keysOf(keys, rec); err != nil {
			return err
		}
		return nil
	}
}

func (src *source) close() error {
	if src.file == nil {
		return nil
	}
	src.rows.Release()
	err := src.file.Close()
	src.file = nil
	return err
}

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
			return nil, fmt.Errorf("gather column %s: %w", schema.Field(i).Name, err)
		}
	}
	return labelled(schema, columns, rows), nil
}

// batchBytes is about what a batch's rows take; a slice counts by its share.
func batchBytes(rec arrow.RecordBatch) (total int64) {
	for _, c := range rec.Columns() {
		total += int64(c.Data().SizeInBytes())
	}
	return total
}
