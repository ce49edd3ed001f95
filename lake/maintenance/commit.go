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

// The summary of a snapshot that maintenance makes says so, and carries an id by which its commit
// is found again. Nothing of landers is in it: their offsets are properties of the table, which
// these commits do not touch.
const (
	summaryWhat = "millrace.maintenance"
	summaryID   = "millrace.maintenance-id"
)

// errStale says that the table has changed so that what was prepared does not fit any more.
var errStale = errors.New("another commit changed what was to be replaced")

// A commit that was begun is brought to its end even while the program stops, for so long at most.
const commitTimeout = 2 * time.Minute

// commit is one commit, tried until it lands, cannot land any more, or has been tried often enough.
type commit struct {
	run           *run
	what          string // for the summary and for errors
	before, after step
	// stage prepares the commit on a table as it is now; errStale where it does not fit, errNothing
	// where there is nothing left to do.
	stage func(ctx context.Context, t *table.Table, tx *table.Transaction, summary iceberg.Properties) error

	id    string
	bases []int64 // the snapshots on which it was tried
	tries int
}

// SummaryOffsets is the key, in a snapshot's summary, of the Kafka offsets that it holds; a rewrite
// of the same rows keeps it.
const SummaryOffsets = "millrace.next-offsets"

// errNothing says that there is nothing to commit.
var errNothing = errors.New("nothing to commit")

// land commits. Where it returns an error, certain reports whether the commit is known not to be in
// the table, now or ever.
//
// Landers move the head all the time, so every attempt starts from the table as it is, asserts that
// head, and is refused where another commit came between. After any error the table is asked before
// the next attempt whether the commit is there. An attempt whose answer was lost can never land
// beside a later one: both assert the head they were made on.
func (c *commit) land(ctx context.Context) (certain bool, err error) {
	c.id = uuid.Must(uuid.NewV7()).String()
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
		if errors.Is(err, errStale) || c.tries >= c.run.tries || !waits.Wait(ctx) {
			return c.gone(ctx), fmt.Errorf("commit %s, tried %d times: %w", c.what, c.tries, err)
		}
		c.run.Logger.Debug("a commit was refused or its answer was lost", "what", c.what, "table", c.run.table, "error", err)
	}
}

// Snapshot ids are above 0.
const (
	noBase      int64 = 0  // the table has no snapshot yet
	unknownBase int64 = -1 // the catalog was not asked
)

func (c *commit) try(ctx context.Context) (base int64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := c.run.look(ctx)
	if err != nil {
		return unknownBase, err
	}
	if len(c.bases) > 0 && landed(t.Metadata(), c.id) {
		return unknownBase, nil
	}
	base = noBase
	if head := t.CurrentSnapshot(); head != nil {
		base = head.SnapshotID
	}
	tx := t.NewTransaction()
	if err := tx.AssertRefSnapshotID(table.MainBranch); err != nil {
		return unknownBase, err
	}
	summary := iceberg.Properties{summaryWhat: c.what, summaryID: c.id}
	if head := t.CurrentSnapshot(); head != nil && head.Summary != nil && head.Summary.Properties[SummaryOffsets] != "" {
		summary[SummaryOffsets] = head.Summary.Properties[SummaryOffsets] // the rows stay the same
	}
	if err := c.stage(ctx, t, tx, summary); err != nil {
		return unknownBase, err
	}
	if err := c.run.at(ctx, c.before); err != nil {
		return unknownBase, err
	}
	if committed, err := tx.Commit(ctx); err != nil && committed == nil {
		return base, err
	} else if err != nil { // the commit is in, what was to be done after it is not done
		c.run.Logger.Warn("files that are not needed any more are left for later", "table", c.run.table, "error", err)
	}
	return base, c.run.at(ctx, c.after)
}

// gone reports whether the commit is known never to land: no attempt reached the catalog, or each
// one's place in the history is taken by another.
func (c *commit) gone(ctx context.Context) bool {
	if len(c.bases) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	t, err := c.run.look(ctx)
	if err != nil || landed(t.Metadata(), c.id) {
		return false
	}
	for _, base := range c.bases {
		if !passed(t.Metadata(), base) {
			return false
		}
	}
	return true
}

// landed looks for a commit among the snapshots.
func landed(meta table.Metadata, id string) bool {
	for _, s := range meta.Snapshots() {
		if s.Summary != nil && s.Summary.Properties[summaryID] == id {
			return true
		}
	}
	return false
}

// passed reports whether the head has moved on from base for certain.
func passed(meta table.Metadata, base int64) bool {
	for _, s := range History(meta) {
		if s.SnapshotID == base {
			return false // it is the head; else the loop ends before it
		}
		var parent int64
		if s.ParentSnapshotID != nil {
			parent = *s.ParentSnapshotID
		}
		if parent == base {
			return true
		}
	}
	return false // the history does not reach back so far
}
