package external

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/infer"
)

// extraColumn is the column for JSON content that has no column of its own.
const extraColumn = "_extra"

// jsonOptions returns the options for columns of JSON values. They must not use the names of the
// other columns.
func jsonOptions(with layout, times bool) infer.Options {
	return infer.Options{Extra: extraColumn, Reserved: with.reserved(), Times: times}
}

// JSON declares a table for a topic of JSON objects. The columns follow from the objects, see
// package infer. If times is set, strings that are RFC 3339 times become timestamps.
func JSON(name lake.Name, topic string, times bool, options ...Option) declare.Table {
	with := layoutOf(options)
	o := jsonOptions(with, times)
	t := declared(name, topic, fmt.Sprintf("Every JSON object on the topic %s.", topic))
	// No value is known yet, so the table begins without columns for fields.
	t.Columns, t.Grows = slices.Concat(with.columns(), []columnar.Field{o.ExtraField()}), true
	t.Rows = func(to *columnar.Columns, _ *registry.Decoder) (declare.Rows, error) {
		objects, err := o.Bind(to)
		if err != nil {
			return nil, err
		}
		at, err := with.bind(to)
		return &jsonRows{o, objects, at}, err
	}
	return t
}

// jsonRows are the Rows of a table declared by JSON. They implement declare.Grower.
type jsonRows struct {
	options infer.Options
	objects *infer.Decoder
	record  recordColumns
}

// Append implements declare.Rows.
func (j *jsonRows) Append(_ context.Context, r declare.Record) (declare.Appended, error) {
	if r.Value == nil {
		return declare.Appended{}, errNoValue
	}
	if err := appendJSON(j.objects, r.Value); err != nil {
		return declare.Appended{}, err
	}
	return j.record.append(r), nil
}

// appendJSON appends an object and converts the error for missing columns.
func appendJSON(to *infer.Decoder, value []byte) error {
	// A value that is not an object becomes a dead letter.
	object, err := infer.Parse(value)
	if err != nil {
		return err
	}
	if err = to.Append(object); errors.Is(err, infer.ErrGrow) {
		return fmt.Errorf("%w: %w", declare.ErrGrow, err)
	}
	return err
}

// Grow implements declare.Grower.
func (j *jsonRows) Grow(
	_ context.Context, have []columnar.Field, records iter.Seq[declare.Record],
) ([]columnar.Field, error) {
	var objects []*infer.Object
	for r := range records {
		if object, err := infer.Parse(r.Value); err == nil { // Append reports the error of other values
			objects = append(objects, object)
		}
	}
	// All records of the fetch are considered, so the table grows once instead of per record.
	want, _ := j.options.Grow(have, objects...)
	return want, nil
}
