package registry_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/internal/protoavro/protoavrotest"
	"github.com/millrace/millrace/internal/registry"
)

func placed(tb testing.TB) []byte {
	tb.Helper()
	amount := &money.Money{CurrencyCode: "EUR", Units: 12, Nanos: 500_000_000}
	line := &orderv1.OrderLine{Number: 1, Sku: "85123A", Description: "WHITE HANGING HEART T-LIGHT HOLDER",
		Quantity: 6, UnitPrice: amount}
	b, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId:    "01980000-0000-7000-8000-000000000001",
		CustomerId: proto.String("01980000-0000-7000-8000-000000000002"), Reference: "536365",
		Currency: "GBP", Country: "United Kingdom", Lines: []*orderv1.OrderLine{line, line, line}, Total: amount,
		OrderedAt: &timestamppb.Timestamp{Seconds: 1_291_191_960},
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Every codec restores every event of every aggregate byte for byte, through a real registry with a
// compatibility level.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	client := newClient(t, &shared)
	for _, a := range event.Aggregates() {
		for codec, contentType := range map[registry.Codec]string{
			registry.Plain: "application/protobuf", registry.Protobuf: "application/protobuf",
			registry.Avro: "application/avro",
		} {
			t.Run(a.Name+"/"+string(codec), func(t *testing.T) {
				t.Parallel()
				topic := topicOf(t)
				cfg := registry.EncoderConfig{Client: client, Topic: topic, Message: message(t, a), Codec: codec,
					Compatibility: "BACKWARD_TRANSITIVE"}
				e, d := newEncoder(t, cfg), registry.NewDecoder(client)
				var written, value []byte
				rapid.Check(t, func(rt *rapid.T) {
					var err error
					if written, err = proto.Marshal(protoavrotest.Generate(rt, message(t, a), true, 0)); err != nil {
						rt.Fatal(err)
					}
					var got string
					if value, got, err = e.Encode(t.Context(), written); err != nil || got != contentType {
						rt.Fatalf("content type %q, error %v", got, err)
					}
					if back, err := d.Decode(t.Context(), topic, value); err != nil || !bytes.Equal(back, written) {
						rt.Fatalf("%x came back as %x, error %v", written, back, err)
					}
				})
				if codec == registry.Plain {
					return
				}
				if got := query(t, "GET", "/config/"+topic+"-value",
					""); got != `{"compatibilityLevel":"BACKWARD_TRANSITIVE"}` {
					t.Errorf("the subject's compatibility is %s", got)
				}
				// Another producer finds the registered schema.
				again, _, err := newEncoder(t, cfg).Encode(t.Context(), written)
				if err != nil || !bytes.Equal(again, value) {
					t.Errorf("another encoder wrote %x instead of %x, error %v", again, value, err)
				}
				if got := query(t, "GET", "/subjects/"+topic+"-value/versions", ""); got != "[1]" {
					t.Errorf("the subject has versions %s", got)
				}
			})
		}
	}
}

// The codec may change within a topic and back, as far as the registry permits: Apicurio binds a
// subject to its first type, and the producer gets an error.
func TestMixedTopic(t *testing.T) {
	t.Parallel()
	client := newClient(t, &shared)
	d, written := registry.NewDecoder(client), placed(t)
	encoder := func(topic string, codec registry.Codec) *registry.Encoder {
		return newEncoder(t, registry.EncoderConfig{Client: client, Topic: topic, Message: message(t, event.Order),
			Codec: codec, Compatibility: "NONE"})
	}
	for _, codec := range []registry.Codec{registry.Plain, registry.Protobuf, registry.Avro, registry.Plain,
		registry.Protobuf} {
		value, _, err := encoder(topicOf(t)+string(codec), codec).Encode(t.Context(), written)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := d.Decode(t.Context(), event.Order.Topic, value); err != nil || !bytes.Equal(back, written) {
			t.Errorf("%x came back as %x, error %v", written, back, err)
		}
	}
	err := encoder(topicOf(t)+"protobuf", registry.Avro).Start(t.Context())
	if !errors.Is(err, registry.ErrIncompatible) || !strings.Contains(err.Error(), "keep the topic's codec") {
		t.Errorf("an Avro schema in a subject with Protobuf: %v", err)
	}
}

// A compatible change becomes a new version. An incompatible one is refused with the subject's name
// and the registry's reason, and nothing is written with it.
func TestCompatibilityIsSet(t *testing.T) {
	t.Parallel()
	client := newClient(t, &shared)
	const (
		before = `syntax = "proto3"; package test.v1; import "google/type/money.proto";
message E { oneof event { A a = 1; } } message A { string id = 1; int64 n = 2; google.type.Money m = 3; }`
		after = `syntax = "proto3"; package test.v1; import "google/type/money.proto";
message E { oneof event { A a = 1; B b = 2; } } message A { string id = 1; int64 n = 2; google.type.Money m = 3; optional string more = 4; } message B { string id = 1; }`
	)
	for _, codec := range []registry.Codec{registry.Protobuf, registry.Avro} {
		t.Run(string(codec), func(t *testing.T) {
			t.Parallel()
			start := func(text string) error {
				return newEncoder(t, registry.EncoderConfig{
					Client: client, Topic: topicOf(t), Message: protoavrotest.Compile(t, text).Messages().ByName("E"),
					Codec: codec, Compatibility: "BACKWARD_TRANSITIVE",
				}).Start(t.Context())
			}
			for _, good := range []string{before, after} {
				if err := start(good); err != nil {
					t.Fatal(err)
				}
			}
			err := start(strings.Replace(after, "int64 n", "string n", 1))
			if !errors.Is(err, registry.ErrIncompatible) || errors.Is(err, registry.ErrUnavailable) ||
				!strings.Contains(err.Error(), topicOf(t)+"-value") {
				t.Errorf("got error %v", err)
			}
			t.Log(err)
			if got := query(t, "GET", "/subjects/"+topicOf(t)+"-value/versions", ""); got != "[1,2]" {
				t.Errorf("the subject has versions %s", got)
			}
		})
	}
}

// Permanent decoding errors have their reason. Temporary ones are distinguished.
func TestUnreadableValues(t *testing.T) {
	t.Parallel()
	client := newClient(t, &shared)
	encode := func(codec registry.Codec, of event.Aggregate) []byte {
		e := newEncoder(t, registry.EncoderConfig{Client: client, Topic: topicOf(t) + of.Name + string(codec),
			Message: message(t, of), Codec: codec})
		message := placed(t)
		if of != event.Order {
			message = nil
		}
		value, _, err := e.Encode(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	avro, protobuf := encode(registry.Avro, event.Order), encode(registry.Protobuf, event.Order)
	var id struct{ ID int }
	queryInto(t, &id, "POST", "/subjects/"+topicOf(t)+"-json/versions",
		`{"schemaType":"JSON","schema":"{\"$schema\":\"http://json-schema.org/draft-07/schema#\",\"type\":\"object\"}"}`)
	json := binary.BigEndian.AppendUint32([]byte{0}, uint32(id.ID))

	d := registry.NewDecoder(client)
	for name, c := range map[string]struct {
		decoder *registry.Decoder
		value   []byte
		want    string
	}{
		"a frame cut off":       {d, avro[:4], "incomplete frame"},
		"an unassigned id":      {d, []byte("\x00\x7f\xff\xff\xff..."), "schema 2147483647"},
		"Avro cut off":          {d, avro[:len(avro)-1], "unexpected end of the value"},
		"Avro with more behind": {d, append(bytes.Clone(avro), 0), "1 bytes follow its end"},
		"Avro of another aggregate": {d, encode(registry.Avro, event.Stock),
			"the message is millrace.inventory.v1.StockEvent, want millrace.order.v1.OrderEvent"},
		"Protobuf of another aggregate": {d, encode(registry.Protobuf, event.Stock),
			"the message is millrace.inventory.v1.StockEvent, want millrace.order.v1.OrderEvent"},
		"Protobuf, the wrong message": {d, append(append(bytes.Clone(protobuf[:5]), 2, 2), protobuf[6:]...),
			"the message is millrace.order.v1.OrderPlaced"},
		"Protobuf, no such message": {d, append(append(bytes.Clone(protobuf[:5]), 2, 200, 1), protobuf[6:]...),
			"no message at [100]"},
		"Protobuf, a path without end":   {d, append(bytes.Clone(protobuf[:5]), 200), "unexpected end of the value"},
		"a JSON schema":                  {d, json, "unsupported schema type JSON"},
		"framed, and no registry is set": {registry.NewDecoder(nil), avro, "set registry.url"},
		"framed, and no decoder is set":  {nil, avro, "set registry.url"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			message, err := c.decoder.Decode(t.Context(), event.Order.Topic, c.value)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("got %x and error %v, want one that contains %q", message, err, c.want)
			}
		})
	}
	for _, plain := range [][]byte{nil, {}, placed(t)} {
		if got, err := (*registry.Decoder)(nil).Decode(t.Context(), event.Order.Topic, plain); err != nil ||
			!bytes.Equal(got, plain) {
			t.Errorf("plain %x came back as %x, error %v", plain, got, err)
		}
	}
}

// If the registry cannot be reached, refuses the password, or is another server, the error is
// temporary: the value may be readable later.
func TestUnavailableIsNotPermanent(t *testing.T) {
	t.Parallel()
	base := shared.URL(t)
	for name, url := range map[string]string{
		"no server":         "http://127.0.0.1:1",
		"another path":      strings.TrimSuffix(base, "/ccompat/v7"),
		"no registry there": strings.TrimSuffix(base, "/apis/ccompat/v7") + "/nothing",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := registry.NewClient(registry.Config{URL: url, Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			if _, err := registry.NewDecoder(client).Decode(t.Context(), "t",
				[]byte("\x00\x00\x00\x00\x01.")); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("reading failed with %v", err)
			}
			e := newEncoder(t, registry.EncoderConfig{Client: client, Topic: topicOf(t),
				Message: message(t, event.Order), Codec: registry.Avro})
			if _, _, err := e.Encode(t.Context(), placed(t)); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("writing failed with %v", err)
			}
			if !client.Degraded() {
				t.Error("Degraded returns false")
			}
		})
	}
}

// While the registry is unavailable, decoders with the needed schemas work. Those that meet a new
// one wait, and continue when it is back.
//
// The test is not parallel, because it breaks the shared registry.
func TestOutage(t *testing.T) {
	client, err := registry.NewClient(registry.Config{URL: shared.URL(t), Timeout: 2 * time.Second, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	written := placed(t)
	encoder := func() *registry.Encoder {
		return newEncoder(t, registry.EncoderConfig{Client: client, Topic: topicOf(t),
			Message: message(t, event.Order), Codec: registry.Avro, Compatibility: "FULL"})
	}
	e, d := encoder(), registry.NewDecoder(client)
	produce := func(e *registry.Encoder) ([]byte, error) {
		value, _, err := e.Encode(t.Context(), written)
		return value, err
	}
	consume := func(ctx context.Context, d *registry.Decoder, value []byte) error {
		back, err := d.Decode(ctx, event.Order.Topic, value)
		if err == nil && !bytes.Equal(back, written) {
			t.Errorf("%x came back as %x", written, back)
		}
		return err
	}
	// patiently retries while the registry is unavailable: on a busy machine that can take time.
	patiently := func(what string, try func() error) {
		t.Helper()
		polltest.Until(t, what, func() bool {
			err = try()
			return !errors.Is(err, registry.ErrUnavailable)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var value []byte
	patiently("a producer starts", func() (err error) { value, err = produce(e); return err })
	patiently("a consumer starts", func() error { return consume(t.Context(), d, value) })

	during := func(away string) {
		if value, err = produce(e); err != nil {
			t.Errorf("%s: a running producer failed: %v", away, err)
		}
		if err := consume(t.Context(), d, value); err != nil {
			t.Errorf("%s: a running consumer failed: %v", away, err)
		}
		brief, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := consume(brief, registry.NewDecoder(client), value); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: a schema that is new to the consumer: %v", away, err)
		}
		if err := client.Ping(t.Context()); !errors.Is(err, registry.ErrUnavailable) || !client.Degraded() {
			t.Errorf("%s: Ping returned %v, Degraded %v", away, err, client.Degraded())
		}
		if _, err := produce(encoder()); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: a producer that starts: %v", away, err)
		}
	}
	back := func() {
		patiently("a consumer that starts reads",
			func() error { return consume(t.Context(), registry.NewDecoder(client), value) })
		var again []byte
		patiently("a producer that starts writes", func() (err error) { again, err = produce(encoder()); return err })
		if !bytes.Equal(again, value) {
			t.Errorf("a producer wrote %x afterwards, want %x", again, value)
		}
		if client.Degraded() {
			t.Error("Degraded still returns true")
		}
	}
	if err := shared.Pause(); err != nil {
		t.Fatal(err)
	}
	during("frozen")
	if err := shared.Resume(); err != nil {
		t.Fatal(err)
	}
	back()
	if err := shared.Kill(); err != nil {
		t.Fatal(err)
	}
	during("killed")
	if err := shared.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back()
}

// Configuration errors have the setting's name. Watch notices an outage without other requests.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "localhost:8081", "ftp://a", "http://"} {
		if _, err := registry.NewClient(registry.Config{URL: url}); err == nil {
			t.Errorf("URL %q is accepted", url)
		}
	}
	client, err := registry.NewClient(registry.Config{URL: "http://127.0.0.1:1, http://127.0.0.1:2", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]registry.EncoderConfig{
		"set registry.url":      {Topic: "t", Message: message(t, event.Order), Codec: registry.Avro},
		"a topic and a message": {Client: client, Codec: registry.Avro},
		"unknown codec":         {Client: client, Topic: "t", Message: message(t, event.Order), Codec: "xml"},
		`compatibility "SOME"`: {Client: client, Topic: "t", Message: message(t, event.Order), Codec: registry.Avro,
			Compatibility: "SOME"},
	} {
		if _, err := registry.NewEncoder(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that contains %q", err, want)
		}
	}
	if _, err := registry.ParseCodec("xml"); err == nil {
		t.Error("codec xml is accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- client.Watch(ctx) }()
	polltest.Until(t, "Watch detects that the registry is unreachable", client.Degraded)
	cancel()
	if err := <-watched; err != nil {
		t.Error(err)
	}
}
