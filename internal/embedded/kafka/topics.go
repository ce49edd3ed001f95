package kafka

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	topicsFile = "topics.json"
	topicsCopy = "topics.copy" // sealed copy of topicsFile
)

// topics is the content of topics.json.
type topics struct {
	Version int     `json:"version"`
	Topics  []topic `json:"topics"`
}

type topic struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Partitions int               `json:"partitions"`
	Replicas   int               `json:"replicas"`
	Configs    map[string]string `json:"configs,omitempty"`
}

func encodeID(id []byte) string { return base64.StdEncoding.EncodeToString(id) }

const mostPartitions = 100_000

// parseTopics parses topics.json strictly, because damage may leave valid JSON.
func parseTopics(raw []byte) (topics, error) {
	var t topics
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields() // an unknown field is the damaged name of a known one
	if err := strict.Decode(&t); err != nil {
		return topics{}, err
	}
	if strict.More() {
		return topics{}, errors.New("more than one list")
	}
	if t.Version != formatVersion {
		return topics{}, fmt.Errorf("version %d", t.Version)
	}
	names, ids := map[string]bool{}, map[string]bool{}
	for _, one := range t.Topics {
		id, err := base64.StdEncoding.DecodeString(one.ID)
		if err != nil || len(id) != 16 || one.Name == "" || one.Partitions < 1 || one.Partitions > mostPartitions {
			return topics{}, fmt.Errorf("topic %q with id %q and %d partitions", one.Name, one.ID, one.Partitions)
		}
		if names[one.Name] || ids[one.ID] {
			return topics{}, fmt.Errorf("topic %q twice", one.Name)
		}
		names[one.Name], ids[one.ID] = true, true
	}
	return t, nil
}

// checkTopics restores topics.json to what kfake last acknowledged. It uses the file, its copy, and
// the folders of partitions with records.
func checkTopics(dir string, last *stop, log *slog.Logger) error {
	name := filepath.Join(dir, topicsFile)
	data, err := partitionFolders(dir)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	var have topics
	damage := errors.New("it is missing")
	if !missing {
		have, damage = parseTopics(raw)
		damage = errors.Join(damage, last.changed(topicsFile, raw))
	}
	kept, copyErr := readCopy(dir)
	switch {
	// Both are intact, but may differ by one change that a kill interrupted.
	case copyErr == nil && damage == nil:
		merged := merge(kept, have, data)
		if damage = data.missingFrom(merged); damage == nil {
			if same(merged, have) {
				return nil
			}
			damage, have = errors.New("it differs from its copy"), merged
		}
	// Only the copy is intact. It may lack the last change, which matters if records depend on it.
	case copyErr == nil:
		have, damage = kept, errors.Join(damage, data.missingFrom(kept))
		if data.missingFrom(kept) == nil {
			break
		}
		return lostTopics(name, damage)
	// There was no copy before this version, or only the copy is damaged.
	case damage == nil && data.missingFrom(have) == nil:
		return nil
	case missing && len(data) == 0: // an empty log
		return nil
	default:
		return lostTopics(name, errors.Join(damage, data.missingFrom(have)))
	}
	if raw, err = json.Marshal(have); err != nil {
		return err
	}
	if err := setAside(name, log, damage, "its copy"); err != nil {
		return err
	}
	return writeFile(name, raw)
}

// lostTopics returns the error for a list that cannot be restored.
func lostTopics(name string, damage error) error {
	return &DamageError{
		File: name, Damage: damage.Error(),
		Remedy: "bring it back from a backup of its folder. If you have none, move the folder " + filepath.Dir(name) +
			" away and run `millrace rebuild --service SERVICE --yes` for each service (order, inventory, catalog, customer), " +
			"which makes the log again from the event stores; records that other producers wrote are lost then",
	}
}

// readCopy returns the list in the sealed copy.
func readCopy(dir string) (topics, error) {
	raw, err := readSealed(filepath.Join(dir, topicsCopy))
	if err != nil {
		return topics{}, err
	}
	return parseTopics(raw)
}

// merge combines an intact copy with a file that may be damaged, or newer by one change. That
// change was not acknowledged, so it may be undone, unless records were already written to a new
// topic or deleted with an old one.
func merge(kept, have topics, data folders) topics {
	byName, ids := map[string]topic{}, map[string]bool{}
	for _, t := range have.Topics {
		byName[t.Name] = t
		ids[t.ID] = true
	}
	out := topics{Version: formatVersion}
	known := map[string]bool{}
	for _, t := range kept.Topics {
		now, stays := byName[t.Name]
		known[t.Name], known[t.ID] = true, true
		// A topic without records that the file does not list was deleted.
		if !stays && !ids[t.ID] && data[t.Name] == 0 {
			continue // deleted
		}
		if stays && now.ID == t.ID && now.Partitions > t.Partitions {
			t.Partitions = max(t.Partitions, data[t.Name]) // widened
		}
		out.Topics = append(out.Topics, t)
	}
	for _, t := range have.Topics {
		if !known[t.Name] && !known[t.ID] {
			out.Topics = append(out.Topics, t) // new
		}
	}
	return out
}

// same reports whether two lists are equal, ignoring order.
func same(a, b topics) bool {
	text := func(t topics) []byte {
		sorted := slices.SortedFunc(slices.Values(t.Topics), func(a, b topic) int { return cmp.Compare(a.Name, b.Name) })
		raw, _ := json.Marshal(sorted) //nolint:errchkjson // of strings and numbers
		return raw
	}
	return bytes.Equal(text(a), text(b))
}

// folders maps each topic that has records on disk to the lowest possible number of its partitions.
type folders map[string]int

// partitionFolders returns the folders of dir.
func partitionFolders(dir string) (folders, error) {
	segments, err := find(dir, "partitions/*/*.dat")
	if err != nil {
		return nil, err
	}
	found := folders{}
	for _, segment := range segments {
		// A folder's name is the escaped topic, a hyphen and the partition.
		escaped, number, ok := cutLast(filepath.Base(filepath.Dir(segment)), "-")
		name, err1 := url.PathUnescape(escaped)
		p, err2 := strconv.Atoi(number)
		if info, err := os.Stat(segment); !ok || errors.Join(err, err1, err2) != nil || info.Size() == 0 {
			continue // not kfake's, or without a record
		}
		found[name] = max(found[name], p+1)
	}
	return found, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// missingFrom returns an error if there are records on disk whose partition is not in the list.
func (f folders) missingFrom(t topics) error {
	listed := map[string]int{}
	for _, one := range t.Topics {
		listed[one.Name] = one.Partitions
	}
	for name, partitions := range f {
		if listed[name] < partitions {
			return fmt.Errorf("it does not list partition %d of topic %q, which has records", partitions-1, name)
		}
	}
	return nil
}

// topicsKeeper maintains the copy of topics.json.
type topicsKeeper struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	seen fs.FileInfo // the file that was copied last
}

// keep copies topics.json if kfake has replaced it. kfake replaces the file, so a file that was
// changed in place was changed by something else, and is not copied.
func (k *topicsKeeper) keep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := filepath.Join(k.dir, topicsFile)
	info, err := os.Stat(name)
	if err == nil && k.seen != nil && os.SameFile(info, k.seen) {
		return
	}
	if err == nil {
		err = k.copy(name)
	}
	if err != nil {
		k.log.Warn("kafka: the list of topics could not be copied; it cannot be mended if it is damaged",
			"file", name, "error", err)
		return
	}
	k.seen = info
}

// copy copies topics.json if it is intact.
func (k *topicsKeeper) copy(name string) error {
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if err == nil {
		_, err = parseTopics(raw)
	}
	if err != nil {
		return err
	}
	return writeSealed(filepath.Join(k.dir, topicsCopy), raw)
}
