package lake

import (
	"fmt"
	"slices"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/wire"
)

// eventsTable declares the table that keeps every event of an aggregate: the envelope in columns, the message as its
// exact bytes, and each type of event as a struct, null in the rows of others. What is new in the contract is a new
// column.
func eventsTable(name string, agg event.Aggregate, message proto.Message) Table {
	reserved := make([]string, len(eventColumns))
	for i, c := range eventColumns {
		reserved[i] = c.Name
	}
	plan, err := wire.Compile(message.ProtoReflect().Descriptor(), wire.Options{Unknown: wire.UnknownColumn, Reserved: reserved})
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
		events: agg,
	}
}

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

// eventDecoder makes an event's row.
type eventDecoder struct {
	message *wire.Decoder
}

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
	to.filled(len(to.to.Fields()) - len(eventColumns) - len(originColumns))
	to.end()
	return nil
}
