package feast

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"

	"github.com/millrace/millrace/features/training"
)

const (
	maxValues = 500_000_000 // rows × features
	// Memory of one join. What does not fit is in temporary files.
	joinMemory = 128 << 20
)

// answer computes the features and sends the table with them.
func (s *store) answer(ctx context.Context, e *entities, p *plan, to *stream) (err error) {
	if err := e.check(p.outputs); err != nil {
		return err
	}
	at, known, err := e.times()
	if err != nil {
		return err
	}
	if e.rows*int64(len(p.outputs)) > maxValues {
		return bad("%d features of %d rows are more than %d values: split entity_df", len(p.outputs), e.rows, maxValues)
	}
	dir, err := os.MkdirTemp(s.TempDir, "millrace-feast-")
	if err != nil {
		return fmt.Errorf("create a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := training.Config{At: e.schema.Field(at).Name, FullNames: true, Memory: joinMemory, TempDir: dir,
		Refuses: s.Refuses}
	times := []int{at}
	if known >= 0 {
		times, c.Known = append(times, known), KnownColumn
	}
	// All joins are of the same moment.
	if c.Facts, c.Positions, err = s.Facts(ctx, p.sources()); err != nil {
		return fmt.Errorf("open the facts: %w", err)
	}
	results := make([]*results, len(p.joins))
	for i, j := range p.joins {
		c.Spine, c.Out = filepath.Join(dir, "spine.parquet"), filepath.Join(dir, fmt.Sprintf("features%d.parquet", i))
		c.Groups, c.Features = j.groups, j.outputs // each key is in the column of its entity's name
		if err := e.spine(c.Spine, j.key, times...); err != nil {
			return err
		}
		if _, err := training.Build(ctx, c); err != nil {
			return err
		}
		if results[i], err = openResults(ctx, c.Out, j.outputs); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, results[i].close()) }()
	}
	return send(to, e, p, results)
}

// send sends the table of entities with the results.
func send(to *stream, e *entities, p *plan, results []*results) error {
	fields := append([]arrow.Field{}, e.schema.Fields()...)
	for _, o := range p.outputs {
		fields = append(fields, arrow.Field{Name: o.name, Type: results[o.join].types[o.column], Nullable: true})
	}
	schema := arrow.NewSchema(fields, nil)
	w := flight.NewRecordWriter(to, ipc.WithSchema(schema))
	for _, piece := range e.pieces {
		columns := append([]arrow.Array{}, piece.Columns()...)
		next := make([][]arrow.Array, len(results))
		for i, r := range results {
			var err error
			if next[i], err = r.next(piece.NumRows()); err != nil {
				return err
			}
		}
		for _, o := range p.outputs {
			columns = append(columns, next[o.join][o.column])
		}
		if err := w.Write(array.NewRecordBatch(schema, columns, piece.NumRows())); err != nil {
			return &transport{fmt.Errorf("send the features: %w", err)}
		}
	}
	return w.Close() // also sends the schema of a table without rows
}

// results are the features of one entity, from a training set.
type results struct {
	file    *file.Reader
	batches pqarrow.RecordReader
	columns []int            // of the outputs, in batches
	types   []arrow.DataType // of the outputs
	left    arrow.RecordBatch
}

// openResults opens a training set, of which only the outputs are read.
func openResults(ctx context.Context, path string, outputs []string) (_ *results, err error) {
	f, err := file.OpenParquetFile(path, false)
	if err != nil {
		return nil, fmt.Errorf("open the training set: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	r, err := pqarrow.NewFileReader(f, pqarrow.ArrowReadProperties{BatchSize: pieceRows}, memory.DefaultAllocator)
	if err != nil {
		return nil, fmt.Errorf("read the training set: %w", err)
	}
	all, err := r.Schema()
	if err != nil {
		return nil, fmt.Errorf("read the training set: %w", err)
	}
	// Each column of the file has one leaf, and the outputs are the last ones.
	var leaves []int
	for i := all.NumFields() - len(outputs); i < all.NumFields(); i++ {
		leaves = append(leaves, i)
	}
	s := &results{file: f}
	if s.batches, err = r.GetRecordReader(ctx, leaves, nil); err != nil {
		return nil, fmt.Errorf("read the training set: %w", err)
	}
	for _, name := range outputs {
		found := s.batches.Schema().FieldIndices(name)
		if len(found) != 1 {
			return nil, fmt.Errorf("the training set has no column %s", name)
		}
		s.columns = append(s.columns, found[0])
		s.types = append(s.types, s.batches.Schema().Field(found[0]).Type)
	}
	return s, nil
}

// next returns the outputs of the next rows.
func (r *results) next(rows int64) ([]arrow.Array, error) {
	parts := make([][]arrow.Array, len(r.columns))
	for rows > 0 {
		if r.left == nil || r.left.NumRows() == 0 {
			batch, err := r.batches.Read()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return nil, fmt.Errorf("read the training set: %w", err)
			}
			batch.Retain() // past the next Read
			r.left = batch
		}
		n := min(rows, r.left.NumRows())
		for i, column := range r.columns {
			parts[i] = append(parts[i], array.NewSlice(r.left.Column(column), 0, n))
		}
		r.left = r.left.NewSlice(n, r.left.NumRows())
		rows -= n
	}
	whole := make([]arrow.Array, len(parts))
	for i, all := range parts {
		var err error
		if whole[i], err = array.Concatenate(all, memory.DefaultAllocator); err != nil {
			return nil, fmt.Errorf("join parts of column %d: %w", i, err)
		}
	}
	return whole, nil
}

// close closes the file.
func (r *results) close() error {
	r.batches.Release()
	return r.file.Close()
}
