package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/internal/clickhouse"
)

// A kill can leave files with which ClickHouse does not start, or with which it would lose rows. So
// they are repaired before each start:
//
//   - Databases of the lake's snapshots are scratch. Incomplete ones prevent the start.
//   - The definition of a table or database that was being created or altered is empty. That
//     prevents the start, too. See definitions.
//   - A mutation that did not fit on the disk is an empty file, too. Without it, retention applies to
//     existing rows when their parts are merged.
//   - A table logs the token of an insert before the rows are visible. After a kill in between, a
//     retry would be taken for a duplicate, and the rows would be lost. So tokens without rows are
//     removed from the log.

// repaired is what repair has changed.
type repaired struct {
	Databases   int // of snapshots, removed
	Definitions int // empty ones, restored or removed, and mutations
	Tokens      int // of inserts without rows, freed
}

// repair repairs the folder of the tables. No engine may use it.
func repair(dir string) (done repaired, err error) {
	databases, err := filepath.Glob(filepath.Join(dir, "metadata", clickhouse.ReaderPrefix+"*"))
	if err != nil {
		return done, err
	}
	for _, path := range databases {
		if err := os.RemoveAll(path); err != nil {
			return done, fmt.Errorf("remove a database of the last run: %w", err)
		}
		done.Databases++
	}
	if done.Definitions, err = repairDefinitions(dir); err != nil {
		return done, fmt.Errorf("repair the definitions of tables: %w", err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "store", "*", "*", logFolder))
	if err != nil {
		return done, err
	}
	for _, folder := range logs {
		n, err := freeTokens(folder)
		if err != nil {
			return done, fmt.Errorf("repair the tokens in %s: %w", folder, err)
		}
		done.Tokens += n
	}
	return done, nil
}

// repairDefinitions restores empty definitions of tables, and removes those that it cannot restore,
// and empty mutations. It returns the number of files.
func repairDefinitions(dir string) (int, error) {
	restored, empty, err := restoreDefinitions(dir)
	if err != nil {
		return restored, err
	}
	for _, pattern := range []string{"metadata/*" + definitionSuffix, "store/*/*/mutation_*.txt"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return restored, err
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err == nil && info.Size() == 0 {
				empty = append(empty, path)
			}
		}
	}
	for _, path := range empty {
		if err := os.Remove(path); err != nil {
			return restored, err
		}
	}
	return restored + len(empty), nil
}

// The log of tokens of a table: one record per part, the newest file last.
const logFolder = "deduplication_logs"

// logFile matches the names of its files, and their numbers.
var logFile = regexp.MustCompile(`^deduplication_log_(\d+)\.txt$`)

// Operations of the log's records.
const (
	tokenAdded   = "1"
	tokenDropped = "2"
)

// freeTokens removes the tokens of missing parts from the log in folder, and returns how many. It
// also removes an incomplete record at the end of a file, and files that ClickHouse does not expect
// there.
func freeTokens(folder string) (freed int, err error) {
	files, err := os.ReadDir(folder)
	if err != nil {
		return 0, err
	}
	parts, err := partsIn(filepath.Dir(folder))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		path := filepath.Join(folder, f.Name())
		if !logFile.MatchString(f.Name()) {
			if err := os.RemoveAll(path); err != nil {
				return freed, err
			}
			continue
		}
		before, err := os.ReadFile(path) //nolint:gosec // in the engine's own folder
		if err != nil {
			return freed, err
		}
		after, n := withoutMissing(before, parts)
		freed += n
		if bytes.Equal(before, after) {
			continue
		}
		if err := replaceFile(path, after); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// withoutMissing returns the records of a file of the log without those that add the token of a
// part that is not among parts, and the number of those.
func withoutMissing(log []byte, parts []part) (kept []byte, missing int) {
	for line := range bytes.Lines(log) {
		record, complete := bytes.CutSuffix(line, []byte("\n"))
		fields := strings.Split(string(record), "\t")
		if !complete || len(fields) != 3 || fields[0] != tokenAdded && fields[0] != tokenDropped {
			continue
		}
		p, ok := parsePart(fields[1])
		if !ok {
			continue
		}
		if fields[0] == tokenAdded && !slices.ContainsFunc(parts, func(have part) bool { return have.covers(p) }) {
			missing++
			continue
		}
		kept = append(kept, line...)
	}
	return kept, missing
}

// part is what the name of a part says: "202611_1_7_2" is a merge, of level 2, of the inserts 1 to 7
// into a partition.
type part struct {
	partition       string
	first, last     uint64
	level, mutation uint64
}

// parsePart parses the name of a part.
func parsePart(name string) (part, bool) {
	fields := strings.Split(name, "_")
	if len(fields) != 4 && len(fields) != 5 || fields[0] == "" {
		return part{}, false
	}
	var numbers [4]uint64
	for i, text := range fields[1:] {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return part{}, false
		}
		numbers[i] = n
	}
	p := part{fields[0], numbers[0], numbers[1], numbers[2], numbers[3]}
	return p, p.first <= p.last
}

// covers reports whether the rows of other are in p.
func (p part) covers(other part) bool {
	return p.partition == other.partition && p.first <= other.first && p.last >= other.last &&
		p.level >= other.level && p.mutation >= other.mutation
}

// partsIn returns the parts in the folder of a table.
func partsIn(folder string) (parts []part, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		p, ok := parsePart(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		// A folder that is being written has another name, and one that is being deleted may lack
		// files. Without its checksums, a part is not loaded.
		if _, err := os.Stat(filepath.Join(folder, e.Name(), "checksums.txt")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// replaceFile replaces the content of a file. A crash leaves the old or the new content. The
// temporary file is in the parent folder, because ClickHouse does not start with unexpected files
// in this one.
func replaceFile(path string, content []byte) error {
	temporary := filepath.Join(filepath.Dir(filepath.Dir(path)), "tmp_"+filepath.Base(path))
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // as above
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
