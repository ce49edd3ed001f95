package maintenance

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// deadEqualityDeletes returns the equality delete files that apply to no data file other than those
// in ignored: every other file is younger, or has no key in their range.
//
// iceberg-go's own search for dead deletes ignores the bounds. So one large file of old rows, which
// no delete has hit for months, would keep all later deletes alive, and some readers refuse tables
// with any.
func deadEqualityDeletes(
	ctx context.Context, t *table.Table, ignored map[string]bool,
) (dead []iceberg.DataFile, err error) {
	tasks, err := t.Scan().PlanFiles(ctx)
	if err != nil {
		return nil, fmt.Errorf("find live deletes: %w", err)
	}
	// The scan plan applies sequence numbers, partitions and bounds, so a delete file that no task
	// refers to has no effect.
	live := map[string]bool{}
	for _, task := range tasks {
		if ignored[task.File.FilePath()] {
			continue
		}
		for _, f := range task.EqualityDeleteFiles {
			live[f.FilePath()] = true
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
	// Delete files are only in delete manifests.
	for _, m := range manifests {
		if m.ManifestContent() != iceberg.ManifestContentDeletes {
			continue
		}
		for e, err := range m.Entries(files, true) {
			if err != nil {
				return nil, fmt.Errorf("read manifest %s: %w", m.FilePath(), err)
			}
			if f := e.DataFile(); f.ContentType() == iceberg.EntryContentEqDeletes && !live[f.FilePath()] {
				dead = append(dead, f)
			}
		}
	}
	return dead, nil
}

// removeDeadDeletes removes delete files that no longer apply to any data file, provided the table
// had any before. They were added while the files that they apply to were being rewritten, or
// another engine has rewritten those rows.
func (r *run) removeDeadDeletes(ctx context.Context, before *table.Table, did *Compacted) error {
	head := before.CurrentSnapshot()
	if head == nil || head.Summary == nil || head.Summary.Properties.GetInt("total-delete-files", 1) == 0 {
		return nil
	}
	// Other commits may come first, so every attempt looks for dead deletes again.
	c := &commit{run: r, what: "dead deletes", before: stepCompactCommit, after: stepCompactCommitted}
	gone := 0
	c.stage = func(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error {
		if t.CurrentSnapshot() == nil {
			return errNothing
		}
		dead, err := deadEqualityDeletes(ctx, t, nil)
		if err != nil {
			return err
		}
		if gone = len(dead); gone == 0 {
			return errNothing
		}
		rewrite := tx.NewRewrite(summary)
		for _, f := range dead {
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
