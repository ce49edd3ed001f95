package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// keepUnknown appends the unknown fields of a message to their column, as a message that has
// nothing else. Few messages have any, so the second pass over those is affordable.
func (d *Decoder) keepUnknown(wire []byte) {
	if d.hasUnknown {
		d.scratch = d.root.unknown(d.scratch[:0], wire)
		d.unknown.Append(d.scratch)
		return
	}
	d.unknown.AppendNull()
}

// unknown appends to out the fields that the columns do not represent. b must be well-formed and
// have no duplicate fields.
func (m *message) unknown(out, b []byte) []byte {
	// Lists of a nested message are counted anew for each occurrence of it.
	for _, f := range m.repeated {
		f.skipped = 0
	}
	for len(b) > 0 {
		number, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(number, typ, b[tag:])
		whole := b[:size]
		b = b[size:]

		f := m.byNumber[number]
		// Unknown to the columns, as a whole.
		if f == nil || typ != f.typ && (!f.packable || typ != protowire.BytesType) {
			out = append(out, whole...)
			continue
		}
		// Known fields can only have unknown fields within messages.
		inner := f.inner()
		if inner == nil {
			continue
		}
		if f.shape == mapped {
			out = f.appendUnknownOfEntry(out, f.unwrap(whole[tag:]))
			continue
		}
		rest := inner.unknown(nil, f.unwrap(whole[tag:]))
		if f.shape == listed {
			// No element with unknown fields so far: count, and write the elements only if one
			// follows.
			if len(rest) == 0 && f.skipped >= 0 {
				f.skipped++
				continue
			}
			for range f.skipped {
				out = f.wrap(out, nil)
			}
			f.skipped = -1
		} else if len(rest) == 0 {
			continue
		}
		out = f.wrap(out, rest)
	}
	return out
}

// appendUnknownOfEntry appends a map entry if its value has unknown fields: the key, and a value
// with the unknown fields only.
func (f *field) appendUnknownOfEntry(out, b []byte) []byte {
	// Field 1 of an entry is the key, and field 2 the value.
	value := f.message.byNumber[2]
	var key, rest []byte
	for len(b) > 0 {
		number, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(number, typ, b[tag:])
		switch inner := value.inner(); {
		case number == 1 && typ == f.message.byNumber[1].typ:
			key = b[:size]
		case number == 2 && typ == value.typ && inner != nil:
			rest = inner.unknown(nil, value.unwrap(b[tag:size]))
		}
		b = b[size:]
	}
	if len(rest) == 0 {
		return out
	}
	return f.wrap(out, value.wrap(key[:len(key):len(key)], rest))
}

// inner returns the message type of a field's values if they can have unknown fields, or nil.
func (f *field) inner() *message {
	switch f.kind {
	case messageKind, entryKind:
		return f.message
	case timestampKind, durationKind:
		return secondsAndNanos
	case moneyKind:
		return currencyUnitsNanos
	}
	return nil
}

// Known fields of well-known message types that are stored as scalars.
var (
	secondsAndNanos    = known(protowire.VarintType, protowire.VarintType)
	currencyUnitsNanos = known(protowire.BytesType, protowire.VarintType, protowire.VarintType)
)

// known returns a message type with fields of the given wire types, numbered from 1.
func known(types ...protowire.Type) *message {
	// Only numbers and wire types are needed to find unknown fields.
	m := &message{byNumber: map[protowire.Number]*field{}}
	for i, t := range types {
		n := protowire.Number(i + 1)
		m.byNumber[n] = &field{number: n, typ: t}
	}
	return m
}

// unwrap returns the content of a message, given the bytes after its tag.
func (f *field) unwrap(b []byte) []byte {
	if f.typ == protowire.StartGroupType {
		b, _ = protowire.ConsumeGroup(f.number, b)
		return b
	}
	b, _ = protowire.ConsumeBytes(b)
	return b
}

// wrap appends a message with its tag.
func (f *field) wrap(out, content []byte) []byte {
	out = protowire.AppendTag(out, f.number, f.typ)
	if f.typ == protowire.StartGroupType {
		return protowire.AppendGroup(out, f.number, content)
	}
	return protowire.AppendBytes(out, content)
}
