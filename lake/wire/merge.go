package wire

import (
	"encoding/binary"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A message may contain a singular field several times. Protobuf then uses the last scalar, merges
// messages, drops earlier members of a oneof, and uses the last entry of each map key. This is
// rare, so such a message is first rewritten with each field once, and then decoded as usual.
// dynamicpb could do this, too, but it panics if a map entry has its key twice with different wire
// types.

// part is a field to be written once: a tag with its value, or the content of a message.
type part struct {
	field   *field
	tag     []byte // with the value, if it is copied unchanged
	content []byte
	dropped bool // replaced by another member of its oneof
}

// slot identifies something that can occur only once in a message.
type slot struct {
	field *field
	key   string // for map entries
}

// merged appends a rewritten message to out in which everything occurs once. b must be well-formed.
func (m *message) merged(out, b []byte) []byte {
	var parts []part
	slots, chosen := map[slot]int{}, map[*uint64]*field{}
	// First pass: find the parts that remain. b is well-formed, so no errors are possible.
	for len(b) > 0 {
		number, typ, tag := protowire.ConsumeTag(b)
		size := tag + protowire.ConsumeFieldValue(number, typ, b[tag:])
		whole := b[:size:size]
		b = b[size:]

		f := m.byNumber[number]
		// Unknown fields and repeated scalars are kept in order.
		if f == nil || typ != f.typ || f.shape == listed && f.kind != messageKind {
			parts = append(parts, part{tag: whole})
			continue
		}
		if f.oneof != nil {
			// A later member of a oneof removes an earlier one.
			if before := chosen[f.oneof]; before != nil && before != f {
				parts[slots[slot{field: before}]].dropped = true
				delete(slots, slot{field: before})
			}
			chosen[f.oneof] = f
		}
		p := part{tag: whole}
		if f.isMessage() {
			content := f.unwrap(whole[tag:])
			p = part{field: f, content: content[:len(content):len(content)]}
		}
		if f.shape == listed {
			parts = append(parts, p)
			continue
		}
		at := slot{field: f}
		if f.shape == mapped {
			at.key = f.message.key(p.content)
		}
		i, twice := slots[at]
		switch {
		case !twice:
			slots[at] = len(parts)
			parts = append(parts, p)
		// Merging messages is the same as concatenating their bytes.
		case f.shape == single && f.isMessage():
			parts[i].content = append(parts[i].content, p.content...)
		default:
			parts[i] = p
		}
	}
	// Messages are rewritten recursively, since their parts may be duplicated as well.
	for _, p := range parts {
		switch {
		case p.dropped:
		case p.field == nil:
			out = append(out, p.tag...)
		case p.field.message != nil:
			out = p.field.wrap(out, p.field.message.merged(nil, p.content))
		default: // parts of it may be doubled; the last one wins anyway
			out = p.field.wrap(out, p.content)
		}
	}
	return out
}

// isMessage reports whether the field's values are messages on the wire, including those stored as
// scalars.
func (f *field) isMessage() bool { return f.kind >= messageKind }

// key returns a string that identifies the key of a map entry.
func (m *message) key(entry []byte) string {
	f := m.byNumber[1]
	// The last key of an entry counts. If it is missing, the key is the default.
	var v uint64
	var text []byte
	for len(entry) > 0 {
		number, typ, n := protowire.ConsumeTag(entry)
		if number == 1 && typ == f.typ {
			switch typ {
			case protowire.VarintType:
				v, _ = protowire.ConsumeVarint(entry[n:])
			case protowire.Fixed32Type:
				v = uint64(binary.LittleEndian.Uint32(entry[n:]))
			case protowire.Fixed64Type:
				v = binary.LittleEndian.Uint64(entry[n:])
			default:
				text, _ = protowire.ConsumeBytes(entry[n:])
			}
		}
		entry = entry[n+protowire.ConsumeFieldValue(number, typ, entry[n:]):]
	}
	switch f.kind {
	case stringKind:
		return string(text)
	case boolKind:
		v = min(v, 1)
	// Only 32 bits of the varint count.
	case int32Kind, sint32Kind, uint32Kind:
		v = uint64(uint32(v))
	}
	return string(binary.LittleEndian.AppendUint64(nil, v))
}

// check returns an error if b is not a valid message by the rules of proto.Unmarshal, except for
// missing required fields. depth limits the nesting of messages.
func check(md protoreflect.MessageDescriptor, b []byte, depth int) error {
	// The depth counts from the outermost message, as in proto.Unmarshal.
	if depth <= 0 {
		return errDepth
	}
	for len(b) > 0 {
		number, typ, tag := consumeTag(b)
		if tag < 0 {
			return malformed(tag)
		}
		size := protowire.ConsumeFieldValue(number, typ, b[tag:])
		fd := md.Fields().ByNumber(number)
		if size < 0 && fd == nil {
			return malformed(size)
		}
		if size < 0 {
			return inField(string(fd.Name()), notInList, malformed(size))
		}
		if fd != nil {
			if err := checkValue(fd, typ, b[tag:tag+size], depth); err != nil {
				return inField(string(fd.Name()), notInList, err)
			}
		}
		b = b[tag+size:]
	}
	return nil
}

// checkValue validates one field. Fields with another wire type than declared are unknown fields,
// and thus valid.
func checkValue(fd protoreflect.FieldDescriptor, typ protowire.Type, b []byte, depth int) error {
	// proto.Unmarshal checks the content of these kinds, and so does this function.
	switch kind := fd.Kind(); {
	case kind == protoreflect.GroupKind && typ == protowire.StartGroupType:
		content, _ := protowire.ConsumeGroup(fd.Number(), b)
		return check(fd.Message(), content, depth-1)
	case typ != protowire.BytesType:
		return nil
	case kind == protoreflect.MessageKind:
		content, _ := protowire.ConsumeBytes(b)
		return check(fd.Message(), content, depth-1)
	case kind == protoreflect.StringKind:
		content, _ := protowire.ConsumeBytes(b)
		if fd.ParentFile().Syntax() != protoreflect.Proto2 && !utf8.Valid(content) {
			return errNotUTF8
		}
	case fd.IsList() && kind != protoreflect.BytesKind && kind != protoreflect.GroupKind:
		return checkPacked(scalars[kind].wire, b)
	}
	return nil
}

// checkPacked returns an error if b is not a packed list of scalars with the given wire type.
func checkPacked(typ protowire.Type, b []byte) error {
	content, _ := protowire.ConsumeBytes(b)
	for len(content) > 0 {
		n := protowire.ConsumeFieldValue(1, typ, content)
		if n < 0 {
			return malformed(n)
		}
		content = content[n:]
	}
	return nil
}
