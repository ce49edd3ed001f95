package wire

import (
	"strconv"

	"github.com/apache/iceberg-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/lake/columnar"
)

// message describes a message type on the wire. Once bound, it also has the state of the message
// being decoded. Message types are never nested in themselves here, so one state per type suffices.
type message struct {
	fields      []*field // in the order of their columns
	entry       bool     // a map entry: key and value
	transparent bool     // its only field is stored directly in the column of the enclosing field

	// Set when bound.
	bySmallTag [128]*field // fields by one-byte tag
	byNumber   map[protowire.Number]*field
	singles    []*field // singular fields
	repeated   []*field
	present    *columnar.Bools   // marker of a message without fields
	others     []columnar.Column // columns of fields that the message no longer has

	// generation is the number of messages decoded. Fields that occur in the current one carry it.
	generation uint64
}

// field describes a field on the wire. Once bound, it also has the column of its values.
type field struct {
	// The members that are used for each value come first, to share cache lines.
	kind     kind
	typ      protowire.Type // wire type of a single value
	shape    shape
	implicit bool    // if absent, its value is the default instead of null
	bit      uint64  // unique among the first 64 singular fields of a message; otherwise 0
	seen     uint64  // generation in which the field last occurred
	oneof    *uint64 // generation in which any member of its oneof last occurred

	// Set when bound. Only the column for the field's kind is set.
	bytes    *columnar.Bytes // for money, the column of the currency
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
	required   bool // its absence is an error
	oneofIndex int  // index of its oneof from 1; 0 if none
	enum       *enum
	message    *message
	descriptor protoreflect.MessageDescriptor // for opaqueKind
	depth      int                            // for opaqueKind: number of enclosing messages and maps
	// skipped is used while unknown fields are collected. It counts the leading elements of a list
	// without unknown fields, and is -1 after the first element with some.
	skipped int
}

// shape is the cardinality of a field.
type shape uint8

// The shapes. A field of a map has a message of kind entryKind.
const (
	single shape = iota
	listed
	mapped
)

// kind determines the wire format of a value and its conversion.
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
	opaqueKind // a message that is stored as its bytes
	entryKind  // a map entry
)

// scalars has the kind, wire type and column type of Protobuf's scalar types.
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

// enum has the names of an enum's values.
type enum struct {
	names     []string // by number, from 0 without gaps
	others    map[int32]string
	otherwise int32 // default value of a field that cannot be null
}

// newEnum returns the names of an enum's values.
func newEnum(fd protoreflect.FieldDescriptor) *enum {
	e := &enum{others: map[int32]string{}}
	if !fd.IsList() {
		e.otherwise = int32(fd.Default().Enum())
	}
	// Most enums are numbered from 0 without gaps, so that a slice suffices.
	values := fd.Enum().Values()
	for i := range values.Len() {
		// Protobuf uses the first of several names for a number.
		n, name := int32(values.Get(i).Number()), string(values.ByNumber(values.Get(i).Number()).Name())
		if n == int32(len(e.names)) {
			e.names = append(e.names, name)
		} else {
			e.others[n] = name
		}
	}
	return e
}

// append appends the name of a value, or its number if it has no name.
func (e *enum) append(to *columnar.Bytes, n int32) {
	// A negative number becomes a large unsigned one.
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
