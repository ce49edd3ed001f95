package kafka

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kfake writes a batch to a segment (.dat), and then a line about it to the segment's index (.idx).
// When it loads a partition, it takes the transaction of each batch from the index only, by
// position. So after a kill between the two writes, a batch of an open transaction would be visible
// as committed, and all later lines would be shifted. kfake also has two logs of small entries
// (groups and producers). It would append to an incomplete entry and never read past it.

// repair makes the directory consistent, as kfake expects it, after a kill or a clean stop. No
// broker may be running.
func repair(dir string, log *slog.Logger) error {
	// These files contain clients with their open transactions and group memberships. After a clean
	// stop, kfake would restore them, and others would wait until they time out.
	for _, name := range []string{"session_state.json", "seq_windows.json"} {
		if err := remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range entryLogs {
		if err := repairEntries(filepath.Join(dir, name), log); err != nil {
			return err
		}
	}
	partitions, err := find(dir, "partitions/*")
	if err != nil {
		return err
	}
	// The index of a partition with a snapshot is not read, so it needs no repair.
	for _, partition := range partitions {
		ok, err := hasSettledSnapshot(partition)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		segments, err := find(partition, "*.dat")
		if err != nil {
			return err
		}
		for _, segment := range segments {
			if err := repairIndex(segment, log); err != nil {
				return fmt.Errorf("repair %s: %w", segment, err)
			}
		}
	}
	return nil
}

// hasSettledSnapshot reports whether kfake left a snapshot of the partition in a clean stop, with
// no open transaction. Then a start does not replay the whole partition, which takes as much memory
// as the partition is large. hasSettledSnapshot removes a snapshot with an open transaction: its
// client is gone, and only a replay counts it as aborted.
func hasSettledSnapshot(partition string) (bool, error) {
	name := filepath.Join(partition, snapshotFile)
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Only the fields that show whether a transaction is open.
	var snapshot struct {
		High   int64 `json:"high_watermark"`
		Stable int64 `json:"last_stable_offset"`
	}
	if err := json.Unmarshal(raw, &snapshot); err == nil && snapshot.Stable == snapshot.High {
		return true, nil
	}
	return false, remove(name)
}

// snapshotFile is kfake's snapshot of a partition, which it writes in a clean stop.
const snapshotFile = "snapshot.json"

// dropSnapshots removes the snapshots after they have been loaded. kfake trusts a snapshot if the
// segments have the size that it states, and segments that were written later may have that size by
// chance.
func dropSnapshots(dir string) error {
	snapshots, err := find(dir, "partitions/*/"+snapshotFile)
	if err != nil {
		return err
	}
	for _, name := range snapshots {
		if err := remove(name); err != nil {
			return err
		}
	}
	return nil
}

// find returns the files below dir that match a pattern. Special characters in dir itself have no
// meaning.
func find(dir, pattern string) ([]string, error) {
	names, err := fs.Glob(os.DirFS(dir), pattern)
	for i, name := range names {
		names[i] = filepath.Join(dir, filepath.FromSlash(name))
	}
	return names, err
}

// remove removes a file that may not exist.
func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// indexLine is the length of a line of the index: version, low byte of the checksum of the rest,
// leader epoch, a timestamp that is not read, and whether the batch is in a transaction that a
// marker has to end.
const indexLine = 15

// validLine reports whether a line is complete and has the right checksum.
func validLine(line []byte) bool {
	return line[0] == 1 && line[1] == byte(crc32.Checksum(line[2:], castagnoli))
}

// appendLine appends the line of a batch.
func appendLine(b []byte, epoch uint32, inTransaction bool) []byte {
	line := make([]byte, indexLine)
	line[0] = 1
	binary.LittleEndian.PutUint32(line[2:], epoch)
	if inTransaction {
		line[14] = 1
	}
	line[1] = byte(crc32.Checksum(line[2:], castagnoli))
	return append(b, line...)
}

// repairIndex makes the index of a segment match its batches: one line each.
func repairIndex(segment string, log *slog.Logger) error {
	f, err := os.Open(segment) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// The segment is authoritative, and the index is derived from it.
	want, err := indexOf(f)
	if err != nil {
		return err
	}

	name := strings.TrimSuffix(segment, ".dat") + ".idx"
	have, err := os.ReadFile(name) //nolint:gosec // our own directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Valid lines at the front are kept as they are. The rest is written again.
	good := 0
	for good+indexLine <= min(len(have), len(want)) && validLine(have[good:good+indexLine]) {
		good += indexLine
	}
	// Nothing to repair: the index has exactly one valid line per batch.
	if good == len(have) && good == len(want) {
		return nil
	}
	log.Info("embedded kafka: repairing the index of a segment after a kill",
		"segment", segment, "batches", len(want)/indexLine, "indexed", good/indexLine)
	x, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	_, err = x.WriteAt(want[good:], int64(good))
	return errors.Join(err, x.Truncate(int64(len(want))), x.Sync(), x.Close())
}

// indexOf computes the index of a segment from its batches. An incomplete batch at the end has no
// line, because kfake will truncate it.
func indexOf(segment io.Reader) ([]byte, error) {
	// The start of a record batch: base offset (8 bytes), length of the rest (4), leader epoch (4),
	// magic (1), checksum (4), attributes (2).
	const start, beforeLength = 23, 12
	var index []byte
	r := bufio.NewReaderSize(segment, 1<<20)
	for {
		head, err := r.Peek(start)
		if err != nil {
			return index, ignoreEOF(err)
		}
		length := int(binary.BigEndian.Uint32(head[8:]))
		epoch := binary.BigEndian.Uint32(head[12:])
		attributes := binary.BigEndian.Uint16(head[21:])
		// Markers are transactional, too, but no marker has to end them.
		const transactional, control = 1 << 4, 1 << 5
		if _, err := r.Discard(beforeLength + length); err != nil {
			return index, ignoreEOF(err)
		}
		index = appendLine(index, epoch, attributes&transactional != 0 && attributes&control == 0)
	}
}

// ignoreEOF returns err, or nil at the end of a file.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// entryLogs contain the offsets of consumer groups and the transactional ids.
var entryLogs = []string{"groups.log", "pids.log"}

// repairEntries removes everything that is not a complete entry, because kfake does not read past a
// damaged one. An entry is its length, the checksum of the rest, and length bytes, of which two are
// a version.
func repairEntries(name string, log *slog.Logger) error {
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Collect intact entries, also behind a damaged one.
	var good []byte
	tail := 0 // bytes at the end that are not an entry
	for at := 0; at < len(raw); {
		if n := entryAt(raw[at:]); n > 0 {
			good, tail = append(good, raw[at:at+n]...), 0
			at += n
			continue
		}
		// Search for the next entry byte by byte: a damaged length does not lead to it.
		at++
		tail++
	}
	switch {
	case len(good) == len(raw):
		return nil
	case len(good)+tail == len(raw):
		log.Info("embedded kafka: removing an incomplete entry after a kill", "file", name, "bytes", strconv.Itoa(tail))
		return os.Truncate(name, int64(len(good)))
	}
	log.Warn("embedded kafka: a log of entries is damaged; its intact entries are kept",
		"file", name, "set_aside", name+asideSuffix, "bytes", len(raw)-len(good))
	return errors.Join(writeFile(name+asideSuffix, raw), writeFile(name, good))
}

// entryAt returns the size of the entry at the start of raw, or 0 if there is none.
func entryAt(raw []byte) int {
	const head = 8
	if len(raw) < head {
		return 0
	}
	length := int64(binary.LittleEndian.Uint32(raw))
	if length < 2 || head+length > int64(len(raw)) {
		return 0
	}
	if crc32.Checksum(raw[head:head+length], castagnoli) != binary.LittleEndian.Uint32(raw[4:]) {
		return 0
	}
	return head + int(length)
}
