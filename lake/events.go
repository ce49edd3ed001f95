package lake

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/declare"
)

// EventsTable returns the state of the table that keeps every event of a topic.
func (l *Lake) EventsTable(ctx context.Context, topic string) (TableState, error) {
	t, err := l.eventsTable(topic)
	if err != nil {
		return TableState{}, err
	}
	return l.state(ctx, t)
}

// eventsTable returns the declaration of the table that keeps every event of a topic.
func (l *Lake) eventsTable(topic string) (declare.Table, error) {
	i := slices.IndexFunc(l.tables, func(t declare.Table) bool { return t.Topic == topic && len(t.Restore.Columns) > 0 })
	if i < 0 {
		return declare.Table{}, fmt.Errorf("the lake has no table of the events of topic %q", topic)
	}
	return l.tables[i], nil
}

// Events calls each for every event of a topic that its table has, with the event's place on the
// log, in any order. An event is valid until each returns.
func (l *Lake) Events(ctx context.Context, topic string,
	each func(e event.Event, partition int32, offset int64) error) error {
	t, err := l.eventsTable(topic)
	if err != nil {
		return err
	}
	const partitionColumn, offsetColumn = "partition", "offset"
	columns := append(slices.Clone(t.Restore.Columns), t.Origin+partitionColumn, t.Origin+offsetColumn)
	return l.Scan(ctx, t.Identifier(), func(rec arrow.RecordBatch) error {
		events, err := t.Restore.Events(rec)
		if err != nil {
			return err
		}
		partitions, err := declare.ColumnOf[*array.Int32](rec, t.Origin+partitionColumn)
		if err != nil {
			return err
		}
		offsets, err := declare.ColumnOf[*array.Int64](rec, t.Origin+offsetColumn)
		if err != nil {
			return err
		}
		row := 0
		for e, err := range events {
			if err == nil {
				err = each(e, partitions.Value(row), offsets.Value(row))
			}
			if err != nil {
				return fmt.Errorf("the event at %s/%d@%d: %w", topic, partitions.Value(row), offsets.Value(row), err)
			}
			row++
		}
		return nil
	}, table.WithSelectedFields(columns...))
}
