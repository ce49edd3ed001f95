package registry_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/protoavro"
	"github.com/millrace/millrace/internal/protoavro/protoavrotest"
	"github.com/millrace/millrace/internal/registry"
)

// Confluent's encoding of a message's index path: the first message is a single zero byte, any
// other a list of indices.
func TestPathToMessage(t *testing.T) {
	t.Parallel()
	client := newClient(t, &shared)
	file := protoavrotest.Compile(t, protoavrotest.Everything)
	third := file.Messages().ByName("Second").Messages().ByName("Third")
	for path, m := range map[string]protoreflect.MessageDescriptor{
		"\x00":         file.Messages().ByName("Everything"),
		"\x02\x02":     file.Messages().ByName("Second"),
		"\x04\x02\x00": third,
		// Five map entries precede it, which are messages, too.
		"\x06\x00\x0a\x00": file.Messages().ByName("Everything").Messages().ByName("Inner").Messages().ByName("Deep"),
	} {
		topic := topicOf(t) + string(m.Name())
		e := newEncoder(t, registry.EncoderConfig{Client: client, Topic: topic, Message: m, Codec: registry.Protobuf})
		value, _, err := e.Encode(t.Context(), []byte("\x0a\x01x"))
		if err != nil {
			t.Fatal(err)
		}
		if want := path + "\x0a\x01x"; string(value[5:]) != want {
			t.Errorf("%s: the value is %x, want %x behind its id", m.FullName(), value, want)
		}
		if back, err := registry.NewDecoder(client).Decode(t.Context(), topic, value); err != nil ||
			string(back) != "\x0a\x01x" {
			t.Errorf("%s: came back as %x, error %v", m.FullName(), back, err)
		}
	}
}

// FuzzDecode decodes untrusted values with a known schema: no panic, and unframed values are
// returned unchanged.
func FuzzDecode(f *testing.F) {
	client, err := registry.NewClient(registry.Config{URL: "http://127.0.0.1:1", Logger: quiet}) // never asked
	if err != nil {
		f.Fatal(err)
	}
	d, of := registry.NewDecoder(client), message(f, event.Order)
	schema, err := protoavro.Schema(of)
	if err != nil {
		f.Fatal(err)
	}
	plan, err := protoavro.Compile(schema)
	if err != nil {
		f.Fatal(err)
	}
	text, err := registry.ProtoText(of.ParentFile())
	if err := errors.Join(err, d.AddSchema(1, sr.TypeAvro, schema), d.AddSchema(2, sr.TypeProtobuf, text)); err != nil {
		f.Fatal(err)
	}
	known := [][]byte{{0, 0, 0, 0, 1}, {0, 0, 0, 0, 2}}
	avro, err := plan.Encode(nil, placed(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(avro)
	f.Add(append([]byte{0}, placed(f)...))
	f.Fuzz(func(t *testing.T, rest []byte) {
		for _, frame := range known {
			message, err := d.Decode(t.Context(), event.Order.Topic, append(bytes.Clone(frame), rest...))
			if err == nil {
				// What is behind a frame of Protobuf is the sink's to judge.
				_ = proto.Unmarshal(message, &orderv1.OrderEvent{})
			}
		}
		if registry.IsFramed(rest) {
			return
		}
		if back, err := d.Decode(t.Context(), event.Order.Topic, rest); err != nil || !bytes.Equal(back, rest) {
			t.Errorf("%x came back as %x, error %v", rest, back, err)
		}
	})
}
