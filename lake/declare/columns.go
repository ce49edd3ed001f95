package declare

import (
	"context"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/columnar"
)

// row appends rows, one value after the other in the order of the table's columns.
type row struct {
	to *columnar.Columns
	at int
	n  int // rows since begin
}

func (r *row) next() columnar.Column {
	c := r.to.Column(r.at)
	r.at++
	return c
}

func (r *row) begin() { r.at, r.n = 0, 0 }

// filled passes over columns that somebody else has filled.
func (r *row) filled(n int) { r.at += n }

// end closes a row; where it comes from is not ours to say.
func (r *row) end() {
	if r.at != len(r.to.Fields())-len(originColumns) {
		panic("a row does not fill its table's columns")
	}
	r.at = 0
	r.n++
}

func (r *row) string(v string) { r.next().(*columnar.Bytes).AppendString(v) }
func (r *row) bytes(v []byte)  { r.next().(*columnar.Bytes).Append(v) }
func (r *row) int32(v int32)   { r.next().(*columnar.Int32s).Append(v) }
func (r *row) int64(v int64)   { r.next().(*columnar.Int64s).Append(v) }
func (r *row) null()           { r.next().AppendNull() }
func (r *row) time(v time.Time) {
	r.next().(*columnar.Int64s).Append(v.UnixMicro())
}
func (r *row) decimal(v decimal128.Num) { r.next().(*columnar.Decimals).Append(v) }

// optional appends v, or null where it is empty.
func (r *row) optional(v string) {
	if v == "" {
		r.null()
		return
	}
	r.string(v)
}

// decoder appends the rows of one event.
type decoder interface {
	append(to *row, e event.Event) error
}

// of is the record as the decoder of events takes it.
func (r Record) of(a event.Aggregate) registry.Record {
	return registry.Record{Topic: a.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers}
}

// event reads an event of an aggregate from the record. It fails if the event is a copy of one that the partition had
// before: tables have no index of their events that could tell.
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

// eventRows is the Rows of a table that an aggregate's topic feeds.
type eventRows struct {
	of      event.Aggregate
	values  *registry.Decoder
	decoder decoder
	row     row
}

// rowsOf makes the Rows of an aggregate's table.
func rowsOf(agg event.Aggregate, begin func(to *columnar.Columns) (decoder, error)) func(*columnar.Columns, *registry.Decoder) (Rows, error) {
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
