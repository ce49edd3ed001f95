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

// stopFile says which files a clean stop left, so that the next start finds what was lost or
// changed while no broker ran. After a kill there is none: batches and entries have checksums of
// their own, and topics.json has a copy.
const stopFile = "stopped.json"

// stop is what stopFile holds.
type stop struct {
	Segments map[string]int64  `json:"segments"` // size of each, by path below the folder; its batches have checksums
	Files    map[string]string `json:"files"`    // SHA-256 of each
}

// writeStop describes the files of a broker that has stopped.
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

func below(dir, name string) string {
	return filepath.ToSlash(strings.TrimPrefix(name, dir+string(filepath.Separator)))
}

func hash(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// readStop returns what the last clean stop left, or nil after a kill.
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

// changed returns an error if a file is not as it was left.
func (s *stop) changed(name string, raw []byte) error {
	if s != nil && s.Files[name] != hash(raw) {
		return errors.New("it has changed since the log was closed")
	}
	return nil
}

// checkLeft looks for segments that are gone or have another size, and removes snapshots that are
// not as they were left: the segments are read instead.
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

// checkLogs reports logs of entries that are gone or have changed, before what is left of them is
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

// lostRecords says that records are damaged or gone.
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
