package declare

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/wire"
)

// Events declares the table that keeps every event of an aggregate: the envelope in columns, the
// message as its exact bytes, and a struct for each event type, null in the rows of other types. A
// field that is added to the contract becomes a new column.
func Events(name string, agg event.Aggregate, message proto.Message) Table {
	// A field of the contract must not take the name of an envelope column.
	plan, err := wire.Compile(message.ProtoReflect().Descriptor(),
		wire.Options{Unknown: wire.UnknownColumn, Reserved: columnNames(eventColumns)})
	if err != nil {
		panic(err) // the contract is compiled in
	}
	return Table{
		Name: name, Topic: agg.Topic, Doc: "Every event of an aggregate: " + agg.Name + ".",
		Columns: slices.Concat(eventColumns, plan.Fields()), Sort: []Sort{{Column: "recorded_at"}},
		Rows: rowsOf(agg, func(to *columnar.Columns) (decoder, error) {
			message, err := plan.Bind(to)
			return &eventDecoder{message: message}, err
		}),
		Restore: Restore{
			Columns: columnNames(eventColumns),
			Events:  func(rec arrow.RecordBatch) (iter.Seq2[event.Event, error], error) { return ReadEvents(agg, rec) },
		},
		Events: agg, Sums: Sums{
			Add:    func(to *digest.Digest, rec arrow.RecordBatch) error { return addEvents(to, agg, rec) },
			Expect: expectEvents,
		},
	}
}

// eventColumns are the envelope, in the order in which eventDecoder writes them.
var eventColumns = []columnar.Field{
	{Name: "event_id", Type: iceberg.PrimitiveTypes.String, Doc: "UUIDv7", Required: true},
	{Name: "aggregate_id", Type: iceberg.PrimitiveTypes.String, Doc: "the stream, and the key of the record", Required: true},
	{Name: "version", Type: iceberg.PrimitiveTypes.Int64, Doc: "of the stream after this event, from 1, without gaps", Required: true},
	{Name: "type", Type: iceberg.PrimitiveTypes.String, Doc: "full name of the protobuf message", Required: true},
	{Name: "occurred_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "business time", Required: true},
	{Name: "recorded_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "when the event store took it", Required: true},
	{Name: "correlation_id", Type: iceberg.PrimitiveTypes.String, Doc: "names the conversation"},
	{Name: "causation_id", Type: iceberg.PrimitiveTypes.String, Doc: "names the command or event that led to this one"},
	{Name: "trace_parent", Type: iceberg.PrimitiveTypes.String, Doc: "W3C trace context"},
	{Name: "store_position", Type: iceberg.PrimitiveTypes.String, Doc: "place in the event store: transaction.sequence", Required: true},
	{Name: "payload", Type: iceberg.PrimitiveTypes.Binary, Doc: "the message in protobuf wire format, byte for byte", Required: true},
}

// columnNames returns the names of columns.
func columnNames(columns []columnar.Field) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	return names
}

// eventDecoder converts an event into its row.
type eventDecoder struct {
	message *wire.Decoder
}

// append writes the envelope and lets the message decoder fill the columns of the payload.
func (d *eventDecoder) append(to *row, e event.Event) error {
	to.string(e.ID.String())
	to.string(e.Stream)
	to.int64(int64(e.Version))
	to.string(e.Type)
	to.time(e.OccurredAt)
	to.time(e.RecordedAt)
	to.optional(e.CorrelationID)
	to.optional(e.CausationID)
	to.optional(e.TraceParent)
	to.string(e.Position.String())
	to.bytes(e.Data)
	if err := d.message.Append(e.Data); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	// The message decoder has filled these columns.
	to.filled(len(to.to.Fields()) - len(eventColumns) - len(originColumns))
	to.end()
	return nil
}

// batchReader looks up columns of a batch and keeps the first error.
type batchReader struct {
	rec arrow.RecordBatch
	err error
}

// fail keeps the first error.
func (r *batchReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// strings, times and int64s return accessors for a column. After an error they return nil, and
// ReadEvents returns the error instead of using them.
func (r *batchReader) strings(name string) func(i int) string {
	c, err := ColumnOf[*array.String](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return c.Value // "" for null
}

func (r *batchReader) times(name string) func(i int) time.Time {
	c, err := ColumnOf[*array.Timestamp](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return func(i int) time.Time { return time.UnixMicro(int64(c.Value(i))).UTC() }
}

func (r *batchReader) int64s(name string) func(i int) int64 {
	c, err := ColumnOf[*array.Int64](r.rec, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	return c.Value
}

// ReadEvents returns the events from which the rows of an events table were made. Everything but
// the stream's name aliases rec.
func ReadEvents(agg event.Aggregate, rec arrow.RecordBatch) (iter.Seq2[event.Event, error], error) {
	r := batchReader{rec: rec}
	id, stream := r.strings("event_id"), r.strings("aggregate_id")
	version, kind := r.int64s("version"), r.strings("type")
	occurred, recorded := r.times("occurred_at"), r.times("recorded_at")
	correlation, causation, trace := r.strings("correlation_id"), r.strings("causation_id"), r.strings("trace_parent")
	position := r.strings("store_position")
	payload, err := ColumnOf[*array.Binary](rec, "payload")
	if err != nil {
		r.fail(err)
	}
	return func(yield func(event.Event, error) bool) {
		for i := range int(rec.NumRows()) {
			e := event.Event{
				Aggregate: agg.Name, Stream: strings.Clone(stream(i)), Version: uint64(version(i)), Type: kind(i),
				Data:       payload.Value(i),
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

// addEvents adds the events of a batch to a digest.
func addEvents(to *digest.Digest, agg event.Aggregate, rec arrow.RecordBatch) error {
	rows, err := ReadEvents(agg, rec)
	if err != nil {
		return err
	}
	for e, err := range rows {
		if err != nil {
			return err
		}
		to.AddEvent(e)
	}
	return nil
}

// expectEvents returns the digest of the events themselves.
func expectEvents(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	to := digest.New()
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		to.AddEvent(e)
	}
	return to, nil
}
