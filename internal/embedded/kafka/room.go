package kafka

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Limits and intervals of awaitRoom.
const (
	roomFile  = "room.probe"
	leastRoom = 1 << 20          // bytes that a start needs in addition to the indexes
	roomEvery = time.Second      // interval of checks
	roomLog   = 10 * time.Second // interval of log lines
)

// awaitRoom blocks until the disk has room for what a start writes. kfake treats a partition whose
// index it cannot write as empty and does not check again. Readers would not get its records until
// the next start, even after room was made.
func awaitRoom(ctx context.Context, dir string, log *slog.Logger) error {
	need, err := roomFor(dir)
	if err != nil {
		return err
	}
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	var told time.Time
	for waiting := false; ; waiting = true {
		err := probe(filepath.Join(dir, roomFile), need)
		switch {
		case err == nil:
			if waiting {
				log.Info("embedded kafka: there is room on the disk again; starting", "folder", dir)
			}
			return nil
		case !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT):
			return fmt.Errorf("look for room: %w", err)
		case time.Since(told) >= roomLog:
			told = time.Now()
			log.Warn("embedded kafka: the disk is full; waiting for room before starting", "folder", dir, "bytes", need, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for room on the disk: %w: %w", context.Cause(ctx), err)
		}
	}
}

// roomFor returns how many bytes a start may write: the indexes of all segments, and leastRoom.
func roomFor(dir string) (int64, error) {
	need := int64(leastRoom)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".idx" {
			return err
		}
		info, err := d.Info()
		if err == nil {
			need += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("look for room: %w", err)
	}
	return need, nil
}

// probe writes a file of the given size and removes it.
func probe(path string, bytes int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the folder is the operator's choice
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	block := make([]byte, 64<<10)
	for left := bytes; left > 0; left -= int64(len(block)) {
		if _, err := f.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return f.Sync() // some file systems report a full disk only now
}
