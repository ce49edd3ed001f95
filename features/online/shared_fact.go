package online

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/redis"
)

// A fact in Redis is a field of its entity: the index of its source, its time and its packed key. The
// value has its columns. So a later version replaces it, and no writer needs to read what is there. Of a
// fact that was dropped, another field remains: the index with the highest bit, and the hash of its
// stamp. See trim.go.
//
// Times in fields are big endian with the sign's bit inverted, so that they are ordered as texts.
const (
	maxSharedSources = 128
	droppedBit       = 0x80
	timeBytes        = 8
	timeSign         = 1 << 63
)

// factField returns the field of a fact.
func factField(source int, at int64, key string) string {
	b := make([]byte, 0, 1+timeBytes+len(key)+1)
	b = binary.BigEndian.AppendUint64(append(b, byte(source)), uint64(at)^timeSign)
	return string(packKey(b, key))
}

// droppedField returns the field that remains of a fact that was dropped.
func droppedField(source int, at int64, key string) string {
	return string(binary.BigEndian.AppendUint64([]byte{byte(source) | droppedBit}, hashStamp(at, key)))
}

// sortable returns a time as a text that is ordered as times are.
func sortable(at int64) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(at)^timeSign))
}

// parseSortable parses what sortable returned.
func parseSortable(text string) (int64, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != timeBytes {
		return 0, fmt.Errorf("%q is not a time", text)
	}
	return int64(binary.BigEndian.Uint64(b) ^ timeSign), nil
}

// addFact adds a version of a fact to its entity.
func addFact(e *redis.FactEntity, l *layout, source int, f *features.Fact) {
	at := f.At.UnixMicro()
	v := redis.FactValue{Offset: f.Origin.Offset, Field: factField(source, at, f.Key)}
	if l.keep > 0 {
		// Neither a new version nor a retraction leaves anything of a version that was dropped.
		v.Also = droppedField(source, at, f.Key)
	}
	if !f.Retracted {
		v.Value = string(l.appendValues(nil, f))
		if due := sortable(at + l.keep); l.keep > 0 && (e.Note == "" || due < e.Note) {
			e.Note = due // when the entity's first fact may be dropped
		}
	}
	e.Values = append(e.Values, v)
}

// The kinds of a value's columns.
const (
	sharedNull byte = iota
	sharedNumber
	sharedText
	sharedWide // a number that does not fit in 64 bits
)

// appendValues appends the columns of a fact, after their number, so that it is not empty.
func (l *layout) appendValues(b []byte, f *features.Fact) []byte {
	b = append(b, byte(len(l.columns)))
	for i := range l.columns {
		v := exact.Value{}
		if i < len(f.Values) {
			v = f.Values[i]
		}
		switch v.Kind {
		case exact.Text:
			b = appendText(append(b, sharedText), v.Text)
		case exact.Number:
			if n, fits := v.Int.Int64(); fits {
				b = binary.AppendVarint(append(b, sharedNumber), n)
				continue
			}
			b = append(b, sharedWide)
			for _, word := range v.Int {
				b = binary.LittleEndian.AppendUint64(b, word)
			}
		default:
			b = append(b, sharedNull)
		}
	}
	return b
}

// errFact means that a field or a value was not written by Apply.
var errFact = errors.New("a fact is damaged")

// parseValues parses what appendValues returned, into values.
func (l *layout) parseValues(values []exact.Value, stored string) ([]exact.Value, error) {
	in := &decoder{b: []byte(stored)}
	if n := in.byte(); int(n) != len(l.columns) {
		return nil, fmt.Errorf("%w: it has %d columns, and its source %d", errFact, n, len(l.columns))
	}
	for i := range l.columns {
		v, kind := exact.Value{}, in.byte()
		switch kind {
		case sharedNull:
		case sharedNumber:
			v = exact.IntValue(exact.FromInt64(in.varint()))
		case sharedText:
			v = exact.TextValue(in.text())
		case sharedWide:
			var n exact.Int
			for j := range n {
				n[j] = in.word()
			}
			if v = exact.IntValue(n); !isValue(n) {
				return nil, fmt.Errorf("%w: a number is larger than any value", errFact)
			}
		default:
			return nil, fmt.Errorf("%w: column %d has the kind %d", errFact, i+1, kind)
		}
		if in.err == nil && kind != sharedNull && (kind == sharedText) != l.columns[i].text {
			return nil, fmt.Errorf("%w: column %d has the kind %d", errFact, i+1, kind)
		}
		values = append(values, v)
	}
	if err := in.end(); err != nil {
		return nil, fmt.Errorf("%w: %w", errFact, err)
	}
	return values, nil
}

// stored is a fact as a field of an entity.
type stored struct {
	source  int
	dropped bool
	at      int64
	key     string // packed; empty if the fact was dropped
}

// parseField parses a field of an entity.
func (sp *space) parseField(field string) (f stored, err error) {
	const head = 1 + timeBytes
	if len(field) < head {
		return f, fmt.Errorf("%w: its field has %d bytes", errFact, len(field))
	}
	f.source, f.dropped = int(field[0]&^droppedBit), field[0]&droppedBit != 0
	f.at, f.key = int64(binary.BigEndian.Uint64([]byte(field[1:head]))^timeSign), field[head:]
	if f.source >= len(sp.sources) || f.dropped != (f.key == "") || !f.dropped && !isPacked([]byte(f.key)) {
		return f, fmt.Errorf("%w: its field is %x", errFact, field)
	}
	return f, nil
}

// assembler builds the series of one entity at a time from its facts in Redis.
type assembler struct {
	texts  *texts
	series []series
	fact   features.Fact
	packed []byte
	pairs  []pair
}

func newAssembler() *assembler { return &assembler{texts: newTexts()} }

// pair is a fact of an entity: its field and its value.
type pair struct{ field, value string }

// entity returns the facts of an entity's fields and values, which alternate. They are valid until the
// next call.
func (a *assembler) entity(sp *space, fields []string) (entity, error) {
	a.texts.clear()
	return a.next(sp, fields)
}

// next is entity, and leaves the texts of those before valid.
func (a *assembler) next(sp *space, fields []string) (entity, error) {
	if len(fields) == 0 {
		return nil, nil
	}
	a.pairs = a.pairs[:0]
	for i := 0; i+1 < len(fields); i += 2 {
		a.pairs = append(a.pairs, pair{fields[i], fields[i+1]})
	}
	// Facts are inserted in the order of their times, which is fast.
	slices.SortFunc(a.pairs, func(x, y pair) int {
		switch {
		case x.field < y.field:
			return -1
		case x.field > y.field:
			return 1
		}
		return 0
	})
	e := make(entity, len(sp.sources))
	for len(a.series) < len(sp.sources) {
		a.series = append(a.series, series{})
	}
	for i := range e {
		a.series[i].clear()
	}
	for _, p := range a.pairs {
		f, err := sp.parseField(p.field)
		if err != nil {
			return nil, err
		}
		s := &a.series[f.source]
		e[f.source] = s
		if f.dropped {
			s.gone = append(s.gone, uint64(f.at)) // only that there are some matters
			continue
		}
		if err := a.add(s, sp.sources[f.source], f, p.value); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// add adds a fact to a series.
func (a *assembler) add(s *series, l *layout, f stored, value string) (err error) {
	if a.fact.Values, err = l.parseValues(a.fact.Values[:0], value); err != nil {
		return err
	}
	a.packed = unpackKey(a.packed[:0], []byte(f.key))
	a.fact.At, a.fact.Key = time.UnixMicro(f.at).UTC(), string(a.packed)
	s.apply(l, a.texts, &a.fact)
	return nil
}

// clear empties a series, and keeps its memory.
func (s *series) clear() {
	*s = series{rows: s.rows[:0], keys: s.keys[:0], gone: s.gone[:0]}
}
