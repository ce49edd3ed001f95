package online

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
)

// read reads a snapshot of size bytes into the empty store. After an error, the store is as before.
func (s *Store) read(r io.Reader, size int64) error {
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(r, start); err != nil || string(start) != magic {
		return errors.New("the file is not a snapshot")
	}
	in := &frames{r: r, left: size - int64(len(magic))}
	trimmed, ids, err := s.readHeader(in)
	if err != nil {
		return err
	}
	d := &restorer{store: s}
	for i := range d.shards {
		content, err := in.next(frameShard)
		if err != nil {
			return err
		}
		if err := d.shard(i, content); err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
	}
	if s.follows {
		content, err := in.next(frameGraph)
		if err != nil {
			return err
		}
		if err := d.graph(content); err != nil {
			return fmt.Errorf("identity graph: %w", err)
		}
	}
	content, err := in.next(frameTexts)
	if err != nil {
		return err
	}
	restored, err := d.texts(content)
	if err != nil {
		return err
	}
	if in.left != 0 {
		return fmt.Errorf("%d bytes follow the last frame", in.left)
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	s.topicIDs = ids
	s.texts.replace(restored)
	s.graph = &d.links
	moved := s.moves(s.graph.Entities(s.identities()...))
	last := (*Positions)(nil)
	for i := range s.shards {
		sh := &s.shards[i]
		if positions := d.shards[i].positions; !positions.equal(last) {
			last = positions
		}
		sh.mu.Lock()
		sh.positions, sh.spaces, sh.persons = last, d.shards[i].spaces, newPersons(s.spaces)
		d.bytes += moved.apply(sh, i)
		sh.mu.Unlock()
	}
	s.entities.Store(d.entities)
	s.bytes.Store(d.bytes + s.graph.Bytes())
	s.trimmed.Store(trimmed)
	return nil
}

// readHeader reads the first frame: the time of the last trim, and the topics' ids.
func (s *Store) readHeader(in *frames) (trimmed int64, ids []string, err error) {
	header, err := in.next(frameHeader)
	if err != nil {
		return 0, nil, err
	}
	if header.text() != s.fingerprint {
		return 0, nil, errOther
	}
	trimmed = header.varint()
	for _, topic := range s.topics {
		if header.text() != topic {
			return 0, nil, errOther
		}
		ids = append(ids, header.text())
	}
	return trimmed, ids, header.end()
}

// restorer builds the shards of a snapshot.
type restorer struct {
	store           *Store
	shards          [shardCount]shard
	entities, bytes int64
	greatest        uint64 // one more than the greatest number of a text in any row
	links           persons.Graph
}

// shard reads the frame of the i-th shard.
func (d *restorer) shard(i int, in *decoder) error {
	s, sh := d.store, &d.shards[i]
	if n := in.uvarint(); n != uint64(i) {
		return fmt.Errorf("the frame is of shard %d", n)
	}
	sh.positions = &Positions{}
	for _, topic := range s.topics {
		t, err := in.positions(topic)
		if err != nil {
			return err
		}
		sh.positions.Topics = append(sh.positions.Topics, t)
	}
	sh.positions.AsOf = newest(sh.positions.Topics)
	for _, sp := range s.spaces {
		n := in.count(2)
		entities := make(map[string]entity, n)
		for range n {
			name := in.text()
			e := make(entity, len(sp.sources))
			d.bytes += entityBytes + int64(len(name)+8*len(e))
			for j, l := range sp.sources {
				facts, err := d.series(l, in)
				if err != nil {
					return fmt.Errorf("source %q of %q: %w", l.source.Name, name, err)
				}
				if e[j] = facts; facts != nil {
					d.bytes += facts.size()
				}
			}
			if in.err != nil {
				return in.err
			}
			if shardOf(name) != i {
				return fmt.Errorf("%q is of another shard", name)
			}
			entities[name] = e
		}
		d.entities += int64(len(entities))
		sh.spaces = append(sh.spaces, entities)
	}
	return in.end()
}

// graph reads the identity graph, whose positions are those of all shards.
func (d *restorer) graph(in *decoder) error {
	topic := d.store.topicIndex(persons.Source.Topic)
	at, err := in.positions(persons.Source.Topic)
	if err != nil {
		return err
	}
	for len(in.b) > 0 {
		c := persons.Change{Ends: [2]identity.Node{identity.Node(in.text()), identity.Node(in.text())}}
		c.Revision, c.Known = in.varint(), in.varint()
		c.Joined = in.byte() != 0
		if in.err != nil {
			return in.err
		}
		if c.Ends[0] == c.Ends[1] {
			return errors.New("an edge has one end only")
		}
		d.links.Add(c)
	}
	for i := range d.shards {
		p := d.shards[i].positions
		p.Topics[topic] = at
		p.AsOf = newest(p.Topics)
	}
	return in.end()
}

// series reads a series. It checks everything that lookups rely on.
func (d *restorer) series(l *layout, in *decoder) (*series, error) {
	if in.byte() == 0 {
		return nil, in.err
	}
	s := &series{rows: in.words()}
	s.keys = slices.Clone(in.bytes(in.count(1)))
	dead := in.uvarint()
	for range in.count(32) {
		var n exact.Int
		for j := range n {
			n[j] = in.word()
		}
		if !isValue(n) {
			return nil, errors.New("a number is larger than any value")
		}
		s.wide = append(s.wide, n)
	}
	s.gone = in.words()
	switch {
	case in.err != nil:
		return nil, in.err
	case len(s.rows)%l.stride != 0 || dead > uint64(len(s.keys)):
		return nil, errors.New("its rows do not have the right length")
	case !slices.IsSorted(s.gone):
		return nil, errors.New("its dropped facts are not sorted")
	}
	s.dead = int(dead)
	var last []byte
	for i := 0; i < len(s.rows); i += l.stride {
		row := s.rows[i : i+l.stride]
		offset, length := row[wordKey]>>keyBits, row[wordKey]&(1<<keyBits-1)
		if offset+length > uint64(len(s.keys)) || !isPacked(s.keys[offset:offset+length]) {
			return nil, errors.New("the key of a row is outside of its keys")
		}
		key := unpackKey(nil, s.key(row))
		if i > 0 {
			before := int64(s.rows[i-l.stride+wordAt])
			if cmp.Or(cmp.Compare(before, int64(row[wordAt])), cmp.Compare(string(last), string(key))) >= 0 {
				return nil, errors.New("its rows are not sorted")
			}
		}
		last = key
		for _, c := range l.columns {
			switch {
			case row[wordFlags]&c.null != 0:
			case c.text:
				d.greatest = max(d.greatest, uint64(uint32(row[c.word]>>c.shift))+1)
			case row[wordFlags]&c.wide != 0 && row[c.word] >= uint64(len(s.wide)):
				return nil, errors.New("a number is outside of its numbers")
			}
		}
	}
	return s, nil
}

// isValue reports whether a number can be the value of a fact: sums of squares of larger ones might
// overflow.
func isValue(n exact.Int) bool {
	const most = 1 << 36 // in the second word: 100 bits
	high := int64(n[1])
	sign := uint64(high >> 63)
	return -most < high && high < most && n[2] == sign && n[3] == sign
}

// texts reads the last frame.
func (d *restorer) texts(in *decoder) ([]string, error) {
	n := in.count(1)
	all := make([]string, n)
	for i := range all {
		all[i] = in.text()
	}
	if err := in.end(); err != nil {
		return nil, err
	}
	if d.greatest > uint64(n) {
		return nil, fmt.Errorf("a row has the text %d of %d", d.greatest, n)
	}
	return all, nil
}

// decoder reads the content of a frame. After the first error, it returns zeros.
type decoder struct {
	b   []byte
	err error
}

var errShort = errors.New("a frame is too short")

func (d *decoder) fail() {
	d.err, d.b = errShort, nil
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) > 0 {
		return b[0]
	}
	return 0
}

func (d *decoder) word() uint64 {
	if b := d.bytes(8); len(b) > 0 {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of elements of at least size bytes each, all of which must follow.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

// positions reads the positions in a topic.
func (d *decoder) positions(topic string) (TopicPositions, error) {
	t := TopicPositions{Topic: topic}
	for range d.count(1) {
		p := unread
		if p.Next = d.varint(); p.Next >= 0 {
			at, err := feed.ParsePosition(d.text())
			if err != nil {
				return t, err
			}
			p = at
		}
		t.Partitions = append(t.Partitions, p)
	}
	return t, nil
}

func (d *decoder) text() string { return string(d.bytes(d.count(1))) }

func (d *decoder) words() []uint64 {
	n := d.count(8)
	if n == 0 {
		return nil
	}
	words := make([]uint64, n)
	for i := range words {
		words[i] = d.word()
	}
	return words
}

// end returns an error if something was missing or is left.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		return fmt.Errorf("%d bytes of a frame are left", len(d.b))
	}
	return d.err
}
