package serving

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
)

// never is the time of what has none.
const never = `"1970-01-01T00:00:00Z"`

// appendAnswer appends the answer with the vectors in m as Feast's feature server writes it.
func (m *memory) appendAnswer(b []byte, entities feastEntities, p *feastPlan) []byte {
	b = append(b, `{"results":[`...)
	for i, c := range entities {
		b = append(comma(b, i), `{"values":[`...)
		for j, raw := range c.values {
			b = append(comma(b, j), raw...)
		}
		b = append(b, `],"statuses":[`...)
		for j := range c.values {
			b = append(comma(b, j), `"PRESENT"`...)
		}
		b = append(b, `],"event_timestamps":[`...)
		for j := range c.values {
			b = append(comma(b, j), never...)
		}
		b = append(b, `]}`...)
	}
	view := -1
	for _, o := range p.outputs {
		found := m.found[o.view]
		// All features of a view have the same times, and mostly follow each other.
		if o.view != view {
			view = o.view
			m.setView(found)
		}
		b = append(b, `,{"values":[`...)
		all := true
		for j := range found {
			if b = comma(b, j); !isPresent(&found[j], o.output) {
				all, b = false, append(b, "null"...)
				continue
			}
			b = appendResult(b, &found[j].Values[o.output])
		}
		if all {
			b = append(b, m.rest...)
			continue
		}
		b = append(b, `],"statuses":[`...)
		for j := range found {
			b = appendStatus(comma(b, j), &found[j], o.output)
		}
		b = append(append(append(b, `],"event_timestamps":[`...), m.times...), `]}`...)
	}
	b = append(b, `],"metadata":{"feature_names":[`...)
	for i, c := range entities {
		b = appendQuoted(comma(b, i), c.key)
	}
	return append(b, p.tail...)
}

// setView sets what the features of a view have in common: their times, and what follows the values of a
// feature that all entities have, as they mostly do.
func (m *memory) setView(found []online.Vector) {
	m.times = m.times[:0]
	m.rest = append(m.rest[:0], `],"statuses":[`...)
	for j := range found {
		m.times = appendMicros(comma(m.times, j), found[j].Newest)
		m.rest = append(comma(m.rest, j), `"PRESENT"`...)
	}
	m.rest = append(append(append(m.rest, `],"event_timestamps":[`...), m.times...), `]}`...)
}

// isPresent reports whether a vector has an i-th value.
func isPresent(v *online.Vector, i int) bool { return v.Found && v.Values[i].Kind != exact.NullResult }

// appendStatus appends the status of the i-th value of a vector.
func appendStatus(b []byte, v *online.Vector, i int) []byte {
	switch {
	case !v.Found:
		return append(b, `"NOT_FOUND"`...)
	case !isPresent(v, i):
		return append(b, `"NULL_VALUE"`...)
	}
	return append(b, `"PRESENT"`...)
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

// appendResult appends a value as Python writes it: a float has a point or an exponent.
func appendResult(b []byte, r *exact.Result) []byte {
	switch r.Kind {
	case exact.IntResult:
		return strconv.AppendInt(b, r.Int, 10)
	case exact.FloatResult:
		return appendFloat(b, r.Float)
	case exact.TextResult:
		return appendQuoted(b, r.Text)
	case exact.TextsResult:
		b = append(b, '[')
		for i, text := range r.Texts {
			b = appendQuoted(comma(b, i), text)
		}
		return append(b, ']')
	}
	return append(b, "null"...)
}

// The magnitudes between which Python writes a float without an exponent.
const smallFloat, largeFloat = 1e-4, 1e16

// appendFloat appends a number as Python's repr.
func appendFloat(b []byte, f float64) []byte {
	// Whole numbers are frequent, and fast.
	if n := int64(f); float64(n) == f && -1e15 < f && f < 1e15 && (n != 0 || !math.Signbit(f)) {
		return append(strconv.AppendInt(b, n, 10), ".0"...)
	}
	size := math.Abs(f)
	if size != 0 && (size < smallFloat || size >= largeFloat) {
		return strconv.AppendFloat(b, f, 'e', -1, 64)
	}
	// So are amounts of money, and times in microseconds.
	if smallFloat <= size && size < 1e9 {
		if n := int64(math.RoundToEven(size * 100)); float64(n)/100 == size {
			return appendDecimal(b, f < 0, n, 100)
		}
		if n := int64(math.RoundToEven(size * 1e6)); float64(n)/1e6 == size {
			return appendDecimal(b, f < 0, n, 1e6)
		}
	}
	start := len(b)
	b = strconv.AppendFloat(b, f, 'f', -1, 64)
	if bytes.IndexByte(b[start:], '.') < 0 {
		b = append(b, ".0"...)
	}
	return b
}

// appendDecimal appends n / unit, which is not whole, without zeros at its end. unit is a power of ten. There are
// at most 15 digits, and no other number of as few is nearest to the same float: so these are the shortest
// digits, as strconv finds them.
func appendDecimal(b []byte, negative bool, n, unit int64) []byte {
	if negative {
		b = append(b, '-')
	}
	b = append(strconv.AppendInt(b, n/unit, 10), '.')
	for n %= unit; n > 0; n %= unit {
		unit /= 10
		b = append(b, byte('0'+n/unit))
	}
	return b
}

// appendQuoted appends a JSON string.
func appendQuoted(b []byte, s string) []byte {
	if !isPlain(s) {
		quoted, _ := json.Marshal(s) // a text can always be marshalled
		return append(b, quoted...)
	}
	return append(append(append(b, '"'), s...), '"')
}

// appendMicros appends a time in microseconds since 1970, with as many decimals as it needs.
func appendMicros(b []byte, micros int64) []byte {
	if micros == 0 {
		return append(b, never...)
	}
	layout := `"2006-01-02T15:04:05.000000Z"`
	switch {
	case micros%1_000_000 == 0:
		layout = `"2006-01-02T15:04:05Z"`
	case micros%1_000 == 0:
		layout = `"2006-01-02T15:04:05.000Z"`
	}
	return time.UnixMicro(micros).UTC().AppendFormat(b, layout)
}
