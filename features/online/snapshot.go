package online

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/internal/failpoint"
)

// A snapshot is a file: the magic text, and frames. A frame is its kind, the length of its content,
// the content and the content's xxHash64. The first frame says for which definitions and topics the
// snapshot is, then each shard has a frame with its positions, and the texts are last, because they
// grow while shards are written. So shards may be at different positions. The log is read from the
// lowest ones, and each shard skips what it has. If groups follow the identity graph, its frame is before
// the texts, with its positions, which count for all shards: their persons are made from it.
const (
	snapshotFile  = "online.snapshot"
	damagedSuffix = ".damaged"
	partialPrefix = snapshotFile + ".partial." // of files that are being written
	magic         = "millrace features online 1\n"
)

// The kinds of frames.
const (
	frameHeader byte = iota + 1
	frameShard
	frameTexts
	frameGraph
)

// errOther means that a snapshot is for other definitions of groups.
var errOther = errors.New("the snapshot is of other definitions")

// Fingerprint identifies the definitions of groups: two lists of groups with the same one have the
// same state. What Project does is not part of it; a change of that needs another Group.Version.
func Fingerprint(groups []*features.Group) string {
	h := sha256.New()
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(h, format+"\n", a...) } // a hash has no errors
	p("shards %d", shardCount)
	for _, g := range groups {
		p("group %q %d %q %s", g.Name, g.Version, g.Entity, g.Identity)
		for _, s := range g.Sources {
			p("source %q %q", s.Name, s.Topic)
			for _, c := range s.Columns {
				p("column %q %d %d", c.Name, c.Kind, c.Scale)
			}
		}
		for i := range g.Features {
			for f := &g.Features[i]; f != nil; f = f.Over {
				p("feature %q %q %d %q %d %v %v %v", f.Name, f.Source, f.Aggregate, f.Column, f.K, f.Q, f.Age, f.Windows)
				for _, c := range f.Where {
					p("where %q %q %v %v", c.Column, c.Op, c.Value, c.Values)
				}
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Save writes a snapshot into a folder. Apply waits while one shard is encoded, and lookups do not
// wait at all. The file replaces the previous one when it is complete and synced.
func (s *Store) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, partialPrefix)
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()           // closed already, unless there was an error
		_ = os.Remove(f.Name()) // renamed already, unless there was an error
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := s.write(w); err != nil {
		return err
	}
	if err := errors.Join(w.Flush(), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := failpoint.Hit("features.online.snapshot.before"); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, snapshotFile)); err != nil {
		return err
	}
	if err := failpoint.Hit("features.online.snapshot.after"); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the folder of the configuration
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Restore reads the snapshot in a folder into an empty store. It returns false if there is none, if
// it is of other definitions, or if it is damaged: then the store remains empty. A damaged file is
// set aside, and why says how it is damaged.
func (s *Store) Restore(dir string) (restored bool, why, err error) {
	if err := removePartial(dir); err != nil {
		return false, nil, err
	}
	path := filepath.Join(dir, snapshotFile)
	f, err := os.Open(path) //nolint:gosec // the folder of the configuration
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return false, nil, err
	}
	switch bad := s.read(bufio.NewReaderSize(f, 1<<20), info.Size()); {
	case bad == nil:
		return true, nil, nil
	case errors.Is(bad, errOther):
		return false, bad, nil
	default:
		return false, bad, os.Rename(path, path+damagedSuffix)
	}
}

// removePartial removes the files of saves that a kill interrupted, which would fill the disk.
func removePartial(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partialPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// write writes all frames.
func (s *Store) write(w io.Writer) error {
	if _, err := io.WriteString(w, magic); err != nil {
		return err
	}
	header := appendText(nil, s.fingerprint)
	header = binary.AppendVarint(header, s.trimmed.Load())
	s.apply.Lock()
	for i, topic := range s.topics {
		header = appendText(appendText(header, topic), s.topicIDs[i])
	}
	s.apply.Unlock()
	if err := writeFrame(w, frameHeader, header); err != nil {
		return err
	}
	var b []byte
	for i := range s.shards {
		b = s.encodeShard(b[:0], i)
		if err := writeFrame(w, frameShard, b); err != nil {
			return err
		}
	}
	if s.follows {
		if err := writeFrame(w, frameGraph, s.encodeGraph(b[:0])); err != nil {
			return err
		}
	}
	all := s.texts.list()
	b = binary.AppendUvarint(b[:0], uint64(len(all)))
	for _, t := range all {
		b = appendText(b, t.text)
	}
	return writeFrame(w, frameTexts, b)
}

// encodeShard appends a shard to b. It holds apply, so that nothing writes to the shard.
func (s *Store) encodeShard(b []byte, i int) []byte {
	s.apply.Lock()
	defer s.apply.Unlock()
	sh := &s.shards[i]
	b = binary.AppendUvarint(b, uint64(i))
	for _, t := range sh.positions.Topics {
		b = t.encode(b)
	}
	for _, entities := range sh.spaces {
		b = binary.AppendUvarint(b, uint64(len(entities)))
		for name, e := range entities {
			b = appendText(b, name)
			for _, facts := range e {
				b = facts.encode(b)
			}
		}
	}
	return b
}

// encode appends the positions in a topic.
func (t *TopicPositions) encode(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.Partitions)))
	for _, p := range t.Partitions {
		b = binary.AppendVarint(b, p.Next)
		if p.Next >= 0 {
			b = appendText(b, p.String())
		}
	}
	return b
}

// encodeGraph appends the identity graph and its positions.
func (s *Store) encodeGraph(b []byte) []byte {
	s.apply.Lock()
	defer s.apply.Unlock()
	b = s.shards[0].positions.Topics[s.topicIndex(persons.Source.Topic)].encode(b)
	for c := range s.graph.Changes() {
		b = appendText(appendText(b, string(c.Ends[0])), string(c.Ends[1]))
		b = binary.AppendVarint(binary.AppendVarint(b, c.Revision), c.Known)
		b = append(b, map[bool]byte{true: 1}[c.Joined])
	}
	return b
}

// encode appends a series, which may be nil.
func (s *series) encode(b []byte) []byte {
	if s == nil {
		return append(b, 0)
	}
	b = appendWords(append(b, 1), s.rows)
	b = append(binary.AppendUvarint(b, uint64(len(s.keys))), s.keys...)
	b = binary.AppendUvarint(b, uint64(s.dead))
	b = binary.AppendUvarint(b, uint64(len(s.wide)))
	for _, n := range s.wide {
		for _, word := range n {
			b = binary.LittleEndian.AppendUint64(b, word)
		}
	}
	return appendWords(b, s.gone)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendWords(b []byte, words []uint64) []byte {
	b = binary.AppendUvarint(b, uint64(len(words)))
	for _, word := range words {
		b = binary.LittleEndian.AppendUint64(b, word)
	}
	return b
}

// frameHead is the bytes of a frame before its content: the kind and the length.
const frameHead, frameSum = 9, 8

func writeFrame(w io.Writer, kind byte, content []byte) error {
	head := binary.LittleEndian.AppendUint64([]byte{kind}, uint64(len(content)))
	sum := binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(content))
	for _, part := range [][]byte{head, content, sum} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// frames reads frames of a file whose size bounds them.
type frames struct {
	r    io.Reader
	left int64
	buf  bytes.Buffer
}

// next returns the content of the next frame, which is valid until the next call.
func (f *frames) next(kind byte) (*decoder, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, fmt.Errorf("the file ends early: %w", err)
	}
	n := binary.LittleEndian.Uint64(head[1:])
	f.left -= frameHead + frameSum
	if head[0] != kind || f.left < 0 || n > uint64(f.left) {
		return nil, fmt.Errorf("a frame of kind %d and %d bytes, want kind %d and at most %d bytes", head[0], n, kind,
			max(0, f.left))
	}
	f.left -= int64(n)
	f.buf.Reset()
	if _, err := io.CopyN(&f.buf, f.r, int64(n)+frameSum); err != nil {
		return nil, fmt.Errorf("the file ends early: %w", err)
	}
	content := f.buf.Bytes()[:n]
	if binary.LittleEndian.Uint64(f.buf.Bytes()[n:]) != xxhash.Sum64(content) {
		return nil, fmt.Errorf("the checksum of a frame of kind %d is wrong", kind)
	}
	return &decoder{b: content}, nil
}
