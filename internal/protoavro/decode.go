package protoavro

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/internal/avro"
)

const nullFirst = 0 // index of null in the unions of our schemas

// Decode appends the message for an Avro value that Encode, or another program with the same
// schema, has written. The value need not be trusted.
//
// The input may claim large counts and lengths, so each is compared with the bytes that remain
// before it is used.
func (p *Plan) Decode(dst, in []byte) ([]byte, error) {
	begin := len(dst)
	// Errors are checked once, at the end.
	s := source{avro.Reader{Rest: in}}
	dst = p.root.decode(dst, &s, 0)
	// If the message had anything unknown, the last field has all of it.
	if p.root.hasUnknown && s.Present(nullFirst) {
		if message := s.Bytes(); s.Err == nil {
			dst = append(dst[:begin], message...)
		}
	}
	switch {
	case s.Err != nil:
		return nil, fmt.Errorf("%s: %w", p.root.name, s.Err)
	case len(s.Rest) > 0:
		return nil, fmt.Errorf("%s: %d bytes follow its end", p.root.name, len(s.Rest))
	}
	return dst, nil
}

// source is the encoded value being read. Its first error ends decoding; see avro.Reader.
type source struct{ avro.Reader }

// block reads the number of items in the next block of an array or a map. 0 ends it.
func (s *source) block() int64 {
	n := s.Block()
	if n > int64(len(s.Rest)) { // every item takes at least one byte
		s.Fail(avro.ErrShort)
		return 0
	}
	return n
}

// decode appends the fields of a message. depth is the number of enclosing messages. The order of
// the fields in the schema is that in which Go's Protobuf writes them, so the result has the same
// bytes as the message that was encoded.
func (r *record) decode(dst []byte, s *source, depth int) []byte {
	if depth > maxDepth {
		s.Fail(fmt.Errorf("records are nested more than %d deep", maxDepth))
		return dst
	}
	var taken [maxFields/64 + 1]uint64 // bits of oneofs with a member so far
	// An Avro record has all of its fields, in the order of the schema and without tags.
	for i := range r.fields {
		f := &r.fields[i]
		begin := len(dst) // where the field is removed again if it is zero
		switch f.presence {
		case implicit:
			dst = protowire.AppendTag(dst, f.number, f.kind.wire())
			var zero bool
			if dst, zero = f.decode(dst, s, depth); zero {
				// Protobuf omits zeros of fields without presence, so a zero is removed again.
				dst = dst[:begin]
			}
		case optional:
			if !s.Present(nullFirst) {
				break // the message does not have the field
			}
			if f.oneof != 0 {
				word, bit := f.oneof/64, uint64(1)<<(f.oneof%64)
				// Avro has no oneofs: a value with two members set is valid Avro, but not our
				// message.
				if taken[word]&bit != 0 {
					s.Fail(fmt.Errorf("%s and another member of its oneof are set", f.name))
				}
				taken[word] |= bit
			}
			dst = protowire.AppendTag(dst, f.number, f.kind.wire())
			dst, _ = f.decode(dst, s, depth)
		case repeated:
			dst = f.decodeItems(dst, s, depth)
		case mapped:
			dst = f.decodeEntries(dst, s, depth)
		}
		// Stop early, since input that is too short could have many more fields.
		if s.Err != nil {
			return dst
		}
	}
	// The root's type may also occur inside of itself, where the field must be null.
	if r.hasUnknown && depth > 0 && s.Present(nullFirst) {
		s.Fail(fmt.Errorf("field %s is set in a nested record", unknownField))
	}
	return dst
}

// decodeItems appends a repeated field. A packed one is dropped if it is empty.
func (f *field) decodeItems(dst []byte, s *source, depth int) []byte {
	// A packed field has one tag and a length, an unpacked one a tag per element.
	begin, content := len(dst), 0
	if f.packed {
		dst = protowire.AppendTag(dst, f.number, protowire.BytesType)
		content = len(dst) // where the length is inserted
	}
	// Encode writes one block, but other programs may write several.
	for n := s.block(); n > 0; n = s.block() {
		for ; n > 0 && s.Err == nil; n-- {
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

// decodeEntries appends the entries of a map field, each as a message of key and value.
func (f *field) decodeEntries(dst []byte, s *source, depth int) []byte {
	for n := s.block(); n > 0; n = s.block() {
		for ; n > 0 && s.Err == nil; n-- {
			dst = protowire.AppendTag(dst, f.number, protowire.BytesType)
			content := len(dst) // the entry's length is inserted here
			dst = protowire.AppendTag(dst, keyNumber, protowire.BytesType)
			dst = protowire.AppendBytes(dst, s.Text())
			dst = protowire.AppendTag(dst, valueNumber, f.kind.wire())
			dst, _ = f.decode(dst, s, depth)
			dst = insertLength(dst, content)
		}
	}
	return dst
}

// insertLength inserts the length of the content that begins at content before it.
func insertLength(dst []byte, content int) []byte {
	length := len(dst) - content
	n := protowire.SizeVarint(uint64(length))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)[:len(dst)+n] // a varint has at most 10 bytes
	// The size of the length depends on the content, so the content is moved to make room.
	copy(dst[content+n:], dst[content:content+length])
	protowire.AppendVarint(dst[content:content], uint64(length))
	return dst
}

// decode appends one value in wire format, including the length if the type has one, and reports
// whether it is zero.
func (e element) decode(dst []byte, s *source, depth int) (_ []byte, zero bool) {
	switch e.kind {
	case boolKind:
		if s.Bool() {
			return append(dst, 1), false
		}
		return append(dst, 0), true
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
	case floatKind, doubleKind: // little-endian IEEE 754 in both formats
		size := int64(8)
		if e.kind == floatKind {
			size = 4
		}
		b := s.Take(size)
		return append(dst, b...), isZero(b)
	case enumKind:
		i := s.Long()
		if i < 0 || i >= int64(len(e.symbols)) {
			s.Fail(fmt.Errorf("symbol %d of an enum of %d symbols", i, len(e.symbols)))
			return dst, false
		}
		return protowire.AppendVarint(dst, uint64(int64(e.symbols[i]))), e.symbols[i] == 0
	case stringKind:
		b := s.Text()
		return protowire.AppendBytes(dst, b), len(b) == 0
	case bytesKind:
		b := s.Bytes()
		return protowire.AppendBytes(dst, b), len(b) == 0
	}
	// Messages have a length, which is known only after their content.
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

// number reads an int or a long and checks that it fits the kind.
func (s *source) number(k kind) int64 {
	switch k {
	case int32Kind, sint32Kind, sfixed32Kind:
		return int64(s.Int())
	}
	// All others are longs in Avro, which has no unsigned types.
	v := s.Long()
	switch k {
	case uint32Kind, fixed32Kind:
		if v < 0 || v > math.MaxUint32 {
			s.Fail(fmt.Errorf("%d is not a %s", v, k))
		}
	case uint64Kind, fixed64Kind:
		if v < 0 {
			s.Fail(fmt.Errorf("%d is not a %s", v, k))
		}
	}
	return v
}

// isZero reports whether all bytes are zero.
func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 { // Protobuf does write -0
			return false
		}
	}
	return true
}

// decodeTime appends the fields of a Timestamp. Nanos are never negative. A time before 1970 has
// negative microseconds, and in Protobuf negative seconds with a positive fraction.
func decodeTime(dst []byte, s *source) []byte {
	micros := s.Long()
	// Go truncates towards zero, so negative remainders are corrected below.
	seconds, rest := micros/microsPerSec, micros%microsPerSec
	if rest < 0 {
		seconds, rest = seconds-1, rest+microsPerSec
	}
	return appendNumber(appendNumber(dst, 1, seconds), 2, rest*1000)
}

// appendNumber appends a varint field unless it is zero.
func appendNumber(dst []byte, number protowire.Number, v int64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, number, protowire.VarintType), uint64(v))
}

// decodeMoney appends the fields of a Money. The amount is a two's complement big-endian number of
// nanos of a unit, with up to 16 bytes.
func decodeMoney(dst []byte, s *source) []byte {
	if currency := s.Text(); len(currency) > 0 {
		dst = protowire.AppendBytes(protowire.AppendTag(dst, moneyCurrency, protowire.BytesType), currency)
	}
	// Of any length up to 16 bytes, also with redundant leading bytes.
	amount := s.Bytes()
	if s.Err != nil {
		return dst
	}
	if len(amount) > 16 {
		s.Fail(fmt.Errorf("amount of %d bytes, more than 16", len(amount)))
		return dst
	}
	// Extend the sign to 16 bytes.
	negative := len(amount) > 0 && amount[0] >= 0x80
	var number [16]byte
	if negative {
		copy(number[:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	}
	copy(number[16-len(amount):], amount)
	// Divide the magnitude, not the signed number, as a 128-bit number by nanos per unit.
	hi, lo := binary.BigEndian.Uint64(number[:8]), binary.BigEndian.Uint64(number[8:])
	if negative {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	// Units must fit an int64, and their magnitude is unsigned here.
	limit := uint64(math.MaxInt64)
	if negative {
		limit++ // -2^63 is valid
	}
	var units, nanos uint64
	// Otherwise the quotient would exceed 64 bits, and Div64 would panic.
	if hi < nanosPerUnit {
		units, nanos = bits.Div64(hi, lo, nanosPerUnit)
	}
	if hi >= nanosPerUnit || units > limit {
		s.Fail(errors.New("amount does not fit 64 bits of units"))
		return dst
	}
	// Units and nanos have the same sign.
	u, n := int64(units), int64(nanos)
	if negative {
		u, n = -u, -n
	}
	return appendNumber(appendNumber(dst, moneyUnits, u), moneyNanos, n)
}
