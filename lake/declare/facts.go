package declare

import (
	"fmt"
	"iter"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
)

// Facts declares a table with the rows that each event contributes. Later events add rows and
// change none.
type Facts[T any] struct {
	Name, Doc string
	Of        event.Aggregate
	Sort      string // column to sort by
	Columns   Schema[T]
	Stream    func(*T) string // the stream that a row belongs to, for digests
	// Rows returns a function that appends an event's rows to into. Each lander calls Rows once, so
	// the function may keep buffers.
	Rows func() func(e event.Event, into []T) ([]T, error)
}

// Table returns the complete declaration.
func (d Facts[T]) Table() Table {
	return Table{
		Name: d.Name, Topic: d.Of.Topic, Doc: d.Doc, Columns: d.Columns.fields(), Sort: []Sort{{Column: d.Sort}},
		Derived: d.Of,
		Rows: rowsOf(d.Of, func(to *columnar.Columns) (decoder, error) {
			return &factDecoder[T]{make: d.Rows(), write: d.Columns.write(to, 0), columns: len(d.Columns)}, nil
		}),
		Sums: Sums{
			Add: func(to *digest.Digest, rec arrow.RecordBatch) error {
				return addRows(to, rec, d.Columns, d.Stream)
			},
			Expect: d.expect,
		},
	}
}

// expect returns the digest of the rows that events should produce. It uses the same decoder as
// landing.
func (d Facts[T]) expect(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	to, decode := digest.New(), d.Rows()
	var rows []T
	var content []byte
	for e, err := range events {
		if err == nil {
			rows, err = decode(e, rows[:0])
			if err != nil {
				err = fmt.Errorf("event %s: %w", e.ID, err)
			}
		}
		if err != nil {
			return nil, err
		}
		for i := range rows {
			content = d.Columns.Content(content[:0], &rows[i])
			to.Add(d.Stream(&rows[i]), content)
		}
	}
	return to, nil
}

// factDecoder converts an event into its rows.
type factDecoder[T any] struct {
	make    func(e event.Event, into []T) ([]T, error)
	write   func(*T)
	columns int
	rows    []T // reused
}

// append writes the rows of one event. It reuses the slice of the previous call.
func (d *factDecoder[T]) append(to *row, e event.Event) (err error) {
	if d.rows, err = d.make(e, d.rows[:0]); err != nil {
		return err
	}
	for i := range d.rows {
		d.write(&d.rows[i])
		to.filled(d.columns)
		to.end()
	}
	return nil
}
