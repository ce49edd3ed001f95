package online

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// A fact is a row of words: its time, its flags, the place of its key, and its columns. A number
// has a word, and a text half of one.
const (
	wordAt = iota
	wordFlags
	wordKey // offset in series.keys, shifted by keyBits, and length
	headWords
)

// The flags: a bit per column that is null, a bit per column whose number does not fit in 64 bits
// and is in series.wide, and a bit per filter that the fact meets.
const (
	nullShift, maxColumns  = 0, 16
	wideShift              = 16
	matchShift, maxFilters = 32, 32
)

const keyBits = 24

// layout is how the facts of a source are packed.
type layout struct {
	source  *features.Source
	columns []column
	stride  int // words of a row
	// filters are the distinct conditions of the features on this source. Whether a fact meets them
	// is decided once, when it arrives.
	filters []filter
	// keep is the longest window in microseconds; 0 if facts are kept without a limit.
	keep int64
}

// column is the place of a column in a row.
type column struct {
	word  int
	shift uint // of a text: 0 or 32
	text  bool
	null  uint64 // the flags' bit
	wide  uint64
}

// filter is the conditions of a feature.
type filter struct {
	where []features.Condition
	bit   uint64 // the flags' bit
}

// add adds a source of a group to a space. Sources of the same name are one.
func (sp *space) add(g *features.Group, s *features.Source) error {
	i := sp.source(s.Name)
	if i < 0 {
		l, err := newLayout(s)
		if err != nil {
			return err
		}
		i = len(sp.sources)
		sp.sources = append(sp.sources, l)
		// Nothing of the source decides yet how long facts are kept.
		l.keep = 1
	}
	l := sp.sources[i]
	if l.source.Topic != s.Topic || !slices.Equal(l.source.Columns, s.Columns) {
		return fmt.Errorf("source %q is defined in two ways", s.Name)
	}
	for j := range g.Features {
		f := &g.Features[j]
		for part := f; part != nil; part = part.Over {
			if part.Source != s.Name {
				continue
			}
			if _, err := l.filter(part.Where); err != nil {
				return err
			}
			for _, w := range f.Windows {
				if w == features.Lifetime {
					l.keep = 0
				} else if l.keep > 0 {
					l.keep = max(l.keep, time.Duration(w).Microseconds())
				}
			}
		}
	}
	return nil
}

// source returns the index of a source, or -1.
func (sp *space) source(name string) int {
	return slices.IndexFunc(sp.sources, func(l *layout) bool { return l.source.Name == name })
}

// newLayout assigns the places of the columns.
func newLayout(s *features.Source) (*layout, error) {
	if len(s.Columns) > maxColumns {
		return nil, fmt.Errorf("source %q has %d columns: want at most %d", s.Name, len(s.Columns), maxColumns)
	}
	l := &layout{source: s, columns: make([]column, len(s.Columns)), stride: headWords}
	half := -1 // the word of a text with room for another one
	for i, c := range s.Columns {
		to := &l.columns[i]
		to.null, to.wide = 1<<(nullShift+i), 1<<(wideShift+i)
		switch {
		case c.Kind == exact.Number:
			to.word = l.stride
			l.stride++
		case half >= 0:
			to.word, to.shift, to.text = half, 32, true
			half = -1
		default:
			to.word, to.text = l.stride, true
			half = l.stride
			l.stride++
		}
	}
	return l, nil
}

// filter returns the flags' bit of conditions, 0 if there are none.
func (l *layout) filter(where []features.Condition) (uint64, error) {
	if len(where) == 0 {
		return 0, nil
	}
	for _, f := range l.filters {
		if slices.EqualFunc(f.where, where, equalConditions) {
			return f.bit, nil
		}
	}
	if len(l.filters) == maxFilters {
		return 0, fmt.Errorf("source %q has features with more than %d different conditions", l.source.Name, maxFilters)
	}
	bit := uint64(1) << (matchShift + len(l.filters))
	l.filters = append(l.filters, filter{where, bit})
	return bit, nil
}

// equalConditions reports whether two conditions are the same.
func equalConditions(a, b features.Condition) bool {
	return a.Column == b.Column && a.Op == b.Op && a.Value == b.Value && slices.Equal(a.Values, b.Values)
}

// encode appends a row to dst, without its key. Numbers that do not fit are added to wide.
func (l *layout) encode(dst []uint64, t *texts, wide *[]exact.Int, f *features.Fact) []uint64 {
	start := len(dst)
	for range l.stride {
		dst = append(dst, 0)
	}
	row := dst[start:]
	row[wordAt] = uint64(f.At.UnixMicro())
	var flags uint64
	for i, c := range l.columns {
		v := exact.Value{}
		if i < len(f.Values) {
			v = f.Values[i]
		}
		switch {
		case v.Kind == exact.Null:
			flags |= c.null
		case c.text:
			row[c.word] |= uint64(t.id(v.Text)) << c.shift
		default:
			n, fits := v.Int.Int64()
			if !fits {
				flags |= c.wide
				n = int64(len(*wide))
				*wide = append(*wide, v.Int)
			}
			row[c.word] = uint64(n)
		}
	}
	for _, filter := range l.filters {
		match := features.Feature{Where: filter.where}
		if match.Matches(l.source, f.Values) {
			flags |= filter.bit
		}
	}
	row[wordFlags] = flags
	return dst
}

// value returns the value of a column of a row.
func (l *layout) value(row []uint64, i int, all []text, wide []exact.Int) exact.Value {
	c := l.columns[i]
	switch flags := row[wordFlags]; {
	case flags&c.null != 0:
		return exact.Value{}
	case c.text:
		return exact.TextValue(all[uint32(row[c.word]>>c.shift)].text)
	case flags&c.wide != 0:
		return exact.IntValue(wide[row[c.word]])
	}
	return exact.IntValue(exact.FromInt64(int64(row[c.word])))
}

// wideFlags are the flags' bits of numbers in series.wide.
const wideFlags = (1<<maxColumns - 1) << wideShift

// countWide returns how many columns of a row are in series.wide.
func countWide(flags uint64) int { return bits.OnesCount64(flags & wideFlags) }
