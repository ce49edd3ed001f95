package registry_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/registry"
)

// BenchmarkCodecs encodes and decodes an order of three lines with every codec. The last,
// proto.Unmarshal alone, is a cost that every sink that inspects messages has anyway.
func BenchmarkCodecs(b *testing.B) {
	client := newClient(b, &shared)
	d, written := registry.NewDecoder(client), placed(b)
	for _, codec := range []registry.Codec{registry.Plain, registry.Protobuf, registry.Avro} {
		e := newEncoder(b, registry.EncoderConfig{Client: client, Topic: topicOf(b) + string(codec),
			Message: message(b, event.Order), Codec: codec})
		value, _, err := e.Encode(b.Context(), written)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("write/"+string(codec), func(b *testing.B) {
			b.ReportAllocs()
			b.ReportMetric(float64(len(value)), "B/value")
			for b.Loop() {
				if _, _, err := e.Encode(b.Context(), written); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("read/"+string(codec), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Decode(b.Context(), event.Order.Topic, value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("proto.Unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(written, &orderv1.OrderEvent{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
