package landing

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
)

// flushUpserts turns the records collected by a keyed table into rows, and writes a delete file for
// the rows that they replace. It does nothing for other tables.
func (l *lander) flushUpserts(ctx context.Context, b *batch, to sink, w *datafile.Writer) error {
	upserts := to.upserts
	if upserts == nil {
		return nil
	}
	missing := upserts.LookupKeys(b.from)
	if !upserts.Pending() {
		return nil
	}
	have, err := l.load(ctx)
	if err != nil {
		return err
	}
	// The previous rows are read from a table whose offsets are those at which the batch begins.
	// Other landers may commit before this batch lands, but their partitions have other keys.
	at, err := progress.Read(l.table.Topic, have.Properties())
	if err != nil {
		return &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	if !at.At(b.from) {
		return fmt.Errorf("%w: the table is at %v, the batch begins at %v", errFenced, at.Next, b.from)
	}
	names, err := namesIn(have.Schema(), upserts.Columns())
	if err != nil {
		return fmt.Errorf("table %s: %w", l.table.Name, err)
	}
	// Build the key filter from the table at the batch's first offsets.
	if upserts.NeedsKeys() {
		f, err := readKeys(ctx, have, names[0], maps.Clone(at.Next))
		if err != nil {
			return fmt.Errorf("read the keys of table %s: %w", l.table.Name, err)
		}
		upserts.SetKeys(f)
	}
	// Look up streams that should have a row, and those that seem to begin in this batch but may
	// have one, as their first event may be a duplicate.
	missing = append(missing, upserts.UncertainKeys()...)
	// UncertainKeys keys are probably new, but may be false positives of the filter or duplicates.
	if err := lookup(ctx, have, upserts, names, missing); err != nil {
		return fmt.Errorf("look up rows of table %s: %w", l.table.Name, err)
	}
	if err := l.config.at(ctx, l.table.Name, stepLookedUp); err != nil {
		return err
	}
	var replaced []string
	err = upserts.Fold(func(key string, existed bool, row func(), from declare.Record) error {
		// A replaced row is deleted by its key in the same commit.
		if existed {
			replaced = append(replaced, key)
		} else {
			b.inserted++
		}
		if err := w.AppendRow(row, from); err != nil {
			return err
		}
		return w.Flush(b.id, datafile.ChunkRows)
	})
	if err != nil || len(replaced) == 0 {
		return faults.AsRowsError(err)
	}
	// Without an unpartitioned spec, deletes would not cover all of a key's rows.
	spec, err := datafile.Unpartitioned(have.Metadata())
	if err != nil {
		return &faults.UnwritableError{Table: l.table.DisplayName(), Err: err}
	}
	b.deletes, err = datafile.WriteDeletes(ctx, have, spec, w, b.id, upserts.Columns()[0], names[0], replaced)
	return err
}

// namesIn returns the current names of columns in a schema, which may have been renamed.
func namesIn(s *iceberg.Schema, columns []columnar.Field) ([]string, error) {
	names := make([]string, len(columns))
	for i, c := range columns {
		var ok bool
		if names[i], ok = s.FindColumnName(c.ID); !ok {
			return nil, fmt.Errorf("column %s was removed", c.Name)
		}
	}
	return names, nil
}

// maxListedKeys is the maximum number of keys in an IN filter. iceberg-go does not use longer lists
// to prune files, so above it a range is used.
const maxListedKeys = 200

// lookupConcurrency is the number of files read concurrently. The files are small, so latency of
// the object store dominates.
const lookupConcurrency = 8

// lookup passes the rows of keys to upserts, using one scan.
func lookup(ctx context.Context, have *table.Table, upserts declare.Upserts, names, keys []string) error {
	if len(keys) == 0 || have.CurrentSnapshot() == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx) // the scan's goroutines end with it
	defer cancel()
	key := iceberg.Reference(names[0])
	filter := iceberg.IsIn(key, keys...)
	if len(keys) > maxListedKeys {
		filter = iceberg.NewAnd(iceberg.GreaterThanEqual(key, slices.Min(keys)),
			iceberg.LessThanEqual(key, slices.Max(keys)))
	}
	scan := have.Scan(
		table.WithRowFilter(filter), table.WithSelectedFields(names...), table.WithMaxConcurrency(lookupConcurrency),
	)
	_, records, err := scan.ToArrowRecords(ctx)
	if err != nil {
		return err
	}
	for rec, err := range records {
		if err != nil {
			return err
		}
		err = upserts.Found(rec, names)
		rec.Release()
		if err != nil {
			return err
		}
	}
	return nil
}
