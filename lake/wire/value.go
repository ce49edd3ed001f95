package wire

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/internal/timeunit"
)

// errNotUTF8 reports a string that Protobuf implementations refuse as well.
var errNotUTF8 = errors.New("invalid UTF-8")

// value appends one value of a field, which starts at b after its tag, and returns its size. The
// size is also returned if the value is refused.
func (d *Decoder) value(f *field, b []byte) (int, error) {
	// One-byte varints are by far the most common, so they are read without a call.
	switch f.typ {
	case protowire.VarintType:
		var v uint64
		n := 1
		if len(b) > 0 && b[0] < 0x80 {
			v = uint64(b[0])
		} else if v, n = varint(b); n < 0 {
			return 0, malformed(n)
		}
		f.appendVarint(v)
		return n, nil
	// Length-delimited: strings, bytes, messages and packed lists.
	case protowire.BytesType:
		var size uint64
		n := 1
		if len(b) > 0 && b[0] < 0x80 {
			size = uint64(b[0])
		} else if size, n = varint(b); n < 0 {
			return 0, malformed(n)
		}
		// Compare unsigned: a size above the int range must not wrap around.
		if size > uint64(len(b)-n) {
			return 0, errTruncated
		}
		end := n + int(size)
		if f.kind == stringKind { // the most common kind
			if !validUTF8(b[n:], int(size)) {
				return 0, errNotUTF8
			}
			f.bytes.AppendFirst(b[n:], int(size))
			return end, nil
		}
		return end, d.content(f, b[n:end])
	case protowire.Fixed32Type:
		if len(b) < 4 {
			return 0, errTruncated
		}
		f.append32(binary.LittleEndian.Uint32(b))
		return 4, nil
	case protowire.Fixed64Type:
		if len(b) < 8 {
			return 0, errTruncated
		}
		f.append64(binary.LittleEndian.Uint64(b))
		return 8, nil
	// Groups are the only remaining wire type of values.
	default:
		content, n := protowire.ConsumeGroup(f.number, b)
		if n < 0 {
			return 0, malformed(n)
		}
		return n, d.content(f, content)
	}
}

// high has the highest bit of each of eight bytes.
const high = 0x8080808080808080

// validUTF8 is utf8.Valid for the first n bytes of b, with fast paths for short ASCII strings.
func validUTF8(b []byte, n int) bool {
	switch {
	case n > 8 && n <= 16:
		if (binary.LittleEndian.Uint64(b)|binary.LittleEndian.Uint64(b[n-8:]))&high == 0 {
			return true
		}
	case n <= 8 && len(b) >= 8:
		if binary.LittleEndian.Uint64(b)&(high>>(64-8*n)) == 0 {
			return true
		}
	}
	return utf8.Valid(b[:n])
}

// varint is protowire.ConsumeVarint with a fast path if at least eight bytes are left. It processes
// eight bytes at once, because branches on the length are hard to predict.
func varint(b []byte) (uint64, int) {
	if len(b) < 8 {
		return protowire.ConsumeVarint(b)
	}
	v := binary.LittleEndian.Uint64(b)
	ends := ^v & high // high bit of each byte that ends a number
	if ends == 0 {
		return protowire.ConsumeVarint(b)
	}
	v &= (ends - 1) &^ high // keep the bytes up to the first such byte, without high bits
	// Close the gaps between the 7-bit groups.
	v = v&0x007f007f007f007f | v&0x7f007f007f007f00>>1
	v = v&0x00003fff00003fff | v&0x3fff00003fff0000>>2
	v = v&0x000000000fffffff | v&0x0fffffff00000000>>4
	return v, bits.TrailingZeros64(ends)/8 + 1
}

// appendVarint appends a scalar that is a varint on the wire. Values are truncated
// to the kind's size, as Protobuf does.
func (f *field) appendVarint(v uint64) {
	switch f.kind {
	case boolKind:
		f.bools.Append(v != 0)
	case int32Kind:
		f.int32s.Append(int32(v))
	case sint32Kind:
		f.int32s.Append(int32(protowire.DecodeZigZag(v & math.MaxUint32)))
	case uint32Kind:
		f.int64s.Append(int64(uint32(v)))
	case int64Kind:
		f.int64s.Append(int64(v))
	case sint64Kind:
		f.int64s.Append(protowire.DecodeZigZag(v))
	case uint64Kind:
		f.decimals.Append(decimal128.New(0, v))
	case enumKind:
		f.enum.append(f.bytes, int32(v))
	}
}

// append32 appends a four-byte scalar. See appendVarint.
func (f *field) append32(v uint32) {
	switch f.kind {
	case sfixed32Kind:
		f.int32s.Append(int32(v))
	case fixed32Kind:
		f.int64s.Append(int64(v))
	case floatKind:
		f.float32s.Append(math.Float32frombits(v))
	}
}

// append64 appends an eight-byte scalar. See appendVarint.
func (f *field) append64(v uint64) {
	switch f.kind {
	case sfixed64Kind:
		f.int64s.Append(int64(v))
	case fixed64Kind:
		f.decimals.Append(decimal128.New(0, v))
	case doubleKind:
		f.float64s.Append(math.Float64frombits(v))
	}
}

// content appends a length-delimited value.
func (d *Decoder) content(f *field, b []byte) error {
	switch f.kind {
	case stringKind:
		if !utf8.Valid(b) {
			return errNotUTF8
		}
		f.bytes.Append(b)
	case bytesKind:
		f.bytes.Append(b)
	case messageKind:
		// Wrappers have no struct: their only field is the column itself.
		if f.structs != nil {
			f.structs.Append()
		}
		return d.message(f.message, b)
	case entryKind:
		return d.message(f.message, b)
	case timestampKind:
		return d.timestamp(f, b)
	case durationKind:
		return d.duration(f, b)
	case moneyKind:
		return d.money(f, b)
	case opaqueKind:
		return d.opaque(f, b)
	}
	return nil
}

// absent appends the value of a field that the message lacks: null, the default, or an error if the
// field is required.
func (d *Decoder) absent(f *field) error {
	// Fields with presence are null. The others have their default.
	if !f.implicit {
		f.column.AppendNull()
		if f.kind == moneyKind {
			f.bytes.AppendNull()
		}
		if f.required {
			return refuse("required field is missing")
		}
		return nil
	}
	switch f.typ {
	case protowire.VarintType:
		if f.kind == enumKind {
			f.enum.append(f.bytes, f.enum.otherwise)
			return nil
		}
		f.appendVarint(0)
	case protowire.Fixed32Type:
		f.append32(0)
	case protowire.Fixed64Type:
		f.append64(0)
	default:
		return d.content(f, nil) // the value of a map entry is an empty message if absent
	}
	return nil
}

// pair is the content of Timestamp, Duration or Money: units and nanos.
type pair struct {
	whole int64 // field w: seconds or units
	nanos int32 // field w + 1
	// text is the field before: the currency of Money.
	text []byte
}

// pair reads a message with units in field w, nanos in field w+1, and a text in field w-1 if any.
// The last occurrence of a field wins.
func (d *Decoder) pair(b []byte, w protowire.Number) (p pair, err error) {
	for len(b) > 0 {
		number, typ, tag := consumeTag(b)
		if tag < 0 {
			return p, malformed(tag)
		}
		n := 0
		switch {
		case typ == protowire.VarintType && (number == w || number == w+1):
			var v uint64
			if v, n = varint(b[tag:]); number == w {
				p.whole = int64(v)
			} else {
				p.nanos = int32(v)
			}
		case typ == protowire.BytesType && number == w-1:
			p.text, n = protowire.ConsumeBytes(b[tag:])
			if n >= 0 && !utf8.Valid(p.text) {
				return p, inField("currency_code", notInList, errNotUTF8)
			}
		default:
			n = protowire.ConsumeFieldValue(number, typ, b[tag:])
			d.hasUnknown = true
		}
		if n < 0 {
			return p, malformed(n)
		}
		b = b[tag+n:]
	}
	return p, nil
}

// nanosPerUnit is the number of nanos in a second, or in a unit of money.
const nanosPerUnit = 1_000_000_000

// timestamp appends a Timestamp in microseconds. On refusal it appends null, so that the columns
// keep equal lengths.
func (d *Decoder) timestamp(f *field, b []byte) error {
	p, err := d.pair(b, 1)
	if err != nil {
		return err
	}
	micros, ok := timeunit.OfSeconds(p.whole, p.nanos)
	if !ok {
		f.int64s.AppendNull()
		return refuse("%d seconds and %d nanos are outside of the years 1 to 9999", p.whole, p.nanos)
	}
	f.int64s.Append(micros)
	return nil
}

// duration appends a Duration in nanoseconds.
func (d *Decoder) duration(f *field, b []byte) error {
	p, err := d.pair(b, 1)
	if err != nil {
		return err
	}
	if !p.signsAgree() {
		f.int64s.AppendNull()
		return refuse("%d seconds and %d nanos are not a duration", p.whole, p.nanos)
	}
	nanos, ok := timeunit.Nanoseconds(p.whole, p.nanos)
	if !ok {
		f.int64s.AppendNull()
		return refuse("%d seconds and %d nanos exceed 64 bits of nanoseconds", p.whole, p.nanos)
	}
	f.int64s.Append(nanos)
	return nil
}

// signsAgree reports whether units and nanos are valid by Protobuf's rules.
func (p pair) signsAgree() bool {
	return p.nanos > -nanosPerUnit && p.nanos < nanosPerUnit &&
		(p.whole <= 0 || p.nanos >= 0) && (p.whole >= 0 || p.nanos <= 0)
}

// money appends an amount and its currency, to two columns or to a struct.
func (d *Decoder) money(f *field, b []byte) error {
	p, err := d.pair(b, 2)
	if err != nil {
		return err
	}
	if f.structs != nil {
		f.structs.Append()
	}
	f.bytes.Append(p.text)
	if !p.signsAgree() {
		f.decimals.AppendNull()
		return refuse("%d units and %d nanos are not an amount", p.whole, p.nanos)
	}
	// units × 10⁹ + nanos is the unscaled value of a decimal with nine places.
	units := decimal128.FromI64(p.whole).Mul(decimal128.FromI64(nanosPerUnit))
	f.decimals.Append(units.Add(decimal128.FromI64(int64(p.nanos))))
	return nil
}

// opaque appends the bytes of a recursive message after validating them.
func (d *Decoder) opaque(f *field, b []byte) error {
	// Readers of the column must be able to decode it later.
	if err := check(f.descriptor, b, maxDepth-f.depth); err != nil {
		return err
	}
	f.bytes.Append(b)
	return nil
}
