package tracking

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting bounds the depth of JSON values, so that hostile bodies cannot exhaust the stack.
const maxNesting = 64

var (
	errNesting = fmt.Errorf("values are nested more than %d deep", maxNesting)
	errUTF8    = errors.New("text is not UTF-8")
)

// syntaxError says where a text stops being JSON.
type syntaxError struct {
	offset int
	err    error
}

func (e *syntaxError) Error() string {
	return fmt.Sprintf("the body is not JSON: byte %d: %v", e.offset, e.err)
}

func (e *syntaxError) Unwrap() error { return e.err }

// scanner reads a JSON text in one pass: it checks the text, and makes values compact, without the
// whitespace between tokens, in a form that every reader of JSON can read (appendText, appendNumber).
// encoding/json would need a pass each to split a batch into events, to split an event into fields, to
// check their values and to compact them, and the intake does hardly anything else. Every method leaves
// the scanner after what it has read, or returns a *syntaxError.
//
// Strings and values are parts of one copy of the text, unless they are written in another form than they
// mean. So an event has no memory of its own for each of them.
type scanner struct {
	b        []byte
	whole    string // the same
	at       int
	depth    int
	start    int    // of the last string
	escaped  bool   // it had escapes
	overflow bool   // a value had a number that no reader can keep
	repeated string // a key that an object had twice, in quotation marks; empty if none had

	// compact reads a value. What precedes copied is in changed, in another form.
	compacting bool
	changed    []byte
	copied     int
}

// newScanner returns a scanner of a text.
func newScanner(b []byte) scanner { return scanner{b: b, whole: string(b)} }

// fail returns the error of the byte at the present position.
func (s *scanner) fail(format string, args ...any) error {
	return &syntaxError{s.at, fmt.Errorf(format, args...)}
}

// peek skips whitespace and returns the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.b) && s.b[s.at] > ' ' { // nearly always
		return s.b[s.at]
	}
	return s.space()
}

// space is peek where whitespace may follow.
func (s *scanner) space() (next byte) {
	from := s.at
	for ; s.at < len(s.b); s.at++ {
		if c := s.b[s.at]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			next = c
			break
		}
	}
	if s.at > from {
		s.omit(from)
	}
	return next
}

// compact reads a value, and returns it without whitespace between tokens. It sets overflow if a number in it
// is out of range, and repeated if an object in it has a key twice.
func (s *scanner) compact() (string, error) {
	s.peek()
	from := s.at
	s.compacting, s.copied, s.changed = true, from, s.changed[:0]
	err := s.value()
	s.compacting = false
	if s.copied == from {
		return s.whole[from:s.at], err
	}
	s.changed = append(s.changed, s.b[s.copied:s.at]...)
	return string(s.changed), err
}

// omit leaves what was read since a position out of the value that compact reads.
func (s *scanner) omit(from int) {
	if s.compacting {
		s.changed = append(s.changed, s.b[s.copied:from]...)
		s.copied = s.at
	}
}

// unexpected returns the error of an unexpected byte, or of a text that ends too early.
func (s *scanner) unexpected(want string) error {
	if s.at >= len(s.b) {
		return s.fail("the text ends, want %s", want)
	}
	return s.fail("%q, want %s", s.b[s.at], want)
}

// end returns an error if anything but whitespace follows.
func (s *scanner) end() error {
	if s.peek() != 0 || s.at < len(s.b) {
		return s.unexpected("the end")
	}
	return nil
}

// enter reads an opening bracket. It reports whether the object or array is empty, which it has then
// left again.
func (s *scanner) enter(opening, closing byte, want string) (empty bool, err error) {
	if s.peek() != opening {
		return false, s.unexpected(want)
	}
	s.at++
	if s.depth++; s.depth > maxNesting {
		return false, &syntaxError{s.at, errNesting}
	}
	if s.peek() == closing {
		s.at++
		s.depth--
		return true, nil
	}
	return false, nil
}

// more reads a comma, and returns true, or a closing bracket.
func (s *scanner) more(closing byte) (bool, error) {
	switch s.peek() {
	case ',':
		s.at++
		return true, nil
	case closing:
		s.at++
		s.depth--
		return false, nil
	}
	return false, s.unexpected("a comma or " + string(closing))
}

// object reads an object. For each member it calls the function with the key, which must read the
// value.
func (s *scanner) object(member func(key string) error) error {
	empty, err := s.enter('{', '}', "an object")
	var keys keySet
	for more := !empty; err == nil && more; {
		var key string
		if key, err = s.key(&keys); err != nil {
			break
		}
		if err = member(key); err != nil {
			break
		}
		more, err = s.more('}')
	}
	return err
}

// key reads the key of a member and the colon, and returns the key without its escapes.
func (s *scanner) key(keys *keySet) (string, error) {
	raw, err := s.rawKey(keys)
	if err != nil {
		return "", err
	}
	return s.meaning(raw), nil
}

// rawKey reads the key of a member and the colon, and returns the key as it is written. keys has those
// that the object had before.
func (s *scanner) rawKey(keys *keySet) ([]byte, error) {
	raw, err := s.token()
	if err != nil {
		return nil, err
	}
	if s.peek() != ':' {
		return nil, s.unexpected("a colon")
	}
	s.at++
	if s.repeated == "" && !keys.add(raw, s.escaped) {
		s.repeated = strconv.Quote(short(unquote(raw)))
	}
	return raw, nil
}

// keySet has the keys of an object.
type keySet struct {
	few   [16][]byte // all of them, while there is room
	n     int
	looks uint64          // a bit for each of them, so that most keys need no comparison
	many  map[string]bool // all of them, if there are more
}

// add adds a key as it is written, perhaps with escapes. It returns false if the key is there, perhaps with
// other ones.
func (k *keySet) add(raw []byte, escaped bool) bool {
	key := raw[1 : len(raw)-1]
	if escaped {
		key = []byte(unquote(raw))
	}
	if k.many != nil {
		if k.many[string(key)] {
			return false
		}
		k.many[string(key)] = true
		return true
	}
	look := uint64(1)
	if n := len(key); n > 0 {
		look <<= (uint(n) + 5*uint(key[0]) + 11*uint(key[n-1])) % 64
	}
	if k.looks&look != 0 && slices.ContainsFunc(k.few[:k.n], func(other []byte) bool { return bytes.Equal(other, key) }) {
		return false
	}
	k.looks |= look
	if k.n < len(k.few) {
		k.few[k.n] = key
		k.n++
		return true
	}
	k.many = map[string]bool{string(key): true}
	for _, other := range k.few {
		k.many[string(other)] = true
	}
	return true
}

// array reads an array. The function must read one element.
func (s *scanner) array(element func() error) error {
	empty, err := s.enter('[', ']', "an array")
	for more := !empty; err == nil && more; {
		if err = element(); err != nil {
			break
		}
		more, err = s.more(']')
	}
	return err
}

// value reads any value.
func (s *scanner) value() error {
	switch c := s.peek(); c {
	case '{':
		return s.members()
	case '[':
		return s.elements()
	case '"':
		_, err := s.token()
		return err
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		if c == '-' || c >= '0' && c <= '9' {
			return s.numeral()
		}
		return s.unexpected("a value")
	}
}

// members reads an object.
func (s *scanner) members() error {
	empty, err := s.enter('{', '}', "an object")
	var keys keySet
	for more := !empty; err == nil && more; {
		if _, err = s.rawKey(&keys); err != nil {
			break
		}
		if err = s.value(); err != nil {
			break
		}
		more, err = s.more('}')
	}
	return err
}

// elements reads an array.
func (s *scanner) elements() error {
	empty, err := s.enter('[', ']', "an array")
	for more := !empty; err == nil && more; {
		if err = s.value(); err != nil {
			break
		}
		more, err = s.more(']')
	}
	return err
}

// word reads true, false or null.
func (s *scanner) word(word string) error {
	if !strings.HasPrefix(s.whole[s.at:], word) {
		return s.unexpected("a value")
	}
	s.at += len(word)
	return nil
}

// token reads a string, and returns it as it is written, with the quotation marks.
func (s *scanner) token() ([]byte, error) {
	if s.peek() != '"' {
		return nil, s.unexpected("a string")
	}
	start := s.at
	s.start, s.escaped = start, false
	for i := s.at + 1; ; {
		i += plain(s.b[i:])
		if i == len(s.b) {
			break
		}
		switch c := s.b[i]; {
		case c == '"':
			s.at = i + 1
			raw := s.b[start:s.at]
			if s.escaped && s.compacting {
				s.omit(start)
				s.changed = appendText(s.changed, raw)
			}
			return raw, nil
		case c == '\\':
			n := escape(s.b[i:])
			if n == 0 {
				s.at = i
				return nil, s.fail("an unknown escape")
			}
			s.escaped = true
			i += n
		case c < ' ':
			s.at = i
			return nil, s.fail("a control character in a string")
		default:
			r, n := utf8.DecodeRune(s.b[i:])
			if r == utf8.RuneError && n == 1 {
				return nil, &syntaxError{i, errUTF8}
			}
			i += n
		}
	}
	s.at = len(s.b)
	return nil, s.unexpected("the end of the string")
}

// plain returns how many characters at the start of b stand for themselves in a string, and are ASCII. It
// looks at eight bytes at a time.
func plain(b []byte) (n int) {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; n+8 <= len(b); n += 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		// In each of these, the lowest byte with its high bit set is the first control character, quotation mark,
		// backslash, and byte of another character. Bits above may be set by its carry.
		quote, slash := w^ones*'"', w^ones*'\\'
		if special := ((w-ones*' ')&^w | (quote-ones)&^quote | (slash-ones)&^slash | w) & highs; special != 0 {
			return n + bits.TrailingZeros64(special)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return n
}

// meaning returns the text of the last string, which is written as raw.
func (s *scanner) meaning(raw []byte) string {
	if s.escaped {
		return unquote(raw)
	}
	return s.whole[s.start+1 : s.start+len(raw)-1]
}

// escape returns the length of the escape sequence that b begins with, or 0 if it is not valid.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		for _, c := range b[2:6] {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return 0
			}
		}
		return 6
	}
	return 0
}

// number reads a number, and returns it as it is written.
func (s *scanner) number() ([]byte, error) {
	start := s.at
	digits := func() bool {
		from := s.at
		for s.at < len(s.b) && s.b[s.at] >= '0' && s.b[s.at] <= '9' {
			s.at++
		}
		return s.at > from
	}
	next := func(c ...byte) bool {
		if s.at < len(s.b) && bytes.IndexByte(c, s.b[s.at]) >= 0 {
			s.at++
			return true
		}
		return false
	}
	next('-')
	// A zero is not followed by further digits.
	if !next('0') && !digits() {
		return nil, s.unexpected("a digit")
	}
	if next('.') && !digits() {
		return nil, s.unexpected("a digit")
	}
	if next('e', 'E') {
		next('+', '-')
		if !digits() {
			return nil, s.unexpected("a digit")
		}
	}
	return s.b[start:s.at], nil
}

// safeDigits is the most characters of an integer that surely has 64 bits.
const safeDigits = 18

// numeral reads a number of a value.
func (s *scanner) numeral() error {
	start := s.at
	raw, err := s.number()
	if err != nil || !s.compacting || len(raw) <= safeDigits && !bytes.ContainsAny(raw, "eE") {
		return err
	}
	s.omit(start)
	var ok bool
	s.changed, ok = appendNumber(s.changed, raw)
	s.overflow = s.overflow || !ok
	return nil
}

// unquote returns the text of a string token. Half of a surrogate pair becomes U+FFFD.
func unquote(raw []byte) string {
	inner := raw[1 : len(raw)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner)
	}
	var text string
	_ = json.Unmarshal(raw, &text) // the token has been checked
	return text
}

// appendText appends a string token. Half of a surrogate pair becomes U+FFFD, as in unquote: ClickHouse
// cannot read anything of a JSON text with one.
func appendText(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...)
		}
		dst, raw = append(dst, raw[:i]...), raw[i:]
		n := 2
		if raw[1] == 'u' {
			n = 6
			if unit := utf16Unit(raw); utf16.IsSurrogate(unit) {
				if n = 12; len(raw) < n || raw[6] != '\\' || raw[7] != 'u' ||
					utf16.DecodeRune(unit, utf16Unit(raw[6:])) == unicode.ReplacementChar {
					dst, raw = utf8.AppendRune(dst, unicode.ReplacementChar), raw[6:]
					continue
				}
			}
		}
		dst, raw = append(dst, raw[:n]...), raw[n:]
	}
}

// utf16Unit returns the number of an escape sequence such as \u00e9, which b begins with.
func utf16Unit(b []byte) rune {
	n, _ := strconv.ParseUint(string(b[2:6]), 16, 16) // the token has been checked
	return rune(n)
}

// appendNumber appends a number. An integer of more than 64 bits gets an exponent, with all of its digits:
// ClickHouse cannot read anything of a JSON text with one. It returns false if the number is so large that
// it has no floating-point value, which is an error for all readers.
func appendNumber(dst, raw []byte) ([]byte, bool) {
	text := string(raw)
	if _, err := strconv.ParseFloat(text, 64); err != nil {
		return append(dst, raw...), false
	}
	_, signed := strconv.ParseInt(text, 10, 64)
	_, unsigned := strconv.ParseUint(text, 10, 64)
	if signed == nil || unsigned == nil || strings.ContainsAny(text, ".eE") {
		return append(dst, raw...), true
	}
	first := 1
	if raw[0] == '-' {
		first = 2
	}
	dst = append(append(append(dst, raw[:first]...), '.'), raw[first:]...)
	return strconv.AppendInt(append(dst, 'e'), int64(len(raw)-first), 10), true
}
