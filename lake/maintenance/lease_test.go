package maintenance

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/iceberg-go/table"
)

var aggressive = Config{KeepAge: time.Millisecond, KeepSnapshots: 1}

func expire(t *testing.T, w *world, c Config) Expired {
	t.Helper()
	did, err := Expire(t.Context(), w.load, c)
	if err != nil {
		t.Fatal(err)
	}
	return did
}

// newHistory returns a table whose first snapshot has files that no later snapshot has, and that
// snapshot's ID.
func newHistory(t *testing.T) (w *world, old int64) {
	t.Helper()
	w = newWorld(t)
	for i := range int64(10) {
		w.append([]row{{key: i}})
	}
	old = w.table().CurrentSnapshot().SnapshotID
	c := w.config()
	if _, err := Compact(t.Context(), w.load, c, nil); err != nil {
		t.Fatal(err)
	}
	w.append([]row{{key: 100}})
	return w, old
}

// readable reports whether all files of a snapshot can still be read.
func readable(t *testing.T, w *world, meta table.Metadata, id int64) bool {
	t.Helper()
	files, err := w.table().FS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := meta.SnapshotByID(id).Manifests(files)
	if err != nil {
		return false
	}
	for _, m := range manifests {
		for e, err := range m.Entries(files, true) {
			if err != nil {
				return false
			}
			f, err := files.Open(e.DataFile().FilePath())
			if err != nil {
				return false
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return true
}

// Expiry keeps a snapshot until its last reader releases it.
func TestExpiryKeepsHeldSnapshots(t *testing.T) {
	t.Parallel()
	w, old := newHistory(t)
	before := w.table().Metadata()
	release, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler)) // another reader of the same snapshot
	if err != nil {
		t.Fatal(err)
	}
	if did := expire(t, w, aggressive); did.Snapshots == 0 && did.Left < 2 {
		t.Errorf("expired %+v", did)
	}
	if w.table().Metadata().SnapshotByID(old) == nil || !readable(t, w, before, old) {
		t.Error("expiry removed a snapshot that two readers hold")
	}
	release()
	release() // a second call does nothing
	expire(t, w, aggressive)
	if !readable(t, w, before, old) {
		t.Error("expiry removed a snapshot that one reader holds")
	}
	again()
	expire(t, w, aggressive)
	if w.table().Metadata().SnapshotByID(old) != nil || readable(t, w, before, old) {
		t.Error("expiry kept a snapshot that nobody holds")
	}
	if _, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrSnapshotGone) {
		t.Errorf("hold a snapshot that is gone: %v", err)
	}
	if left := leaseFiles(t, w); len(left) > 0 {
		t.Errorf("leases are left: %v", left)
	}
}

// A reader that arrives while expiry is about to commit waits for it, and then learns that its
// snapshot is gone.
func TestHoldWaitsForExpiry(t *testing.T) {
	t.Parallel()
	w, old := newHistory(t)
	held := make(chan error, 1)
	c := aggressive
	c.hook = func(ctx context.Context, s step) error {
		if s != stepExpireCommit {
			return nil
		}
		go func() {
			_, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler))
			held <- err
		}()
		for { // until the reader has placed its lease, which is too late for expiry to see
			if slices.ContainsFunc(leaseFiles(t, w), func(name string) bool { return strings.HasPrefix(name, string(hold)) }) {
				return nil
			}
			select {
			case err := <-held:
				held <- err
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	expire(t, w, c)
	if err := <-held; !errors.Is(err, ErrSnapshotGone) {
		t.Errorf("the reader got %v, and its snapshot has been removed", err)
	}
}

// Leases of crashed processes have no effect after they expire, and their files are eventually
// removed.
func TestExpiredLeasesHaveNoEffect(t *testing.T) {
	t.Parallel()
	w, old := newHistory(t)
	for _, l := range []lease{
		{hold, old, time.Now().Add(-time.Second)},
		{hold, old, time.Now().Add(-2 * leaseKeep)},
		{claim, time.Now().UnixMilli(), time.Now().Add(-time.Second)},
	} {
		if _, err := writeLease(t.Context(), w.table(), l); err != nil {
			t.Fatal(err)
		}
	}
	release, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("hold beside a claim that has expired: %v", err)
	}
	release()
	expire(t, w, aggressive)
	if w.table().Metadata().SnapshotByID(old) != nil {
		t.Error("an expired lease still holds its snapshot")
	}
	if left := leaseFiles(t, w); len(left) != 2 {
		t.Errorf("leases %v: want the two that have just expired", left)
	}
}

// A claim for snapshots that are older than the reader's does not delay the reader.
func TestHoldIgnoresClaimsOfOlderSnapshots(t *testing.T) {
	t.Parallel()
	w, old := newHistory(t)
	_, done, err := Claim(t.Context(), w.table(), time.UnixMilli(w.table().Metadata().SnapshotByID(old).TimestampMs))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	release, err := Hold(t.Context(), w.load, old, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	held, done2, err := Claim(t.Context(), w.table(), time.Now())
	if err != nil || !held[old] || len(held) != 1 {
		t.Errorf("held %v, %v", held, err)
	}
	defer done2()
}

// A Hold that is cancelled leaves no lease behind.
func TestCancelledHoldLeavesNoLease(t *testing.T) {
	t.Parallel()
	w, old := newHistory(t)
	_, done, err := Claim(t.Context(), w.table(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Hold(ctx, w.load, old, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("held, though expiry has claimed the snapshot")
	}
	done()
	if left := leaseFiles(t, w); len(left) > 0 {
		t.Errorf("leases are left: %v", left)
	}
}

// A lease is removed from an object store although the context that it was placed with has ended.
func TestLeasesEndAfterTheirContext(t *testing.T) {
	t.Parallel()
	w := newBucket(t)
	w.append([]row{{key: 1}})
	ctx, cancel := context.WithCancel(t.Context())
	_, done, err := Claim(ctx, w.table(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	done()
	left, err := leases(t.Context(), w.table())
	if err != nil || len(left) > 0 {
		t.Errorf("leases are left: %v, %v", left, err)
	}
}

func leaseFiles(t *testing.T, w *world) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(strings.TrimPrefix(w.table().Location(), "file://"), leaseFolder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err == nil {
			names = append(names, filepath.Base(f))
		}
	}
	return names
}

// Any file name is either refused, or read as a lease that is written in the same way.
func FuzzParseLease(f *testing.F) {
	f.Add(lease{hold, 7, time.UnixMilli(1_700_000_000_000)}.name())
	f.Add(lease{claim, 0, time.UnixMilli(0)}.name())
	f.Add("hold-7-99999999999999999999-x.lease")
	f.Add("hold--1-5-x.lease")
	f.Add("steal-1-2-x.lease")
	f.Add(".lease")
	f.Fuzz(func(t *testing.T, name string) {
		l, ok := parseLease(name)
		if !ok {
			return
		}
		if again, ok := parseLease(l.name()); !ok || again.kind != l.kind || again.of != l.of || !again.until.Equal(l.until) {
			t.Errorf("%q is read as %+v, and that as %+v", name, l, again)
		}
	})
}
