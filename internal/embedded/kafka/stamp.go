package kafka

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// A folder that was restored from an older backup, or is another system's, has the names and ids of
// topics that readers know, but other records at their offsets. Readers would skip records without
// noticing. So the log has a stamp that changes with each start and each clean stop, in its folder
// and beside it. If the two differ, the folder is not the one that was used last, and its topics
// get new ids. To readers and relays it is then another log, which they handle already: a view
// reads it from its beginning, a relay compares all of it with its store, and a table stops and
// names the remedy.

const (
	stampFile   = "stamp"
	stampSuffix = ".stamp" // of the file beside the folder
)

// stamp is the content of stampFile. Previous is the stamp that the file beside the folder still
// has if a kill comes before it is replaced.
type stamp struct {
	Current  string `json:"current"`
	Previous string `json:"previous"`
}

// besideFolder returns the name of the file beside the folder.
func besideFolder(dir string) string { return filepath.Clean(dir) + stampSuffix }

// checkStamp gives the topics new ids if the folder is not the one that was used last.
func checkStamp(dir string, log *slog.Logger) error {
	beside, err := readSealed(besideFolder(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errChecksum) {
		return nil // from an earlier version, or lost: nothing is known
	}
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, topicsFile)) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an empty log
	}
	if err != nil {
		return err
	}
	s, err := readStamp(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errChecksum) {
		return nil // as above
	}
	// Previous matches if a kill came between the two files of renewStamp.
	if err != nil || string(beside) == s.Current || string(beside) == s.Previous {
		return err
	}
	list, err := parseTopics(raw)
	if err != nil {
		return err
	}
	log.Error("embedded kafka: the log's folder is not the one that was used last: it was restored from a backup, "+
		"or is another system's. Its topics get new ids, so that readers start over. If a component reports that "+
		"the log has changed, follow its advice, or stop Millrace and restore the newest folder", "folder", dir)
	// An id is 16 random bytes.
	for i := range list.Topics {
		id := make([]byte, 16)
		_, _ = rand.Read(id) // never fails
		list.Topics[i].ID = encodeID(id)
	}
	if raw, err = json.Marshal(list); err != nil {
		return err
	}
	// Write the copy first: a list that differs from its copy counts as damaged. A kill in between
	// leaves the stamps different, so the next start does it again.
	return errors.Join(writeSealed(filepath.Join(dir, topicsCopy), raw), writeFile(filepath.Join(dir, topicsFile), raw))
}

// readStamp returns the stamp in the folder. It returns errChecksum if the file is damaged.
func readStamp(dir string) (s stamp, err error) {
	raw, err := readSealed(filepath.Join(dir, stampFile))
	if err != nil {
		return stamp{}, err
	}
	if json.Unmarshal(raw, &s) != nil {
		return stamp{}, errChecksum
	}
	return s, nil
}

// renewStamp changes both stamps, first the one in the folder.
func renewStamp(dir string) error {
	// A missing or damaged stamp counts as none: both files are written again.
	was, err := readStamp(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errChecksum) {
		return err
	}
	raw, err := json.Marshal(stamp{Current: rand.Text(), Previous: was.Current})
	if err != nil {
		return err
	}
	if err := writeSealed(filepath.Join(dir, stampFile), raw); err != nil {
		return err
	}
	// The stamp beside the folder is replaced last. Until then it equals Previous.
	now, err := readStamp(dir)
	if err != nil {
		return err
	}
	return writeSealed(besideFolder(dir), []byte(now.Current))
}
