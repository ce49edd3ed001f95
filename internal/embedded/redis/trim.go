package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// LevelDB appends to two files, its journal and its manifest, in blocks of 32 KiB, and a record that spans blocks is several writes. A
// process that is killed between them leaves the beginning of a record that nobody was told is there. A strict reader takes that for
// damage, as it cannot tell it from a record that has lost its end; but damage that a kill does is at the end of the newest file alone.

const (
	journalBlock = 32 << 10
	chunkHead    = 7 // checksum, length, kind
	chunkFull    = 1
	chunkLast    = 4
)

var manifestName = regexp.MustCompile(`\AMANIFEST-[0-9]+\z`)

// trimAfterKill cuts off a record that the newest journal or the manifest ends within. No LevelDB may be open on the folder.
func trimAfterKill(dir string) error {
	current, err := os.ReadFile(filepath.Join(dir, "CURRENT")) //nolint:gosec // our own directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	manifest := strings.TrimSpace(string(current))
	if !manifestName.MatchString(manifest) {
		return nil // LevelDB will say what that means
	}
	files := []string{filepath.Join(dir, manifest)}
	journals, err := filepath.Glob(filepath.Join(escape(dir), "*.log"))
	if err != nil {
		return err
	}
	if len(journals) > 0 {
		files = append(files, slices.Max(journals)) // their numbers have leading zeros
	}
	for _, name := range files {
		content, err := os.ReadFile(name) //nolint:gosec // our own directory
		if errors.Is(err, fs.ErrNotExist) {
			continue // the same
		}
		if err != nil {
			return err
		}
		if end, torn := wholeRecords(content); torn {
			if err := os.Truncate(name, int64(end)); err != nil {
				return fmt.Errorf("cut off what a kill has left of a record: %w", err)
			}
		}
	}
	return nil
}

// escape keeps a folder's name from being a pattern.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// wholeRecords finds where the last whole record of a file ends, and whether the file ends within another. Whatever else is wrong with it
// is not this function's to judge.
func wholeRecords(file []byte) (end int, torn bool) {
	for at := 0; ; {
		left := journalBlock - at%journalBlock
		if left < chunkHead {
			at += left
			continue
		}
		if at+chunkHead > len(file) {
			return end, end < len(file)
		}
		length, kind := int(binary.LittleEndian.Uint16(file[at+4:])), file[at+6]
		if kind < chunkFull || kind > chunkLast || chunkHead+length > left {
			return len(file), false
		}
		if at+chunkHead+length > len(file) {
			return end, true
		}
		if util.NewCRC(file[at+6:at+chunkHead+length]).Value() != binary.LittleEndian.Uint32(file[at:]) {
			return len(file), false
		}
		at += chunkHead + length
		if kind == chunkFull || kind == chunkLast {
			end = at
		}
	}
}
