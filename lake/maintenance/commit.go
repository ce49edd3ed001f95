package maintenance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/backoff"
)

// Keys in the summary of maintenance snapshots. The id identifies the commit after a lost answer.
// Landers' offsets are table properties, which these commits do not change.
const (
	summaryWhat = "millrace.maintenance"
	summaryID   = "millrace.maintenance-id"
)

// errStale reports that the table has changed in a way that invalidates the prepared commit.
var errStale = errors.New("another commit changed the files to be replaced")

// commitTimeout limits one attempt. An attempt that has begun is completed even if the program is
// stopping.
const commitTimeout = 2 * time.Minute

// commit is one logical commit. It is attempted until it lands, cannot land any more, or has failed
// too often.
type commit struct {
	run           *run
	what          string // for the summary and for errors
	before, after step
	// stage adds the changes to a transaction on the table's current state. It returns errStale if
	// they no longer apply, and errNothing if nothing is left to do.
	stage func(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error

	id    string  // unique, stored in the snapshot's summary
	bases []int64 // snapshots on which it was attempted
	tries int     // failed attempts
}

// SummaryOffsets is the summary key of the Kafka offsets that a snapshot holds. Rewrites of the
// same rows copy it.
const SummaryOffsets = "millrace.next-offsets"

// errNothing reports that there is nothing to commit.
var errNothing = errors.New("nothing to commit")

// land commits. If it fails, certain reports whether the commit is definitely not in the table and
// never will be.
//
// Landers move the head all the time, so every attempt loads the table, asserts its head, and is
// refused if another commit came first. Before another attempt, the table is searched for the
// commit. Two attempts cannot both land, because each asserts the head on which it was based.
func (c *commit) land(ctx context.Context) (certain bool, err error) {
	c.id = uuid.Must(uuid.NewV7()).String()
	// Backoff between attempts, since landers commit to the same table every second.
	waits := backoff.Commit.Start()
	for {
		base, err := c.try(ctx)
		if err == nil || errors.Is(err, errNothing) {
			return true, err
		}
		if base != unknownBase {
			c.bases = append(c.bases, base)
		}
		c.tries++
		// A stale commit cannot succeed. Everything else may be a conflict or a lost answer.
		if errors.Is(err, errStale) || c.tries >= c.run.tries || !waits.Wait(ctx) {
			return c.gone(ctx), fmt.Errorf("commit %s, attempt %d: %w", c.what, c.tries, err)
		}
		c.run.Logger.Debug("commit failed; retrying", "what", c.what, "table", c.run.table, "error", err)
	}
}

// Special values of a snapshot id. Real ones are positive.
const (
	noBase      int64 = 0  // the table has no snapshot
	unknownBase int64 = -1 // no commit was sent to the catalog
)

// try makes one attempt and returns the snapshot on which it was based.
func (c *commit) try(ctx context.Context) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := c.run.loadTable(ctx)
	if err != nil {
		return unknownBase, err
	}
	// An earlier attempt may have landed although its answer was lost.
	if len(c.bases) > 0 && landed(t.Metadata(), c.id) {
		return unknownBase, nil
	}
	// The head that the assertion below fixes, or none in an empty table.
	base = noBase
	if head := t.CurrentSnapshot(); head != nil {
		base = head.SnapshotID
	}
	tx := t.NewTransaction()
	// The catalog refuses the commit if the head has changed since t was loaded.
	if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
		return unknownBase, err
	}
	// The id identifies this commit if the answer is lost. See landed.
	summary := iceberg.Properties{summaryWhat: c.what, summaryID: c.id}
	// A rewrite keeps the rows, so its snapshot holds the same offsets as its parent.
	if head := t.CurrentSnapshot(); head != nil && head.Summary != nil {
		if offsets := head.Summary.Properties[SummaryOffsets]; offsets != "" {
			summary[SummaryOffsets] = offsets
		}
	}
	if err := c.stage(ctx, t, tx, summary); err != nil {
		return unknownBase, err
	}
	if err := c.run.at(ctx, c.before); err != nil {
		return unknownBase, err
	}
	// iceberg-go returns both a table and an error if only the steps after the commit failed.
	if committed, err := tx.Commit(ctx); err != nil && committed == nil {
		return base, err
	} else if err != nil { // committed; only cleaning up afterwards failed
		c.run.Logger.Warn("cannot delete unneeded files; a later run will", "table", c.run.table, "error", err)
	}
	return base, c.run.at(ctx, c.after)
}

// gone reports whether the commit is known never to land: no attempt reached the catalog, or
// another snapshot took the place of each.
func (c *commit) gone(ctx context.Context) bool {
	// No attempt reached the catalog.
	if len(c.bases) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := c.run.loadTable(ctx)
	if err != nil || landed(t.Metadata(), c.id) {
		return false
	}
	// An attempt on a base can land only as its direct child. It never will once another snapshot
	// has that place.
	for _, base := range c.bases {
		if !passed(t.Metadata(), base) {
			return false
		}
	}
	return true
}

// landed reports whether a commit is among the snapshots.
func landed(meta table.Metadata, id string) bool {
	for _, s := range meta.Snapshots() {
		if s.Summary != nil && s.Summary.Properties[summaryID] == id {
			return true
		}
	}
	return false
}

// passed reports whether another snapshot has certainly replaced base as the head.
func passed(meta table.Metadata, base int64) bool {
	for _, s := range History(meta) {
		if s.SnapshotID == base {
			return false // it is still the head, otherwise its child would have been found first
		}
		var parent int64
		if s.ParentSnapshotID != nil {
			parent = *s.ParentSnapshotID
		}
		if parent == base {
			return true
		}
	}
	return false // the retained history is too short
}
