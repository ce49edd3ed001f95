package protoavro

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

	"github.com/millrace/millrace/internal/avro"
)

// Encode appends a Protobuf message as an Avro value. It fails if decoding the value would not
// return the same bytes. The result is appended to dst, which may be nil.
func (p *Plan) Encode(dst, message []byte) ([]byte, error) {
	begin := len(dst) // of this value
	out, lossy, err := p.root.encode(dst, message, 0)
	// The last field of the root contains the whole message if the other fields cannot.
	switch {
	case err != nil:
		return nil, err
	case lossy && !p.root.hasUnknown:
		return nil, fmt.Errorf("%s has parts that are not in the schema, and the schema has no field %s for them",
			p.root.name, unknownField)
	case lossy:
		out = avro.AppendBytes(append(out, inUnion), message)
	case p.root.hasUnknown:
		out = append(out, isNull)
	}
	// Protobuf's wire format has several encodings of the same message, and Decode only produces
	// one of them. Only this check detects the others, such as an explicit zero or two members of a
	// oneof, which programs in other languages may write. TestLossIsRejected has such messages.
	back, err := p.Decode(make([]byte, 0, len(message)), out[begin:])
	if err != nil {
		return nil, fmt.Errorf("%s cannot be decoded again: %w", p.root.name, err)
	}
	if !bytes.Equal(back, message) {
		return nil, fmt.Errorf("%s would not be decoded byte for byte: "+
			"its wire format differs from that of Go's Protobuf", p.root.name)
	}
	return out, nil
}

// Bytes that select the branch of a union with null: zigzag varints of the branch index.
const (
	isNull  = 0 // index 0
	inUnion = 2 // index 1
)

// slot is the position of a field's values in a message. Values are not copied: the second pass
// over the fields reads them from the message.
type slot struct {
	count    int // number of values
	from, to int // extent of a single value, or from the first tag to the end of the last value
}

// encode appends a message as a record. lossy reports that it has something that the record cannot
// represent.
//
// It works in two passes over the message, without decoding it to values: the first finds where
// each field is, the second appends the fields in the order of the schema.
func (r *record) encode(dst, message []byte, depth int) (_ []byte, lossy bool, err error) {
	if depth > maxDepth {
		return nil, false, fmt.Errorf("%s: messages are nested more than %d deep", r.name, maxDepth)
	}
	// Avro records have their fields in schema order, so first find all fields in the message.
	var few [16]slot // on the stack, for most messages
	// One slot for each field of the record.
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
		// The schema does not have this field.
		i := r.at(number)
		if i < 0 {
			lossy = true
			at = value + n
			continue
		}
		f, s := &r.fields[i], &slots[i]
		// Another wire type, such as unpacked numbers, would not be restored.
		if want := f.wire(); typ != want {
			return nil, false, fmt.Errorf("%s.%s: wire type %d, want %d", r.name, f.name, typ, want)
		}
		switch {
		// A packed field may come in several chunks. Decode would join them, so the check in Encode
		// refuses that.
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
		default: // of several values, the last one counts
			s.count, s.from = 1, value
		}
		s.to = value + n
		at = value + n
	}
	// Then append them in schema order. A field without a value has an empty slot.
	for i := range r.fields {
		f, s := &r.fields[i], slots[i]
		var more bool
		if dst, more, err = f.encode(dst, message[s.from:s.to], s.count, depth); err != nil {
			return nil, false, fmt.Errorf("%s.%s: %w", r.name, f.name, err)
		}
		lossy = lossy || more
	}
	if r.hasUnknown && depth > 0 { // only the root has a message in this field
		dst = append(dst, isNull)
	}
	return dst, lossy, nil
}

// wire returns the wire type of the whole field.
func (f *field) wire() protowire.Type {
	if f.packed || f.presence == mapped {
		return protowire.BytesType
	}
	return f.kind.wire()
}

// countPacked returns the number of elements in a packed field, given with its length.
func countPacked(k kind, value []byte) int {
	_, n := protowire.ConsumeVarint(value)
	value = value[max(n, 0):]
	switch k.wire() {
	case protowire.Fixed32Type:
		return len(value) / 4
	case protowire.Fixed64Type:
		return len(value) / 8
	}
	// The last byte of a varint has its highest bit unset.
	count := 0
	for _, b := range value {
		if b < 0x80 {
			count++
		}
	}
	return count
}

// encode appends a field's values. value is a single value, or the range from the first tag to the
// last value.
func (f *field) encode(dst, value []byte, count, depth int) (_ []byte, lossy bool, err error) {
	switch f.presence {
	case implicit: // Avro has no absent fields
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
		return append(dst, 0), false, nil // an empty array or map
	}
	// All values are written as one block, followed by an empty one.
	dst = avro.AppendLong(dst, int64(count))
	// The range contains a tag before each value, and may contain other fields.
	for len(value) > 0 {
		number, typ, n := protowire.ConsumeTag(value)
		value = value[max(n, 0):]
		n = protowire.ConsumeFieldValue(number, typ, value)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		one := value[:n]
		value = value[n:]
		if number != f.number { // other fields may be in between
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
		lossy = lossy || more
	}
	return append(dst, 0), lossy, nil
}

// encodePacked appends the elements of a packed field. value is their length and then the elements,
// without tags. Avro arrays have no such form: their elements are encoded like those of an unpacked
// field.
func (f *field) encodePacked(dst, value []byte, depth int) (_ []byte, lossy bool, err error) {
	packed, _ := protowire.ConsumeBytes(value) // the caller has checked the length
	for len(packed) > 0 {
		n := protowire.ConsumeFieldValue(f.number, f.kind.wire(), packed)
		if n < 0 {
			return nil, false, protowire.ParseError(n)
		}
		var more bool
		if dst, more, err = f.element.encode(dst, packed[:n], depth); err != nil {
			return nil, false, err
		}
		lossy = lossy || more
		packed = packed[n:]
	}
	return dst, lossy, nil
}

// Field numbers of a map entry.
const (
	keyNumber   = 1
	valueNumber = 2
)

// encodeEntry appends an entry of a map. In Protobuf, it is a message of key and value.
func (f *field) encodeEntry(dst, value []byte, depth int) (_ []byte, lossy bool, err error) {
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
		// A repeated key or value replaces the previous one.
		case number == keyNumber && typ == protowire.BytesType:
			key = entry[:n]
		case number == valueNumber && typ == f.kind.wire():
			item = entry[:n]
		default: // an unknown field of the entry
			lossy = true
		}
		entry = entry[n:]
	}
	// Protobuf allows omitting either, but Go never does, so the entry would not be restored.
	if key == nil || item == nil {
		return nil, false, errors.New("map entry without key or value")
	}
	if dst, _, err = (element{kind: stringKind}).encode(dst, key, depth); err != nil {
		return nil, false, err
	}
	dst, more, err := f.element.encode(dst, item, depth)
	return dst, lossy || more, err
}

// appendZero appends the value of a field that is not in the message. Protobuf omits zeros, and
// Avro does not.
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

// encode appends one value. value is its wire format, which is known to be complete.
func (e element) encode(dst, value []byte, depth int) (_ []byte, lossy bool, err error) {
	// Integers of all wire types become zigzag varints, as all of Avro's integers are.
	switch e.kind.wire() {
	case protowire.VarintType:
		v, _ := protowire.ConsumeVarint(value)
		return e.encodeVarint(dst, v)
	case protowire.Fixed32Type:
		v, _ := protowire.ConsumeFixed32(value)
		switch e.kind {
		case floatKind: // the same bytes in both formats
			return binary.LittleEndian.AppendUint32(dst, v), false, nil
		case fixed32Kind:
			return avro.AppendLong(dst, int64(v)), false, nil
		default:
			return avro.AppendLong(dst, int64(int32(v))), false, nil
		}
	case protowire.Fixed64Type:
		v, _ := protowire.ConsumeFixed64(value)
		switch {
		case e.kind == doubleKind:
			return binary.LittleEndian.AppendUint64(dst, v), false, nil
		case e.kind == fixed64Kind && v > math.MaxInt64:
			return nil, false, errTooLarge(v)
		}
		return avro.AppendLong(dst, int64(v)), false, nil
	}
	// All other kinds are a length and that many bytes.
	content, _ := protowire.ConsumeBytes(value)
	switch e.kind {
	case stringKind:
		if !utf8.Valid(content) {
			return nil, false, avro.ErrNotText
		}
		return avro.AppendBytes(dst, content), false, nil
	case bytesKind:
		return avro.AppendBytes(dst, content), false, nil
	case timeKind:
		return encodeTime(dst, content)
	case moneyKind:
		return encodeMoney(dst, content)
	default:
		return e.record.encode(dst, content, depth+1)
	}
}

// errTooLarge returns the error for an unsigned number above 2^63-1.
func errTooLarge(v uint64) error { return fmt.Errorf("%d does not fit Avro's long", v) }

// encodeVarint appends a value that is a varint on the wire. 32-bit kinds are truncated, as
// Protobuf does.
func (e element) encodeVarint(dst []byte, v uint64) (_ []byte, lossy bool, err error) {
	switch e.kind {
	case boolKind:
		return append(dst, byte(min(v, 1))), false, nil
	case enumKind:
		if i := slices.Index(e.symbols, int32(v)); i >= 0 {
			return avro.AppendLong(dst, int64(i)), false, nil
		}
		return append(dst, 0), true, nil // the default, which old readers of Avro would also use
	case int32Kind: // a negative number has ten bytes on the wire
		return avro.AppendLong(dst, int64(int32(v))), false, nil
	case uint32Kind:
		return avro.AppendLong(dst, int64(uint32(v))), false, nil
	case sint32Kind: // zigzag on both sides, but with 32 bits in Protobuf
		return avro.AppendLong(dst, int64(int32(protowire.DecodeZigZag(v&math.MaxUint32)))), false, nil
	case sint64Kind:
		return avro.AppendLong(dst, protowire.DecodeZigZag(v)), false, nil
	case uint64Kind:
		if v > math.MaxInt64 {
			return nil, false, errTooLarge(v)
		}
	}
	return avro.AppendLong(dst, int64(v)), false, nil
}

// pair reads fields 1 and 2 of a message, which are the seconds and the nanoseconds of a Timestamp.
// lossy reports that the message has other fields. A missing field is 0, as in Protobuf.
func pair(content []byte) (first, second uint64, lossy bool, err error) {
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
			lossy = true
		}
		content = content[n:]
	}
	return first, second, lossy, nil
}

// encodeTime appends a Timestamp in microseconds. It fails for fractions of a microsecond, which
// would be lost.
func encodeTime(dst, content []byte) (_ []byte, lossy bool, err error) {
	seconds, nanos, lossy, err := pair(content)
	if err != nil {
		return nil, false, err
	}
	s, n := int64(seconds), int64(nanos)
	// Precision must not be lost silently.
	if n%1000 != 0 {
		return nil, false, fmt.Errorf("time %d s %d ns has fractions of a microsecond", s, n)
	}
	// Microseconds of these seconds must fit a long.
	if n < 0 || n >= 1e9 || s < math.MinInt64/microsPerSec || s >= math.MaxInt64/microsPerSec {
		return nil, false, fmt.Errorf("time %d s %d ns is out of range", s, n)
	}
	return avro.AppendLong(dst, s*microsPerSec+n/1000), lossy, nil
}

// Field numbers of Money.
const (
	moneyCurrency = 1
	moneyUnits    = 2
	moneyNanos    = 3
	nanosPerUnit  = 1_000_000_000
)

// encodeMoney appends a Money: its currency, and its amount as a big-endian two's complement number
// of nanos of a unit, as short as possible.
func encodeMoney(dst, content []byte) (_ []byte, lossy bool, err error) {
	// Missing fields are zero.
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
			lossy = true
		}
		content = content[n:]
	}
	switch {
	case !utf8.Valid(currency):
		return nil, false, avro.ErrNotText
	case nanos <= -nanosPerUnit || nanos >= nanosPerUnit || units > 0 && nanos < 0 || units < 0 && nanos > 0:
		return nil, false, fmt.Errorf("%d units and %d nanos are not an amount of money", units, nanos)
	}
	// The amount is a single decimal: units * 10^9 + nanos.
	dst = avro.AppendBytes(dst, currency)
	// The amount may exceed 64 bits, so compute with 128.
	hi, lo := bits.Mul64(magnitude(units), nanosPerUnit)
	lo, carry := bits.Add64(lo, magnitude(nanos), 0)
	hi += carry
	if units < 0 || nanos < 0 { // two's complement
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	// Avro's decimals are big-endian.
	var number [16]byte
	binary.BigEndian.PutUint64(number[:8], hi)
	binary.BigEndian.PutUint64(number[8:], lo)
	// Drop leading bytes that only repeat the sign: Avro's decimals have any length.
	shortest := number[:]
	for len(shortest) > 1 && (shortest[0] == 0 && shortest[1] < 0x80 || shortest[0] == 0xff && shortest[1] >= 0x80) {
		shortest = shortest[1:]
	}
	return avro.AppendBytes(dst, shortest), lossy, nil
}

// magnitude returns |n|, which for -2^63 does not fit an int64.
func magnitude(n int64) uint64 {
	if n < 0 {
		return -uint64(n)
	}
	return uint64(n)
}
