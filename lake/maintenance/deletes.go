package maintenance

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// idleEqualityDeletes returns the equality delete files that apply to no data file other than those
// in leftOut: every other file is younger, or has no key in their range.
//
// iceberg-go's own search for dead deletes ignores the bounds. So one large file of old rows, which
// no delete has hit for months, would keep all later deletes alive, and some readers refuse tables
// with any.
func idleEqualityDeletes(ctx context.Context, t *table.Table, leftOut map[string]bool) (idle []iceberg.DataFile, err error) {
	tasks, err := t.Scan().PlanFiles(ctx)
	if err != nil {
		return nil, fmt.Errorf("find which deletes hit anything: %w", err)
	}
	// The scan plan applies sequence numbers, partitions and bounds, so a delete file that no task
	// refers to has no effect.
	busy := map[string]bool{}
	for _, task := range tasks {
		if leftOut[task.File.FilePath()] {
			continue
		}
		for _, f := range task.EqualityDeleteFiles {
			busy[f.FilePath()] = true
		}
	}
	files, err := t.FS(ctx)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	manifests, err := t.CurrentSnapshot().Manifests(files)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	for _, m := range manifests {
		if m.ManifestContent() != iceberg.ManifestContentDeletes {
			continue
		}
		for e, err := range m.Entries(files, true) {
			if err != nil {
				return nil, fmt.Errorf("read manifest %s: %w", m.FilePath(), err)
			}
			if f := e.DataFile(); f.ContentType() == iceberg.EntryContentEqDeletes && !busy[f.FilePath()] {
				idle = append(idle, f)
			}
		}
	}
	return idle, nil
}

// dropIdle removes delete files that no longer apply to any data file, provided the table had any
// before. They were added while the files that they apply to were being rewritten, or another
// engine has rewritten those rows.
func (r *run) dropIdle(ctx context.Context, before *table.Table, did *Compacted) error {
	head := before.CurrentSnapshot()
	if head == nil || head.Summary == nil || head.Summary.Properties.GetInt("total-delete-files", 1) == 0 {
		return nil
	}
	c := &commit{run: r, what: "deletes that hit nothing", before: stepCompactCommit, after: stepCompactCommitted}
	gone := 0
	c.stage = func(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if t.CurrentSnapshot() == nil {
			return errNothing
		}
		idle, err := idleEqualityDeletes(ctx, t, nil)
		if err != nil {
			return err
		}
		if gone = len(idle); gone == 0 {
			return errNothing
		}
		rewrite := tx.NewRewrite(summary)
		for _, f := range idle {
			rewrite.DeleteFile(f)
		}
		// Stages the removal; the transaction is committed by land.
		if err := rewrite.Commit(ctx); err != nil {
			return fmt.Errorf("stage: %w", err)
		}
		return withoutNames(t, tx)
	}
	_, err := c.land(ctx)
	did.Retries += c.tries
	if errors.Is(err, errNothing) {
		return nil
	}
	if err == nil {
		did.Commits++
		did.DeleteFiles += gone
	}
	return err
}
