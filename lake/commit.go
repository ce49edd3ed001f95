package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/failpoint"
)

// errFenced says that the table moved under a batch: another lander is at work, or was.
var errFenced = errors.New("another commit moved the table's offsets")

// Files that are not committed after so long are given up, and their records read again: maintenance takes what is
// older than ten minutes or more, and nothing refers to, for what a killed lander has left.
const uncommittedAge = 5 * time.Minute

// A commit that fails for so long, and at least so often, for a reason that nobody knows to pass, stops its table: it
// is said, and tried again at every look at the table.
const (
	unknownHolds = time.Minute
	fewestTries  = 5
)

// A commit that was begun is brought to its end even while the program stops, for so long at most.
const commitTimeout = 30 * time.Second

// land finishes the batch's data files and commits them. However a try fails, the table is asked before the next one:
// is the commit there, or could it still be made? The files are written once and committed until one of both is clear.
func (l *lander) land(ctx context.Context, b *batch, w *fileWriter) error {
	files, err := w.finish(ctx, b.id)
	if err != nil {
		return errors.Join(ofRows(err), w.remove(b.deletes...))
	}
	l.log.Debug("landing", "commit", b.id, "bytes", b.bytes, "next", b.progress.next)
	if err := l.config.at(ctx, l.table.Name, stepClosed); err != nil {
		return errors.Join(err, w.remove(slices.Concat(files, b.deletes)...))
	}
	var bases []int64 // the snapshots on which it was tried
	written := time.Now()
	var since time.Time // it fails for reasons that nobody knows
	for failures := 0; ; failures++ {
		base, err := l.try(ctx, b, w, files, len(bases) > 0)
		if err == nil {
			return nil
		}
		if errors.Is(err, errFenced) || isOfRows(err) || tableError(l.table.called(), err) != nil {
			return errors.Join(err, l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
		if base != unknownBase {
			bases = append(bases, base)
		}
		if passes(err) {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		} else if failures >= fewestTries && time.Since(since) >= l.config.unknown {
			fault := &TableError{Table: l.table.called(), Remedy: remedyCommit, Err: err}
			return errors.Join(fault, l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
		l.log.Warn("a commit failed or its answer was lost", "commit", b.id, "error", err)
		if time.Since(written) > uncommittedAge || !pause(ctx, failures) {
			return errors.Join(err, ctx.Err(), l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
	}
}

// Snapshot ids are above 0.
const (
	noBase      int64 = 0  // the table has no snapshot yet
	unknownBase int64 = -1 // the catalog was not asked
)

// try makes one attempt to commit and tells on which snapshot; again says that an earlier one may have landed. It
// returns nil where the commit is in the table.
func (l *lander) try(ctx context.Context, b *batch, w *fileWriter, files []iceberg.DataFile, again bool) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return unknownBase, err
	}
	if err := l.table.owned(t.Properties()); err != nil {
		return unknownBase, fmt.Errorf("%w: %w", errFenced, err)
	}
	at, err := readProgress(l.table.Topic, t.Properties())
	if err != nil {
		return unknownBase, &PositionError{l.table.Name, l.table.Topic, err}
	}
	if again && (at.commit == b.id || findCommit(t.Metadata(), b.id, unknownBase) == landed) {
		return unknownBase, nil
	}
	if !at.at(b.from) && !failpoint.On("lake.nofence") {
		return unknownBase, fmt.Errorf("%w: it is at %v, and the batch begins at %v", errFenced, at.next, b.from)
	}
	if !asWritten(w.table.Metadata(), t.Metadata()) { // since the writer was made
		step, err := l.table.step(t.Metadata())
		if err == nil {
			err = writable(ctx, t.Metadata(), step.Columns)
		}
		if err != nil {
			return unknownBase, &UnwritableError{l.table.called(), err}
		}
	}
	base = noBase
	if head := t.CurrentSnapshot(); head != nil {
		base = head.SnapshotID
	}

	tx := t.NewTransaction()
	if failpoint.On("lake.nofence") {
		l.log.Warn("the fence is off")
	} else if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
		return unknownBase, err
	}
	reaches := b.progress
	if at.asOf.After(reaches.asOf) { // by another lander of the table
		reaches.asOf = at.asOf
	}
	// A batch without rows makes no snapshot. It may only move offsets over records that have no rows either, so even a
	// stale one, which nothing but rows would stop, does no harm.
	props := reaches.properties(l.table.Topic)
	props[propTopic] = l.table.Topic
	if len(files) > 0 {
		whole := progress{next: maps.Clone(at.next), commit: b.id}
		maps.Copy(whole.next, b.progress.next)
		summary := whole.summary()
		if l.table.keyed {
			props[propRows] = strconv.FormatInt(at.rows+b.born, 10)
			summary[propRows] = props[propRows]
		}
		if err := stageRows(ctx, tx, t.Metadata().Version(), files, b.deletes, summary); err != nil {
			return unknownBase, ofRows(fmt.Errorf("stage commit: %w", err))
		}
	}
	if err := tx.SetProperties(props); err != nil {
		return unknownBase, fmt.Errorf("stage commit: %w", err)
	}
	if err := l.parkUnwritable(ctx, b.unwritable); err != nil {
		return unknownBase, err
	}
	if err := l.config.at(ctx, l.table.Name, stepCommit); err != nil {
		return unknownBase, err
	}
	if _, err := tx.Commit(ctx); err != nil {
		return base, fmt.Errorf("commit: %w", err)
	}
	return base, l.config.at(ctx, l.table.Name, stepCommitted)
}

// rowIDs is the first format version in which rows have ids. iceberg-go gives them to what a row delta adds, not to
// what is added as files.
const rowIDs = 3

// stageRows adds the rows, and the deletes of those whose place they take: these hit what commits before this one have
// brought.
func stageRows(ctx context.Context, tx *table.Transaction, format int, files, deletes []iceberg.DataFile, summary iceberg.Properties) error {
	if len(deletes) > 0 || format >= rowIDs {
		return tx.NewRowDelta(summary).AddRows(files...).AddDeletes(deletes...).Commit(ctx)
	}
	return tx.AddDataFiles(ctx, files, summary, table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
}

// discardUnlanded removes the data files of a commit that certainly did not land and never will. Where that is not
// certain they stay: a file that nobody reads costs some space, a missing one costs the table.
func (l *lander) discardUnlanded(ctx context.Context, w *fileWriter, files []iceberg.DataFile, commit string, bases []int64) error {
	if len(files) > 0 && len(bases) > 0 {
		t, err := l.lake.load(context.WithoutCancel(ctx), l.table.identifier())
		if err != nil {
			return err
		}
		for _, base := range bases {
			if findCommit(t.Metadata(), commit, base) != notLanded {
				l.log.Warn("data files are left behind, as their commit may have landed", "files", len(files), "commit", commit)
				return nil
			}
		}
	}
	return w.remove(files...)
}
