package lake

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
)

// EventsDigest sums up the events table of an aggregate as it is now, from what each row says.
func (l *Lake) EventsDigest(ctx context.Context, agg event.Aggregate) (*digest.Digest, error) {
	name, err := EventsTable(agg)
	if err != nil {
		return nil, err
	}
	d := digest.New()
	err = l.scan(ctx, identifier(name), func(rec arrow.RecordBatch) error {
		rows, err := readEvents(agg, rec)
		if err != nil {
			return err
		}
		for e, err := range rows {
			if err != nil {
				return err
			}
			d.AddEvent(e)
		}
		return nil
	})
	return d, err
}

// sums is how the rows of a table are summed up, by stream.
type sums struct {
	// add adds rows of the table.
	add func(to *digest.Digest, rec arrow.RecordBatch) error
	// expect adds the rows that events make, which come in order for each stream.
	expect func(events iter.Seq2[event.Event, error]) (*digest.Digest, error)
}

// Derived names the tables whose rows are made of an aggregate's events: facts drawn from them, and what they add up
// to.
func Derived(agg event.Aggregate) (names []string) {
	for _, t := range Tables() {
		if t.derived == agg {
			names = append(names, t.Name)
		}
	}
	return names
}

func derived(name string) (Table, error) {
	for _, t := range Tables() {
		if t.Name == name && t.sums.add != nil {
			return t, nil
		}
	}
	return Table{}, fmt.Errorf("%s is no table that is made of events", name)
}

// Digest sums up a table that Derived names as it is now: all that its rows say, and not where they come from.
func (l *Lake) Digest(ctx context.Context, name string) (*digest.Digest, error) {
	t, err := derived(name)
	if err != nil {
		return nil, err
	}
	d := digest.New()
	err = l.scan(ctx, t.identifier(), func(rec arrow.RecordBatch) error { return t.sums.add(d, rec) })
	return d, err
}

// ExpectedDigest is what Digest must be once the events given have landed. Those of a stream come in their order.
func ExpectedDigest(name string, events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	t, err := derived(name)
	if err != nil {
		return nil, err
	}
	return t.sums.expect(events)
}

// addRows adds rows of a table of some shape.
func addRows[T any](to *digest.Digest, rec arrow.RecordBatch, s shape[T], stream func(*T) string) error {
	read, err := s.bind(rec, s.names())
	if err != nil {
		return err
	}
	var content []byte
	for i := range int(rec.NumRows()) {
		var v T
		read(i, &v)
		content = s.content(content[:0], &v)
		to.Add(stream(&v), content)
	}
	return nil
}

func addLines(to *digest.Digest, rec arrow.RecordBatch) error {
	rows, err := readLines(rec)
	if err != nil {
		return err
	}
	var content []byte
	for row := range rows {
		content = row.content(content[:0])
		to.Add(row.orderID, content)
	}
	return nil
}

func expectLines(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	d := digest.New()
	var decoder lineDecoder
	var content []byte
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		if err := decoder.decode(e); err != nil {
			return nil, fmt.Errorf("event %s of order %s: %w", e.ID, e.Stream, err)
		}
		for _, row := range decoder.lines {
			content = row.content(content[:0])
			d.Add(row.orderID, content)
		}
	}
	return d, nil
}

// scan reads all rows of a table as it is now.
func (l *Lake) scan(ctx context.Context, name table.Identifier, each func(arrow.RecordBatch) error) error {
	err := l.scanAll(ctx, name, each)
	if fault := tableError(called(name), err); fault != nil {
		return l.checkAfter(ctx, name, fault)
	}
	return err
}

func (l *Lake) scanAll(ctx context.Context, name table.Identifier, each func(arrow.RecordBatch) error) error {
	t, err := l.load(ctx, name)
	if err != nil {
		return err
	}
	// The scan's goroutines end with its context.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, records, err := t.Scan(table.WithMaxConcurrency(2)).ToArrowRecords(ctx)
	if err != nil {
		return fmt.Errorf("scan table %s: %w", strings.Join(name, "."), err)
	}
	for rec, err := range records {
		if err == nil {
			err = each(rec)
			rec.Release()
		}
		if err != nil {
			return fmt.Errorf("scan table %s: %w", strings.Join(name, "."), err)
		}
	}
	return nil
}

// columnOf finds a column of a batch by its name.
func columnOf[A arrow.Array](rec arrow.RecordBatch, name string) (A, error) {
	var none A
	at := rec.Schema().FieldIndices(name)
	if len(at) != 1 {
		return none, fmt.Errorf("column %s is missing", name)
	}
	c, ok := rec.Column(at[0]).(A)
	if !ok {
		return none, fmt.Errorf("column %s is %s", name, rec.Column(at[0]).DataType())
	}
	return c, nil
}

// batchReader takes columns out of a batch and keeps the first error.
type batchReader struct {
	rec arrow.RecordBatch
	err error
}

func (r *batchReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *batchReader) strings(name string) func(i int) string {
	c, err := columnOf[*array.String](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return c.Value // "" for null
}

func (r *batchReader) times(name string) func(i int) time.Time {
	c, err := columnOf[*array.Timestamp](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return func(i int) time.Time { return time.UnixMicro(int64(c.Value(i))).UTC() }
}

func (r *batchReader) int64s(name string) func(i int) int64 {
	c, err := columnOf[*array.Int64](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return c.Value
}

// readEvents gives back the events that the rows of an events table were made of. All but the stream's name aliases
// rec.
func readEvents(agg event.Aggregate, rec arrow.RecordBatch) (iter.Seq2[event.Event, error], error) {
	r := batchReader{rec: rec}
	id, stream, version, kind := r.strings("event_id"), r.strings("aggregate_id"), r.int64s("version"), r.strings("type")
	occurred, recorded := r.times("occurred_at"), r.times("recorded_at")
	correlation, causation, trace := r.strings("correlation_id"), r.strings("causation_id"), r.strings("trace_parent")
	position := r.strings("store_position")
	payload, err := columnOf[*array.Binary](rec, "payload")
	if err != nil {
		r.fail(err)
	}
	return func(yield func(event.Event, error) bool) {
		for i := range int(rec.NumRows()) {
			e := event.Event{
				Aggregate: agg.Name, Stream: strings.Clone(stream(i)), Version: uint64(version(i)), Type: kind(i), Data: payload.Value(i),
				OccurredAt: occurred(i), RecordedAt: recorded(i),
				CorrelationID: correlation(i), CausationID: causation(i), TraceParent: trace(i),
			}
			var err error
			if e.ID, err = uuid.Parse(id(i)); err == nil {
				e.Position, err = event.ParsePosition(position(i))
			}
			if !yield(e, err) {
				return
			}
		}
	}, r.err
}

// readLines reads the rows of order_lines. All but the order's id aliases rec.
func readLines(rec arrow.RecordBatch) (iter.Seq[line], error) {
	r := batchReader{rec: rec}
	order, customer, sku, description := r.strings("order_id"), r.strings("customer_id"), r.strings("sku"), r.strings("description")
	currency, country := r.strings("currency"), r.strings("country")
	quantity, ordered, recorded := r.int64s("quantity"), r.times("ordered_at"), r.times("recorded_at")
	number, err := columnOf[*array.Int32](rec, "line")
	if err != nil {
		r.fail(err)
	}
	price, err := columnOf[*array.Decimal128](rec, "unit_price")
	if err != nil {
		r.fail(err)
	}
	return func(yield func(line) bool) {
		for i := range int(rec.NumRows()) {
			l := line{
				orderID: strings.Clone(order(i)), number: number.Value(i), customerID: customer(i), sku: sku(i), description: description(i),
				quantity: quantity(i), unitPrice: price.Value(i), currency: currency(i), country: country(i),
				orderedAt: ordered(i), recordedAt: recorded(i),
			}
			if !yield(l) {
				return
			}
		}
	}, r.err
}
