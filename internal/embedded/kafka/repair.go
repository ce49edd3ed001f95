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

// kfake writes a batch to a segment (.dat) and then a line about it to the segment's index (.idx).
// On load it takes each batch's transaction from the index alone, by position. A kill between the
// two writes would therefore show a batch of an open transaction as committed, and shift all later
// ones. It also keeps two logs of small entries (groups and producers), to which it would append
// behind a torn entry and then never read past it.

// repair returns the directory what kfake takes it for. No broker may be running on it.
func repair(dir string, log *slog.Logger) error {
	// Clients that are gone, with their open transactions and group memberships, which kfake would
	// bring back after a clean stop, for others to wait until they time out.
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
	for _, partition := range partitions {
		ok, err := settled(partition)
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

// settled reports whether kfake left a partition in a clean stop, and with no transaction open. It
// spares the replay of the whole partition then, and a start as much memory as the log is large. A
// snapshot that an open transaction is in is of no use: the transaction's client is gone, and only
// the replay counts it as aborted.
func settled(partition string) (bool, error) {
	name := filepath.Join(partition, snapshotFile)
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var snapshot struct {
		High   int64 `json:"high_watermark"`
		Stable int64 `json:"last_stable_offset"`
	}
	if err := json.Unmarshal(raw, &snapshot); err == nil && snapshot.Stable == snapshot.High {
		return true, nil
	}
	return false, remove(name)
}

const snapshotFile = "snapshot.json"

// dropSnapshots removes the snapshots once they are loaded. kfake believes one that fits the
// segments in size, which those that were written since may do by chance.
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

// find lists the files below dir that fit a pattern. dir itself is not a pattern, whatever is in
// its name.
func find(dir, pattern string) ([]string, error) {
	names, err := fs.Glob(os.DirFS(dir), pattern)
	for i, name := range names {
		names[i] = filepath.Join(dir, filepath.FromSlash(name))
	}
	return names, err
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A line of the index: its version, the low byte of the checksum of what follows, the leader epoch,
// a timestamp that is not read, and whether the batch belongs to a transaction that a marker has to
// end.
const indexLine = 15

func validLine(line []byte) bool {
	return line[0] == 1 && line[1] == byte(crc32.Checksum(line[2:], castagnoli))
}

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

// repairIndex gives every batch of a segment its line, and the index no line without a batch.
func repairIndex(segment string, log *slog.Logger) error {
	f, err := os.Open(segment) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	want, err := indexOf(f)
	if err != nil {
		return err
	}

	name := strings.TrimSuffix(segment, ".dat") + ".idx"
	have, err := os.ReadFile(name) //nolint:gosec // our own directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	good := 0
	for good+indexLine <= min(len(have), len(want)) && validLine(have[good:good+indexLine]) {
		good += indexLine
	}
	if good == len(have) && good == len(want) {
		return nil
	}
	log.Info("kafka: repairing the index of a segment after a kill", "segment", segment, "batches", len(want)/indexLine, "indexed", good/indexLine)
	x, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	_, err = x.WriteAt(want[good:], int64(good))
	return errors.Join(err, x.Truncate(int64(len(want))), x.Sync(), x.Close())
}

// indexOf computes the index of a segment from its batches. A batch that the segment ends within
// has no line: kfake will cut it off.
func indexOf(segment io.Reader) ([]byte, error) {
	// The start of a record batch: base offset (8 bytes), length of what follows (4), leader epoch
	// (4), magic (1), checksum (4), attributes (2).
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
		const transactional, control = 1 << 4, 1 << 5
		if _, err := r.Discard(beforeLength + length); err != nil {
			return index, ignoreEOF(err)
		}
		index = appendLine(index, epoch, attributes&transactional != 0 && attributes&control == 0)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// entryLogs are the offsets of consumer groups, and the transactional ids.
var entryLogs = []string{"groups.log", "pids.log"}

// repairEntries removes from a log of entries what is not a whole entry: kfake reads no entry
// behind one that is damaged. An entry is its length, the checksum of what follows, and so many
// bytes, of which two are a version.
func repairEntries(name string, log *slog.Logger) error {
	raw, err := os.ReadFile(name) //nolint:gosec // our own directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var good []byte
	tail := 0 // bytes at the end that are not entry
	for at := 0; at < len(raw); {
		if n := entryAt(raw[at:]); n > 0 {
			good, tail = append(good, raw[at:at+n]...), 0
			at += n
			continue
		}
		at++
		tail++
	}
	switch {
	case len(good) == len(raw):
		return nil
	case len(good)+tail == len(raw):
		log.Info("kafka: cutting off a torn entry after a kill", "file", name, "bytes", strconv.Itoa(tail))
		return os.Truncate(name, int64(len(good)))
	}
	log.Warn("kafka: a log of entries is damaged; what is whole of it is kept", "file", name, "set_aside", name+asideSuffix,
		"bytes", len(raw)-len(good))
	return errors.Join(writeFile(name+asideSuffix, raw), writeFile(name, good))
}

// entryAt returns the size of the entry that bytes begin with; 0 if there is none.
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
