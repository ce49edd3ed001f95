package lake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/pages"
)

// upserts are Rows that hold a batch back until it is to land: then each key that the batch changes gets one row in the
// place of the one before.
type upserts interface {
	Rows
	// held tells whether there is anything.
	held() bool
	// columns are those of the table that a row is known by, the key first.
	columns() []columnar.Field
	// missing begins a landing where the table stands at from. It gives the keys whose row before, if there is one,
	// must be looked for in the table.
	missing(from map[int32]int64) []string
	// wantsKeys reports whether the batch has first events of streams that cannot be told from duplicates without the
	// table's keys. If so, keys must be called with them. doubtful then returns the keys of first events that may have
	// a row: they must be looked up, too.
	wantsKeys() bool
	keys(*keyFilter)
	doubtful() []string
	// found takes the rows of such keys out of a batch of the table's rows; names are those of the columns.
	found(rec arrow.RecordBatch, names []string) error
	// fold gives the row of each key, as the batch leaves it, and tells whether the table has one of the key.
	fold(each func(key string, existed bool, rows Rows, from Record) error) error
	// landed ends a landing.
	landed(next map[int32]int64)
}

// settle makes rows of what the batch holds back, and a file of deletes for those that they take the place of.
func (l *lander) settle(ctx context.Context, b *batch, rows Rows, w *fileWriter) error {
	held, ok := rows.(upserts)
	if !ok {
		return nil
	}
	missing := held.missing(b.from)
	if !held.held() {
		return nil
	}
	have, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return err
	}
	// The rows before are those of the state that the batch begins at. Others may commit before it lands, but not to
	// its keys.
	at, err := readProgress(l.table.Topic, have.Properties())
	if err != nil {
		return &PositionError{l.table.Name, l.table.Topic, err}
	}
	if !at.at(b.from) {
		return fmt.Errorf("%w: it is at %v, and the batch begins at %v", errFenced, at.next, b.from)
	}
	names, err := namesIn(have.Schema(), held.columns())
	if err != nil {
		return fmt.Errorf("table %s: %w", l.table.Name, err)
	}
	if held.wantsKeys() {
		f, err := readKeys(ctx, have, names[0], maps.Clone(at.next))
		if err != nil {
			return fmt.Errorf("read the keys of table %s: %w", l.table.Name, err)
		}
		held.keys(f)
	}
	missing = append(missing, held.doubtful()...)
	if err := lookUp(ctx, have, held, names, missing); err != nil {
		return fmt.Errorf("look up rows of table %s: %w", l.table.Name, err)
	}
	if err := l.config.at(ctx, l.table.Name, stepLookedUp); err != nil {
		return err
	}
	var replaced []string
	err = held.fold(func(key string, existed bool, rows Rows, from Record) error {
		if existed {
			replaced = append(replaced, key)
		} else {
			b.born++
		}
		if _, err := w.append(ctx, rows, from); err != nil {
			return err
		}
		return w.flush(b.id, chunkRows)
	})
	if err != nil || len(replaced) == 0 {
		return ofRows(err)
	}
	spec, err := unpartitioned(have.Metadata())
	if err != nil {
		return &UnwritableError{l.table.called(), err}
	}
	b.deletes, err = writeDeletes(ctx, have, spec, w, b.id, held.columns()[0], names[0], replaced)
	return err
}

// namesIn gives columns the names that they have in a schema, where they may be called otherwise by now.
func namesIn(s *iceberg.Schema, columns []columnar.Field) ([]string, error) {
	names := make([]string, len(columns))
	for i, c := range columns {
		var ok bool
		if names[i], ok = s.FindColumnName(c.ID); !ok {
			return nil, fmt.Errorf("column %s is gone", c.Name)
		}
	}
	return names, nil
}

// Up to so many keys are looked for by name. iceberg-go does not prune files by longer lists.
const namedKeys = 200

// So many files are looked into at a time: they are small, and an object store makes one wait for each.
const lookUpFiles = 8

// lookUp finds the rows of keys, in one scan.
func lookUp(ctx context.Context, have *table.Table, held upserts, names, keys []string) error {
	if len(keys) == 0 || have.CurrentSnapshot() == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx) // the scan's goroutines end with it
	defer cancel()
	key := iceberg.Reference(names[0])
	filter := iceberg.IsIn(key, keys...)
	if len(keys) > namedKeys {
		filter = iceberg.NewAnd(iceberg.GreaterThanEqual(key, slices.Min(keys)), iceberg.LessThanEqual(key, slices.Max(keys)))
	}
	_, records, err := have.Scan(table.WithRowFilter(filter), table.WithSelectedFields(names...), table.WithMaxConcurrency(lookUpFiles)).ToArrowRecords(ctx)
	if err != nil {
		return err
	}
	for rec, err := range records {
		if err != nil {
			return err
		}
		err = held.found(rec, names)
		rec.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// writeDeletes writes a file that deletes rows by their keys, which are sorted: all rows of commits before the one that
// brings it.
func writeDeletes(
	ctx context.Context, have *table.Table, spec iceberg.PartitionSpec, w *fileWriter,
	name string, key columnar.Field, called string, keys []string,
) ([]iceberg.DataFile, error) {
	fail := func(err error) ([]iceberg.DataFile, error) { return nil, fmt.Errorf("write deletes: %w", err) }
	key.Name = called
	columns, err := columnar.New([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	for _, k := range keys {
		columns.Column(0).(*columnar.Bytes).AppendString(k)
	}
	schema, err := columnar.Schema([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	parquet, err := pages.New([]columnar.Field{key})
	if err != nil {
		return fail(err)
	}
	var content bytes.Buffer
	parquet.Begin(&content)
	if err := parquet.Write(columns); err != nil {
		return fail(err)
	}
	written, err := parquet.End()
	if err != nil {
		return fail(err)
	}
	locations, err := have.LocationProvider()
	if err != nil {
		return fail(err)
	}
	location := locations.NewDataLocation(name + "-deletes.parquet")
	f, err := table.DataFileFromMetadata(table.DataFileArgs{
		Schema: schema, Spec: spec, Format: iceberg.ParquetFile, Metadata: written.Metadata, FilePath: location, FileSize: written.Size,
		Content: iceberg.EntryContentEqDeletes, EqualityFieldIDs: []int{key.ID}, Properties: have.Properties(), FormatVersion: have.Metadata().Version(),
	})
	if err != nil {
		return fail(err)
	}
	files, err := filesOf(ctx, have)
	if err != nil {
		return fail(err)
	}
	if err := files.WriteFile(location, content.Bytes()); err != nil {
		return fail(errors.Join(err, w.remove(f)))
	}
	return []iceberg.DataFile{f}, nil
}

// unpartitioned returns the spec that deletes by equality are written under. Iceberg applies such deletes to the data
// files of every spec and partition. Deletes of one partition would miss a row that has left it, and all data files of
// other specs.
func unpartitioned(m table.Metadata) (iceberg.PartitionSpec, error) {
	for _, spec := range m.PartitionSpecs() {
		if spec.NumFields() == 0 {
			return spec, nil
		}
	}
	return iceberg.PartitionSpec{}, errors.New("landers replace its rows, which takes a partition spec without fields in its metadata, " +
		"and it has none: remove all its partition fields once, then add them again")
}
