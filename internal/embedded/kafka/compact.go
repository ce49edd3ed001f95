package kafka

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/twmb/franz-go/pkg/kfake"
)

// kfake compacts a partition by removing its segments and writing new ones, and ignores open
// transactions. So compaction runs at start only, before there are clients. Hard links to the old
// segments are kept until the new ones are complete. If a kill interrupts it, the next start
// restores the old segments from the links.

const (
	// Complete: links to the segments as they were before a compaction that has not ended.
	compacting = "compacting"
	collecting = "compacting.new" // links that are being created
	discarding = "compacting.old" // links that are being removed
)

// undoCompaction restores the segments if a kill interrupted a compaction. No broker may be
// running.
func undoCompaction(dir string) error {
	for _, leftover := range []string{collecting, discarding} {
		if err := os.RemoveAll(filepath.Join(dir, leftover)); err != nil {
			return err
		}
	}
	saved, err := os.ReadDir(filepath.Join(dir, compacting))
	if errors.Is(err, fs.ErrNotExist) { // no compaction was interrupted
		return nil
	}
	if err != nil {
		return err
	}
	// Replace whatever the interrupted compaction has left by the old segments.
	for _, partition := range saved {
		into := filepath.Join(dir, "partitions", partition.Name())
		segments, err := segmentFiles(into)
		if err != nil {
			return err
		}
		for _, name := range segments {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
		if err := linkSegments(filepath.Join(dir, compacting, partition.Name()), into); err != nil {
			return err
		}
	}
	return discard(dir)
}

// compact removes all records of compacted topics but the last one of each key.
func compact(dir string, cluster *kfake.Cluster) error {
	partitions, err := compactedPartitions(dir)
	if err != nil || len(partitions) == 0 {
		return err
	}
	// Collect the links in another folder first. The rename below makes them valid all at once.
	for _, partition := range partitions {
		to := filepath.Join(dir, collecting, filepath.Base(partition))
		if err := os.MkdirAll(to, 0o750); err != nil {
			return err
		}
		if err := linkSegments(partition, to); err != nil {
			return err
		}
	}
	if err := os.Rename(filepath.Join(dir, collecting), filepath.Join(dir, compacting)); err != nil {
		return err
	}
	// From here to discard, a kill is undone by the next start.
	cluster.Compact()
	return discard(dir)
}

// discard removes the links. The rename is atomic, so a kill leaves either all links or a folder
// that the next start removes.
func discard(dir string) error {
	if err := os.Rename(filepath.Join(dir, compacting), filepath.Join(dir, discarding)); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, discarding))
}

// compactedPartitions returns the directories of the partitions of compacted topics.
func compactedPartitions(dir string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "topics.json")) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var state struct {
		Topics []struct {
			Name       string            `json:"name"`
			Partitions int               `json:"partitions"`
			Configs    map[string]string `json:"configs"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return nil, fmt.Errorf("read the list of topics: %w", err)
	}
	var found []string
	for _, t := range state.Topics {
		if !strings.Contains(t.Configs["cleanup.policy"], "compact") {
			continue
		}
		for p := range t.Partitions {
			partition := filepath.Join(dir, "partitions", fmt.Sprintf("%s-%d", url.PathEscape(t.Name), p))
			if _, err := os.Stat(partition); err == nil {
				found = append(found, partition)
			}
		}
	}
	return found, nil
}

// segmentFiles returns the segments of a partition and their indexes.
func segmentFiles(partition string) ([]string, error) {
	var found []string
	for _, kind := range []string{"*.dat", "*.idx"} {
		names, err := find(partition, kind)
		if err != nil {
			return nil, err
		}
		found = append(found, names...)
	}
	return found, nil
}

// linkSegments creates hard links to the files of a partition. Links cost no space.
func linkSegments(from, to string) error {
	names, err := segmentFiles(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(name, filepath.Join(to, filepath.Base(name))); err != nil {
			return err
		}
	}
	return nil
}
