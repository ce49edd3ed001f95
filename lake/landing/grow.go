package landing

import (
	"context"
	"errors"
	"iter"

	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/datafile"
)

// heldRecord is the record before which a partition has to wait: it needs new columns, or a
// temporary condition prevents decoding it.
type heldRecord struct {
	at  int64
	err error
}

// grows reports whether the record waits for new columns.
func (h *heldRecord) grows() bool { return h != nil && errors.Is(h.err, declare.ErrGrow) }

// mustWait reports whether an error is not the record's fault, so that the record must wait instead
// of becoming a dead letter.
func mustWait(err error) bool {
	return errors.Is(err, declare.ErrGrow) || errors.Is(err, registry.ErrUnavailable) || errors.Is(err,
		columnar.ErrFull)
}

// grow adds the columns that the records need to the table, and returns a writer and sink that use
// them. It closes old.
func (l *lander) grow(
	ctx context.Context, old *datafile.Writer, to sink, f fetch.Batch,
) (*datafile.Writer, sink, error) {
	grower, ok := to.rows.(declare.Grower)
	if !ok {
		return old, to, errors.New("a record needs columns, but its table does not grow")
	}
	if err := l.config.at(ctx, l.table.Name, stepGrow); err != nil {
		return old, to, err
	}
	t := l.table.Growing(func(have []columnar.Field) ([]columnar.Field, error) {
		return grower.Grow(ctx, have, l.records(f))
	})
	// The columns are added in a commit of their own, before any row that needs them.
	if err := l.lake.Evolve(ctx, t); err != nil {
		return old, to, err
	}
	if err := l.config.at(ctx, l.table.Name, stepGrown); err != nil {
		return old, to, err
	}
	have, err := l.load(ctx)
	if err != nil {
		return old, to, err
	}
	// The new writer has the new columns. The old one has no rows left: they were landed.
	w, to, err := l.writer(ctx, have)
	if err != nil {
		return old, to, err
	}
	return w, to, old.Close()
}

// records converts a fetched batch to declare.Record values. They alias the batch.
func (l *lander) records(f fetch.Batch) iter.Seq[declare.Record] {
	return func(yield func(declare.Record) bool) {
		for r := range f.Records() {
			record := declare.Record{
				Topic: l.table.Topic, Partition: f.Partition, Offset: r.Offset,
				Time: timeunit.Time(r.Millis), Millis: r.Millis, Key: r.Key, Value: r.Value, Headers: r.Headers,
			}
			if !yield(record) {
				return
			}
		}
	}
}
