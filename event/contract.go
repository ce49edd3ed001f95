package event

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// contract is what an aggregate's events message says of payloads, compiled from its descriptor: readers check millions
// of payloads, most of which they turn into columns without making messages of them.
type contract struct {
	types   map[string]protowire.Number // of the members of the oneof "event", by the message's full name
	members map[protowire.Number]*member
}

// member is one kind of event.
type member struct {
	message *message
	money   bool // it has amounts, which must be of one currency
}

// message is a message type as far as a payload's check needs it.
type message struct {
	fields   []field // by number; the rest are newer than this program
	required uint64  // numbers of fields that must be there, as bits
	stamp    bool    // google.protobuf.Timestamp
	amount   bool    // google.type.Money
}

type field struct {
	known   bool
	kind    protoreflect.Kind
	typ     protowire.Type
	list    bool
	name    protoreflect.Name
	message *message
}

const (
	timestampName = "google.protobuf.Timestamp"
	moneyName     = "google.type.Money"
	maxDepth      = 100 // of messages in messages
)

// required names the fields without which an event says nothing that can be kept: every service has always set them.
// What is added to a message later must not be required, for the events before do not have it.
var required = map[protoreflect.FullName][]protoreflect.Name{
	"millrace.order.v1.OrderPlaced":              {"ordered_at", "total"},
	"millrace.order.v1.LinesAdded":               {"ordered_at", "total"},
	"millrace.order.v1.OrderLine":                {"unit_price"},
	"millrace.catalog.v1.PriceSet":               {"price"},
	"millrace.inventory.v1.StockReceived":        {"received_at"},
	"millrace.inventory.v1.StockAdjusted":        {"adjusted_at"},
	"millrace.inventory.v1.StockReserved":        {"reserved_at"},
	"millrace.inventory.v1.ReservationCommitted": {"committed_at"},
	"millrace.inventory.v1.ReservationReleased":  {"released_at"},
}

var contracts sync.Map // *contract by the full name of the events message

// contractOf compiles the contract of an events message, once. The message must be linked into the program.
func contractOf(name string) (*contract, error) {
	if c, ok := contracts.Load(name); ok {
		return c.(*contract), nil
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, fmt.Errorf("%s is not linked in: %w", name, err)
	}
	md, ok := d.(protoreflect.MessageDescriptor)
	if !ok || md.Oneofs().ByName("event") == nil {
		return nil, fmt.Errorf("%s has no oneof named event", name)
	}
	c := &contract{types: map[string]protowire.Number{}, members: map[protowire.Number]*member{}}
	compiled := map[protoreflect.FullName]*message{}
	for members, i := md.Oneofs().ByName("event").Fields(), 0; i < members.Len(); i++ {
		fd := members.Get(i)
		c.types[string(fd.Message().FullName())] = fd.Number()
		c.members[fd.Number()] = &member{message: compile(fd.Message(), compiled), money: fd.Message().Fields().ByName("currency") != nil}
	}
	contracts.Store(name, c)
	return c, nil
}

func compile(md protoreflect.MessageDescriptor, compiled map[protoreflect.FullName]*message) *message {
	if m := compiled[md.FullName()]; m != nil {
		return m
	}
	m := &message{stamp: md.FullName() == timestampName, amount: md.FullName() == moneyName}
	compiled[md.FullName()] = m
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		n := int(fd.Number())
		if n >= 64 { // no contract has one; it would be taken for a newer field
			continue
		}
		for len(m.fields) <= n {
			m.fields = append(m.fields, field{})
		}
		f := field{known: true, kind: fd.Kind(), typ: wireType(fd.Kind()), list: fd.IsList(), name: fd.Name()}
		if fd.Message() != nil {
			f.message = compile(fd.Message(), compiled)
		}
		m.fields[n] = f
		for _, name := range required[md.FullName()] {
			if name == fd.Name() {
				m.required |= 1 << n
			}
		}
	}
	return m
}

var (
	errTwoEvents = errors.New("it holds more than one event")
	errNotUTF8   = errors.New("text is not UTF-8")
	errTooDeep   = errors.New("messages are nested too deep")
)

// member finds the one event that a payload holds: its number, 0 where it is of a kind that this program does not know,
// and its message.
func (c *contract) member(payload []byte) (number protowire.Number, content []byte, err error) {
	for len(payload) > 0 {
		v, size := consume(payload)
		if size < 0 {
			return 0, nil, protowire.ParseError(size)
		}
		payload = payload[size:]
		if c.members[v.number] == nil {
			continue
		}
		if v.typ != protowire.BytesType {
			return 0, nil, fmt.Errorf("field %d is not a message", v.number)
		}
		if number != 0 {
			return 0, nil, errTwoEvents
		}
		number, content = v.number, v.content
	}
	return number, content, nil
}

// value is a field of a message.
type value struct {
	number  protowire.Number
	typ     protowire.Type
	varint  uint64
	content []byte // of BytesType
}

// consume reads one field, and how long it is; a negative length is an error code of protowire's.
func consume(b []byte) (v value, size int) {
	if b[0] < 0x80 && b[0] >= 8 { // nearly always
		v.number, v.typ, size = protowire.Number(b[0]>>3), protowire.Type(b[0]&7), 1
	} else if v.number, v.typ, size = protowire.ConsumeTag(b); size < 0 {
		return v, size
	}
	var n int
	switch v.typ {
	case protowire.VarintType:
		v.varint, n = protowire.ConsumeVarint(b[size:])
	case protowire.BytesType:
		v.content, n = protowire.ConsumeBytes(b[size:])
	default:
		n = protowire.ConsumeFieldValue(v.number, v.typ, b[size:])
	}
	if n < 0 {
		return v, n
	}
	return v, size + n
}

// walk reads an event's message to the end. Its first field names the stream.
func (m *member) walk(b []byte, stream string) error {
	w := walker{}
	if err := w.message(m.message, b, maxDepth); err != nil {
		return err
	}
	if string(w.first) != stream {
		return fmt.Errorf("it is about %q, and the key is %q", w.first, stream)
	}
	if m.money {
		w.meet(w.own) // the event's, which its amounts repeat
	}
	if w.mixed {
		return errors.New("amounts are in more than one currency")
	}
	return nil
}

// walker is what a walk through one event has seen.
type walker struct {
	first    []byte // the outer message's field 1
	own      []byte // the outer message's field "currency"
	currency []byte // of amounts: the one that was met first
	met      bool   // one was
	mixed    bool   // and another
}

func (w *walker) meet(currency []byte) {
	switch {
	case !w.met:
		w.currency, w.met = currency, true
	case !bytes.Equal(w.currency, currency):
		w.mixed = true
	}
}

func (w *walker) message(m *message, b []byte, depth int) error {
	if depth == 0 {
		return errTooDeep
	}
	var there uint64
	var whole, nanos int64 // of a time or an amount
	var code []byte
	for len(b) > 0 {
		v, size := consume(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		n, typ := v.number, v.typ
		if int(n) >= len(m.fields) || !m.fields[n].known {
			continue
		}
		f := &m.fields[n]
		if f.message != nil && !f.list && there&(1<<n) != 0 {
			return fmt.Errorf("%s comes twice", f.name) // readers would have to agree on how halves are joined
		}
		there |= 1 << n
		switch {
		case typ == protowire.VarintType && f.typ == typ:
			if f.kind == protoreflect.Uint32Kind && uint32(v.varint) > math.MaxInt32 {
				return fmt.Errorf("%s is too large", f.name) // for an int column
			}
			if !m.stamp && !m.amount {
				continue
			}
			if f.name == "nanos" {
				nanos = int64(int32(v.varint))
			} else {
				whole = int64(v.varint)
			}
		case typ == protowire.BytesType && f.typ == typ:
			if err := w.bytes(f, v.content, depth); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			switch {
			case m.amount && n == 1:
				code = v.content
			case depth == maxDepth && n == 1:
				w.first = v.content
			case depth == maxDepth && f.name == "currency":
				w.own = v.content
			}
		case typ == protowire.BytesType && f.list: // packed
			if !packed(f.typ, v.content) {
				return fmt.Errorf("%s: it is not a list", f.name)
			}
		case typ != f.typ:
			return fmt.Errorf("%s is of another type", f.name)
		}
	}
	if lacks := m.required &^ there; lacks != 0 {
		for n := range m.fields {
			if lacks&(1<<n) != 0 {
				return fmt.Errorf("%s is missing", m.fields[n].name)
			}
		}
	}
	if m.amount {
		w.meet(code)
	}
	switch {
	case m.stamp && (whole < firstSecond || whole > lastSecond || nanos < 0 || nanos >= nanosPerUnit):
		return fmt.Errorf("%d seconds and %d nanos are no time of the years 1 to 9999", whole, nanos)
	case m.amount && (nanos <= -nanosPerUnit || nanos >= nanosPerUnit || whole > 0 && nanos < 0 || whole < 0 && nanos > 0):
		return fmt.Errorf("%w: %d units and %d nanos", ErrMoney, whole, nanos)
	}
	return nil
}

// What google.protobuf.Timestamp can hold: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z.
const (
	firstSecond = -62135596800
	lastSecond  = 253402300799
)

func (w *walker) bytes(f *field, content []byte, depth int) error {
	switch {
	case f.message != nil:
		return w.message(f.message, content, depth-1)
	case f.kind == protoreflect.StringKind && !utf8.Valid(content):
		return errNotUTF8
	}
	return nil
}

// packed reports whether b is a list of scalars of a wire type.
func packed(typ protowire.Type, b []byte) bool {
	for len(b) > 0 {
		n := protowire.ConsumeFieldValue(1, typ, b)
		if n < 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	default:
		return protowire.VarintType
	}
}
