package wire

import (
	"strconv"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/lake/columnar"
)

// message is a message as it is on the wire, and once it is bound, the state of the one being
// decoded. None is inside itself, so one of each is enough.
type message struct {
	fields      []*field // in the order of their columns
	entry       bool     // of a map: a key and a value
	transparent bool     // its one field is the column of the field that it is in

	// Bound.
	bySmallTag [128]*field // by the tags of one byte
	byNumber   map[protowire.Number]*field
	singles    []*field // fields that are neither list nor map
	runs       []*field
	present    *columnar.Bools   // of a message without fields
	others     []columnar.Column // columns that the message does not have any more

	turn uint64 // counts the messages decoded; a field that has been seen in this one bears its number
}

// field is a field on the wire, and once it is bound, where its values go.
type field struct {
	// What each value asks for stands together.
	kind     kind
	typ      protowire.Type // of a single value
	shape    shape
	implicit bool    // absent is the default, not null
	bit      uint64  // of the first 64 of a message's singles each has one
	seen     uint64  // the turn in which the message had it
	oneof    *uint64 // the turn in which the message had one of its oneof

	// Bound. Only the column of the field's kind is there.
	bytes    *columnar.Bytes // for money, the currency
	int64s   *columnar.Int64s
	int32s   *columnar.Int32s
	float64s *columnar.Float64s
	bools    *columnar.Bools
	float32s *columnar.Float32s
	decimals *columnar.Decimals
	structs  *columnar.Structs
	lists    *columnar.Lists
	maps     *columnar.Maps
	column   columnar.Column

	number     protowire.Number
	name       string
	packable   bool
	required   bool // absent is an error
	oneofIndex int  // fields of one oneof share a number from 1; 0 is none
	enum       *enum
	message    *message
	descriptor protoreflect.MessageDescriptor // of opaqueKind
	depth      int                            // of opaqueKind: messages and maps around it
	// skipped counts, where what is unknown is gathered, the elements of a list before the first
	// that has any; -1 from there on.
	skipped int
}

type shape uint8

const (
	single shape = iota
	listed
	mapped
)

// kind is how a value is on the wire, and what becomes of it.
type kind uint8

const (
	boolKind kind = iota
	int32Kind
	sint32Kind
	sfixed32Kind
	uint32Kind
	fixed32Kind
	int64Kind
	sint64Kind
	sfixed64Kind
	uint64Kind
	fixed64Kind
	floatKind
	doubleKind
	stringKind
	bytesKind
	enumKind
	messageKind
	timestampKind
	durationKind
	moneyKind
	opaqueKind // a message whose bytes are the value
	entryKind  // of a map
)

var scalars = map[protoreflect.Kind]struct {
	kind   kind
	wire   protowire.Type
	column columnar.Type
}{
	protoreflect.BoolKind:     {boolKind, protowire.VarintType, iceberg.PrimitiveTypes.Bool},
	protoreflect.Int32Kind:    {int32Kind, protowire.VarintType, iceberg.PrimitiveTypes.Int32},
	protoreflect.Sint32Kind:   {sint32Kind, protowire.VarintType, iceberg.PrimitiveTypes.Int32},
	protoreflect.Sfixed32Kind: {sfixed32Kind, protowire.Fixed32Type, iceberg.PrimitiveTypes.Int32},
	protoreflect.Uint32Kind:   {uint32Kind, protowire.VarintType, iceberg.PrimitiveTypes.Int64},
	protoreflect.Fixed32Kind:  {fixed32Kind, protowire.Fixed32Type, iceberg.PrimitiveTypes.Int64},
	protoreflect.Int64Kind:    {int64Kind, protowire.VarintType, iceberg.PrimitiveTypes.Int64},
	protoreflect.Sint64Kind:   {sint64Kind, protowire.VarintType, iceberg.PrimitiveTypes.Int64},
	protoreflect.Sfixed64Kind: {sfixed64Kind, protowire.Fixed64Type, iceberg.PrimitiveTypes.Int64},
	protoreflect.Uint64Kind:   {uint64Kind, protowire.VarintType, unsignedType},
	protoreflect.Fixed64Kind:  {fixed64Kind, protowire.Fixed64Type, unsignedType},
	protoreflect.FloatKind:    {floatKind, protowire.Fixed32Type, iceberg.PrimitiveTypes.Float32},
	protoreflect.DoubleKind:   {doubleKind, protowire.Fixed64Type, iceberg.PrimitiveTypes.Float64},
	protoreflect.StringKind:   {stringKind, protowire.BytesType, iceberg.PrimitiveTypes.String},
	protoreflect.BytesKind:    {bytesKind, protowire.BytesType, iceberg.PrimitiveTypes.Binary},
	protoreflect.EnumKind:     {enumKind, protowire.VarintType, iceberg.PrimitiveTypes.String},
}

// enum has the names of an enum's numbers.
type enum struct {
	names     []string // of the numbers from 0
	others    map[int32]string
	otherwise int32 // the number of a value that is absent and cannot be null
}

func newEnum(fd protoreflect.FieldDescriptor) *enum {
	e := &enum{others: map[int32]string{}}
	if !fd.IsList() {
		e.otherwise = int32(fd.Default().Enum())
	}
	values := fd.Enum().Values()
	for i := range values.Len() {
		// Of several names, Protobuf takes the first.
		n, name := int32(values.Get(i).Number()), string(values.ByNumber(values.Get(i).Number()).Name())
		if n == int32(len(e.names)) {
			e.names = append(e.names, name)
		} else {
			e.others[n] = name
		}
	}
	return e
}

func (e *enum) append(to *columnar.Bytes, n int32) {
	if uint32(n) < uint32(len(e.names)) {
		to.AppendString(e.names[n])
		return
	}
	if name, known := e.others[n]; known {
		to.AppendString(name)
		return
	}
	var text [11]byte
	to.Append(strconv.AppendInt(text[:0], int64(n), 10))
}
