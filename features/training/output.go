package training

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/encoding"

	"github.com/millrace/millrace/features/exact"
)

// schema returns the columns of the output: those of the spine, then the outputs. They keep their
// order, which parquet.Group would not.
func schema(s *spine, outputs []groupOutput) (*parquet.Schema, error) {
	var root group
	taken := map[string]bool{}
	for _, f := range s.parquet.Schema().Fields() {
		taken[f.Name()] = true
		root.fields = append(root.fields, field{copied{f}, f.Name()})
	}
	for _, o := range outputs {
		if taken[o.column] {
			return nil, fail("the spine has a column %s, which is also the name of a feature: rename it, or use "+
				"full names (group__output)", o.column)
		}
		root.fields = append(root.fields, field{outputNode(o.output.Kind), o.column})
	}
	return parquet.NewSchema("training_set", &root), nil
}

// outputNode returns the type of a column. Values are null where results are.
func outputNode(kind exact.ResultKind) parquet.Node {
	switch kind {
	case exact.IntResult:
		return parquet.Optional(parquet.Int(64))
	case exact.FloatResult:
		return parquet.Optional(parquet.Leaf(parquet.DoubleType))
	case exact.TextsResult:
		return parquet.List(parquet.String())
	}
	return parquet.Optional(parquet.String())
}

// group is a root whose fields keep their order.
type group struct {
	parquet.Group
	fields []parquet.Field
}

func (g *group) Fields() []parquet.Field { return g.fields }
func (g *group) GoType() reflect.Type    { return reflect.TypeFor[struct{}]() }

// field is a node with a name.
type field struct {
	parquet.Node
	name string
}

func (f field) Name() string                      { return f.name }
func (f field) Value(reflect.Value) reflect.Value { return reflect.Value{} }

// copied is a node of another file, without its encoding and compression.
type copied struct{ parquet.Node }

func (copied) Encoding() encoding.Encoding { return nil }
func (copied) Compression() compress.Codec { return nil }
func (c copied) Fields() []parquet.Field {
	all := c.Node.Fields()
	fields := make([]parquet.Field, len(all))
	for i, f := range all {
		fields[i] = field{copied{f}, f.Name()}
	}
	return fields
}

// output writes a training set.
type output struct {
	spine   *spine
	writer  *parquet.GenericWriter[any]
	outputs []groupOutput
	first   int // index of the first output among the leaves
	block   [][]parquet.Value
}

// newOutput returns a writer of a training set to w.
func newOutput(w io.Writer, s *spine, outputs []groupOutput) (*output, error) {
	columns, err := schema(s, outputs)
	if err != nil {
		return nil, err
	}
	return &output{
		spine: s, outputs: outputs, first: len(s.parquet.Schema().Columns()), block: make([][]parquet.Value, len(outputs)),
		// The bytes must not depend on the program's version.
		writer: parquet.NewGenericWriter[any](w, columns, parquet.CreatedBy("millrace", "", ""), parquet.Compression(&parquet.Zstd)),
	}, nil
}

// write writes all rows. next returns the results of the next row of the spine.
func (o *output) write(ctx context.Context, next func(number int64) ([]exact.Result, error),
	progress func(rows int64)) error {
	number := int64(0)
	for _, group := range o.spine.parquet.RowGroups() {
		for i, chunk := range group.ColumnChunks() {
			if err := o.copy(ctx, group.NumRows(), i, chunk); err != nil {
				return err
			}
		}
		for left := group.NumRows(); left > 0; {
			n := min(left, batchRows)
			if err := o.results(number, n, next); err != nil {
				return err
			}
			number, left = number+n, left-n
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			progress(number)
		}
		if err := o.writer.Flush(); err != nil {
			return fmt.Errorf("write a row group: %w", err)
		}
	}
	return o.writer.Close()
}

// copy copies a column of a row group of the spine.
func (o *output) copy(ctx context.Context, rows int64, column int, chunk parquet.ColumnChunk) (err error) {
	path := o.spine.parquet.Schema().Columns()[column]
	r := &leafReader{leaf: leaf{name: fmt.Sprint(path[0])}, pages: chunk.Pages()}
	defer func() { err = errors.Join(err, r.close()) }()
	to := o.writer.ColumnWriters()[column]
	buffer := make([]parquet.Value, batchRows)
	var pending []parquet.Value // values of a row whose end was not read yet
	copied := int64(0)
	for ended := false; !ended; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.read(buffer)
		if ended = errors.Is(err, io.EOF); !ended && err != nil {
			return spineError("%w", err)
		}
		for _, v := range buffer[:n] {
			if v.RepetitionLevel() == 0 {
				copied++
			}
			pending = append(pending, v.Clone())
		}
		end := len(pending)
		for !ended && end > 0 && (end == len(pending) || pending[end].RepetitionLevel() != 0) {
			end--
		}
		if copied > rows {
			break
		}
		if end > 0 {
			if err := writeValues(to, r.leaf.name, pending[:end]); err != nil {
				return err
			}
			pending = append(pending[:0], pending[end:]...)
		}
	}
	if copied != rows {
		return spineError("column %s has %d values in a row group of %d rows", r.leaf.name, copied, rows)
	}
	return nil
}

// writeValues writes whole rows of a column.
func writeValues(to *parquet.ColumnWriter, name string, values []parquet.Value) (err error) {
	defer damaged(&err, "column "+name)
	if _, err := to.WriteRowValues(values); err != nil {
		return fmt.Errorf("write column %s: %w", name, err)
	}
	return nil
}

// results writes the outputs of n rows.
func (o *output) results(number, n int64, next func(int64) ([]exact.Result, error)) error {
	for i := range o.block {
		o.block[i] = o.block[i][:0]
	}
	for i := range n {
		values, err := next(number + i)
		if err != nil {
			return err
		}
		for j, v := range values {
			o.block[j] = appendResult(o.block[j], v, o.outputs[j].output.Kind, o.first+j)
		}
	}
	for j, values := range o.block {
		if err := writeValues(o.writer.ColumnWriters()[o.first+j], o.outputs[j].column, values); err != nil {
			return err
		}
	}
	return nil
}

// appendResult appends the values of a result in its column.
func appendResult(to []parquet.Value, r exact.Result, kind exact.ResultKind, column int) []parquet.Value {
	if kind == exact.TextsResult {
		if len(r.Texts) == 0 {
			return append(to, parquet.NullValue().Level(0, 0, column))
		}
		for i, text := range r.Texts {
			to = append(to, parquet.ValueOf(text).Level(min(i, 1), 1, column))
		}
		return to
	}
	switch r.Kind {
	case exact.IntResult:
		return append(to, parquet.Int64Value(r.Int).Level(0, 1, column))
	case exact.FloatResult:
		return append(to, parquet.DoubleValue(r.Float).Level(0, 1, column))
	case exact.TextResult:
		return append(to, parquet.ValueOf(r.Text).Level(0, 1, column))
	}
	return append(to, parquet.NullValue().Level(0, 0, column))
}
