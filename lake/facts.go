package lake

import (
	"fmt"
	"iter"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
)

// facts declares a table that has rows for each event that brings any, as they were then: later events add rows, and change none.
type facts[T any] struct {
	name, doc string
	of        event.Aggregate
	sort      string
	columns   shape[T]
	stream    func(*T) string
	rows      func(e event.Event, into []T) ([]T, error) // appends an event's rows to into
}

func (d facts[T]) table() Table {
	return Table{
		Name: d.name, Topic: d.of.Topic, Doc: d.doc, Columns: d.columns.fields(), Sort: []Sort{{Column: d.sort}}, derived: d.of,
		Rows: rowsOf(d.of, func(*columnar.Columns) (decoder, error) { return &factDecoder[T]{declared: d}, nil }),
		sums: sums{
			add:    func(to *digest.Digest, rec arrow.RecordBatch) error { return addRows(to, rec, d.columns, d.stream) },
			expect: d.expect,
		},
	}
}

func (d facts[T]) expect(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	to := digest.New()
	var rows []T
	var content []byte
	for e, err := range events {
		if err == nil {
			rows, err = d.decode(e, rows[:0])
		}
		if err != nil {
			return nil, err
		}
		for i := range rows {
			content = d.columns.content(content[:0], &rows[i])
			to.Add(d.stream(&rows[i]), content)
		}
	}
	return to, nil
}

func (d facts[T]) decode(e event.Event, into []T) ([]T, error) {
	rows, err := d.rows(e, into)
	if err != nil {
		return into, fmt.Errorf("event %s: %w", e.ID, err)
	}
	return rows, nil
}

// factDecoder makes an event's rows.
type factDecoder[T any] struct {
	declared facts[T]
	rows     []T // reused
}

func (d *factDecoder[T]) append(to *row, e event.Event) (err error) {
	if d.rows, err = d.declared.rows(e, d.rows[:0]); err != nil {
		return err
	}
	for i := range d.rows {
		d.declared.columns.append(to, &d.rows[i])
		to.end()
	}
	return nil
}

// optionalTime is a time as columns keep it; zero where there is none.
func optionalTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return event.Time(t.AsTime()), nil
}

func requiredTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, fmt.Errorf("%s: missing", field)
	}
	return optionalTime(field, t)
}
