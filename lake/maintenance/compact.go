package maintenance

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// Compacted is the result of a compaction.
type Compacted struct {
	Commits     int
	FilesBefore int // data files replaced
	FilesAfter  int // data files written
	DeleteFiles int // dead delete files removed
	Rows        int64
	BytesBefore int64
	BytesAfter  int64
	GivenUp     int // rewrites that another commit invalidated
	Retries     int // repeated attempts to commit
	Took        time.Duration
}

// String summarizes the result for logs and the command line.
func (c Compacted) String() string {
	return fmt.Sprintf("rewrote %d files (%d bytes) as %d (%d bytes) and removed %d delete files "+
		"in %d commits (%d retries, %d abandoned): %d rows in %v",
		c.FilesBefore, c.BytesBefore, c.FilesAfter, c.BytesAfter, c.DeleteFiles,
		c.Commits, c.Retries, c.GivenUp, c.Rows, c.Took.Round(time.Millisecond))
}

// Compact rewrites many small files, and files with deletes, as few large files sorted by the
// table's sort order. If the table has no sort order, or an unsupported one, rows keep the order in
// which they were added.
func Compact(ctx context.Context, load Load, c Config, progress func(Progress)) (Compacted, error) {
	r, err := newRun(c, load, progress)
	if err != nil {
		return Compacted{}, err
	}
	return r.compact(ctx)
}

// compact plans against one state of the table and then commits bin by bin. Each commit checks that
// its files are still there.
func (r *run) compact(ctx context.Context) (did Compacted, err error) {
	began := time.Now()
	defer func() { did.Took = time.Since(began) }()
	t, err := r.loadTable(ctx)
	if err != nil {
		return did, err
	}
	// Format 3 gives each row an id, which a rewrite must preserve. This one does not.
	if v := t.Metadata().Version(); v > 2 {
		r.skip("compact", fmt.Sprintf("format version %d has row ids, which this rewrite would not preserve", v))
		return did, nil
	}
	p, err := r.planCompaction(ctx, t)
	if err != nil {
		return did, fmt.Errorf("compact: %w", err)
	}
	var total, read int64
	for _, b := range p.bins {
		total += b.bytes
	}
	if err := r.at(ctx, stepPlanned); err != nil {
		return did, fmt.Errorf("compact: %w", err)
	}
	// Small bins share a commit, up to the size of a large bin: the cost of a commit does not
	// depend on its size.
	for first := 0; first < len(p.bins); {
		end, bytes := first, int64(0)
		// Collect bins for one commit.
		for end < len(p.bins) && (end == first || bytes+p.bins[end].bytes <= binTargets*r.TargetBytes) {
			bytes += p.bins[end].bytes
			end++
		}
		if err := r.rewrite(ctx, t, p.bins[first:end], &did); err != nil {
			return did, fmt.Errorf("compact: %w", err)
		}
		read += bytes
		r.progress(Progress{Table: r.table, Step: "compact", Done: read, Of: total})
		first = end
	}
	// Deletes may also become dead without any file being rewritten here.
	if err := r.removeDeadDeletes(ctx, t, &did); err != nil {
		return did, fmt.Errorf("compact: %w", err)
	}
	return did, nil
}

// rewrite replaces the files of several bins in one commit. A rewrite that became stale is not an
// error: the next run plans again.
func (r *run) rewrite(ctx context.Context, base *table.Table, bins []bin, did *Compacted) error {
	began := time.Now()
	// made has all files that were begun, for removal after an error. added has the finished ones.
	var made []string
	var added []iceberg.DataFile
	// Write the new files first. Nothing refers to them until the commit.
	for _, b := range bins {
		w, err := r.rewriteBin(ctx, base, b)
		if w != nil {
			made = append(made, w.made...)
			added = append(added, w.done...)
		}
		if err != nil {
			return errors.Join(err, remove(ctx, base, made))
		}
	}
	if err := r.at(ctx, stepWritten); err != nil {
		return errors.Join(err, remove(ctx, base, made))
	}
	rep := newReplacement(base, bins, added)
	c := &commit{run: r, what: "compaction", before: stepCompactCommit, after: stepCompactCommitted}
	c.stage = func(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		// Once our files are older than OrphanAge, another process may remove them as orphans.
		if age := time.Since(began); age > r.OrphanAge/2 {
			return fmt.Errorf("%w: the rewrite took %v, too close to the orphan age of %v", errStale, age, r.OrphanAge)
		}
		return rep.stage(ctx, t, tx, summary)
	}
	// Files may only be removed if it is certain that the commit has not landed.
	certain, err := c.land(ctx)
	did.Retries += c.tries
	if err != nil {
		if !certain {
			r.Logger.Warn("keeping data files, because their commit may have landed",
				"table", r.table, "files", made, "error", err)
			return err
		}
		err = errors.Join(err, remove(ctx, base, made))
		if errors.Is(err, errStale) {
			did.GivenUp++
			r.Logger.Info("rewrite abandoned; the next run plans it again", "table", r.table, "reason", err)
			return nil
		}
		return err
	}
	// Only what has landed counts.
	did.Commits++
	did.DeleteFiles += rep.deadDeletes
	for _, b := range bins {
		did.FilesBefore += len(b.tasks)
		did.BytesBefore += b.bytes
	}
	did.FilesAfter += len(added)
	for _, f := range added {
		did.Rows += f.Count()
		did.BytesAfter += f.FileSizeBytes()
	}
	return nil
}

// rewriteBin reads the rows of a bin without deleted ones, and writes them to new files. After an
// error, the writer still returns the files that it began.
func (r *run) rewriteBin(ctx context.Context, t *table.Table, b bin) (*writer, error) {
	ctx, cancel := context.WithCancel(ctx) // stops the readers
	defer cancel()
	// A sort order that is not supported is not an error: the rows keep their order.
	order := t.SortOrder()
	keys, err := sortKeys(order, t.Schema())
	if err != nil {
		r.skip("sorting", err.Error())
	}
	sortID := 0
	if len(keys) > 0 {
		sortID = order.OrderID()
	}
	w, err := newWriter(ctx, t, b, sortID, r.Memory)
	if err != nil {
		return nil, err
	}
	// A file that is finished is not affected by close.
	defer w.close()
	var tasks []table.FileScanTask
	var largest int64
	for _, task := range b.tasks {
		for _, piece := range pieces(task) {
			tasks = append(tasks, piece)
			largest = max(largest, pieceSize(piece))
		}
	}
	// The reader holds pieces decoded, about 8 times as large as in Parquet. Small files are read
	// concurrently to hide the latency of an object store.
	workers := int(min(8, max(1, r.Memory/4/(8*largest+1))))
	scan := t.Scan(table.WithMaxConcurrency(workers), table.WithArrowBatchSize(8<<10))
	schema, records, err := scan.ReadTasks(ctx, tasks)
	if err != nil {
		return w, fmt.Errorf("read data files: %w", err)
	}
	// One throttle for both reading and writing, so that their work adds up.
	limit := newThrottle(r.DutyCycle)
	write := limit.wrap(ctx, w.write)
	if len(keys) > 0 {
		err = r.sortInto(ctx, write, limit, keys, schema, records)
	} else {
		err = forEach(ctx, records, write)
	}
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = b.check(w.done)
	}
	return w, err
}

// check compares the numbers of rows read and written, as a last defence against losing rows.
// Without deletes they must be equal.
func (b bin) check(written []iceberg.DataFile) error {
	var before, after int64
	deletes := false
	for _, task := range b.tasks {
		before += task.File.Count()
		deletes = deletes || len(task.DeleteFiles)+len(task.EqualityDeleteFiles)+len(task.DeletionVectorFiles) > 0
	}
	for _, f := range written {
		after += f.Count()
	}
	// Rows may only disappear through deletes, and can never be added.
	if after > before || after < before && !deletes {
		return fmt.Errorf("the replaced files have %d rows, but %d were written; nothing was replaced", before, after)
	}
	return nil
}

// sortInto sorts the rows on disk and passes them to write.
func (r *run) sortInto(
	ctx context.Context, write func(arrow.RecordBatch) error, limit *throttle, keys []keyField,
	schema *arrow.Schema, records iter.Seq2[arrow.RecordBatch, error],
) (err error) {
	// Each rewrite has its own scratch folder, which is removed at its end.
	dir, err := os.MkdirTemp(r.Scratch, "millrace-sort-")
	if err != nil {
		return fmt.Errorf("scratch folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := newSorter(ctx, keys, schema, dir, r.sortBytes, func() error { return r.at(ctx, stepSpilled) })
	defer s.close()
	if err := forEach(ctx, records, limit.wrap(ctx, s.add)); err != nil {
		return err
	}
	return s.sorted(write)
}

// forEach passes all batches to take and releases them.
func forEach(
	ctx context.Context, records iter.Seq2[arrow.RecordBatch, error], take func(arrow.RecordBatch) error,
) error {
	for rec, err := range records {
		if err != nil {
			return fmt.Errorf("read data files: %w", err)
		}
		err = take(rec)
		rec.Release()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pieceSize returns the number of bytes that a task reads.
func pieceSize(task table.FileScanTask) int64 {
	if task.Length > 0 {
		return task.Length
	}
	return task.File.FileSizeBytes()
}
