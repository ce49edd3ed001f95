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

// Limits and intervals of awaitDiskSpace.
const (
	probeFile          = "room.probe"
	minFreeBytes       = 1 << 20          // bytes that a start needs besides the indexes
	spaceCheckInterval = time.Second      // interval of checks
	spaceLogInterval   = 10 * time.Second // interval of log lines
)

// awaitDiskSpace blocks until the disk has space for the files that a start writes. kfake treats a
// partition whose index it cannot write as empty and does not check again. Readers would not get
// its records until the next start, even if space is freed before.
func awaitDiskSpace(ctx context.Context, dir string, log *slog.Logger) error {
	need, err := requiredSpace(dir)
	if err != nil {
		return err
	}
	tick := time.NewTicker(spaceCheckInterval)
	defer tick.Stop()
	var lastLog time.Time // zero, so the first failure is logged at once
	for waiting := false; ; waiting = true {
		err := probe(filepath.Join(dir, probeFile), need)
		switch {
		case err == nil:
			if waiting {
				log.Info("embedded kafka: the disk has space again; starting", "folder", dir)
			}
			return nil
		case !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT):
			return fmt.Errorf("check disk space: %w", err)
		case time.Since(lastLog) >= spaceLogInterval:
			lastLog = time.Now()
			log.Warn("embedded kafka: the disk is full; waiting for space before starting",
				"folder", dir, "bytes", need, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for disk space: %w: %w", context.Cause(ctx), err)
		}
	}
}

// requiredSpace returns how many bytes a start may write: the indexes of all segments, and
// minFreeBytes.
func requiredSpace(dir string) (int64, error) {
	need := int64(minFreeBytes)
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
		return 0, fmt.Errorf("check disk space: %w", err)
	}
	return need, nil
}

// probe writes a file of the given size and removes it.
func probe(path string, bytes int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the operator's folder
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	// Free space as the file system reports it ignores quotas, so write the bytes.
	block := make([]byte, 64<<10)
	for left := bytes; left > 0; left -= int64(len(block)) {
		if _, err := f.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return f.Sync() // some file systems report a full disk only now
}
