package lake

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/failpoint"
)

// errFenced says that the table moved under a batch: another lander is at work, or was.
var errFenced = errors.New("another commit moved the table's offsets")

// A commit that was begun is brought to its end even while the program stops, for so long at most.
const commitTimeout = 30 * time.Second

// land finishes the batch's data files and commits them. However a try fails, the table is asked before the next one: is the
// commit there, or could it still be made? The files are written once and committed until one of both is clear.
func (l *lander) land(ctx context.Context, b *batch, w *fileWriter) error {
	files, err := w.finish(ctx, b.id)
	if err != nil {
		return err
	}
	l.log.Debug("landing", "commit", b.id, "bytes", b.bytes, "next", b.progress.next)
	if err := l.config.at(ctx, l.table.Name, stepClosed); err != nil {
		return errors.Join(err, w.remove(files...))
	}
	var bases []int64 // the snapshots on which it was tried
	for failures := 0; ; failures++ {
		base, err := l.try(ctx, b, files, len(bases) > 0)
		if err == nil {
			return nil
		}
		if errors.Is(err, errFenced) {
			return errors.Join(err, l.discardUnlanded(ctx, w, files, b.id, bases))
		}
		if base != unknownBase {
			bases = append(bases, base)
		}
		l.log.Warn("a commit failed or its answer was lost", "commit", b.id, "error", err)
		if !pause(ctx, failures) {
			return errors.Join(ctx.Err(), l.discardUnlanded(ctx, w, files, b.id, bases))
		}
	}
}

// Snapshot ids are above 0.
const (
	noBase      int64 = 0  // the table has no snapshot yet
	unknownBase int64 = -1 // the catalog was not asked
)

// try makes one attempt to commit and tells on which snapshot; again says that an earlier one may have landed. It returns
// nil where the commit is in the table.
func (l *lander) try(ctx context.Context, b *batch, files []iceberg.DataFile, again bool) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return unknownBase, err
	}
	at, err := readProgress(l.table.Topic, t.Properties())
	if err != nil {
		return unknownBase, err
	}
	if again && (at.commit == b.id || findCommit(t.Metadata(), b.id, unknownBase) == landed) {
		return unknownBase, nil
	}
	if !at.at(b.from) && !failpoint.On("lake.nofence") {
		return unknownBase, fmt.Errorf("%w: it is at %v, and the batch begins at %v", errFenced, at.next, b.from)
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
	if len(files) > 0 {
		err := tx.AddDataFiles(ctx, files, b.progress.summary(), table.WithoutDuplicateCheck(), table.WithoutAutoNameMapping())
		if err != nil {
			return unknownBase, fmt.Errorf("stage commit: %w", err)
		}
	}
	if err := tx.SetProperties(reaches.properties(l.table.Topic)); err != nil {
		return unknownBase, fmt.Errorf("stage commit: %w", err)
	}
	if err := l.config.at(ctx, l.table.Name, stepCommit); err != nil {
		return unknownBase, err
	}
	if _, err := tx.Commit(ctx); err != nil {
		return base, fmt.Errorf("commit: %w", err)
	}
	return base, l.config.at(ctx, l.table.Name, stepCommitted)
}

// discardUnlanded removes the data files of a commit that certainly did not land and never will. Where that is not certain
// they stay: a file that nobody reads costs some space, a missing one costs the table.
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

// History is kept for historyAge, and some of it in any case, but never so much that commits, which read and write all of
// it, get slow. A cut is a commit too, so it is looked for every few commits, and made where it is worth it.
const (
	historyAge   = time.Minute
	historyLeast = 10
	historyMost  = 128
	historyCut   = 16
	historyLook  = 8
)

// expire cuts the table's history where it has grown long, so that commits cost the same for ever. No data file is
// deleted, as all are in every later snapshot.
func (l *lander) expire(ctx context.Context) {
	if l.commits++; l.commits%historyLook != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := l.tryExpire(ctx); err != nil {
		l.log.Warn("the table's history could not be cut and will be later", "error", err)
	}
}

func (l *lander) tryExpire(ctx context.Context) error {
	t, err := l.lake.load(ctx, l.table.identifier())
	if err != nil {
		return err
	}
	snapshots := t.Metadata().Snapshots()
	age, least, old := historyAge, historyLeast, 0
	if len(snapshots) > historyMost {
		age, least = 0, historyMost/2
	}
	limit := time.Now().Add(-age).UnixMilli()
	for _, s := range snapshots {
		if s.TimestampMs < limit {
			old++
		}
	}
	if min(old, len(snapshots)-least) < historyCut {
		return nil
	}
	tx := t.NewTransaction()
	if err := tx.ExpireSnapshots(table.WithOlderThan(age), table.WithRetainLast(least)); err != nil {
		return err
	}
	_, err = tx.Commit(ctx)
	return err
}
