package lake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
)

// eventsTable declares the table that keeps every event of an aggregate: the envelope in columns, the message as its
// exact bytes, and once more as JSON for SQL.
func eventsTable(name string, agg event.Aggregate, message func() proto.Message) Table {
	return Table{
		Name:      name,
		Aggregate: agg,
		columns:   slices.Concat(eventColumns, originColumns),
		decoder:   func() decoder { return &eventDecoder{of: agg, message: message()} },
	}
}

var eventColumns = []column{
	{name: "event_id", typ: iceberg.PrimitiveTypes.String, doc: "UUIDv7"},
	{name: "aggregate_id", typ: iceberg.PrimitiveTypes.String, doc: "the stream, and the key of the record"},
	{name: "version", typ: iceberg.PrimitiveTypes.Int64, doc: "of the stream after this event, from 1, without gaps"},
	{name: "type", typ: iceberg.PrimitiveTypes.String, doc: "full name of the protobuf message", repeats: true},
	{name: "occurred_at", typ: iceberg.PrimitiveTypes.TimestampTz, doc: "business time"},
	{name: "recorded_at", typ: iceberg.PrimitiveTypes.TimestampTz, doc: "when the event store took it"},
	{name: "correlation_id", typ: iceberg.PrimitiveTypes.String, optional: true, doc: "names the conversation"},
	{name: "causation_id", typ: iceberg.PrimitiveTypes.String, optional: true, doc: "names the command or event that led to this one"},
	{name: "trace_parent", typ: iceberg.PrimitiveTypes.String, optional: true, doc: "W3C trace context"},
	{name: "store_position", typ: iceberg.PrimitiveTypes.String, doc: "place in the event store: transaction.sequence"},
	{name: "payload", typ: iceberg.PrimitiveTypes.Binary, doc: "the message in protobuf wire format, byte for byte"},
	{name: "payload_json", typ: iceberg.PrimitiveTypes.String, doc: "the message as protobuf JSON with the field names of the .proto files"},
}

// eventDecoder makes an event's row.
type eventDecoder struct {
	of      event.Aggregate
	message proto.Message // reused
	json    []byte        // reused
	compact bytes.Buffer  // reused
}

var payloadJSON = protojson.MarshalOptions{UseProtoNames: true}

func (d *eventDecoder) append(to *columns, r origin, e event.Event) error {
	if err := checkEnvelope(d.of, e); err != nil {
		return err
	}
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
	to.binary(e.Data)
	to.text(d.compact.Bytes())
	to.origin(r)
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
