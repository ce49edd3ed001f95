package behavior_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event/behavior"
	behaviorv1 "github.com/millrace/millrace/gen/millrace/behavior/v1"
)

// TestEncoding compares the encoding with that of the library, for any values of all fields that the
// contract has. A field that is added to the contract fails it.
func TestEncoding(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.Just(""), rapid.String())
	rapid.Check(t, func(t *rapid.T) {
		m := &behaviorv1.BehaviorEvent{}
		to := m.ProtoReflect()
		fields := to.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if !rapid.Bool().Draw(t, "set "+f.TextName()) {
				continue
			}
			switch {
			case f.IsMap():
				for k, v := range rapid.MapOf(text, rapid.Bool()).Draw(t, f.TextName()) {
					to.Mutable(f).Map().Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfBool(v))
				}
			case f.IsList():
				for _, v := range rapid.SliceOf(text).Draw(t, f.TextName()) {
					to.Mutable(f).List().Append(protoreflect.ValueOfString(v))
				}
			case f.Message() != nil:
				at := (&timestamppb.Timestamp{
					Seconds: rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "seconds"),
					Nanos:   rapid.OneOf(rapid.Just(int32(0)), rapid.Int32()).Draw(t, "nanos"),
				}).ProtoReflect()
				addUnknown(t, at)
				to.Set(f, protoreflect.ValueOfMessage(at))
			default:
				to.Set(f, protoreflect.ValueOfString(text.Draw(t, f.TextName())))
			}
		}
		addUnknown(t, to)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		before := []byte("before")
		e, buf, err := behavior.Encode(before, m)
		if err != nil || !bytes.Equal(e.Data, want) || !bytes.Equal(buf, append(before, want...)) {
			t.Fatalf("%v became %x (%v), want %x", m, e.Data, err, want)
		}
	})
}

// addUnknown adds a field to a message, or none, as a later version of the contract may have it.
func addUnknown(t *rapid.T, m protoreflect.Message) {
	if rapid.Bool().Draw(t, "a field of a later version") {
		m.SetUnknown([]byte("\xa2\x06\x01x")) // number 100
	}
}

// TestEncodingRefusesBytes checks that a text that is not UTF-8 is an error, as in the library, in every field.
func TestEncodingRefusesBytes(t *testing.T) {
	t.Parallel()
	fields := (&behaviorv1.BehaviorEvent{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		m := viewed()
		to, f, bad := m.ProtoReflect(), fields.Get(i), protoreflect.ValueOfString("\xff")
		switch {
		case f.IsMap():
			to.Mutable(f).Map().Set(bad.MapKey(), protoreflect.ValueOfBool(true))
		case f.IsList():
			to.Mutable(f).List().Append(bad)
		case f.Kind() == protoreflect.StringKind:
			to.Set(f, bad)
		default:
			continue
		}
		if _, _, err := behavior.Encode(nil, m); err == nil {
			t.Errorf("%s may be any bytes", f.TextName())
		}
	}
}
