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

// Object is a parsed JSON object. It refers to the bytes from which it was parsed.
type Object struct{ root *value }

// kind is the kind of a JSON value.
type kind uint8

const (
	kindNull    kind = iota
	kindBool         // true or false
	kindInteger      // a whole number that fits into 64 bits
	kindNumber       // any other number
	kindString
	kindArray
	kindObject
)

// value is a JSON value.
type value struct {
	kind     kind
	decoded  bool   // of a string: text is valid; false if it has an unpaired surrogate
	unnamed  bool   // likewise for name
	raw      []byte // as written
	text     []byte // of a string
	name     []byte // of an object's member
	children []value
}

// Parse parses an object. Duplicate names are an error, since readers would disagree about which
// one counts.
func Parse(b []byte) (*Object, error) {
	// Validate first: the parser below relies on valid JSON.
	if !utf8.Valid(b) {
		return nil, errors.New("the value is not JSON: it is not UTF-8")
	}
	if !json.Valid(b) {
		var discarded json.RawMessage
		err := json.Unmarshal(b, &discarded) // for the reason
		return nil, fmt.Errorf("the value is not JSON: %w", err)
	}
	p := parser{rest: b}
	root := p.value()
	if p.err != nil {
		return nil, p.err
	}
	if root.kind != kindObject {
		return nil, errors.New("the value is JSON, but not an object")
	}
	return &Object{&root}, nil
}

// parser parses JSON that is known to be valid.
type parser struct {
	rest []byte
	err  error
}

// The following methods consume input. Validity was checked before, so they need not check bounds.
func (p *parser) space() { p.rest = bytes.TrimLeft(p.rest, " \t\r\n") }

func (p *parser) take(n int) []byte {
	taken := p.rest[:n:n]
	p.rest = p.rest[n:]
	return taken
}

// value parses the next value.
func (p *parser) value() value {
	p.space()
	begin := p.rest
	v := value{}
	// The JSON is valid, so the first byte determines the kind.
	switch c := p.rest[0]; c {
	case 'n':
		p.take(len("null"))
	case 't':
		v.kind = kindBool
		p.take(len("true"))
	case 'f':
		v.kind = kindBool
		p.take(len("false"))
	case '"':
		v.kind = kindString
		v.text, v.decoded = p.string()
	case '[', '{':
		v.kind = kindArray
		if c == '{' {
			v.kind = kindObject
		}
		v.children = p.children(c == '{')
	default:
		// A number ends at the next delimiter.
		end := bytes.IndexAny(p.rest, ",]} \t\r\n")
		if end < 0 {
			end = len(p.rest)
		}
		v.kind = kindNumber
		digits := string(p.take(end))
		// -0 is not an integer here, because its sign would be lost.
		if _, err := strconv.ParseInt(digits, 10, 64); err == nil && digits != "-0" {
			v.kind = kindInteger
		}
	}
	v.raw = begin[:len(begin)-len(p.rest)]
	return v
}

// children parses an array or an object.
func (p *parser) children(named bool) (all []value) {
	var names map[string]bool
	// The opening bracket.
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
			if name, decoded = p.string(); !decoded {
				name = begin[:len(begin)-len(p.rest)] // names are compared as written
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
			// Keep parsing, but remember the first error.
			if names[string(name)] && p.err == nil {
				p.err = fmt.Errorf("the value is JSON in which an object has the name %s twice",
					strconv.Quote(string(name)))
			}
			names[string(name)] = true
		}
		all = append(all, v)
	}
}

// string parses a string. decoded is false if it has an unpaired surrogate.
func (p *parser) string() (text []byte, decoded bool) {
	// Find the closing quote. Strings without escapes need no copy.
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
	// json replaces unpaired surrogates, so they are detected separately.
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, false
	}
	return []byte(s), !hasHalf(raw)
}

// hasHalf reports whether a string's escapes include an unpaired surrogate, which has no UTF-8
// form.
func hasHalf(raw []byte) bool {
	high := false // the previous escape was a high surrogate
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
		// In a pair, a low surrogate directly follows a high one.
		isHigh, isLow := r >= 0xD800 && r < 0xDC00, r >= 0xDC00 && r < 0xE000
		if isLow != high {
			return true
		}
		high = isHigh
	}
	return high
}

// exact reports whether a double represents a number exactly.
func exact(raw []byte) bool {
	_, ok := exactly(raw, 64)
	return ok
}

// exactly converts a number to a float of the given size. ok is true if the shortest representation
// of the float has the same digits.
func exactly(raw []byte, bits int) (float64, bool) {
	f, err := strconv.ParseFloat(string(raw), bits)
	if err != nil {
		return 0, false
	}
	// Both sides are normalized, so 1.50 and 15e-1 are equal.
	digits, exponent := scientific(raw)
	back, backExponent := scientific(strconv.AppendFloat(nil, f, 'e', -1, bits))
	return f, bytes.Equal(digits, back) && exponent == backExponent
}

// scientific returns a number as 0.digits × 10^exponent. digits has the sign, and neither leading
// nor trailing zeros.
func scientific(raw []byte) (digits []byte, exponent int) {
	// Split off the exponent, then the sign, then the point.
	mantissa := raw
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		mantissa = raw[:i]
		exponent, _ = strconv.Atoi(string(raw[i+1:])) // no double has an exponent that exceeds int
	}
	negative := len(mantissa) > 0 && mantissa[0] == '-'
	mantissa = bytes.TrimPrefix(mantissa, []byte("-"))
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	digits = append(append(digits, whole...), fraction...)
	exponent += len(whole)
	// Each leading zero that is removed lowers the exponent by one. Trailing zeros do not affect
	// it.
	trimmed := bytes.TrimLeft(digits, "0")
	exponent -= len(digits) - len(trimmed)
	digits = bytes.TrimRight(trimmed, "0")
	// All forms of zero are equal.
	if len(digits) == 0 {
		exponent = 0
	}
	if negative {
		digits = append([]byte("-"), digits...)
	}
	return digits, exponent
}

// isTime reports whether a string is an RFC 3339 time with at most microseconds.
func isTime(v *value) bool {
	_, ok := micros(v)
	return ok
}

// micros parses an RFC 3339 time as microseconds since 1970. More digits of a second are refused,
// because they would be lost.
func micros(v *value) (int64, bool) {
	const least, most = len("2006-01-02T15:04:05Z"), len("2006-01-02T15:04:05.000000+00:00")
	if !v.decoded || len(v.text) < least || len(v.text) > most || v.text[4] != '-' {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(v.text))
	if err != nil || t.Nanosecond()%1000 != 0 {
		return 0, false
	}
	return timeunit.Of(t) // the offset may lead outside of the supported years
}
