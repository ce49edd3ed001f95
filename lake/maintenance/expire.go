package maintenance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"
)

// Expired is the result of an expiry.
type Expired struct {
	Snapshots int // snapshots removed
	Left      int // snapshots retained
	Retries   int
}

// Expire shortens the history by age and number, and deletes the files that only expired snapshots
// refer to. Snapshots of branches and tags are retained. So is every snapshot that was still
// current less than KeepAge ago, regardless of its own age, since a reader may be using it.
func Expire(ctx context.Context, load Load, c Config) (Expired, error) {
	r, err := newRun(c, load, nil)
	if err != nil {
		return Expired{}, err
	}
	return r.expire(ctx)
}

// expire stages the expiry on the table's current state in every attempt, because other commits may
// come first.
func (r *run) expire(ctx context.Context) (did Expired, err error) {
	t, err := r.loadTable(ctx)
	if err != nil {
		return did, err
	}
	// Reported if nothing is expired.
	did.Left = len(t.Metadata().Snapshots())
	if !collects(t) {
		r.skip("expire", gcOff)
		return did, nil
	}
	c := &commit{run: r, what: "expiry", before: stepExpireCommit, after: stepExpireCommitted}
	// release ends the claim of the last attempt. The claim must last until the files are deleted.
	release := func() {}
	defer func() { release() }()
	c.stage = func(ctx context.Context, t *table.Table, tx *table.Transaction, _ iceberg.Properties) error {
		release()
		release = func() {}
		age := r.KeepAge
		gone := r.expirable(t.Metadata(), age)
		// Removing snapshots requires a claim, and readers may hold some of them. See lease.go.
		if gone > 0 {
			held, done, err := Claim(ctx, t, time.Now().Add(-r.KeepAge))
			if err != nil {
				return err
			}
			release = done
			// Expiry goes by age, so a held snapshot also retains all younger ones.
			age = max(age, ageOfHeld(t.Metadata(), held))
			gone = r.expirable(t.Metadata(), age)
		}
		left := len(t.Metadata().Snapshots()) - gone
		if gone == 0 { // also if the previous attempt landed and its answer was lost
			did.Left = left
			return errNothing
		}
		if err := tx.ExpireSnapshots(r.expiry(t.Metadata(), age)...); err != nil {
			return fmt.Errorf("stage: %w", err)
		}
		did.Snapshots, did.Left = gone, left
		return ctx.Err()
	}
	_, err = c.land(ctx)
	did.Retries = c.tries
	if errors.Is(err, errNothing) {
		return did, nil
	}
	return did, err
}

// gcOff is the reason for skipping steps that delete files.
const gcOff = "the table property gc.enabled is false: its files may be shared and must not be deleted"

// collects reports whether the table allows deleting its files.
func collects(t *table.Table) bool { return t.Properties().GetBool(table.GCEnabledKey, true) }

// expiry returns the options for iceberg-go. It goes by a snapshot's own age, so snapshots that
// were current until recently are retained by number instead.
func (r *run) expiry(meta table.Metadata, age time.Duration) []table.ExpireSnapshotsOpt {
	// The newest snapshots are retained by number. See headsSince.
	keep := max(r.KeepSnapshots, headsSince(meta, time.Now().Add(-age)))
	return []table.ExpireSnapshotsOpt{table.WithOlderThan(age), table.WithRetainLast(keep)}
}

// ageOfHeld returns an age that retains all held snapshots, and thus all younger ones. It returns 0
// if none is held.
func ageOfHeld(meta table.Metadata, held map[int64]bool) (age time.Duration) {
	for _, s := range meta.Snapshots() {
		if held[s.SnapshotID] {
			// The minute allows for the time until the commit is staged.
			age = max(age, time.Since(time.UnixMilli(s.TimestampMs))+time.Minute)
		}
	}
	return age
}

// headsSince returns how many snapshots of a branch are, or were after a time, its head: the
// maximum over all branches.
func headsSince(meta table.Metadata, since time.Time) (most int) {
	// Tags always retain their snapshot, so only branches count.
	for _, ref := range meta.Refs() {
		if ref.SnapshotRefType != table.BranchRef {
			continue
		}
		n := 0
		for _, s := range Ancestors(meta, ref.SnapshotID) {
			n++
			if s.TimestampMs < since.UnixMilli() {
				break // its parent had been replaced by then
			}
		}
		most = max(most, n)
	}
	return most
}

// expirable returns the number of snapshots that an expiry would remove. It stages the expiry
// without committing it.
func (r *run) expirable(meta table.Metadata, age time.Duration) int {
	// Staging needs no catalog and no file system, as nothing is committed or deleted.
	t := table.New(nil, meta, "", nil, nil)
	tx := t.NewTransaction()
	if err := tx.ExpireSnapshots(append(r.expiry(meta, age), table.WithPostCommit(false))...); err != nil {
		return 0
	}
	staged, err := tx.StagedTable()
	if err != nil {
		return 0
	}
	return len(meta.Snapshots()) - len(staged.Metadata().Snapshots())
}
