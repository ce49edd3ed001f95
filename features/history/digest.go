package history

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/digest"
)

// Content is a table and what it should have. A digest has a stream per entity.
type Content struct {
	Table, Topic string
	Unit         string // "facts" or "tiles"
	Digest       func(context.Context) (*digest.Digest, error)
	// Expected computes the digest from the events of the topic, in any order. It is nil for tiles.
	Expected func(iter.Seq2[event.Event, error]) (*digest.Digest, error)
	// Source computes the digest from the table from which this one is filled, whose name is From. It
	// is nil for facts.
	Source func(context.Context) (*digest.Digest, error)
	From   string
}

// digestTimeout bounds the reading of a whole table.
const digestTimeout = time.Hour

// Contents returns all tables of the groups, for comparisons.
func (h *History) Contents() []Content {
	var all []Content
	for _, s := range h.sources {
		all = append(all, Content{
			Table: s.facts.Name, Topic: s.Topic, Unit: "facts",
			Digest:   func(ctx context.Context) (*digest.Digest, error) { return h.factsDigest(ctx, s) },
			Expected: s.expected,
		})
	}
	for _, t := range h.tiles {
		all = append(all, Content{
			Table: t.table.Name, Topic: t.source.Topic, Unit: "tiles", From: t.source.facts.Name,
			Digest: func(ctx context.Context) (*digest.Digest, error) { return h.tilesDigest(ctx, t) },
			Source: func(ctx context.Context) (*digest.Digest, error) { return h.expectedTiles(ctx, t) },
		})
	}
	return all
}

// expected returns the digest of the facts of events. Events that the source cannot read are dead
// letters.
func (s *source) expected(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	to := digest.New()
	var content []byte
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		facts, err := feed.Project(&s.Source, e, features.Origin{})
		if err != nil {
			continue
		}
		for _, f := range facts {
			content = appendFact(content[:0], f)
			to.Add(f.Entity, content)
		}
	}
	return to, nil
}

// factsDigest returns the digest of a table of facts.
func (h *History) factsDigest(ctx context.Context, s *source) (*digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	to := digest.New()
	var content []byte
	query := "SELECT " + s.selectFacts() + " FROM " + s.facts.FullName() + " FINAL"
	err := h.readFacts(ctx, s, query, func(f features.Fact, _ uint64) error {
		content = appendFact(content[:0], f)
		to.Add(f.Entity, content)
		return nil
	})
	return to, err
}

// appendFact appends the canonical form of a fact. Its origin is not content: it belongs to the log.
func appendFact(b []byte, f features.Fact) []byte {
	b = digest.AppendString(digest.AppendString(b, f.Entity), f.Key)
	b = binary.BigEndian.AppendUint64(b, uint64(f.At.UnixMicro()))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Known.UnixMicro()))
	if f.Retracted {
		return append(b, 1)
	}
	b = append(b, 0)
	for _, v := range f.Values {
		b = appendValue(b, v)
	}
	return b
}

func appendValue(b []byte, v exact.Value) []byte {
	return digest.AppendString(append(b, byte(v.Kind)), v.String())
}

// tilesDigest returns the digest of a table of tiles.
func (h *History) tilesDigest(ctx context.Context, t *tiles) (*digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	to := digest.New()
	var content []byte
	query := "SELECT " + t.selectTiles() + " FROM " + t.table.FullName() + " FINAL" // merges the rows of a tile
	unused, err := h.unused(ctx, t.source)
	if err != nil {
		return nil, err
	}
	err = h.readTiles(ctx, t, query, func(one *tile) error {
		if unused[one.key] {
			return nil
		}
		content = appendTile(content[:0], one)
		to.Add(one.key.entity, content)
		return nil
	})
	return to, err
}

// unused returns the tiles with corrected facts, which nothing reads: neither all versions of a fact
// nor which of two is the first one have a meaning there.
func (h *History) unused(ctx context.Context, s *source) (map[tileKey]bool, error) {
	rows, err := h.cfg.Store.Query(ctx, "SELECT entity, toUnixTimestamp64Micro(at) FROM "+s.corrections.FullName())
	if err != nil {
		return nil, fmt.Errorf("read corrections: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	all := map[tileKey]bool{}
	for rows.Next() {
		var entity string
		var at int64
		if err := rows.Scan(&entity, &at); err != nil {
			return nil, fmt.Errorf("read corrections: %w", err)
		}
		for l := minute; l <= day; l++ {
			all[tileKey{entity, l, l.floor(at)}] = true
		}
	}
	return all, rows.Err()
}

// expectedTiles returns the digest of the tiles that a table should have, from the facts of its
// batches. It keeps the tiles of one entity in
// memory, and the corrections.
func (h *History) expectedTiles(ctx context.Context, t *tiles) (*digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	batch, err := h.position(ctx, t.source, t.table)
	if err != nil {
		return nil, err
	}
	unused, err := h.unused(ctx, t.source)
	if err != nil {
		return nil, err
	}
	to := digest.New()
	var content []byte
	var of []features.Fact
	flush := func() {
		for _, one := range t.aggregate(of, 0, minute, hour, day) {
			if unused[one.key] {
				continue
			}
			content = appendTile(content[:0], one)
			to.Add(one.key.entity, content)
		}
		of = of[:0]
	}
	query := fmt.Sprintf("SELECT %s FROM %s FINAL WHERE batch <= %d ORDER BY entity",
		t.source.selectFacts(), t.source.facts.FullName(), batch)
	err = h.readFacts(ctx, t.source, query, func(f features.Fact, _ uint64) error {
		if len(of) > 0 && of[0].Entity != f.Entity {
			flush()
		}
		of = append(of, f)
		return nil
	})
	flush()
	return to, err
}

// appendTile appends the canonical form of a tile. The number of its last batch is not content: it
// depends on how the batches were cut.
func appendTile(b []byte, one *tile) []byte {
	b = append(b, byte(one.key.level))
	b = binary.BigEndian.AppendUint64(b, uint64(one.key.start))
	b = binary.BigEndian.AppendUint64(b, uint64(one.facts))
	for i := range one.states {
		s := &one.states[i]
		b = binary.BigEndian.AppendUint64(b, uint64(s.Count))
		if s.Count == 0 {
			continue
		}
		for _, n := range [...]exact.Int{s.Sum, s.Squares, s.Min, s.Max} {
			for _, word := range n {
				b = binary.BigEndian.AppendUint64(b, word)
			}
		}
		b = binary.BigEndian.AppendUint64(b, uint64(s.Pick.Stamp.At))
		b = appendValue(digest.AppendString(b, s.Pick.Stamp.Key), s.Pick.Value)
		b = appendMap(b, s.Registers, func(b []byte, r uint16) []byte { return binary.BigEndian.AppendUint16(b, r) })
		b = appendMap(b, s.Items, digest.AppendString)
		b = appendMap(b, s.Buckets, func(b []byte, n int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) })
	}
	return b
}

// appendMap appends a map in the order of its keys.
func appendMap[K cmp.Ordered, V uint8 | int64](b []byte, m map[K]V, appendKey func([]byte, K) []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(m)))
	if len(m) == 0 {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = binary.BigEndian.AppendUint64(appendKey(b, k), uint64(m[k]))
	}
	return b
}
