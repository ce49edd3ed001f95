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

// contract describes the payloads of an aggregate, for a check of their wire format. It is compiled
// from the descriptor of the events message. The check does not decode a message, because readers
// check millions of payloads, and most of them turn the bytes into columns directly.
type contract struct {
	types   map[string]protowire.Number // members of the oneof "event", by full name of the message
	members map[protowire.Number]*member
}

// member is one kind of event.
type member struct {
	message *message
	money   bool // its amounts must share one currency
}

// message is the part of a message type that the check needs.
type message struct {
	fields   []field // indexed by number; unknown numbers are newer than this program
	required uint64  // bit set of the numbers of required fields
	stamp    bool    // google.protobuf.Timestamp
	amount   bool    // google.type.Money
}

// field is a known field of a message. The zero field is unknown.
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
	maxDepth      = 100 // levels of nested messages
)

// required lists the fields without which an event is useless. Every service has always set them.
// Never add a field that a message gained later: older events do not have it.
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
	"millrace.behavior.v1.BehaviorEvent":         {"message_id", "type", "timestamp", "received_at", "source"},
}

var contracts sync.Map // of *contract, by full name of the events message

// contractOf compiles the contract of an events message once. The message must be linked in.
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
		// An event with a field "currency" states all its amounts in that currency.
		c.members[fd.Number()] = &member{
			message: compile(fd.Message(), compiled), money: fd.Message().Fields().ByName("currency") != nil,
		}
	}
	contracts.Store(name, c)
	return c, nil
}

// compile describes a message type and, recursively, the types of its fields. The map breaks
// cycles.
func compile(md protoreflect.MessageDescriptor, compiled map[protoreflect.FullName]*message) *message {
	if m := compiled[md.FullName()]; m != nil {
		return m
	}
	m := &message{stamp: md.FullName() == timestampName, amount: md.FullName() == moneyName}
	compiled[md.FullName()] = m
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		n := int(fd.Number())
		// The number must fit the bit sets. No contract has a higher one, which would be treated as
		// a newer field.
		if n >= 64 {
			continue
		}
		for len(m.fields) <= n {
			m.fields = append(m.fields, field{})
		}
		f := field{known: true, kind: fd.Kind(), typ: wireType(fd.Kind()), list: fd.IsList() || fd.IsMap(), name: fd.Name()}
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
	errTwoEvents = errors.New("it contains more than one event")
	errNotUTF8   = errors.New("text is not UTF-8")
	errTooDeep   = errors.New("messages are nested too deep")
)

// member finds the one event in a payload and returns its number and message. The number is 0 if
// this program does not know the type of event.
func (c *contract) member(payload []byte) (number protowire.Number, content []byte, err error) {
	for len(payload) > 0 {
		v, size := consume(payload)
		if size < 0 {
			return 0, nil, protowire.ParseError(size)
		}
		payload = payload[size:]
		if c.members[v.number] == nil { // a type of event, or a field, of a newer version
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

// value is one field read from the wire.
type value struct {
	number  protowire.Number
	typ     protowire.Type
	varint  uint64
	content []byte // of BytesType
}

// consume reads one field and returns its size. A negative size is an error code of protowire.
func consume(b []byte) (v value, size int) {
	if b[0] < 0x80 && b[0] >= 8 { // a tag of one byte, as nearly all fields have
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

// walk checks an event's message to its end. The first field of every event names its stream.
func (m *member) walk(b []byte, stream string) error {
	w := walker{}
	if err := w.message(m.message, b, maxDepth); err != nil {
		return err
	}
	if string(w.first) != stream {
		return fmt.Errorf("stream is %q, but the key is %q", w.first, stream)
	}
	if m.money {
		w.addCurrency(w.own) // the event's own currency, which its amounts repeat
	}
	if w.mixed {
		return errors.New("amounts are in more than one currency")
	}
	return nil
}

// walker is the state of a walk through one event.
type walker struct {
	first    []byte // the outer message's field 1
	own      []byte // the outer message's field "currency"
	currency []byte // of the first amount
	seen     bool   // an amount was seen
	mixed    bool   // a later amount had another currency
}

// addCurrency records the currency of an amount.
func (w *walker) addCurrency(currency []byte) {
	switch {
	case !w.seen:
		w.currency, w.seen = currency, true
	case !bytes.Equal(w.currency, currency):
		w.mixed = true
	}
}

// message checks one message. depth limits the nesting, so that hostile payloads cannot exhaust the
// stack.
func (w *walker) message(m *message, b []byte, depth int) error {
	if depth == 0 {
		return errTooDeep
	}
	var present uint64     // bit set of the numbers of fields that occur
	var units, nanos int64 // of a timestamp (in seconds) or an amount
	var code []byte        // the currency of an amount
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
		if f.message != nil && !f.list && present&(1<<n) != 0 {
			// Readers could merge the two in different ways.
			return fmt.Errorf("field %s occurs twice", f.name)
		}
		present |= 1 << n
		switch {
		case typ == protowire.VarintType && f.typ == typ:
			if f.kind == protoreflect.Uint32Kind && uint32(v.varint) > math.MaxInt32 {
				return fmt.Errorf("field %s is too large", f.name) // tables store it as a signed integer
			}
			if !m.stamp && !m.amount {
				continue
			}
			if f.name == "nanos" {
				nanos = int64(int32(v.varint))
			} else {
				units = int64(v.varint)
			}
		case typ == protowire.BytesType && f.typ == typ:
			if err := w.bytes(f, v.content, depth); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			switch {
			case m.amount && n == 1:
				code = v.content
			case depth == maxDepth && n == 1: // of the event itself, not of a nested message
				w.first = v.content
			case depth == maxDepth && f.name == "currency":
				w.own = v.content
			}
		case typ == protowire.BytesType && f.list: // packed
			if !packed(f.typ, v.content) {
				return fmt.Errorf("field %s is not a packed list", f.name)
			}
		case typ != f.typ:
			return fmt.Errorf("field %s has the wrong wire type", f.name)
		}
	}
	if missing := m.required &^ present; missing != 0 {
		for n := range m.fields {
			if missing&(1<<n) != 0 {
				return fmt.Errorf("field %s is missing", m.fields[n].name)
			}
		}
	}
	if m.amount {
		w.addCurrency(code)
	}
	switch {
	case m.stamp && (units < firstSecond || units > lastSecond || nanos < 0 || nanos >= nanosPerUnit):
		return fmt.Errorf("%d seconds and %d nanos are not a time in the years 1 to 9999", units, nanos)
	case m.amount && (nanos <= -nanosPerUnit || nanos >= nanosPerUnit ||
		units > 0 && nanos < 0 || units < 0 && nanos > 0):
		return fmt.Errorf("%w: %d units and %d nanos", ErrMoney, units, nanos)
	}
	return nil
}

// The range of google.protobuf.Timestamp: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z.
const (
	firstSecond = -62135596800
	lastSecond  = 253402300799
)

// bytes checks a field of wire type bytes: a message recursively, a string for UTF-8.
func (w *walker) bytes(f *field, content []byte, depth int) error {
	switch {
	case f.message != nil:
		return w.message(f.message, content, depth-1)
	case f.kind == protoreflect.StringKind && !utf8.Valid(content):
		return errNotUTF8
	}
	return nil
}

// packed reports whether b is a packed list of scalars of a wire type.
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

// wireType returns the wire type of an unpacked field of a kind.
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
