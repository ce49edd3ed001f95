// Package protoavrotest helps to test codecs of Protobuf messages.
//
// Compile returns descriptors for the text of a .proto file, such as Everything, which has a field
// of every kind. Generate draws random messages for a descriptor, and Marshal encodes them as the
// services do. A codec under test must return the bytes of Marshal unchanged.
//
// Bytes are compared, not messages, because a record's bytes are what the services have stored and
// what readers compare.
package protoavrotest

import (
	"context"
	"math"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

// Generate draws a message whose times have whole microseconds and whose amounts are valid. All
// else is arbitrary. If newer is set, the message may have fields and enum numbers that its
// descriptor lacks. depth is how deep the message is nested in another one; callers pass 0.
func Generate(t *rapid.T, of protoreflect.MessageDescriptor, newer bool, depth int) proto.Message {
	m := newMessage(of)
	for i := range of.Fields().Len() {
		f := of.Fields().Get(i)
		// This ends the recursion of types that contain themselves.
		deep := depth > 2 && f.Message() != nil
		if deep || f.HasPresence() && rapid.Bool().Draw(t, "absent") {
			continue
		}
		switch {
		case f.IsMap():
			for range rapid.IntRange(0, 3).Draw(t, "entries") {
				key := value(t, f.MapKey(), newer, depth)
				m.Mutable(f).Map().Set(key.MapKey(), value(t, f.MapValue(), newer, depth))
			}
		case f.IsList():
			for range rapid.IntRange(0, 3).Draw(t, "items") {
				m.Mutable(f).List().Append(value(t, f, newer, depth))
			}
		default:
			m.Set(f, value(t, f, newer, depth))
		}
	}
	// A field that a later version of the schema has added.
	if newer && rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
		unknown := protowire.AppendTag(nil, 3000, protowire.BytesType)
		m.SetUnknown(protowire.AppendBytes(unknown, []byte("from the future")))
	}
	return m.Interface()
}

// Marshal returns Go's wire format. It is deterministic, because only then do dynamic messages have
// their fields in order.
func Marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// newMessage returns a message of the linked-in type if there is one: for dynamic messages, Go's
// Protobuf writes oneofs at another place.
func newMessage(of protoreflect.MessageDescriptor) protoreflect.Message {
	if typ, err := protoregistry.GlobalTypes.FindMessageByName(of.FullName()); err == nil {
		return typ.New()
	}
	return dynamicpb.NewMessage(of)
}

// value draws a value for a single value of a field.
func value(t *rapid.T, f protoreflect.FieldDescriptor, newer bool, depth int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(t, "uint32"))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		// Avro's largest integer is a signed 64-bit one.
		return protoreflect.ValueOfUint64(rapid.Uint64Max(math.MaxInt64).Draw(t, "uint64"))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(rapid.Float32().Draw(t, "float"))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, "double"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.String().Draw(t, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
	case protoreflect.EnumKind:
		known := f.Enum().Values()
		if newer && rapid.IntRange(0, 9).Draw(t, "new number") == 0 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32().Draw(t, "enum")))
		}
		return protoreflect.ValueOfEnum(known.Get(rapid.IntRange(0, known.Len()-1).Draw(t, "enum")).Number())
	}
	// Times and amounts must be valid. All other messages are drawn field by field.
	switch m := newMessage(f.Message()); f.Message().FullName() {
	// The years 1 to 9999, in seconds since 1970, which is the range of a valid Timestamp.
	case "google.protobuf.Timestamp":
		m.Set(m.Descriptor().Fields().ByName("seconds"),
			protoreflect.ValueOfInt64(rapid.Int64Range(-62_135_596_800, 253_402_300_799).Draw(t, "seconds")))
		m.Set(m.Descriptor().Fields().ByName("nanos"),
			protoreflect.ValueOfInt32(1000*rapid.Int32Range(0, 999_999).Draw(t, "micros")))
		return protoreflect.ValueOfMessage(m)
	case "google.type.Money":
		// The units and nanos of a valid Money have the same sign.
		units, nanos := rapid.Int64().Draw(t, "units"), rapid.Int32Range(0, 999_999_999).Draw(t, "nanos")
		if units < 0 || units == 0 && rapid.Bool().Draw(t, "negative") {
			nanos = -nanos
		}
		m.Set(m.Descriptor().Fields().ByName("currency_code"),
			protoreflect.ValueOfString(rapid.String().Draw(t, "currency")))
		m.Set(m.Descriptor().Fields().ByName("units"), protoreflect.ValueOfInt64(units))
		m.Set(m.Descriptor().Fields().ByName("nanos"), protoreflect.ValueOfInt32(nanos))
		return protoreflect.ValueOfMessage(m)
	}
	return protoreflect.ValueOfMessage(Generate(t, f.Message(), newer, depth+1).ProtoReflect())
}

// Compile compiles the text of a .proto file. Imports are resolved among linked-in files.
func Compile(tb testing.TB, text string) protoreflect.FileDescriptor {
	tb.Helper()
	c := protocompile.Compiler{Resolver: protocompile.CompositeResolver{
		&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(map[string]string{"test.proto": text})},
		protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
			f, err := protoregistry.GlobalFiles.FindFileByPath(path)
			return protocompile.SearchResult{Desc: f}, err
		}),
	}}
	files, err := c.Compile(context.Background(), "test.proto")
	if err != nil {
		tb.Fatal(err)
	}
	return files[0]
}

// Everything has every kind of field that a message can have. Its oneof comes last, because Go
// writes those of dynamic messages last.
const Everything = `
syntax = "proto3";
package test.v1;
import "google/protobuf/timestamp.proto";
import "google/type/money.proto";
message Everything {
  bool a = 1; int32 b = 2; sint32 c = 3; sfixed32 d = 4; uint32 e = 5; fixed32 f = 6;
  int64 g = 7; sint64 h = 8; sfixed64 i = 9; uint64 j = 10; fixed64 k = 11;
  float l = 12; double m = 13; string n = 14; bytes o = 15; Colour p = 16;
  google.protobuf.Timestamp q = 17; google.type.Money r = 18; Inner s = 19; Everything t = 20;
  repeated bool a2 = 31; repeated int32 b2 = 32; repeated sint32 c2 = 33; repeated sfixed32 d2 = 34; repeated uint32 e2 = 35; repeated fixed32 f2 = 36;
  repeated int64 g2 = 37; repeated sint64 h2 = 38; repeated sfixed64 i2 = 39; repeated uint64 j2 = 40; repeated fixed64 k2 = 41;
  repeated float l2 = 42; repeated double m2 = 43; repeated string n2 = 44; repeated bytes o2 = 45; repeated Colour p2 = 46;
  repeated google.protobuf.Timestamp q2 = 47; repeated google.type.Money r2 = 48; repeated Inner s2 = 49;
  optional bool a3 = 51; optional int32 b3 = 52; optional uint64 c3 = 53; optional string d3 = 54; optional Colour e3 = 55; optional double f3 = 56;
  map<string, int64> a4 = 61; map<string, Inner> b4 = 62; map<string, Colour> c4 = 63; map<string, google.type.Money> d4 = 64; map<string, fixed32> e4 = 65;
  oneof choice { bool a5 = 71; sint64 b5 = 72; string c5 = 73; Inner d5 = 74; Inner e5 = 75; Colour f5 = 76; }
  message Inner { string name = 1; repeated Inner more = 2; Deep deep = 3; message Deep { uint32 level = 1000; } }
  enum Colour { option allow_alias = true; NONE = 0; RED = 1; CRIMSON = 1; DARK = -1; BLUE = 7; }
}
message Second { message Third { string id = 1; } }
`
