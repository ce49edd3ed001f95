package lake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/columnar"
)

// eventsTable declares the table that keeps every event of an aggregate: the envelope in columns, the message as its
// exact bytes, and once more as JSON for SQL.
func eventsTable(name string, agg event.Aggregate, message func() proto.Message) Table {
	return Table{
		Name: name, Topic: agg.Topic, Doc: "Every event of an aggregate: " + agg.Name + ".",
		Columns: eventColumns, Sort: []Sort{{Column: "recorded_at"}},
		Rows:   rowsOf(agg, func() decoder { return &eventDecoder{of: agg, message: message()} }),
		events: agg,
	}
}

var eventColumns = []columnar.Field{
	{Name: "event_id", Type: iceberg.PrimitiveTypes.String, Doc: "UUIDv7", Required: true},
	{Name: "aggregate_id", Type: iceberg.PrimitiveTypes.String, Doc: "the stream, and the key of the record", Required: true},
	{Name: "version", Type: iceberg.PrimitiveTypes.Int64, Doc: "of the stream after this event, from 1, without gaps", Required: true},
	{Name: "type", Type: iceberg.PrimitiveTypes.String, Doc: "full name of the protobuf message", Repeats: true, Required: true},
	{Name: "occurred_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "business time", Required: true},
	{Name: "recorded_at", Type: iceberg.PrimitiveTypes.TimestampTz, Doc: "when the event store took it", Required: true},
	{Name: "correlation_id", Type: iceberg.PrimitiveTypes.String, Doc: "names the conversation"},
	{Name: "causation_id", Type: iceberg.PrimitiveTypes.String, Doc: "names the command or event that led to this one"},
	{Name: "trace_parent", Type: iceberg.PrimitiveTypes.String, Doc: "W3C trace context"},
	{Name: "store_position", Type: iceberg.PrimitiveTypes.String, Doc: "place in the event store: transaction.sequence", Required: true},
	{Name: "payload", Type: iceberg.PrimitiveTypes.Binary, Doc: "the message in protobuf wire format, byte for byte", Required: true},
	{Name: "payload_json", Type: iceberg.PrimitiveTypes.String, Doc: "the message as protobuf JSON with the field names of the .proto files", Required: true},
}

// eventDecoder makes an event's row.
type eventDecoder struct {
	of      event.Aggregate
	message proto.Message // reused
	json    []byte        // reused
	compact bytes.Buffer  // reused
}

var payloadJSON = protojson.MarshalOptions{UseProtoNames: true}

func (d *eventDecoder) append(to *row, e event.Event) error {
	if err := proto.Unmarshal(e.Data, d.message); err != nil {
		return fmt.Errorf("payload is no %s: %w", d.of.Message, err)
	}
	var err error
	if d.json, err = payloadJSON.MarshalAppend(d.json[:0], d.message); err != nil {
		return fmt.Errorf("payload as JSON: %w", err)
	}
	// protojson spaces its output differently from build to build; the same event must give the same row.
	d.compact.Reset()
	if err := json.Compact(&d.compact, d.json); err != nil {
		return fmt.Errorf("payload as JSON: %w", err)
	}

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
	to.bytes(d.compact.Bytes())
	to.end()
	return nil
}

// checkEnvelope finds what an event may not have in a table, or not in a table of this aggregate.
func checkEnvelope(agg event.Aggregate, e event.Event) error {
	if e.Aggregate != agg.Name {
		return fmt.Errorf("event of aggregate %q on the topic of %q", e.Aggregate, agg.Name)
	}
	if e.Version > math.MaxInt64 {
		return fmt.Errorf("version %d is too large", e.Version)
	}
	for _, s := range [...]string{e.Stream, e.Type, e.CorrelationID, e.CausationID, e.TraceParent} {
		if !utf8.ValidString(s) {
			return errors.New("key or headers are not UTF-8")
		}
	}
	return nil
}
