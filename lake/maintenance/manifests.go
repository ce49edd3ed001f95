package maintenance

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/location"
)

// ManifestsMerged is the result of merging manifests.
type ManifestsMerged struct {
	Before, After int // manifests of the current snapshot that were replaced, and their replacements
	Retries       int
}

// RewriteManifests merges small manifests if there are many. Every read and commit opens each of
// them.
func RewriteManifests(ctx context.Context, load Load, c Config) (ManifestsMerged, error) {
	r, err := newRun(c, load, nil)
	if err != nil {
		return ManifestsMerged{}, err
	}
	return r.rewriteManifests(ctx)
}

// rewriteManifests merges the small manifests of the current snapshot, or rewrites all of them if
// any lacks bounds.
func (r *run) rewriteManifests(ctx context.Context) (did ManifestsMerged, err error) {
	t, err := r.loadTable(ctx)
	if err != nil {
		return did, err
	}
	small, wrong, err := r.manifestsToRewrite(ctx, t)
	if err != nil {
		return did, fmt.Errorf("rewrite manifests: %w", err)
	}
	// Merging is only worthwhile for many manifests, but missing bounds make readers skip rows and
	// must be fixed.
	if small < r.Manifests && !wrong {
		return did, nil
	}
	var how []table.RewriteManifestsOpt
	if wrong { // cluster by a constant, so that even few manifests are rewritten
		how = append(how, table.WithRewriteManifestClusterBy(func(iceberg.DataFile) any { return 0 }))
	}
	c := &commit{run: r, what: "manifests", before: stepManifestsCommit, after: stepManifestsCommitted}
	// The rewrite is planned again in every attempt, as other commits add manifests.
	c.stage = func(ctx context.Context, _ *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		result, err := tx.RewriteManifests(ctx, how...)
		if err != nil {
			return err
		}
		if result.IsNoOp() {
			// Also if the previous attempt landed and its answer was lost: this commit has no id.
			return errNothing
		}
		did.Before, did.After = len(result.RewrittenManifests), len(result.AddedManifests)
		return nil
	}
	_, err = c.land(ctx)
	did.Retries = c.tries
	if errors.Is(err, errNothing) {
		err = nil
	}
	if err != nil {
		return ManifestsMerged{Retries: c.tries}, err
	}
	return did, nil
}

// manifestsToRewrite returns the number of data manifests of the current snapshot that are smaller
// than half the table's target size. wrong reports whether a summary lacks bounds, which would make
// readers skip its manifest.
func (r *run) manifestsToRewrite(ctx context.Context, t *table.Table) (small int, wrong bool, err error) {
	head := t.CurrentSnapshot()
	if head == nil {
		return 0, false, nil
	}
	files, err := t.FS(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("file system of %s: %w", t.Location(), err)
	}
	manifests, err := head.Manifests(files)
	if err != nil {
		return 0, false, fmt.Errorf("read manifests: %w", err)
	}
	// The target size is a property of the table, as for other engines.
	want := int64(t.Properties().GetInt(table.ManifestTargetSizeBytesKey, table.ManifestTargetSizeBytesDefault))
	for _, m := range manifests {
		// Delete manifests are not merged.
		if m.ManifestContent() != iceberg.ManifestContentData {
			continue
		}
		if m.Length() < want/2 {
			small++
		}
		if !wrong {
			if wrong, err = location.MissingBounds(m, files); err != nil {
				return 0, false, fmt.Errorf("bounds of manifests: %w", err)
			}
		}
	}
	return small, wrong, nil
}
