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

// stop is the content of stopFile. A nil stop means that the last owner was killed.
type stop struct {
	// Sizes, by path below the folder; batches have checksums.
	Segments map[string]int64  `json:"segments"`
	Files    map[string]string `json:"files"` // SHA-256 checksums, by path below the folder
}

// writeStop writes stopFile. The broker must have stopped.
func writeStop(dir string) error {
	s := stop{Segments: map[string]int64{}, Files: map[string]string{}}
	segments, err := find(dir, "partitions/*/*.dat")
	if err != nil {
		return err
	}
	for _, name := range segments {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		s.Segments[below(dir, name)] = info.Size()
	}
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
			s.Files[below(dir, name)] = hash(raw)
		}
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeSealed(filepath.Join(dir, stopFile), raw)
}

// below returns the path of a file below dir, with slashes.
func below(dir, name string) string {
	return filepath.ToSlash(strings.TrimPrefix(name, dir+string(filepath.Separator)))
}

func hash(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// readStop returns the description of the last clean stop, or nil after a kill.
func readStop(dir string, log *slog.Logger) (*stop, error) {
	name := filepath.Join(dir, stopFile)
	raw, err := readSealed(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing is known
	}
	s := &stop{}
	if err == nil {
		err = json.Unmarshal(raw, s)
	}
	if err != nil {
		return nil, setAside(name, log, err, "a check of every file as after a kill")
	}
	return s, nil
}

// changed returns an error if a file is not as the last clean stop left it.
func (s *stop) changed(name string, raw []byte) error {
	if s != nil && s.Files[name] != hash(raw) {
		return errors.New("it has changed since the log was closed")
	}
	return nil
}

// checkLeft returns an error if a segment is missing or has another size. It removes snapshots that
// have changed, so that the segments are replayed instead.
func (s *stop) checkLeft(dir string) error {
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
		if s == nil || s.changed(below(dir, name), raw) != nil {
			if err := remove(name); err != nil {
				return err
			}
		}
	}
	if s == nil {
		return nil
	}
	for name, size := range s.Segments {
		path := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return lostRecords(path, "it is missing")
		case err != nil:
			return err
		case info.Size() != size:
			return lostRecords(path, fmt.Sprintf("it had %d bytes when the log was closed, and has %d", size, info.Size()))
		}
	}
	return nil
}

// checkLogs logs which logs of entries are missing or have changed. Their remaining entries are
// used.
func (s *stop) checkLogs(dir string, log *slog.Logger) error {
	if s == nil {
		return nil
	}
	for _, name := range slices.Sorted(slices.Values(entryLogs)) {
		raw, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // our own directory
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if s.changed(name, raw) != nil && s.Files[name] != "" {
			log.Warn("kafka: a file of the log has changed since the log was closed; what is left of it is used. "+
				"Consumer groups whose offsets are gone start where their client's auto.offset.reset says",
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
		Remedy: "bring the folder " + partition + " back from a backup and remove " +
			filepath.Join(filepath.Dir(filepath.Dir(partition)), stopFile) + ", if it is there. If you have no backup, move both " +
			"away. If the topic is one of Millrace's services, then run `millrace rebuild --service SERVICE --yes`, which makes it " +
			"again from the event store; records of other topics are lost then",
	}
}
