package declare

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/columnar"
)

// row appends rows to columns, value by value in column order.
type row struct {
	to *columnar.Columns
	at int // index of the next column
	n  int // rows since begin
}

// next returns the column of the next value.
func (r *row) next() columnar.Column {
	c := r.to.Column(r.at)
	r.at++
	return c
}

// begin starts a record: the first row, and the count of its rows.
func (r *row) begin() { r.at, r.n = 0, 0 }

// filled skips n columns that another writer has filled.
func (r *row) filled(n int) { r.at += n }

// end completes a row. The origin columns are left to the caller of Rows. A row with missing values
// is a bug and would corrupt the table, so it panics.
func (r *row) end() {
	if r.at != len(r.to.Fields())-len(originColumns) {
		panic("a row does not fill its table's columns")
	}
	r.at = 0
	r.n++
}

// The following methods append one value each. The type assertions hold because the schema has
// created the column for the same kind of value.
func (r *row) string(v string) { r.next().(*columnar.Bytes).AppendString(v) }
func (r *row) bytes(v []byte)  { r.next().(*columnar.Bytes).Append(v) }
func (r *row) int64(v int64)   { r.next().(*columnar.Int64s).Append(v) }
func (r *row) null()           { r.next().AppendNull() }
func (r *row) time(v time.Time) {
	r.next().(*columnar.Int64s).Append(v.UnixMicro())
}

// optional appends v, or null if it is empty.
func (r *row) optional(v string) {
	if v == "" {
		r.null()
		return
	}
	r.string(v)
}

// decoder appends the rows of one event to a row writer.
type decoder interface {
	append(to *row, e event.Event) error
}

// of converts the record to the event decoder's type.
func (r Record) of(a event.Aggregate) registry.Record {
	return registry.Record{
		Topic: a.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers,
	}
}

// event decodes the event in a record of an aggregate's topic. It fails if the event is a copy of
// one that the partition already had. The partition's sequence shows this; a table has no index of
// its events.
func (r Record) event(
	ctx context.Context, values *registry.Decoder, a event.Aggregate,
) (event.Event, Appended, error) {
	e, sealed, err := values.Sealed(ctx, r.of(a))
	if err != nil {
		return event.Event{}, Appended{}, err
	}
	appended := Appended{AsOf: e.RecordedAt, Sealed: sealed}
	if sealed {
		appended.After, err = r.Before.Next(e.Position, r.Headers)
	}
	return e, appended, err
}

// eventRows is the Rows of a table that is fed by an aggregate's topic.
type eventRows struct {
	of      event.Aggregate
	values  *registry.Decoder
	decoder decoder
	row     row
}

// rowsOf returns the Rows constructor of an aggregate's table. begin creates the decoder.
func rowsOf(
	agg event.Aggregate, begin func(to *columnar.Columns) (decoder, error),
) func(*columnar.Columns, *registry.Decoder) (Rows, error) {
	return func(to *columnar.Columns, values *registry.Decoder) (Rows, error) {
		d, err := begin(to)
		return &eventRows{of: agg, values: values, decoder: d, row: row{to: to}}, err
	}
}

// Append implements Rows.
func (x *eventRows) Append(ctx context.Context, r Record) (Appended, error) {
	e, appended, err := r.event(ctx, x.values, x.of)
	if err != nil {
		return Appended{}, err
	}
	x.row.begin()
	if err := x.decoder.append(&x.row, e); err != nil {
		return Appended{}, fmt.Errorf("event %s: %w", e.ID, err)
	}
	appended.Rows = x.row.n
	return appended, nil
}
