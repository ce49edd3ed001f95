package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// keepUnknown appends what the other columns do not have of a message that they have otherwise.
// Most messages have nothing such, so that going through them once more costs nothing on the whole.
func (d *Decoder) keepUnknown(wire []byte) {
	if d.strange {
		d.scratch = d.root.rest(d.scratch[:0], wire)
		d.unknown.Append(d.scratch)
		return
	}
	d.unknown.AppendNull()
}

// rest appends to out what the columns do not have of a message that is well-formed and has no
// field twice.
func (m *message) rest(out, b []byte) []byte {
	for _, f := range m.runs {
		f.skipped = 0
	}
	for len(b) > 0 {
		number, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(number, typ, b[tag:])
		whole := b[:size]
		b = b[size:]

		f := m.byNumber[number]
		if f == nil || typ != f.typ && (!f.packable || typ != protowire.BytesType) {
			out = append(out, whole...)
			continue
		}
		inner := f.inner()
		if inner == nil {
			continue
		}
		if f.shape == mapped {
			out = f.restOfEntry(out, f.unwrap(whole[tag:]))
			continue
		}
		rest := inner.rest(nil, f.unwrap(whole[tag:]))
		if f.shape == listed {
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

// restOfEntry appends an entry of a map, where its value has anything unknown: the key, and that.
func (f *field) restOfEntry(out, b []byte) []byte {
	value := f.message.byNumber[2]
	var key, rest []byte
	for len(b) > 0 {
		number, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(number, typ, b[tag:])
		switch inner := value.inner(); {
		case number == 1 && typ == f.message.byNumber[1].typ:
			key = b[:size]
		case number == 2 && typ == value.typ && inner != nil:
			rest = inner.rest(nil, value.unwrap(b[tag:size]))
		}
		b = b[size:]
	}
	if len(rest) == 0 {
		return out
	}
	return f.wrap(out, value.wrap(key[:len(key):len(key)], rest))
}

// inner returns the message that a value is, as far as anything in it can be unknown; nil if it is
// none.
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

// What is known of the messages whose values are columns.
var (
	secondsAndNanos    = known(protowire.VarintType, protowire.VarintType)
	currencyUnitsNanos = known(protowire.BytesType, protowire.VarintType, protowire.VarintType)
)

func known(types ...protowire.Type) *message {
	m := &message{byNumber: map[protowire.Number]*field{}}
	for i, t := range types {
		n := protowire.Number(i + 1)
		m.byNumber[n] = &field{number: n, typ: t}
	}
	return m
}

// unwrap returns the content of a message, after its tag.
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
