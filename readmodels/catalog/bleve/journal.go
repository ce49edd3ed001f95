package bleve

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/streams"
)

// journal is the embedded index on disk: an entry for each saved product and each saved set of
// positions, in the order of saving. It is read once, at the start.
//
// Every entry has a checksum. The first entry with a wrong checksum ends the journal. So the
// entries before it are a state that the index really had, with positions never ahead of products,
// and the log supplies the rest. Whatever happens to the file, nothing wrong is read from it. It is
// not safe for concurrent use: Index.writing serialises its callers.
type journal struct {
	path string
	file *os.File
	end  int64 // where the next entry is written
	live int64 // the size when it was last rewritten, and so without outdated entries
}

// content is the content of a journal.
type content struct {
	products  map[string]*catalogv1.Product
	positions map[string]map[int32]streams.Applied // by topic
}

// An entry is a header (length and checksum, four bytes each), one of these kinds, and a body.
const (
	entryHeader   = 8
	entryProduct  = 'p'
	entryPosition = 'o'
	maxEntry      = 64 << 20

	// A journal that is longer than this, and several times its necessary length, is rewritten.
	journalSlack = 64 << 20
)

var checksums = crc32.MakeTable(crc32.Castagnoli)

// openJournal reads a journal, and rewrites it without outdated entries. A damaged journal is
// renamed, and damageText describes the damage.
func openJournal(path string, logger *slog.Logger) (j *journal, c content, damageText string, err error) {
	c, damage, err := readJournal(path)
	if err != nil {
		return nil, content{}, "", err
	}
	if damage != nil {
		damageText = damage.Error()
		aside := path + ".damaged" // only the last one is kept
		logger.Warn("catalog index: damaged journal set aside; reading the missing products from the log again",
			"file", path, "set_aside", aside, "damage", damage, "products_kept", len(c.products))
		if err := errors.Join(os.RemoveAll(aside), os.Rename(path, aside)); err != nil {
			return nil, content{}, "", fmt.Errorf("set aside the damaged journal: %w", err)
		}
	}
	// Rewriting drops outdated entries, and a damaged end.
	j = &journal{path: path}
	if err := j.rewrite(c); err != nil {
		return nil, content{}, "", err
	}
	return j, c, damageText, nil
}

// readJournal reads the entries before the first damaged one. damage describes that one. Damage is
// not an error, because the entries before it are valid.
func readJournal(path string) (c content, damage, err error) {
	c = content{map[string]*catalogv1.Product{}, map[string]map[int32]streams.Applied{}}
	f, err := os.Open(path) //nolint:gosec // the folder is the operator's choice
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil, nil
	}
	if err != nil {
		return c, err, nil // a file that cannot be opened can still be renamed
	}
	defer f.Close() //nolint:errcheck // it was only read
	r := bufio.NewReaderSize(f, 1<<20)
	for at := int64(0); ; {
		entry, err := readEntry(r)
		if errors.Is(err, io.EOF) {
			return c, nil, nil
		}
		if err == nil {
			err = c.add(entry)
		}
		if err != nil {
			return c, fmt.Errorf("at byte %d: %w", at, err), nil
		}
		at += int64(entryHeader + len(entry))
	}
}

// readEntry reads one entry. It returns io.EOF at the end.
func readEntry(r io.Reader) ([]byte, error) {
	var header [entryHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err // io.ErrUnexpectedEOF if it is truncated
	}
	// A damaged length must not allocate gigabytes.
	n := binary.BigEndian.Uint32(header[:])
	if n == 0 || n > maxEntry {
		return nil, fmt.Errorf("invalid entry length %d", n)
	}
	entry := make([]byte, n)
	if _, err := io.ReadFull(r, entry); err != nil {
		return nil, io.ErrUnexpectedEOF // io.EOF would mean a clean end
	}
	if crc32.Checksum(entry, checksums) != binary.BigEndian.Uint32(header[4:]) {
		return nil, errors.New("checksum mismatch")
	}
	return entry, nil
}

// add applies an entry to the content. A later entry of the same product or topic replaces an
// earlier one.
func (c content) add(entry []byte) error {
	// The first byte is the kind. readEntry has rejected empty entries.
	switch entry[0] {
	case entryProduct:
		p := &catalogv1.Product{}
		if err := proto.Unmarshal(entry[1:], p); err != nil {
			return fmt.Errorf("product: %w", err)
		}
		c.products[p.Sku] = p
		return nil
	case entryPosition:
		topic, lines, _ := strings.Cut(string(entry[1:]), "\n")
		positions, err := parsePositions(lines)
		if err != nil {
			return err
		}
		c.positions[topic] = positions
		return nil
	}
	return fmt.Errorf("unknown kind of entry %q", entry[0])
}

// parsePositions reads a line for each partition: its number, a space, and its position.
func parsePositions(lines string) (map[int32]streams.Applied, error) {
	positions := map[int32]streams.Applied{}
	for line := range strings.Lines(lines) {
		id, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		partition, err := strconv.ParseInt(id, 10, 32)
		if err == nil {
			positions[int32(partition)], err = streams.ParseApplied(value)
		}
		if err != nil {
			return nil, fmt.Errorf("positions: %w", err)
		}
	}
	return positions, nil
}

// appendEntry appends an entry with its header.
func appendEntry(b []byte, kind byte, body []byte) []byte {
	entry := append([]byte{kind}, body...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(entry)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(entry, checksums))
	return append(b, entry...)
}

// appendProduct appends the entry of a product.
func appendProduct(b []byte, p *catalogv1.Product) ([]byte, error) {
	body, err := proto.Marshal(p)
	if err != nil {
		return b, fmt.Errorf("marshal product %q: %w", p.Sku, err)
	}
	return appendEntry(b, entryProduct, body), nil
}

// appendPositions appends the entry of all positions of a topic.
func appendPositions(b []byte, topic string, positions map[int32]streams.Applied) []byte {
	body := []byte(topic + "\n")
	for _, id := range slices.Sorted(maps.Keys(positions)) {
		body = fmt.Appendf(body, "%d %s\n", id, positions[id])
	}
	return appendEntry(b, entryPosition, body)
}

// rewrite replaces the file by a new one with the current content. Products come before positions.
// Until the rename, a crash leaves the old file.
func (j *journal) rewrite(c content) error {
	fail := func(err error) error { return fmt.Errorf("write %s: %w", j.path, err) }
	temporary := j.path + ".new"
	f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the folder is the operator's choice
	if err != nil {
		return fail(err)
	}
	// No sync: a file that a power failure truncates is read up to its damage.
	w, end := bufio.NewWriterSize(f, 1<<20), int64(0)
	write := func(b []byte, err error) error {
		if err == nil {
			_, err = w.Write(b)
			end += int64(len(b))
		}
		return err
	}
	for _, p := range c.products {
		if err == nil {
			err = write(appendProduct(nil, p))
		}
	}
	for topic, positions := range c.positions {
		if err == nil {
			err = write(appendPositions(nil, topic, positions), nil)
		}
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = os.Rename(temporary, j.path)
	}
	if err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	// The new file is in place. An error of closing the old one loses nothing.
	if j.file != nil {
		err = j.file.Close()
	}
	j.file, j.end, j.live = f, end, end
	if err != nil {
		return fail(err)
	}
	return nil
}

// append writes entries after the last ones. The remains of a failed write are overwritten by the
// next. There is no sync: what was written survives the process, and after a power failure the
// checksums show where the journal ends.
func (j *journal) append(entries []byte) error {
	if _, err := j.file.WriteAt(entries, j.end); err != nil {
		return fmt.Errorf("write %s: %w", j.path, err)
	}
	j.end += int64(len(entries))
	return nil
}

// oversized reports whether most of the journal is outdated.
func (j *journal) oversized() bool { return j.end > journalSlack && j.end > 4*j.live }

// close closes the file. Entries are written directly, so there is nothing to flush.
func (j *journal) close() error { return j.file.Close() }
