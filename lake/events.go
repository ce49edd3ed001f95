package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/progress"
)

// ErrNoEvents means that no table of the lake is of the events of a topic.
var ErrNoEvents = errors.New("the lake has no table of the topic's events")

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
		return declare.Table{}, fmt.Errorf("%w: %q", ErrNoEvents, topic)
	}
	return l.tables[i], nil
}

// EventsProgress returns how far the table of a topic's events has landed it. The error wraps
// ErrNoLake if nothing was landed.
func (l *Lake) EventsProgress(ctx context.Context, topic string) (Progress, error) {
	t, err := l.eventsTable(topic)
	if err != nil {
		return Progress{}, err
	}
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return Progress{}, err
	}
	p, err := progress.Read(topic, have.Properties())
	if err != nil {
		return Progress{}, &faults.TableError{Table: t.DisplayName(), Remedy: faults.RemedyOffsets, Err: err}
	}
	return Progress{TopicID: p.TopicID, Next: p.Next, Seen: p.Seen}, nil
}

// Progress is how far a table has landed its topic.
type Progress struct {
	TopicID string                   // Kafka's id of the topic
	Next    map[int32]int64          // by partition: the first offset that is not in the table
	Seen    map[int32]event.Sequence // by partition: up to that offset
}

// EventsBetween calls each for the events of one partition of a topic that its table has, from one
// offset up to another, which is excluded. The order is any. An event is valid until each returns.
func (l *Lake) EventsBetween(ctx context.Context, topic string, partition int32, from, to int64,
	each func(e event.Event, offset int64) error) error {
	return l.EventsIn(ctx, topic, map[int32]Offsets{partition: {from, to}},
		func(e event.Event, _ int32, offset int64) error { return each(e, offset) })
}

// Offsets are the offsets of a partition from the first one up to another, which is excluded.
type Offsets struct{ From, To int64 }

// EventsIn calls each for the events of a topic that its table has in ranges of offsets, by partition.
// The order is any. An event is valid until each returns.
func (l *Lake) EventsIn(ctx context.Context, topic string, ranges map[int32]Offsets,
	each func(e event.Event, partition int32, offset int64) error) error {
	t, err := l.eventsTable(topic)
	if err != nil || len(ranges) == 0 {
		return err
	}
	of, at := iceberg.Reference(t.Origin+partitionColumn), iceberg.Reference(t.Origin+offsetColumn)
	var in iceberg.BooleanExpression = iceberg.AlwaysFalse{}
	for partition, r := range ranges {
		in = iceberg.NewOr(in, iceberg.NewAnd(iceberg.EqualTo(of, partition),
			iceberg.GreaterThanEqual(at, r.From), iceberg.LessThan(at, r.To)))
	}
	// All columns are read: with fewer, iceberg-go 0.7 applies the filter to columns by their positions
	// among all of them.
	return l.events(ctx, t, each, table.WithRowFilter(in))
}

// Columns of a row's place on the log, behind the declaration's Origin.
const partitionColumn, offsetColumn = "partition", "offset"

// Events calls each for every event of a topic that its table has, with the event's place on the
// log, in any order. An event is valid until each returns.
func (l *Lake) Events(ctx context.Context, topic string,
	each func(e event.Event, partition int32, offset int64) error) error {
	t, err := l.eventsTable(topic)
	if err != nil {
		return err
	}
	columns := append(slices.Clone(t.Restore.Columns), t.Origin+partitionColumn, t.Origin+offsetColumn)
	return l.events(ctx, t, each, table.WithSelectedFields(columns...))
}

// events calls each for those events of a table that the options select.
func (l *Lake) events(ctx context.Context, t declare.Table,
	each func(e event.Event, partition int32, offset int64) error, options ...table.ScanOption) error {
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
				return fmt.Errorf("the event at %s/%d@%d: %w", t.Topic, partitions.Value(row), offsets.Value(row), err)
			}
			row++
		}
		return nil
	}, options...)
}
