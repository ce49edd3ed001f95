package infer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/internal/timeunit"
)

// Object is a JSON object, read. It keeps nothing but the bytes that it was read from.
type Object struct{ root *value }

type kind uint8

const (
	null kind = iota
	truth
	integer // of 64 bits
	number  // any other
	words
	list
	object
)

// value is a JSON value.
type value struct {
	kind     kind
	decoded  bool   // of words: text is what they say; not so where a half of a surrogate pair stands alone
	unnamed  bool   // likewise of name
	raw      []byte // as it was written
	text     []byte // of words
	name     []byte // of an object's member
	children []value
}

// Parse reads an object. Two members of the same name are an error: no reader could tell which one
// counts.
func Parse(b []byte) (*Object, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("the value is no JSON: it is not UTF-8")
	}
	if !json.Valid(b) {
		var whatever json.RawMessage
		err := json.Unmarshal(b, &whatever) // says why
		return nil, fmt.Errorf("the value is no JSON: %w", err)
	}
	p := parser{rest: b}
	root := p.value()
	if p.err != nil {
		return nil, p.err
	}
	if root.kind != object {
		return nil, errors.New("the value is JSON, but no object")
	}
	return &Object{&root}, nil
}

// parser reads JSON that is known to be valid.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) space() { p.rest = bytes.TrimLeft(p.rest, " \t\r\n") }

func (p *parser) take(n int) []byte {
	taken := p.rest[:n:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *parser) value() value {
	p.space()
	begin := p.rest
	v := value{}
	switch c := p.rest[0]; c {
	case 'n':
		p.take(len("null"))
	case 't':
		v.kind = truth
		p.take(len("true"))
	case 'f':
		v.kind = truth
		p.take(len("false"))
	case '"':
		v.kind = words
		v.text, v.decoded = p.words()
	case '[', '{':
		v.kind = list
		if c == '{' {
			v.kind = object
		}
		v.children = p.children(c == '{')
	default:
		end := bytes.IndexAny(p.rest, ",]} \t\r\n")
		if end < 0 {
			end = len(p.rest)
		}
		v.kind = number
		digits := string(p.take(end))
		if _, err := strconv.ParseInt(digits, 10, 64); err == nil && digits != "-0" {
			v.kind = integer
		}
	}
	v.raw = begin[:len(begin)-len(p.rest)]
	return v
}

// children reads what is between brackets.
func (p *parser) children(named bool) (all []value) {
	var names map[string]bool
	p.take(1)
	for {
		p.space()
		switch p.rest[0] {
		case ']', '}':
			p.take(1)
			return all
		case ',':
			p.take(1)
			p.space()
		}
		var name []byte
		decoded := true
		if named {
			begin := p.rest
			if name, decoded = p.words(); !decoded {
				name = begin[:len(begin)-len(p.rest)] // names differ where what was written does
			}
			p.space()
			p.take(1) // the colon
		}
		v := p.value()
		v.name, v.unnamed = name, !decoded
		if named {
			if names == nil {
				names = map[string]bool{}
			}
			if names[string(name)] && p.err == nil {
				p.err = fmt.Errorf("the value is JSON in which %s stands twice in one object", strconv.Quote(string(name)))
			}
			names[string(name)] = true
		}
		all = append(all, v)
	}
}

// words reads a string.
func (p *parser) words() (text []byte, decoded bool) {
	end := 1
	plain := true
	for p.rest[end] != '"' {
		if p.rest[end] == '\\' {
			plain = false
			end++
		}
		end++
	}
	raw := p.take(end + 1)
	if plain {
		return raw[1:end:end], true
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, false
	}
	return []byte(s), !hasHalf(raw)
}

// hasHalf reports whether a half of a surrogate pair stands alone among a string's escapes: then no
// text is the same.
func hasHalf(raw []byte) bool {
	high := false // the escape before was a first half
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			if high {
				return true
			}
			continue
		}
		i++
		r := uint64(0)
		if raw[i] == 'u' {
			r, _ = strconv.ParseUint(string(raw[i+1:i+5]), 16, 32) // valid JSON
			i += 4
		}
		isHigh, isLow := r >= 0xD800 && r < 0xDC00, r >= 0xDC00 && r < 0xE000
		if isLow != high {
			return true
		}
		high = isHigh
	}
	return high
}

// exact reports whether a double holds a number.
func exact(raw []byte) bool {
	_, ok := exactly(raw, 64)
	return ok
}

// exactly returns a number as a float of so many bits, which holds it where, written back in the
// shortest way, it has the same digits.
func exactly(raw []byte, bits int) (float64, bool) {
	f, err := strconv.ParseFloat(string(raw), bits)
	if err != nil {
		return 0, false
	}
	digits, exponent := scientific(raw)
	back, backExponent := scientific(strconv.AppendFloat(nil, f, 'e', -1, bits))
	return f, bytes.Equal(digits, back) && exponent == backExponent
}

// scientific returns a number's digits, without zeros at their ends, with the sign, and the power
// of ten that the first of them has.
func scientific(raw []byte) (digits []byte, exponent int) {
	mantissa := raw
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		mantissa = raw[:i]
		exponent, _ = strconv.Atoi(string(raw[i+1:])) // beyond what an int holds, no double has it
	}
	negative := len(mantissa) > 0 && mantissa[0] == '-'
	mantissa = bytes.TrimPrefix(mantissa, []byte("-"))
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	digits = append(append(digits, whole...), fraction...)
	exponent += len(whole)
	trimmed := bytes.TrimLeft(digits, "0")
	exponent -= len(digits) - len(trimmed)
	digits = bytes.TrimRight(trimmed, "0")
	if len(digits) == 0 {
		exponent = 0
	}
	if negative {
		digits = append([]byte("-"), digits...)
	}
	return digits, exponent
}

// isTime reports whether words are an RFC 3339 time that microseconds hold.
func isTime(v *value) bool {
	_, ok := micros(v)
	return ok
}

func micros(v *value) (int64, bool) {
	const least, most = len("2006-01-02T15:04:05Z"), len("2006-01-02T15:04:05.000000+00:00")
	if !v.decoded || len(v.text) < least || len(v.text) > most || v.text[4] != '-' {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(v.text))
	if err != nil || t.Nanosecond()%1000 != 0 {
		return 0, false
	}
	return timeunit.Of(t) // an offset may lead out of the years that a time can have
}
