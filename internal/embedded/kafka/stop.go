package kafka

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// stopFile describes the files that a clean stop left. With it, the next start notices what was
// lost or changed while no broker ran. After a kill it does not exist. Batches and entries have
// their own checksums, and topics.json has a copy.
const stopFile = "stopped.json"

// cleanStop is the content of stopFile. A nil *cleanStop means that the last owner was killed.
type cleanStop struct {
	// Sizes, by path below the folder; batches have checksums.
	Segments map[string]int64  `json:"segments"`
	Files    map[string]string `json:"files"` // SHA-256 checksums, by path below the folder
}

// writeStop writes stopFile. The broker must have stopped.
func writeStop(dir string) error {
	s := cleanStop{Segments: map[string]int64{}, Files: map[string]string{}}
	segments, err := find(dir, "partitions/*/*.dat")
	if err != nil {
		return err
	}
	for _, name := range segments {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		s.Segments[relativePath(dir, name)] = info.Size()
	}
	// All other files are small, so their content is described.
	for _, pattern := range []string{"*.json", "*.log", "partitions/*/" + snapshotFile} {
		names, err := find(dir, pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			raw, err := os.ReadFile(name) //nolint:gosec // our own directory
			if err != nil {
				return err
			}
			s.Files[relativePath(dir, name)] = hash(raw)
		}
	}
	// Sealed, so that a damaged description is not mistaken for damage of the files.
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeSealed(filepath.Join(dir, stopFile), raw)
}

// relativePath returns the path of a file below dir, with slashes.
func relativePath(dir, name string) string {
	return filepath.ToSlash(strings.TrimPrefix(name, dir+string(filepath.Separator)))
}

// hash returns the checksum for Files.
func hash(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// readStop returns the description of the last clean stop, or nil after a kill.
func readStop(dir string, log *slog.Logger) (*cleanStop, error) {
	name := filepath.Join(dir, stopFile)
	raw, err := readSealed(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing is known
	}
	s := &cleanStop{}
	if err == nil {
		err = json.Unmarshal(raw, s)
	}
	if err != nil {
		return nil, setAside(name, log, err, "a check of all files, as after a kill")
	}
	return s, nil
}

// changed returns an error if a file is not as the last clean stop left it.
func (s *cleanStop) changed(name string, raw []byte) error {
	if s != nil && s.Files[name] != hash(raw) {
		return errors.New("it has changed since the log was closed")
	}
	return nil
}

// checkFiles returns an error if a segment is missing or has another size. It removes snapshots
// that have changed, so that the segments are replayed instead.
func (s *cleanStop) checkFiles(dir string) error {
	snapshots, err := find(dir, "partitions/*/"+snapshotFile)
	if err != nil {
		return err
	}
	for _, name := range snapshots {
		raw, err := os.ReadFile(name) //nolint:gosec // our own directory
		if err != nil {
			return err
		}
		// A snapshot from before a kill may be older than the segments.
		if s == nil || s.changed(relativePath(dir, name), raw) != nil {
			if err := remove(name); err != nil {
				return err
			}
		}
	}
	if s == nil {
		return nil
	}
	// Segments only grow while a broker runs, and none did since the stop.
	for name, size := range s.Segments {
		path := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return lostRecords(path, "it is missing")
		case err != nil:
			return err
		case info.Size() != size:
			return lostRecords(path, fmt.Sprintf("it had %d bytes when the log was closed, and has %d now", size,
				info.Size()))
		}
	}
	return nil
}

// checkLogs logs which logs of entries are missing or have changed. Their remaining entries are
// used.
func (s *cleanStop) checkLogs(dir string, log *slog.Logger) error {
	if s == nil {
		return nil
	}
	for _, name := range slices.Sorted(slices.Values(entryLogs)) {
		raw, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // our own directory
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if s.changed(name, raw) != nil && s.Files[name] != "" {
			log.Warn("embedded kafka: a file has changed since the log was closed; its intact entries are used. "+
				"Consumer groups without offsets start at the position of their client's auto.offset.reset",
				"file", filepath.Join(dir, name))
		}
	}
	return nil
}

// lostRecords returns the error for records that are damaged or missing.
func lostRecords(segment, damage string) error {
	partition := filepath.Dir(segment)
	return &DamageError{
		File: segment, Damage: damage,
		Remedy: "restore the folder " + partition + " from a backup, and remove " +
			filepath.Join(filepath.Dir(filepath.Dir(partition)),
				stopFile) + " if it exists. Without a backup, move both away. " +
			"If the topic belongs to one of Millrace's services, then run " +
			"`millrace rebuild --service SERVICE --yes`, which republishes it from the event store; " +
			"records of other topics are lost",
	}
}
