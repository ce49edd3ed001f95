package lake

import (
	"context"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
)

// EventsDigest returns the digest of an aggregate's events table, computed from the current rows.
func (l *Lake) EventsDigest(ctx context.Context, agg event.Aggregate) (*digest.Digest, error) {
	for _, t := range l.tables {
		if t.Events == agg {
			return l.digest(ctx, t)
		}
	}
	return nil, fmt.Errorf("the lake has no events table for aggregate %q", agg.Name)
}

// Digest returns the digest of a table whose rows are made of events, computed from the current
// rows. It covers their content but not their origins, which may differ between copies of a log.
func (l *Lake) Digest(ctx context.Context, name string) (*digest.Digest, error) {
	for _, t := range l.tables {
		if t.Name == name && t.Sums.Add != nil {
			return l.digest(ctx, t)
		}
	}
	return nil, fmt.Errorf("table %s is not made of events", name)
}

// digest scans a table and adds all rows to a new digest.
func (l *Lake) digest(ctx context.Context, t declare.Table) (*digest.Digest, error) {
	// A digest does not depend on the order of rows, so the order of files does not matter.
	d := digest.New()
	err := l.Scan(ctx, t.Identifier(), func(rec arrow.RecordBatch) error { return t.Sums.Add(d, rec) })
	return d, err
}

// Scan calls each for all rows of a table's current state, in batches. A batch is released when
// each returns. If a file is missing, the whole table is checked.
func (l *Lake) Scan(ctx context.Context, name table.Identifier, each func(arrow.RecordBatch) error,
	options ...table.ScanOption) error {
	err := l.scanAll(ctx, name, each, options)
	// A failed read may be due to missing files: check for them, to report all.
	if fault := faults.Of(declare.DisplayName(name), err); fault != nil {
		return l.checkAfter(ctx, name, fault)
	}
	return err
}

// scanAll scans the current snapshot. Each batch is released after each has seen it.
func (l *Lake) scanAll(ctx context.Context, name table.Identifier, each func(arrow.RecordBatch) error,
	options []table.ScanOption) error {
	t, err := l.Load(ctx, name)
	if err != nil {
		return err
	}
	// The scan's goroutines end with its context.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, records, err := t.Scan(append(options, table.WithMaxConcurrency(2))...).ToArrowRecords(ctx)
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
