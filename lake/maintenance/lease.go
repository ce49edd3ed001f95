package maintenance

import (
	"context"
	"errors"
	"fmt"
	stdfs "io/fs"
	"log/slog"
	"math"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"
)

// Readers and expiry may run in different processes, so they coordinate through small lease files
// beside the table's metadata. A reader holds the snapshot that it reads; expiry claims all
// snapshots before a time while it removes some of them. Each writes its own file first and lists
// the others' files afterwards, so at least one of the two sees the other: expiry keeps a held
// snapshot, and a reader waits for a claim to end and then checks that its snapshot is still there.
//
// A lease ends at the time in its name. So the lease of a crashed process does not block others for
// long. Readers renew theirs while they run.
const (
	leaseFolder = "/metadata/as-of/leases/"
	leaseSuffix = ".lease"

	holdFor   = 2 * time.Minute
	renewHold = 30 * time.Second
	claimFor  = commitTimeout + time.Minute // longer than one commit attempt

	claimWait = 30 * time.Second // maximum wait for other processes' claims
	claimPoll = 50 * time.Millisecond
	leaseKeep = time.Hour // expired leases are removed after this time
)

// ErrSnapshotGone reports that a snapshot to be held has already been removed.
var ErrSnapshotGone = errors.New("the snapshot has been removed")

// leaseKind distinguishes leases of readers from those of expiry.
type leaseKind string

// The values are part of file names, which other versions read.
const (
	hold  leaseKind = "hold"  // of is a snapshot ID
	claim leaseKind = "claim" // of is a time in milliseconds: snapshots before it may be removed
)

// lease is one lease file. All data is in its name, so listing the folder is enough, and partial
// writes are harmless.
type lease struct {
	kind  leaseKind
	of    int64
	until time.Time
}

// name returns a unique file name that contains the lease.
func (l lease) name() string {
	return fmt.Sprintf("%s-%d-%d-%s%s", l.kind, l.of, l.until.UnixMilli(), uuid.NewString(), leaseSuffix)
}

// parseLease parses a file name. It reports false for names that are not leases.
func parseLease(name string) (lease, bool) {
	rest, ok := strings.CutSuffix(name, leaseSuffix)
	// KIND-OF-UNTIL-UUID, in which the UUID itself contains hyphens.
	words := strings.SplitN(rest, "-", 4)
	if !ok || len(words) != 4 {
		return lease{}, false
	}
	l := lease{kind: leaseKind(words[0])}
	of, err1 := strconv.ParseInt(words[1], 10, 64)
	until, err2 := strconv.ParseInt(words[2], 10, 64)
	// Other programs can create files here, so out-of-range values must not overflow later.
	if errors.Join(err1, err2) != nil || of < 0 || until < 0 || until > math.MaxInt64/1000 ||
		l.kind != hold && l.kind != claim {
		return lease{}, false
	}
	l.of, l.until = of, time.UnixMilli(until)
	return l, true
}

// writeLease writes a lease file and returns a function that removes it.
func writeLease(ctx context.Context, t *table.Table, l lease) (remove func(context.Context) error, err error) {
	files, err := writable(ctx, t)
	if err != nil {
		return nil, err
	}
	location := t.Location() + leaseFolder + l.name()
	if err := files.WriteFile(location, []byte("{}\n")); err != nil {
		return nil, fmt.Errorf("write lease %s: %w", location, err)
	}
	return func(ctx context.Context) error {
		// The file system is bound to its context, and the one used for writing may have ended.
		files, err := writable(ctx, t)
		if err != nil {
			return err
		}
		if err := files.Remove(location); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
			return fmt.Errorf("remove lease %s: %w", location, err)
		}
		return nil
	}, nil
}

// leases returns the unexpired leases of a table. It removes those that expired long ago.
func leases(ctx context.Context, t *table.Table) ([]lease, error) {
	files, err := writable(ctx, t)
	if err != nil {
		return nil, err
	}
	listed, err := list(ctx, files, t.Location()+strings.TrimSuffix(leaseFolder, "/"))
	if err != nil {
		return nil, err
	}
	var live []lease
	for _, f := range listed {
		l, ok := parseLease(path.Base(f.location))
		switch {
		case !ok:
		case time.Now().Before(l.until):
			live = append(live, l)
		// The margin allows for clocks that differ between processes.
		case time.Since(l.until) > leaseKeep:
			_ = files.Remove(f.location) // retried by the next listing
		}
	}
	return live, nil
}

// Hold keeps a snapshot of a table and all its files until release is called. It returns
// ErrSnapshotGone if the snapshot has been removed. The lease outlives ctx: only release ends it.
func Hold(ctx context.Context, load Load, snapshot int64, log *slog.Logger) (release func(), err error) {
	t, err := load(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, err)
	}
	held := t.Metadata().SnapshotByID(snapshot)
	if held == nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, ErrSnapshotGone)
	}
	create := func(ctx context.Context) (func(context.Context) error, error) {
		return writeLease(ctx, t, lease{hold, snapshot, time.Now().Add(holdFor)})
	}
	// Create the lease first and look for claims afterwards: a claim that is not seen here will see
	// the lease.
	remove, err := create(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, err)
	}
	// Expiry may have removed the snapshot before the lease existed, so check again after its claim
	// has ended.
	if err := awaitClaims(ctx, t, held.TimestampMs); err == nil {
		t, err = load(ctx)
		if err == nil && t.Metadata().SnapshotByID(snapshot) == nil {
			err = ErrSnapshotGone
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("hold snapshot %d: %w", snapshot, err), remove(ctx))
		}
	} else {
		return nil, errors.Join(fmt.Errorf("hold snapshot %d: %w", snapshot, err), remove(ctx))
	}

	// A release after the end of ctx must still be able to remove the file.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var renewing sync.WaitGroup
	// Renew in the background, so that a long query does not lose its lease.
	renewing.Go(func() {
		tick := time.NewTicker(renewHold)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// A new file replaces the old one, since the time is part of the name.
			next, err := create(ctx)
			if err == nil {
				remove, err = next, remove(ctx)
			}
			if err != nil {
				log.Warn("cannot renew lease; a running query may lose the files that it reads",
					"snapshot", snapshot, "error", err)
			}
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		renewing.Wait()
		if err := remove(context.WithoutCancel(ctx)); err != nil {
			log.Debug("cannot remove lease; it remains until it expires", "error", err)
		}
	}), nil
}

// awaitClaims blocks until no process is removing snapshots as old as this one.
func awaitClaims(ctx context.Context, t *table.Table, timestamp int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, claimWait,
		errors.New("another process is removing old snapshots; try again later"))
	defer cancel()
	for {
		live, err := leases(ctx, t)
		if err != nil {
			return err
		}
		// Reread the folder each time: a claim ends when its file is removed or expires.
		claimed := false
		for _, l := range live {
			// A claim only covers snapshots that are older than its time.
			claimed = claimed || l.kind == claim && timestamp < l.of
		}
		if !claimed {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(claimPoll):
		}
	}
}

// Claim announces that snapshots before a time are about to be removed, and returns those that
// readers hold, which must be retained. The claim lasts until done is called.
func Claim(ctx context.Context, t *table.Table, before time.Time) (held map[int64]bool, done func(), err error) {
	// The same order as for readers: announce first, then look.
	remove, err := writeLease(ctx, t, lease{claim, before.UnixMilli(), time.Now().Add(claimFor)})
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = remove(context.WithoutCancel(ctx)) } // after an error, it expires
	live, err := leases(ctx, t)
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("list leases: %w", err)
	}
	// Leases of readers that start later make them wait. See awaitClaims.
	held = map[int64]bool{}
	for _, l := range live {
		if l.kind == hold {
			held[l.of] = true
		}
	}
	return held, done, nil
}
