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

// topic is an entry of topics.json.
type topic struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Partitions int               `json:"partitions"`
	Replicas   int               `json:"replicas"`
	Configs    map[string]string `json:"configs,omitempty"`
}

// encodeID encodes a topic's id as kfake does.
func encodeID(id []byte) string { return base64.StdEncoding.EncodeToString(id) }

// maxPartitions bounds the partitions of a topic. A higher number is damage.
const maxPartitions = 100_000

// parseTopics parses topics.json strictly, because damage may leave valid JSON.
func parseTopics(raw []byte) (topics, error) {
	var t topics
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.DisallowUnknownFields() // an unknown field is the damaged name of a known one
	if err := strict.Decode(&t); err != nil {
		return topics{}, err
	}
	if strict.More() {
		return topics{}, errors.New("more than one JSON value")
	}
	if t.Version != formatVersion {
		return topics{}, fmt.Errorf("unsupported format version %d", t.Version)
	}
	// Names and ids are unique, and an id has 16 bytes.
	names, ids := map[string]bool{}, map[string]bool{}
	for _, one := range t.Topics {
		id, err := base64.StdEncoding.DecodeString(one.ID)
		if err != nil || len(id) != 16 || one.Name == "" || one.Partitions < 1 || one.Partitions > maxPartitions {
			return topics{}, fmt.Errorf("invalid topic %q with id %q and %d partitions", one.Name, one.ID,
				one.Partitions)
		}
		if names[one.Name] || ids[one.ID] {
			return topics{}, fmt.Errorf("duplicate topic %q", one.Name)
		}
		names[one.Name], ids[one.ID] = true, true
	}
	return t, nil
}

// checkTopics restores topics.json to what kfake last acknowledged. It uses the file, its copy, and
// the folders of partitions with records.
func checkTopics(dir string, last *cleanStop, log *slog.Logger) error {
	name := filepath.Join(dir, topicsFile)
	// Records on disk prove which topics and partitions existed.
	data, err := findRecordedPartitions(dir)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	// have is the list in the file, and damage why it cannot be used as it is.
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
			if equalTopics(merged, have) {
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
	// have is the list to restore, and damage the reason.
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
		Remedy: "restore it from a backup of its folder. Without a backup, move the folder " + filepath.Dir(name) +
			" away and run `millrace rebuild --service SERVICE --yes` for each service (order, inventory, catalog, " +
			"customer, identity), which republishes the log from the event stores; records of other producers are lost",
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
func merge(kept, have topics, data recordedPartitions) topics {
	// Start with the copy, and apply the change that the file may be newer by.
	byName, ids := map[string]topic{}, map[string]bool{}
	for _, t := range have.Topics {
		byName[t.Name] = t
		ids[t.ID] = true
	}
	out := topics{Version: formatVersion}
	known := map[string]bool{}
	for _, t := range kept.Topics {
		now, stays := byName[t.Name] // the file's entry
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
	// A topic that only the file lists is new. Its creation was interrupted, and is completed.
	for _, t := range have.Topics {
		if !known[t.Name] && !known[t.ID] {
			out.Topics = append(out.Topics, t) // new
		}
	}
	return out
}

// equalTopics reports whether two lists are equal, ignoring order.
func equalTopics(a, b topics) bool {
	text := func(t topics) []byte {
		sorted := slices.SortedFunc(slices.Values(t.Topics),
			func(a, b topic) int { return cmp.Compare(a.Name, b.Name) })
		raw, _ := json.Marshal(sorted) //nolint:errchkjson // of strings and numbers
		return raw
	}
	return bytes.Equal(text(a), text(b))
}

// recordedPartitions maps each topic that has records on disk to the lowest possible number of its
// partitions.
type recordedPartitions map[string]int

// findRecordedPartitions returns the topics that have records in dir.
func findRecordedPartitions(dir string) (recordedPartitions, error) {
	segments, err := find(dir, "partitions/*/*.dat")
	if err != nil {
		return nil, err
	}
	found := recordedPartitions{}
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

// cutLast is like strings.Cut, at the last separator.
func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// missingFrom returns an error if there are records on disk whose partition is not in the list:
// kfake would ignore them.
func (f recordedPartitions) missingFrom(t topics) error {
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

// topicsCopier maintains the copy of topics.json.
type topicsCopier struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	seen fs.FileInfo // the file that was copied last, to recognise a new one
}

// update copies topics.json if kfake has replaced it. kfake replaces the file, so a file that was
// changed in place was changed by something else, and is not copied.
func (c *topicsCopier) update() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without a copy the log works, but damage to the list could not be repaired. So an error is only
	// logged.
	name := filepath.Join(c.dir, topicsFile)
	info, err := os.Stat(name)
	if err == nil && c.seen != nil && os.SameFile(info, c.seen) {
		return
	}
	if err == nil {
		err = c.copy(name)
	}
	if err != nil {
		c.log.Warn("embedded kafka: cannot copy the list of topics; without a copy, it cannot be restored if it is damaged",
			"file", name, "error", err)
		return
	}
	c.seen = info
}

// copy copies topics.json if it is intact.
func (c *topicsCopier) copy(name string) error {
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if err == nil {
		_, err = parseTopics(raw)
	}
	if err != nil {
		return err
	}
	return writeSealed(filepath.Join(c.dir, topicsCopy), raw)
}
