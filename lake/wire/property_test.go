package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/wire"
)

// Rows have the content of their messages: for any content, in any number of parts, known or
// unknown.
func TestRowsEqualMessages(t *testing.T) {
	t.Parallel()
	for _, md := range []protoreflect.MessageDescriptor{everything, legacy, flat, wide} {
		t.Run(string(md.Name()), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(r *rapid.T) { checkRows(t, r, newTable(t, md), md) })
		})
	}
}

// The same for messages of any type.
func TestRowsOfAnyMessage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		file, err := compileProto(drawProto(r))
		if err != nil {
			r.Fatal(err)
		}
		md := file.Messages().Get(0)
		plan, err := wire.Compile(md, wire.Options{Unknown: wire.UnknownColumn})
		if err != nil {
			r.Fatal(err)
		}
		checkRows(t, r, tableOf(t, plan), md)
	})
}

func checkRows(t *testing.T, r *rapid.T, tab table, md protoreflect.MessageDescriptor) {
	var want []*dynamicpb.Message
	for range rapid.IntRange(1, 4).Draw(r, "rows") {
		var b []byte
		for range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(r, "parts") {
			m := dynamicpb.NewMessage(md)
			fill(r, m, 0)
			b = append(b, marshal(t, m)...)
		}
		m, err := parse(md, b)
		if err == nil && !placeable(m) {
			err = fmt.Errorf("halves of values that do not go together")
		}
		if took := tab.Append(b); (took == nil) != (err == nil) {
			r.Fatalf("Append says %v, proto.Unmarshal %v: %x", took, err, b)
		}
		if err == nil {
			want = append(want, m)
		}
	}
	rec := tab.record(t)
	if int(rec.NumRows()) != len(want) {
		r.Fatalf("there are %d rows of %d", rec.NumRows(), len(want))
	}
	for row, m := range want {
		checkRow(t, m, rec, row)
	}
	if t.Failed() {
		r.FailNow()
	}
}

// Damaged input does no harm: the parts accepted are those that proto.Unmarshal accepts, and other
// rows are not affected.
func TestDamage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		md := rapid.SampledFrom([]protoreflect.MessageDescriptor{everything, flat}).Draw(r, "message")
		tab := newTable(t, md)
		var want []*dynamicpb.Message
		for range rapid.IntRange(1, 5).Draw(r, "rows") {
			m := dynamicpb.NewMessage(md)
			fill(r, m, 0)
			b := marshal(t, m)
			for range rapid.IntRange(0, 3).Draw(r, "damages") {
				b = damage(r, b)
			}
			m, err := parse(md, b)
			if errors.Is(err, errPanicked) {
				continue
			}
			took := tab.Append(b)
			if took == nil != (err == nil && placeable(m)) {
				r.Fatalf("Append says %v, proto.Unmarshal %v: %x", took, err, b)
			}
			if took == nil {
				want = append(want, m)
			}
		}
		rec := tab.record(t)
		if int(rec.NumRows()) != len(want) {
			r.Fatalf("there are %d rows of %d", rec.NumRows(), len(want))
		}
		for row, m := range want {
			checkRow(t, m, rec, row)
		}
		if t.Failed() {
			r.FailNow()
		}
	})
}

func damage(r *rapid.T, b []byte) []byte {
	if len(b) == 0 {
		return rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(r, "bytes")
	}
	at := rapid.IntRange(0, len(b)-1).Draw(r, "at")
	switch rapid.IntRange(0, 3).Draw(r, "damage") {
	case 0:
		return b[:at]
	case 1:
		b = bytes.Clone(b)
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		return b
	case 2:
		return slices.Concat(b[:at], rapid.SliceOfN(rapid.Byte(), 1, 4).Draw(r, "more"), b[at:])
	}
	return slices.Concat(b[:at], b[min(len(b), at+rapid.IntRange(1, 4).Draw(r, "less")):])
}

// fill sets the fields of a message.
func fill(r *rapid.T, m protoreflect.Message, depth int) {
	for fd := range fieldsOf(m.Descriptor()) {
		if fd.Cardinality() != protoreflect.Required && rapid.IntRange(0, 3+2*depth).Draw(r, string(fd.Name())) != 0 {
			continue
		}
		if depth > 4 && fd.Message() != nil && fd.Cardinality() != protoreflect.Required {
			continue
		}
		switch {
		case fd.IsMap():
			for range rapid.IntRange(1, 3).Draw(r, "entries") {
				m.Mutable(fd).Map().Set(draw(r, m, fd.MapKey(), depth).MapKey(), draw(r, m, fd.MapValue(), depth))
			}
		case fd.IsList():
			for range rapid.IntRange(1, 3).Draw(r, "elements") {
				m.Mutable(fd).List().Append(draw(r, m, fd, depth))
			}
		default:
			m.Set(fd, draw(r, m, fd, depth))
		}
	}
	if rapid.IntRange(0, 5).Draw(r, "unknown") == 0 {
		b := protowire.AppendTag(nil, 9999, protowire.BytesType)
		m.SetUnknown(protowire.AppendBytes(b, rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(r, "unknown bytes")))
	}
}

func draw(r *rapid.T, _ protoreflect.Message, fd protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(r, "bool"))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(r, "int32"))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(rapid.Uint32().Draw(r, "uint32"))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(r, "int64"))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(rapid.Uint64().Draw(r, "uint64"))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(math.Float32frombits(rapid.Uint32().Draw(r, "float")))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(math.Float64frombits(rapid.Uint64().Draw(r, "double")))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(rapid.StringN(0, 5, -1).Draw(r, "string"))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(r, "bytes"))
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		if rapid.IntRange(0, 4).Draw(r, "new number") == 0 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.Int32().Draw(r, "enum")))
		}
		return protoreflect.ValueOfEnum(values.Get(rapid.IntRange(0, values.Len()-1).Draw(r, "enum")).Number())
	}
	m := dynamicpb.NewMessage(fd.Message())
	set := func(name string, v protoreflect.Value) {
		m.Set(m.Descriptor().Fields().ByName(protoreflect.Name(name)), v)
	}
	switch fd.Message().FullName() {
	case "google.protobuf.Timestamp":
		set("seconds", protoreflect.ValueOfInt64(rapid.Int64Range(-62_135_596_800, 253_402_300_799).Draw(r, "seconds")))
		set("nanos", protoreflect.ValueOfInt32(rapid.Int32Range(0, 999_999_999).Draw(r, "nanos")))
	case "google.protobuf.Duration", "google.type.Money":
		whole, largest := "seconds", int64(9_223_372_035)
		if fd.Message().Name() == "Money" {
			whole, largest = "units", math.MaxInt64
			set("currency_code", protoreflect.ValueOfString(rapid.StringN(0, 3, -1).Draw(r, "currency")))
		}
		sign := rapid.SampledFrom([]int64{1, -1}).Draw(r, "sign")
		set(whole, protoreflect.ValueOfInt64(sign*rapid.Int64Range(0, largest).Draw(r, "whole")))
		set("nanos", protoreflect.ValueOfInt32(int32(sign)*rapid.Int32Range(0, 999_999_999).Draw(r, "nanos")))
	default:
		fill(r, m, depth+1)
	}
	return protoreflect.ValueOfMessage(m)
}

// drawProto draws a .proto file.
func drawProto(r *rapid.T) string {
	messages := rapid.IntRange(1, 4).Draw(r, "messages")
	types := []string{
		"bool", "int32", "sint32", "sfixed32", "uint32", "fixed32", "int64", "sint64", "sfixed64", "uint64", "fixed64", "float", "double", "string",
		"bytes", "E", "google.protobuf.Timestamp", "google.protobuf.Duration", "google.type.Money", "google.protobuf.StringValue", "google.protobuf.Empty",
	}
	keys := append([]string{"string"}, types[:11]...)
	for i := range messages {
		types = append(types, fmt.Sprint("M", i), fmt.Sprint("M", i))
	}
	var b strings.Builder
	b.WriteString("syntax = \"proto3\";\nimport \"google/protobuf/duration.proto\"; import \"google/protobuf/empty.proto\";\n" +
		"import \"google/protobuf/timestamp.proto\"; import \"google/protobuf/wrappers.proto\"; import \"google/type/money.proto\";\n" +
		"enum E { option allow_alias = true; E0 = 0; E5 = 5; E1 = 1; ALIAS = 5; MINUS = -2; }\n")
	for i := range messages {
		fmt.Fprintf(&b, "message M%d {\n", i)
		numbers := rapid.SliceOfNDistinct(rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, 3000)), 1, 8, rapid.ID[int]).Draw(r, "numbers")
		for n, number := range numbers {
			typ := rapid.SampledFrom(types).Draw(r, "type")
			switch rapid.IntRange(0, 5).Draw(r, "shape") {
			case 0:
				typ = "repeated " + typ
			case 1:
				typ = "optional " + typ
			case 2:
				typ = fmt.Sprintf("map<%s, %s>", rapid.SampledFrom(keys).Draw(r, "key"), typ)
			case 3:
				fmt.Fprintf(&b, "  oneof o%d { %s f%d = %d; int32 g%d = %d; }\n", n, typ, n, number, n, 5000+n)
				continue
			}
			fmt.Fprintf(&b, "  %s f%d = %d;\n", typ, n, number)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// FuzzAppend: Append fails if proto.Unmarshal does or if a value does not fit its column, and
// otherwise has the same content.
func FuzzAppend(f *testing.F) {
	for _, text := range []string{"", "\x08\x01", "\x72\x01\xff", "\x8a\x01\x04\x08\x01\x10\x02", "\xa2\x01\x02\x0a\x00\xa2\x01\x02\x20\x01"} {
		f.Add([]byte(text))
	}
	for seed := range 30 {
		f.Add(rapid.Custom(func(r *rapid.T) []byte {
			m := dynamicpb.NewMessage(everything)
			fill(r, m, 0)
			b, err := proto.Marshal(m)
			if err != nil {
				r.Fatal(err)
			}
			return b
		}).Example(seed))
	}
	plan, err := wire.Compile(everything, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		f.Fatal(err)
	}
	tab := tableOf(f, plan)
	f.Fuzz(func(t *testing.T, b []byte) {
		tab.columns.Reset()
		m, err := parse(everything, b)
		took := tab.Append(b) // must not panic either
		if errors.Is(err, errPanicked) {
			return
		}
		if took == nil != (err == nil && placeable(m)) {
			t.Fatalf("Append says %v, proto.Unmarshal %v", took, err)
		}
		if took == nil {
			checkRow(t, m, tab.record(t), 0)
		} else if tab.columns.Rows() != 0 {
			t.Error("a row is left behind")
		}
	})
}
