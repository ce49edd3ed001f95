package registry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// encode appends a Protobuf message as Avro. It gives an error rather than a value that would not read back byte for byte.
func (p *plan) encode(dst, message []byte) ([]byte, error) {
	begin := len(dst)
	out, whole, err := p.root.encode(dst, message, 0)
	switch {
	case err != nil:
		return nil, err
	case whole && !p.root.whole:
		return nil, fmt.Errorf("%s has what its schema does not know, and the schema has no field %s to keep it in", p.root.name, unknownField)
	case whole:
		out = appendBytes(append(out, inUnion), message)
	case p.root.whole:
		out = append(out, isNull)
	}
	// Wire format has many ways to say the same. Ours are told from all others by trying.
	back, err := p.decode(make([]byte, 0, len(message)), out[begin:])
	if err != nil {
		return nil, fmt.Errorf("%s does not read back: %w", p.root.name, err)
	}
	if !bytes.Equal(back, message) {
		return nil, fmt.Errorf("%s would not read back byte for byte: its wire format is not that of Go's Protobuf", p.root.name)
	}
	return out, nil
}

// The bytes that say which part of a union with null follows.
const (
	isNull  = 0
	inUnion = 2
)

// slot is where the values of a field stand in a message.
type slot struct {
	count    int // of values
	from, to int // of one value; of several, from the tag of the first to the end of the last
}

// encode appends a message as a record; whole says that it has what the record does not know.
func (r *record) encode(dst, message []byte, depth int) (_ []byte, whole bool, err error) {
	if depth > maxDepth {
		return nil, false, fmt.Errorf("%s: messages in messages, more than %d deep", r.name, maxDepth)
	}
	var few [16]slot
	slots := few[:]
	if len(r.fields) > len(few) {
		slots = make([]slot, len(r.fields))
	}
	for at := 0; at < len(message); {
		number, typ, n := protowire.ConsumeTag(message[at:])
		if n < 0 {
			return nil, false, fmt.Errorf("%s: %w", r.name, protowire.ParseError(n))
		}
		value := at + n
		n = protowire.ConsumeFieldValue(number, typ, message[value:])
		if n < 0 {
			return nil, false, fmt.Errorf("%s, field %d: %w", r.name, number, protowire.ParseError(n))
		}
		i := r.at(number)
		if i < 0 {
			whole = true
			at = value + n
			continue
		}
		f, s := &r.fields[i], &slots[i]
		if want := f.wire(); typ != want {
			return nil, false, fmt.Errorf("%s.%s: wire type %d, want %d", r.name, f.name, typ, want)
		}
		switch {
		case f.packed:
			s.count += countPacked(f.kind, message[value:value+n])
			if s.from == s.to {
				s.from = at
			}
		case f.presence == repeated || f.presence == mapped:
			if s.count == 0 {
				s.from = at
			}
			s.count++
		default:
			s.count, s.from = 1, value
		}
		s.to = value + n
		at = value + n
	}
	for i := range r.fields {
		f, s := &r.fields[i], slots[i]
		var more bool
		if dst, more, err = f.encode(dst, message[s.from:s.to], s.count, depth); err != nil {
			return nil, false, fmt.Errorf("%s.%s: %w", r.name, f.name, err)
		}
		whole = whole || more
	}
	if r.whole && depth > 0 { // the root's own type within itself
		dst = append(dst, isNull)
	}
	return dst, whole, nil
}

func (f *field) wire() protowire.Type {
	if f.packed || f.presence == mapped {
		return protowire.BytesType
	}
	return f.kind.wire()
}

// countPacked counts the numbers of a packed field, whose length stands before them.
func countPacked(k kind, value []byte) int {
	_, n := protowire.ConsumeVarint(value)
	value = value[max(n, 0):]
	switch k.wire() {
	case protowire.Fixed32Type:
		return len(value) / 4
	case protowire.Fixed64Type:
		return len(value) / 8
	}
	count := 0
	for _, b := range value {
		if b < 0x80 {
			count++
		}
	}
	return count
}

// encode appends what stands in a field: the value itself, or from the first tag of several on.
func (f *field) encode(dst, value []byte, count, depth int) (_ []byte, whole bool, err error) {
	switch f.presence {
	case implicit:
		if count == 0 {
			return f.appendZero(dst), false, nil
		}
		return f.element.encode(dst, value, depth)
	case optional:
		if count == 0 {
			return append(dst, isNull), false, nil
		}
		return f.element.encode(append(dst, inUnion), value, depth)
	}
	if count == 0 {
		return append(dst, 0), false, nil
	}
	dst = appendLong(dst, int64(count))
	for len(value) > 0 {
		number, typ, n := protowire.ConsumeTag(value)
		value = value[max(n, 0):]
		n = protowire.ConsumeFieldValue(number, typ, value)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		one := value[:n]
		value = value[n:]
		if number != f.number { // another field's in between
			continue
		}
		var more bool
		switch {
		case f.packed:
			dst, more, err = f.encodePacked(dst, one, depth)
		case f.presence == mapped:
			dst, more, err = f.encodeEntry(dst, one, depth)
		default:
			dst, more, err = f.element.encode(dst, one, depth)
		}
		if err != nil {
			return nil, false, err
		}
		whole = whole || more
	}
	return append(dst, 0), whole, nil
}

func (f *field) encodePacked(dst, value []byte, depth int) (_ []byte, whole bool, err error) {
	packed, _ := protowire.ConsumeBytes(value)
	for len(packed) > 0 {
		n := protowire.ConsumeFieldValue(f.number, f.kind.wire(), packed)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		var more bool
		if dst, more, err = f.element.encode(dst, packed[:n], depth); err != nil {
			return nil, false, err
		}
		whole = whole || more
		packed = packed[n:]
	}
	return dst, whole, nil
}

// An entry of a map is a message of a key, 1, and a value, 2.
const (
	keyNumber   = 1
	valueNumber = 2
)

func (f *field) encodeEntry(dst, value []byte, depth int) (_ []byte, whole bool, err error) {
	entry, _ := protowire.ConsumeBytes(value)
	var key, item []byte
	for len(entry) > 0 {
		number, typ, n := protowire.ConsumeTag(entry)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		entry = entry[n:]
		if n = protowire.ConsumeFieldValue(number, typ, entry); n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		switch {
		case number == keyNumber && typ == protowire.BytesType:
			key = entry[:n]
		case number == valueNumber && typ == f.kind.wire():
			item = entry[:n]
		default:
			whole = true
		}
		entry = entry[n:]
	}
	if key == nil || item == nil {
		return nil, false, errors.New("an entry of a map without key or value")
	}
	if dst, _, err = (element{kind: stringKind}).encode(dst, key, depth); err != nil {
		return nil, false, err
	}
	dst, more, err := f.element.encode(dst, item, depth)
	return dst, whole || more, err
}

// appendZero appends what Avro readers see where Protobuf wrote nothing.
func (e element) appendZero(dst []byte) []byte {
	switch e.kind {
	case floatKind:
		return append(dst, 0, 0, 0, 0)
	case doubleKind:
		return append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	default: // false, 0, the first symbol, or a length of 0
		return append(dst, 0)
	}
}

// encode appends one value from its wire format, which has been found whole.
func (e element) encode(dst, value []byte, depth int) (_ []byte, whole bool, err error) {
	switch e.kind.wire() {
	case protowire.VarintType:
		v, _ := protowire.ConsumeVarint(value)
		return e.encodeVarint(dst, v)
	case protowire.Fixed32Type:
		v, _ := protowire.ConsumeFixed32(value)
		switch e.kind {
		case floatKind:
			return binary.LittleEndian.AppendUint32(dst, v), false, nil
		case fixed32Kind:
			return appendLong(dst, int64(v)), false, nil
		default:
			return appendLong(dst, int64(int32(v))), false, nil
		}
	case protowire.Fixed64Type:
		v, _ := protowire.ConsumeFixed64(value)
		switch {
		case e.kind == doubleKind:
			return binary.LittleEndian.AppendUint64(dst, v), false, nil
		case e.kind == fixed64Kind && v > math.MaxInt64:
			return nil, false, errTooLarge(v)
		}
		return appendLong(dst, int64(v)), false, nil
	}
	content, _ := protowire.ConsumeBytes(value)
	switch e.kind {
	case stringKind:
		if !utf8.Valid(content) {
			return nil, false, errNotText
		}
		return appendBytes(dst, content), false, nil
	case bytesKind:
		return appendBytes(dst, content), false, nil
	case timeKind:
		return encodeTime(dst, content)
	case moneyKind:
		return encodeMoney(dst, content)
	default:
		return e.record.encode(dst, content, depth+1)
	}
}

var errNotText = errors.New("a string that is not UTF-8")

func errTooLarge(v uint64) error { return fmt.Errorf("%d is beyond Avro's long", v) }

func (e element) encodeVarint(dst []byte, v uint64) (_ []byte, whole bool, err error) {
	switch e.kind {
	case boolKind:
		return append(dst, byte(min(v, 1))), false, nil
	case enumKind:
		if i := slices.Index(e.symbols, int32(v)); i >= 0 {
			return appendLong(dst, int64(i)), false, nil
		}
		return append(dst, 0), true, nil // its default, as for every old reader of Avro
	case int32Kind:
		return appendLong(dst, int64(int32(v))), false, nil
	case uint32Kind:
		return appendLong(dst, int64(uint32(v))), false, nil
	case sint32Kind:
		return appendLong(dst, int64(int32(protowire.DecodeZigZag(v&math.MaxUint32)))), false, nil
	case sint64Kind:
		return appendLong(dst, protowire.DecodeZigZag(v)), false, nil
	case uint64Kind:
		if v > math.MaxInt64 {
			return nil, false, errTooLarge(v)
		}
	}
	return appendLong(dst, int64(v)), false, nil
}

// pair reads the two numbers, fields 1 and 2, that make a Timestamp.
func pair(content []byte) (first, second uint64, whole bool, err error) {
	for len(content) > 0 {
		number, typ, n := protowire.ConsumeTag(content)
		if n < 0 {
			return 0, 0, false, protowire.ParseError(n)
		}
		content = content[n:]
		if n = protowire.ConsumeFieldValue(number, typ, content); n < 0 {
			return 0, 0, false, protowire.ParseError(n)
		}
		switch v, _ := protowire.ConsumeVarint(content); {
		case typ == protowire.VarintType && number == 1:
			first = v
		case typ == protowire.VarintType && number == 2:
			second = v
		default:
			whole = true
		}
		content = content[n:]
	}
	return first, second, whole, nil
}

func encodeTime(dst, content []byte) (_ []byte, whole bool, err error) {
	seconds, nanos, whole, err := pair(content)
	if err != nil {
		return nil, false, err
	}
	s, n := int64(seconds), int64(nanos)
	if n%1000 != 0 {
		return nil, false, fmt.Errorf("time %d s %d ns is not of whole microseconds", s, n)
	}
	if n < 0 || n >= 1e9 || s < math.MinInt64/microsPerSec || s >= math.MaxInt64/microsPerSec {
		return nil, false, fmt.Errorf("time %d s %d ns is out of range", s, n)
	}
	return appendLong(dst, s*microsPerSec+n/1000), whole, nil
}

// Money's fields.
const (
	moneyCurrency = 1
	moneyUnits    = 2
	moneyNanos    = 3
	nanosPerUnit  = 1_000_000_000
)

func encodeMoney(dst, content []byte) (_ []byte, whole bool, err error) {
	var currency []byte
	var units, nanos int64
	for len(content) > 0 {
		number, typ, n := protowire.ConsumeTag(content)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		content = content[n:]
		if n = protowire.ConsumeFieldValue(number, typ, content); n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		switch {
		case number == moneyCurrency && typ == protowire.BytesType:
			currency, _ = protowire.ConsumeBytes(content)
		case number == moneyUnits && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(content)
			units = int64(v)
		case number == moneyNanos && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(content)
			nanos = int64(v)
		default:
			whole = true
		}
		content = content[n:]
	}
	switch {
	case !utf8.Valid(currency):
		return nil, false, errNotText
	case nanos <= -nanosPerUnit || nanos >= nanosPerUnit || units > 0 && nanos < 0 || units < 0 && nanos > 0:
		return nil, false, fmt.Errorf("%d units and %d nanos are no amount of money", units, nanos)
	}
	dst = appendBytes(dst, currency)
	hi, lo := bits.Mul64(magnitude(units), nanosPerUnit)
	lo, carry := bits.Add64(lo, magnitude(nanos), 0)
	hi += carry
	if units < 0 || nanos < 0 { // two's complement
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	var number [16]byte
	binary.BigEndian.PutUint64(number[:8], hi)
	binary.BigEndian.PutUint64(number[8:], lo)
	shortest := number[:]
	for len(shortest) > 1 && (shortest[0] == 0 && shortest[1] < 0x80 || shortest[0] == 0xff && shortest[1] >= 0x80) {
		shortest = shortest[1:]
	}
	return appendBytes(dst, shortest), whole, nil
}

// magnitude is |n|; that of -2^63 has no int64.
func magnitude(n int64) uint64 {
	if n < 0 {
		return -uint64(n)
	}
	return uint64(n)
}

func appendLong(dst []byte, v int64) []byte {
	return protowire.AppendVarint(dst, protowire.EncodeZigZag(v))
}

func appendBytes(dst, b []byte) []byte { return append(appendLong(dst, int64(len(b))), b...) }

// decode appends a message that encode wrote as Avro, or that somebody wrote with the same schema. in comes from outside.
func (p *plan) decode(dst, in []byte) ([]byte, error) {
	begin := len(dst)
	s := source{rest: in}
	dst = p.root.decode(dst, &s, 0)
	if p.root.whole && s.present() {
		if message := s.bytes(); s.err == nil {
			dst = append(dst[:begin], message...)
		}
	}
	switch {
	case s.err != nil:
		return nil, fmt.Errorf("%s: %w", p.root.name, s.err)
	case len(s.rest) > 0:
		return nil, fmt.Errorf("%s: %d bytes follow its end", p.root.name, len(s.rest))
	}
	return dst, nil
}

// source is Avro's bytes. After the first error it gives zeros.
type source struct {
	rest []byte
	err  error
}

var errShort = errors.New("it ends too early")

func (s *source) fail(err error) {
	if s.err == nil {
		s.err = err
	}
	s.rest = nil
}

func (s *source) long() int64 {
	v, n := protowire.ConsumeVarint(s.rest)
	if n < 0 {
		s.fail(errShort)
		return 0
	}
	s.rest = s.rest[n:]
	return protowire.DecodeZigZag(v)
}

func (s *source) int() int32 {
	v := s.long()
	if int64(int32(v)) != v {
		s.fail(fmt.Errorf("%d is beyond 32 bits", v))
	}
	return int32(v)
}

func (s *source) take(n int) []byte {
	if n < 0 || n > len(s.rest) {
		s.fail(errShort)
		return nil
	}
	taken := s.rest[:n:n]
	s.rest = s.rest[n:]
	return taken
}

func (s *source) bytes() []byte {
	n := s.long()
	if n > int64(len(s.rest)) {
		s.fail(errShort)
		return nil
	}
	return s.take(int(n))
}

func (s *source) text() []byte {
	b := s.bytes()
	if !utf8.Valid(b) {
		s.fail(errNotText)
	}
	return b
}

// present reads which part of a union with null follows.
func (s *source) present() bool {
	switch part := s.long(); part {
	case 0:
		return false
	case 1:
		return true
	default:
		s.fail(fmt.Errorf("part %d of a union of two", part))
		return false
	}
}

// block reads how many items follow, in an array or a map; 0 is its end.
func (s *source) block() int {
	n := s.long()
	if n < 0 { // then its length in bytes is told, too, for those who skip
		s.long()
		n = -n
	}
	if n < 0 || n > int64(len(s.rest)) { // every item takes a byte or more
		s.fail(errShort)
		return 0
	}
	return int(n)
}

func (r *record) decode(dst []byte, s *source, depth int) []byte {
	if depth > maxDepth {
		s.fail(fmt.Errorf("records in records, more than %d deep", maxDepth))
		return dst
	}
	var taken uint64 // oneofs, by number
	for i := range r.fields {
		f := &r.fields[i]
		begin := len(dst)
		switch f.presence {
		case implicit:
			dst = protowire.AppendTag(dst, f.number, f.kind.wire())
			var zero bool
			if dst, zero = f.decode(dst, s, depth); zero {
				dst = dst[:begin]
			}
		case optional:
			if !s.present() {
				break
			}
			if f.oneof != 0 {
				bit := uint64(1) << (f.oneof % 64)
				if taken&bit != 0 {
					s.fail(fmt.Errorf("%s and another part of its oneof are set", f.name))
				}
				taken |= bit
			}
			dst = protowire.AppendTag(dst, f.number, f.kind.wire())
			dst, _ = f.decode(dst, s, depth)
		case repeated:
			dst = f.decodeItems(dst, s, depth)
		case mapped:
			dst = f.decodeEntries(dst, s, depth)
		}
		if s.err != nil {
			return dst
		}
	}
	if r.whole && depth > 0 && s.present() {
		s.fail(fmt.Errorf("field %s is set, but not of the root", unknownField))
	}
	return dst
}

func (f *field) decodeItems(dst []byte, s *source, depth int) []byte {
	begin, content := len(dst), 0
	if f.packed {
		dst = protowire.AppendTag(dst, f.number, protowire.BytesType)
		content = len(dst)
	}
	for n := s.block(); n > 0; n = s.block() {
		for ; n > 0 && s.err == nil; n-- {
			if !f.packed {
				dst = protowire.AppendTag(dst, f.number, f.kind.wire())
			}
			dst, _ = f.decode(dst, s, depth)
		}
	}
	switch {
	case !f.packed:
		return dst
	case len(dst) == content: // none
		return dst[:begin]
	}
	return insertLength(dst, content)
}

func (f *field) decodeEntries(dst []byte, s *source, depth int) []byte {
	for n := s.block(); n > 0; n = s.block() {
		for ; n > 0 && s.err == nil; n-- {
			dst = protowire.AppendTag(dst, f.number, protowire.BytesType)
			content := len(dst)
			dst = protowire.AppendTag(dst, keyNumber, protowire.BytesType)
			dst = protowire.AppendBytes(dst, s.text())
			dst = protowire.AppendTag(dst, valueNumber, f.kind.wire())
			dst, _ = f.decode(dst, s, depth)
			dst = insertLength(dst, content)
		}
	}
	return dst
}

// insertLength puts the length of what was appended from content on before it.
func insertLength(dst []byte, content int) []byte {
	length := len(dst) - content
	n := protowire.SizeVarint(uint64(length))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)[:len(dst)+n]
	copy(dst[content+n:], dst[content:content+length])
	protowire.AppendVarint(dst[content:content], uint64(length))
	return dst
}

// decode appends one value in wire format, with its length where it has one, and tells whether it is zero.
func (e element) decode(dst []byte, s *source, depth int) (_ []byte, zero bool) {
	switch e.kind {
	case boolKind:
		b := s.take(1)
		if s.err != nil {
			return dst, false
		}
		if b[0] > 1 {
			s.fail(fmt.Errorf("%d is no boolean", b[0]))
		}
		return append(dst, b[0]), b[0] == 0
	case int32Kind, int64Kind:
		v := s.number(e.kind)
		return protowire.AppendVarint(dst, uint64(v)), v == 0
	case uint32Kind, uint64Kind:
		v := s.number(e.kind)
		return protowire.AppendVarint(dst, uint64(v)), v == 0
	case sint32Kind, sint64Kind:
		v := s.number(e.kind)
		return protowire.AppendVarint(dst, protowire.EncodeZigZag(v)), v == 0
	case sfixed32Kind, fixed32Kind:
		v := s.number(e.kind)
		return protowire.AppendFixed32(dst, uint32(v)), v == 0
	case sfixed64Kind, fixed64Kind:
		v := s.number(e.kind)
		return protowire.AppendFixed64(dst, uint64(v)), v == 0
	case floatKind, doubleKind: // both worlds write them alike
		size := 8
		if e.kind == floatKind {
			size = 4
		}
		b := s.take(size)
		return append(dst, b...), isZero(b)
	case enumKind:
		i := s.long()
		if i < 0 || i >= int64(len(e.symbols)) {
			s.fail(fmt.Errorf("symbol %d of an enum of %d", i, len(e.symbols)))
			return dst, false
		}
		return protowire.AppendVarint(dst, uint64(int64(e.symbols[i]))), e.symbols[i] == 0
	case stringKind:
		b := s.text()
		return protowire.AppendBytes(dst, b), len(b) == 0
	case bytesKind:
		b := s.bytes()
		return protowire.AppendBytes(dst, b), len(b) == 0
	}
	content := len(dst)
	switch e.kind {
	case timeKind:
		dst = decodeTime(dst, s)
	case moneyKind:
		dst = decodeMoney(dst, s)
	default:
		dst = e.record.decode(dst, s, depth+1)
	}
	return insertLength(dst, content), false
}

// number reads an int or a long, within what the kind can hold.
func (s *source) number(k kind) int64 {
	switch k {
	case int32Kind, sint32Kind, sfixed32Kind:
		return int64(s.int())
	}
	v := s.long()
	switch k {
	case uint32Kind, fixed32Kind:
		if v < 0 || v > math.MaxUint32 {
			s.fail(fmt.Errorf("%d is no %s", v, k))
		}
	case uint64Kind, fixed64Kind:
		if v < 0 {
			s.fail(fmt.Errorf("%d is no %s", v, k))
		}
	}
	return v
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 { // -0 is not what Protobuf leaves out
			return false
		}
	}
	return true
}

func decodeTime(dst []byte, s *source) []byte {
	micros := s.long()
	seconds, rest := micros/microsPerSec, micros%microsPerSec
	if rest < 0 {
		seconds, rest = seconds-1, rest+microsPerSec
	}
	return appendNumber(appendNumber(dst, 1, seconds), 2, rest*1000)
}

// appendNumber appends a field unless it is zero.
func appendNumber(dst []byte, number protowire.Number, v int64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, number, protowire.VarintType), uint64(v))
}

func decodeMoney(dst []byte, s *source) []byte {
	if currency := s.text(); len(currency) > 0 {
		dst = protowire.AppendBytes(protowire.AppendTag(dst, moneyCurrency, protowire.BytesType), currency)
	}
	amount := s.bytes()
	if s.err != nil {
		return dst
	}
	if len(amount) > 16 {
		s.fail(fmt.Errorf("an amount of %d bytes", len(amount)))
		return dst
	}
	negative := len(amount) > 0 && amount[0] >= 0x80
	var number [16]byte
	if negative {
		copy(number[:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	}
	copy(number[16-len(amount):], amount)
	hi, lo := binary.BigEndian.Uint64(number[:8]), binary.BigEndian.Uint64(number[8:])
	if negative {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	limit := uint64(math.MaxInt64)
	if negative {
		limit++ // -2^63 fits
	}
	var units, nanos uint64
	if hi < nanosPerUnit {
		units, nanos = bits.Div64(hi, lo, nanosPerUnit)
	}
	if hi >= nanosPerUnit || units > limit {
		s.fail(errors.New("an amount beyond 2^63 units"))
		return dst
	}
	u, n := int64(units), int64(nanos)
	if negative {
		u, n = -u, -n
	}
	return appendNumber(appendNumber(dst, moneyUnits, u), moneyNanos, n)
}
