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

// Readers and expiry may run in different processes, so they coordinate through small lease files beside the table's
// metadata. A reader holds the snapshot that it reads; expiry claims all snapshots before a time while it removes some
// of them. Each writes its own file first and lists the others' files afterwards, so at least one of the two sees the
// other: expiry keeps a held snapshot, and a reader waits for a claim to end and then checks that its snapshot is still
// there.
//
// A lease ends at the time in its name. The lease of a crashed process therefore blocks nobody for long, and a reader
// that runs for longer renews its lease.
const (
	leaseFolder = "/metadata/as-of/leases/"
	leaseSuffix = ".lease"

	holdFor   = 2 * time.Minute
	renewHold = 30 * time.Second
	claimFor  = commitTimeout + time.Minute // longer than one attempt to commit

	claimWait = 30 * time.Second // for other processes' claims
	claimPoll = 50 * time.Millisecond
	leaseKeep = time.Hour // expired leases are removed after this
)

// ErrSnapshotGone reports that a snapshot to be held has already been removed.
var ErrSnapshotGone = errors.New("the snapshot has been removed")

type leaseKind string

const (
	hold  leaseKind = "hold"  // of is a snapshot ID
	claim leaseKind = "claim" // of is a time in milliseconds: snapshots before it may be removed
)

// lease is one lease file. Everything is in its name, so listing the folder is enough and no file is read half-written.
type lease struct {
	kind  leaseKind
	of    int64
	until time.Time
}

func (l lease) name() string {
	return fmt.Sprintf("%s-%d-%d-%s%s", l.kind, l.of, l.until.UnixMilli(), uuid.NewString(), leaseSuffix)
}

// parseLease parses a file name. It reports false for names that are not leases.
func parseLease(name string) (lease, bool) {
	rest, ok := strings.CutSuffix(name, leaseSuffix)
	words := strings.SplitN(rest, "-", 4)
	if !ok || len(words) != 4 {
		return lease{}, false
	}
	l := lease{kind: leaseKind(words[0])}
	of, err1 := strconv.ParseInt(words[1], 10, 64)
	until, err2 := strconv.ParseInt(words[2], 10, 64)
	if errors.Join(err1, err2) != nil || of < 0 || until < 0 || until > math.MaxInt64/1000 || l.kind != hold && l.kind != claim {
		return lease{}, false
	}
	l.of, l.until = of, time.UnixMilli(until)
	return l, true
}

// placeLease writes a lease file and returns a function that removes it.
func placeLease(ctx context.Context, t *table.Table, l lease) (remove func(context.Context) error, err error) {
	files, err := writable(ctx, t)
	if err != nil {
		return nil, err
	}
	location := t.Location() + leaseFolder + l.name()
	if err := files.WriteFile(location, []byte("{}\n")); err != nil {
		return nil, fmt.Errorf("write lease %s: %w", location, err)
	}
	return func(ctx context.Context) error {
		files, err := writable(ctx, t) // the file system is bound to its context, and the first one may have ended
		if err != nil {
			return err
		}
		if err := files.Remove(location); err != nil && !errors.Is(err, stdfs.ErrNotExist) {
			return fmt.Errorf("remove lease %s: %w", location, err)
		}
		return nil
	}, nil
}

// leases lists the leases of a table that have not expired, and removes those that expired long ago.
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
		case time.Since(l.until) > leaseKeep:
			_ = files.Remove(f.location) // retried by the next listing
		}
	}
	return live, nil
}

// Hold keeps a snapshot of a table, with all its files, until release is called. It returns ErrSnapshotGone where the
// snapshot has been removed.
func Hold(ctx context.Context, load Load, snapshot int64, log *slog.Logger) (release func(), err error) {
	t, err := load(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, err)
	}
	held := t.Metadata().SnapshotByID(snapshot)
	if held == nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, ErrSnapshotGone)
	}
	place := func(ctx context.Context) (func(context.Context) error, error) {
		return placeLease(ctx, t, lease{hold, snapshot, time.Now().Add(holdFor)})
	}
	remove, err := place(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold snapshot %d: %w", snapshot, err)
	}
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

	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var renewing sync.WaitGroup
	renewing.Go(func() {
		tick := time.NewTicker(renewHold)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			next, err := place(ctx)
			if err == nil {
				remove, err = next, remove(ctx)
			}
			if err != nil {
				log.Warn("a running query may lose the files that it reads: its lease was not renewed", "snapshot", snapshot, "error", err)
			}
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		renewing.Wait()
		if err := remove(context.WithoutCancel(ctx)); err != nil {
			log.Debug("a lease stays until it expires", "error", err)
		}
	}), nil
}

// awaitClaims waits until no process is removing snapshots as old as this one.
func awaitClaims(ctx context.Context, t *table.Table, timestamp int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, claimWait, errors.New("old snapshots are being removed; try again later"))
	defer cancel()
	for {
		live, err := leases(ctx, t)
		if err != nil {
			return err
		}
		claimed := false
		for _, l := range live {
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

// Claim announces that snapshots before a time are about to be removed, and returns the ones that readers hold. These
// must stay. The claim lasts until done is called.
func Claim(ctx context.Context, t *table.Table, before time.Time) (held map[int64]bool, done func(), err error) {
	remove, err := placeLease(ctx, t, lease{claim, before.UnixMilli(), time.Now().Add(claimFor)})
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = remove(context.WithoutCancel(ctx)) } // otherwise it expires
	live, err := leases(ctx, t)
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("list leases: %w", err)
	}
	held = map[int64]bool{}
	for _, l := range live {
		if l.kind == hold {
			held[l.of] = true
		}
	}
	return held, done, nil
}
