package history

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"strings"
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

// Limits of the reading of a whole table: the time, and the memory of an aggregation in ClickHouse,
// which continues on disk.
const (
	digestTimeout = time.Hour
	digestMemory  = 512 << 20
)

// Contents returns all tables of the groups, for comparisons.
func (h *History) Contents() []Content {
	var all []Content
	edge := h.edge(time.Now())
	for _, s := range h.sources {
		edge := edge
		if s == h.links { // which are kept
			edge = beginning
		}
		all = append(all, Content{
			Table: s.facts.Name, Topic: s.Topic, Unit: "facts",
			Digest: func(ctx context.Context) (*digest.Digest, error) { return h.factsDigest(ctx, s, edge) },
			Expected: func(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
				return s.expected(events, edge)
			},
		})
	}
	for _, t := range h.tiles {
		all = append(all, Content{
			Table: t.table.Name, Topic: t.source.Topic, Unit: "tiles", From: t.source.facts.Name,
			Digest: func(ctx context.Context) (*digest.Digest, error) { return h.tilesDigest(ctx, t, edge) },
			Source: func(ctx context.Context) (*digest.Digest, error) { return h.expectedTiles(ctx, t, edge) },
		})
	}
	return all
}

// edge returns the time, at the start of a day, before which facts and tiles are not compared: those
// that ClickHouse removes soon, or has removed. It removes facts and tiles at different times.
func (h *History) edge(now time.Time) int64 {
	if h.cfg.Retention <= 0 {
		return beginning
	}
	return day.ceil(now.Add(-h.cfg.Retention).UnixMicro()) + length[day]
}

// expected returns the digest of the facts of events from a time on. Events that the source cannot
// read are dead letters.
func (s *source) expected(events iter.Seq2[event.Event, error], edge int64) (*digest.Digest, error) {
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
			if f.At.UnixMicro() >= edge {
				content = appendFact(content[:0], f)
				to.Add(f.Entity, content)
			}
		}
	}
	return to, nil
}

// factsDigest returns the digest of a table of facts. ClickHouse computes it, from the same bytes as
// appendFact.
func (h *History) factsDigest(ctx context.Context, s *source, edge int64) (*digest.Digest, error) {
	return h.readDigest(ctx, fmt.Sprintf(
		"SELECT entity, reinterpretAsUInt128(reverse(substring(SHA256(%s), 1, 16))) AS hash FROM %s FINAL "+
			"WHERE toUnixTimestamp64Micro(at) >= %d", s.factBytes(), s.facts.FullName(), edge))
}

// factBytes returns the expression of what appendFact appends.
func (s *source) factBytes() string {
	var values strings.Builder
	for _, c := range s.Columns {
		name := "`" + columnName(c) + "`"
		fmt.Fprintf(&values, ", if(isNull(%s), unhex('%02x00000000'), concat(unhex('%02x'), %s))",
			name, exact.Null, c.Kind, framed("assumeNotNull(toString("+name+"))"))
	}
	return fmt.Sprintf("concat(%s, %s, %s, %s, if(retracted = 1, unhex('01'), concat(unhex('00')%s)))",
		framed("entity"), framed("fact_key"), bigEndian("toUnixTimestamp64Micro(at)"),
		bigEndian("toUnixTimestamp64Micro(known_at)"), values.String())
}

// framed returns the expression of what digest.AppendString appends.
func framed(text string) string {
	return "concat(" + bigEndian("toUInt32(length("+text+"))") + ", " + text + ")"
}

// bigEndian returns the expression of the bytes of an integer, most significant first.
func bigEndian(n string) string { return "reverse(reinterpretAsFixedString(" + n + "))" }

// readDigest returns the digest of the rows of a query, which have the columns entity and hash. Only
// a sum per entity leaves ClickHouse.
func (h *History) readDigest(ctx context.Context, query string) (*digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	rows, err := h.cfg.Store.Query(ctx, fmt.Sprintf(
		"SELECT entity, n, toUInt64(bitShiftRight(total, 64)), toUInt64(bitAnd(total, toUInt128(%d))) FROM "+
			"(SELECT entity, count() AS n, sumWithOverflow(hash) AS total FROM (%s) GROUP BY entity) "+
			"SETTINGS max_bytes_before_external_group_by = %d", uint64(math.MaxUint64), query, digestMemory))
	if err != nil {
		return nil, fmt.Errorf("digest of a table: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err has reported it
	to := digest.New()
	for rows.Next() {
		var entity string
		var sum digest.Sum
		if err := rows.Scan(&entity, &sum.Count, &sum.Hi, &sum.Lo); err != nil {
			return nil, fmt.Errorf("digest of a table: %w", err)
		}
		to.Streams[entity] = sum
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("digest of a table: %w", err)
	}
	return to, nil
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
