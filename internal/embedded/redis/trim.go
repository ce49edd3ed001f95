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

// LevelDB appends to its journal and its manifest in blocks of 32 KiB, and a record that spans
// blocks takes several writes. A process killed between them leaves an incomplete record that was
// never acknowledged. A strict reader reports it as damage. A kill can only leave it at the end of
// the newest file, though, so it is cut off there before the files are opened.

const (
	journalBlock = 32 << 10
	chunkHeader  = 7 // checksum, length and kind
	chunkFull    = 1 // kind of a chunk that is a whole record
	chunkLast    = 4 // kind of the last chunk of a record
)

// manifestName matches the content of CURRENT. Anything else is damage.
var manifestName = regexp.MustCompile(`\AMANIFEST-[0-9]+\z`)

// trimAfterKill removes an incomplete record from the end of the newest journal and the manifest.
// The files must not be open.
func trimAfterKill(dir string) error {
	current, err := os.ReadFile(filepath.Join(dir, "CURRENT")) //nolint:gosec // our own directory
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	manifest := strings.TrimSpace(string(current))
	if !manifestName.MatchString(manifest) {
		return nil // LevelDB reports it
	}
	files := []string{filepath.Join(dir, manifest)}
	journals, err := filepath.Glob(filepath.Join(escape(dir), "*.log"))
	if err != nil {
		return err
	}
	// Older journals are complete: LevelDB finishes one before it starts the next.
	if len(journals) > 0 {
		files = append(files, slices.Max(journals)) // their numbers have leading zeros
	}
	for _, name := range files {
		content, err := os.ReadFile(name) //nolint:gosec // our own directory
		if errors.Is(err, fs.ErrNotExist) {
			continue // LevelDB reports it
		}
		if err != nil {
			return err
		}
		if end, torn := completeRecords(content); torn {
			if err := os.Truncate(name, int64(end)); err != nil {
				return fmt.Errorf("remove an incomplete record after a kill: %w", err)
			}
		}
	}
	return nil
}

// escape quotes the glob characters in a path.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// completeRecords returns the end of the last complete record, and reports whether an incomplete
// one follows. For any other kind of damage it returns the length of the file.
func completeRecords(file []byte) (end int, torn bool) {
	// A journal is a sequence of chunks. A record is one full chunk, or a first, any middle and a
	// last one.
	for at := 0; ; {
		left := journalBlock - at%journalBlock
		// A chunk's head does not span blocks: the rest of the block is padding.
		if left < chunkHeader {
			at += left
			continue
		}
		if at+chunkHeader > len(file) {
			return end, end < len(file)
		}
		length, kind := int(binary.LittleEndian.Uint16(file[at+4:])), file[at+6]
		// This is damage and not an interrupted write. LevelDB will report it.
		if kind < chunkFull || kind > chunkLast || chunkHeader+length > left {
			return len(file), false
		}
		if at+chunkHeader+length > len(file) {
			return end, true
		}
		if util.NewCRC(file[at+6:at+chunkHeader+length]).Value() != binary.LittleEndian.Uint32(file[at:]) {
			return len(file), false // damage, as above
		}
		at += chunkHeader + length
		if kind == chunkFull || kind == chunkLast {
			end = at
		}
	}
}
