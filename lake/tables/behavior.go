package tables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/iceberg-go"

	"github.com/millrace/millrace/event"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/wire"
)

// BehaviorEvents has what visitors did, as tracking clients reported it: a row for each record of
// the topic. Two processes that receive copies of an event at the same time may both write it.
// Then the rows have the same event_id. Like customers_events, the table has personal data.
var BehaviorEvents = declare.Table{
	Name: "behavior_events", Topic: event.Behavior.Topic,
	Doc:     "What visitors did, as tracking clients reported it; with personal data.",
	Columns: slices.Concat(behaviorColumns, behaviorPlan.Fields()),
	Sort:    []declare.Sort{{Column: "received_at"}},
	Rows: func(to *columnar.Columns, values *registry.Decoder) (declare.Rows, error) {
		message, err := behaviorPlan.Bind(to)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(to.Fields(), func(f columnar.Field) bool { return f.Name == behaviorID })
		if at < 0 {
			return nil, errors.New("the table has no column " + behaviorID)
		}
		id, ok := to.Column(at).(*columnar.Bytes)
		if !ok {
			return nil, fmt.Errorf("the table's column %s is not a string", behaviorID)
		}
		return &behaviorRows{values: values, id: id, message: message}, nil
	},
	Restore: declare.Restore{Columns: restoredColumns, Events: restoreBehavior},
}

// behaviorID is the column with the id of the event.
const behaviorID = "event_id"

// behaviorColumns precede the fields of the message.
var behaviorColumns = []columnar.Field{{
	Name: behaviorID, Type: iceberg.PrimitiveTypes.String, Required: true,
	Doc: "UUID, derived from source and message_id; copies of an event have the same",
}}

// behaviorPlan maps the message to columns.
var behaviorPlan = func() *wire.Plan {
	plan, err := wire.Compile((*behaviorv1.BehaviorEvent)(nil).ProtoReflect().Descriptor(),
		wire.Options{Unknown: wire.UnknownColumn, Reserved: []string{behaviorID, "topic", "partition", "offset"}})
	if err != nil {
		panic(err) // the contract is compiled in
	}
	return plan
}()

// behaviorRows appends a row for each event.
type behaviorRows struct {
	values  *registry.Decoder
	id      *columnar.Bytes
	message *wire.Decoder
}

// Append implements declare.Rows.
func (b *behaviorRows) Append(ctx context.Context, r declare.Record) (declare.Appended, error) {
	e, err := b.values.Event(ctx, registry.Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers,
	})
	if err != nil {
		return declare.Appended{}, err
	}
	if err := b.message.Append(e.Data); err != nil {
		return declare.Appended{}, fmt.Errorf("event %s: payload: %w", e.ID, err)
	}
	b.id.AppendString(e.ID.String())
	return declare.Appended{Rows: 1, AsOf: e.RecordedAt}, nil
}
