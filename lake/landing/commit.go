package landing

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

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/maintenance"
)

// errFenced reports that another lander has moved the table's offsets of a partition in the batch.
var errFenced = errors.New("another commit moved the table's offsets")

// uncommittedAge is the age at which uncommitted files are discarded and their records read again.
// It must stay well below the minimum age of orphans in maintenance, which is ten minutes: a commit
// must never refer to files that maintenance may have removed.
const uncommittedAge = 5 * time.Minute

// A commit that keeps failing for an unclassified reason stops its table after unknownLimit and at
// least minAttempts attempts. The fault is recorded, and landing is tried again at intervals.
const (
	unknownLimit = time.Minute
	minAttempts  = 5
)

// commitTimeout limits one attempt. An attempt that has begun is completed even if the program is
// stopping.
const commitTimeout = 30 * time.Second

// land finishes the batch's data files and commits them. The files are written once. Before each
// further attempt, the table is read again to find out whether an earlier attempt has landed, since
// a lost answer looks like a failure. Attempts end when the commit has landed, can no longer land,
// or its files are too old.
func (l *lander) land(ctx context.Context, b *batch, w *datafile.Writer) error {
	files, err := w.Finish(ctx, b.id)
	if err != nil {
		return errors.Join(faults.AsRowsError(err), w.Remove(b.deletes...))
	}
	l.log.Debug("landing", "commit", b.id, "bytes", b.bytes, "next", b.progress.Next)
	if err := l.config.at(ctx, l.table.Name, stepClosed); err != nil {
		return errors.Join(err, w.Remove(slices.Concat(files, b.deletes)...))
	}
	var bases []int64 // snapshots on which a commit was attempted
	written := time.Now()
	var since time.Time // when unclassified errors began
	waits := backoff.Server.Start()
	for failures := 0; ; failures++ {
		// len(bases) > 0: an earlier attempt reached the catalog and may have landed.
		base, err := l.try(ctx, b, w, files, len(bases) > 0)
		if err == nil {
			return nil
		}
		// Further attempts are pointless: the batch is outdated, or an error is permanent.
		if errors.Is(err, errFenced) || faults.IsRowsError(err) || faults.Of(l.table.DisplayName(), err) != nil {
			return errors.Join(err, l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
		if base != unknownBase {
			bases = append(bases, base)
		}
		// Temporary errors never stop the table. Unclassified ones do after a while.
		if faults.IsTemporary(err) {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		} else if failures >= minAttempts && time.Since(since) >= l.config.unknownTimeout {
			fault := &faults.TableError{Table: l.table.DisplayName(), Remedy: faults.RemedyCommit, Err: err}
			return errors.Join(fault, l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
		l.log.Warn("commit failed, or its response was lost", "commit", b.id, "error", err)
		// Give up in time: old uncommitted files look like orphans to maintenance.
		if time.Since(written) > uncommittedAge || !waits.Wait(ctx) {
			return errors.Join(err, ctx.Err(), l.discardUnlanded(ctx, w, slices.Concat(files, b.deletes), b.id, bases))
		}
	}
}

// Special values of a snapshot id. Real ones are positive.
const (
	noBase      int64 = 0  // the table has no snapshot
	unknownBase int64 = -1 // no commit was sent to the catalog
)

// try makes one attempt and returns the snapshot on which it was based. again is set if an earlier
// attempt may have landed. A nil error means that the commit is in the table.
func (l *lander) try(
	ctx context.Context, b *batch, w *datafile.Writer, files []iceberg.DataFile, again bool,
) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := l.load(ctx)
	if err != nil {
		return unknownBase, err
	}
	if err := progress.CheckOwner(l.table, t.Properties()); err != nil {
		return unknownBase, fmt.Errorf("%w: %w", errFenced, err)
	}
	at, err := progress.Read(l.table.Topic, t.Properties())
	if err != nil {
		return unknownBase, &faults.PositionError{Table: l.table.Name, Topic: l.table.Topic, Err: err}
	}
	if again && (at.Commit == b.id || findCommit(t.Metadata(), b.id, unknownBase) == landed) {
		return unknownBase, nil
	}
	if !at.At(b.from) && !failpoint.On("lake.nofence") {
		return unknownBase, fmt.Errorf("%w: the table is at %v, the batch begins at %v", errFenced, at.Next, b.from)
	}
	// Something relevant changed since the writer was created.
	if !datafile.SameForWriting(w.Table.Metadata(), t.Metadata()) {
		step, err := l.table.Step(t.Metadata())
		if err == nil {
			err = datafile.Writable(ctx, t.Metadata(), step.Columns)
		}
		if err != nil {
			return unknownBase, &faults.UnwritableError{Table: l.table.DisplayName(), Err: err}
		}
	}
	base = noBase
	if head := t.CurrentSnapshot(); head != nil {
		base = head.SnapshotID
	}

	// The commit is based on t and asserts its head.
	tx := t.NewTransaction()
	if failpoint.On("lake.nofence") {
		l.log.Warn("fencing is disabled")
	} else if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
		return unknownBase, err
	}
	// The newest time wins: another lander may have committed a newer event.
	state := b.progress
	if at.AsOf.After(state.AsOf) {
		state.AsOf = at.AsOf
	}
	// A batch without rows creates no snapshot, so the snapshot assertion cannot stop a stale one.
	// That is harmless: it can only move offsets across records that have no rows.
	props := state.Properties(l.table.Topic)
	props[progress.KeyTopic] = l.table.Topic
	if len(files) > 0 {
		// The summary has the offsets of all partitions, not only those of this batch.
		after := progress.State{Next: maps.Clone(at.Next), Commit: b.id}
		maps.Copy(after.Next, b.progress.Next)
		summary := after.Summary()
		if l.table.Keyed() {
			props[progress.KeyRows] = strconv.FormatInt(at.Rows+b.inserted, 10)
			summary[progress.KeyRows] = props[progress.KeyRows]
		}
		if err := datafile.Stage(ctx, tx, t.Metadata().Version(), files, b.deletes, summary); err != nil {
			return unknownBase, faults.AsRowsError(fmt.Errorf("stage commit: %w", err))
		}
	}
	if err := tx.SetProperties(props); err != nil {
		return unknownBase, fmt.Errorf("stage commit: %w", err)
	}
	// Dead letters must be durable before the offsets move past them.
	if err := l.writeUnwritable(ctx, b.unwritable); err != nil {
		return unknownBase, err
	}
	if err := l.config.at(ctx, l.table.Name, stepCommit); err != nil {
		return unknownBase, err
	}
	begun := time.Now()
	_, err = tx.Commit(ctx)
	l.meter().Catalog("commit", time.Since(begun))
	if err != nil {
		return base, fmt.Errorf("commit: %w", err)
	}
	return base, l.config.at(ctx, l.table.Name, stepCommitted)
}

// discardUnlanded removes the files of a commit that has not landed and never can. If that is
// uncertain the files stay: an orphan costs some space, but a missing file would damage the table.
func (l *lander) discardUnlanded(
	ctx context.Context, w *datafile.Writer, files []iceberg.DataFile, commit string, bases []int64,
) error {
	if len(files) > 0 && len(bases) > 0 {
		t, err := l.load(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		for _, base := range bases {
			if findCommit(t.Metadata(), commit, base) != notLanded {
				l.log.Warn("keeping data files whose commit may have landed", "files", len(files), "commit", commit)
				return nil
			}
		}
	}
	return w.Remove(files...)
}

// landing is the result of findCommit.
type landing int

const (
	notLanded   landing = iota // and never will: another commit took its place
	landed                     // in the table's history
	landUnknown                // may still land, or the history is too short to tell
)

// findCommit looks for a commit in the table's history. The commit asserted base as its parent
// (noBase: no parent). If another snapshot has that parent, the commit can never land.
func findCommit(meta table.Metadata, id string, base int64) landing {
	for _, s := range maintenance.History(meta) {
		if s.Summary != nil && s.Summary.Properties[progress.KeyCommit] == id {
			return landed
		}
		var parent int64
		if s.ParentSnapshotID != nil {
			parent = *s.ParentSnapshotID
		}
		if parent == base {
			return notLanded
		}
	}
	return landUnknown
}
