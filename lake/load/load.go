// Package load makes an Iceberg table of a Parquet file, in one commit: a table that did not exist
// appears with all rows, and one that was loaded before has the new rows instead of the old ones. A
// run that ends early, by an error or a kill, changes nothing that readers see; maintenance removes
// the files that it left.
//
// File loads, and Check reports early whether it may. The columns of the table are those of the file,
// with the types that Iceberg has: see column in columns.go. A table that something else wrote is never
// replaced: loaded tables are recognised by the property KeyKind.
package load

import (
	"context"
	"errors"
	"fmt"
	stdio "io"
	"io/fs"
	"maps"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/datafile"
)

// Config describes what to load.
type Config struct {
	Table lake.Name
	File  string // path of the Parquet file
	// Kind is what the table is. Only a table of the same kind is replaced.
	Kind string
	// Properties are set on the table, and on the snapshot for readers of the history.
	Properties map[string]string
}

// Properties of loaded tables. The second is in the summary of the snapshot, too.
const (
	KeyKind = "millrace.loaded"
	keyLoad = "millrace.load" // unique to a run
)

// ErrTaken means that the table exists and is not one that may be replaced.
var ErrTaken = errors.New("the table exists")

// Limits of a run.
const (
	batchRows     = 16 << 10
	rowGroupRows  = 256 << 10
	commitTimeout = 30 * time.Second
)

// Check returns ErrTaken if the table exists and is of another kind.
func Check(ctx context.Context, l *lake.Lake, name lake.Name, kind string) error {
	have, err := l.Load(ctx, name)
	if errors.Is(err, lake.ErrNoLake) {
		return nil
	}
	if err != nil {
		return err
	}
	return checkKind(have, kind)
}

// checkKind returns an error if a table is of another kind.
func checkKind(have *table.Table, kind string) error {
	if have.Properties()[KeyKind] == kind {
		return nil
	}
	return fmt.Errorf("%w: %s is not a %s: choose another name", ErrTaken, declare.DisplayName(have.Identifier()), kind)
}

// File loads a Parquet file.
func File(ctx context.Context, l *lake.Lake, c Config) (err error) {
	name := declare.DisplayName(c.Table)
	from, err := file.OpenParquetFile(c.File, false)
	if err != nil {
		return fmt.Errorf("load %s: %w", c.File, err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	reader, err := pqarrow.NewFileReader(from, pqarrow.ArrowReadProperties{BatchSize: batchRows}, memory.DefaultAllocator)
	if err != nil {
		return fmt.Errorf("load %s: %w", c.File, err)
	}
	has, err := reader.Schema()
	if err != nil {
		return fmt.Errorf("load %s: %w", c.File, err)
	}
	schema, err := schemaOf(has)
	if err != nil {
		return fmt.Errorf("load %s: %w", c.File, err)
	}
	r := &run{id: uuid.NewString(), lake: l, config: c}
	if r.table, err = l.Load(ctx, c.Table); errors.Is(err, lake.ErrNoLake) {
		r.creates = true
		r.table, err = l.Stage(c.Table, schema, iceberg.Properties{KeyKind: c.Kind})
	}
	if err != nil {
		return err
	}
	if err := checkKind(r.table, c.Kind); err != nil {
		return err
	}
	if err := sameColumns(r.table.Schema(), schema); err != nil {
		return fmt.Errorf("%w with other columns: %s: %w: choose another name, or drop it", ErrTaken, name, err)
	}
	files, err := r.write(ctx, reader)
	if err == nil {
		err = r.commit(ctx, files)
	}
	if err != nil {
		return fmt.Errorf("load table %s: %w", name, err)
	}
	return nil
}

// run is one run of File.
type run struct {
	id      string
	lake    *lake.Lake
	config  Config
	table   *table.Table
	creates bool // the table does not exist yet
}

// write writes the rows to data files.
func (r *run) write(ctx context.Context, from *pqarrow.FileReader) (files []iceberg.DataFile, err error) {
	to, err := table.SchemaToArrowSchema(r.table.Schema(), nil, true, false)
	if err != nil {
		return nil, err
	}
	records, err := from.GetRecordReader(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	defer records.Release()
	rows := func(yield func(arrow.RecordBatch, error) bool) {
		for records.Next() {
			rec, err := converted(ctx, to, records.RecordBatch())
			if !yield(rec, err) || err != nil {
				return
			}
		}
		if err := records.Err(); err != nil && !errors.Is(err, stdio.EOF) {
			yield(nil, err)
		}
	}
	for f, err := range table.WriteRecords(ctx, r.table, to, rows, table.WithParquetRowGroupLimit(rowGroupRows)) {
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write its files: %w", err), r.remove(ctx, files))
		}
		files = append(files, f)
	}
	return files, nil
}

// commit makes the files the content of the table.
func (r *run) commit(ctx context.Context, files []iceberg.DataFile) error {
	// A commit that has begun is completed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	properties := iceberg.Properties{keyLoad: r.id}
	maps.Copy(properties, r.config.Properties)
	tx := r.table.NewTransaction()
	err := r.stage(ctx, tx, files, properties)
	if err == nil {
		err = tx.SetProperties(properties)
	}
	if err != nil {
		return errors.Join(err, r.remove(ctx, files))
	}
	_, err = tx.Commit(ctx)
	if err == nil {
		return nil
	}
	if errors.Is(err, table.ErrCommitFailed) { // nothing has changed
		return errors.Join(fmt.Errorf("another process has changed it meanwhile; run again: %w", err), r.remove(ctx, files))
	}
	// The answer may be lost.
	now, loadErr := r.lake.Load(ctx, r.config.Table)
	if loadErr == nil && now.Properties()[keyLoad] == r.id {
		return nil
	}
	// The files stay, because the commit may still land. Maintenance removes them if it does not.
	return errors.Join(err, loadErr)
}

// stage adds a snapshot with the files, and without the files of before, to a transaction.
func (r *run) stage(
	ctx context.Context, tx *table.Transaction, files []iceberg.DataFile, summary iceberg.Properties,
) error {
	if r.creates {
		return datafile.Stage(ctx, tx, r.table.Metadata().Version(), files, nil, summary)
	}
	if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
		return err
	}
	if r.table.CurrentSnapshot() == nil {
		return datafile.Stage(ctx, tx, r.table.Metadata().Version(), files, nil, summary)
	}
	tasks, err := r.table.Scan().PlanFiles(ctx)
	if err != nil {
		return fmt.Errorf("list its files: %w", err)
	}
	var data, deletes []iceberg.DataFile
	listed := map[string]bool{}
	for _, task := range tasks {
		data = append(data, task.File)
		for _, f := range task.DeleteFiles {
			if !listed[f.FilePath()] {
				listed[f.FilePath()] = true
				deletes = append(deletes, f)
			}
		}
	}
	return tx.ReplaceFiles(ctx, data, files, deletes, summary,
		table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
}

// remove removes files that no commit refers to.
func (r *run) remove(ctx context.Context, written []iceberg.DataFile) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	files, err := datafile.Files(ctx, r.table)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range written {
		if err := files.Remove(f.FilePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove data file: %w", err))
		}
	}
	return errors.Join(errs...)
}
