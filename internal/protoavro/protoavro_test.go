package protoavro_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	_ "github.com/millrace/millrace/gen/millrace/customer/v1"  // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/identity/v1"  // linked in for Message
	_ "github.com/millrace/millrace/gen/millrace/inventory/v1" // linked in for Message
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/protoavro"
	"github.com/millrace/millrace/internal/protoavro/protoavrotest"
	"github.com/millrace/millrace/internal/registry"
)

func message(tb testing.TB, of event.Aggregate) protoreflect.MessageDescriptor {
	tb.Helper()
	m, err := registry.Message(of)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// plan is a Plan that appends to an empty slice.
type plan struct{ *protoavro.Plan }

func (p plan) Encode(message []byte) ([]byte, error) { return p.Plan.Encode(nil, message) }
func (p plan) Decode(value []byte) ([]byte, error)   { return p.Plan.Decode(nil, value) }

func newPlan(tb testing.TB, of protoreflect.MessageDescriptor) (schema string, _ plan) {
	tb.Helper()
	schema, err := protoavro.Schema(of)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := protoavro.Compile(schema)
	if err != nil {
		tb.Fatalf("%v\n%s", err, schema)
	}
	return schema, plan{p}
}

// Any event, encoded as Avro, can be read by Avro's own rules, and decodes to the same bytes, also
// if a newer program wrote it.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	messages := map[string]protoreflect.MessageDescriptor{
		"everything": protoavrotest.Compile(t, protoavrotest.Everything).Messages().ByName("Everything"),
	}
	for _, a := range event.Aggregates() {
		messages[a.Name] = message(t, a)
	}
	for name, of := range messages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema, plan := newPlan(t, of)
			others, err := avro.Parse(schema)
			if err != nil {
				t.Fatal(err)
			}
			rapid.Check(t, func(t *rapid.T) {
				written, err := protoavrotest.Marshal(protoavrotest.Generate(t, of, true, 0))
				if err != nil {
					t.Fatal(err)
				}
				value, err := plan.Encode(written)
				if err != nil {
					t.Fatalf("%x: %v", written, err)
				}
				back, err := plan.Decode(value)
				if err != nil || !bytes.Equal(back, written) {
					t.Fatalf("%x as Avro %x came back as %x, error %v", written, value, back, err)
				}
				var generic any
				if rest, err := others.Decode(value, &generic); err != nil || len(rest) > 0 {
					t.Fatalf("%x cannot be read as Avro: %d bytes left, error %v", value, len(rest), err)
				}
			})
		})
	}
}

// The content that readers of Avro find in an event.
func TestAvroReaders(t *testing.T) {
	t.Parallel()
	schema, plan := newPlan(t, message(t, event.Order))
	written, err := proto.Marshal(&orderv1.OrderEvent{Event: &orderv1.OrderEvent_Placed{Placed: &orderv1.OrderPlaced{
		OrderId: "o1", CustomerId: proto.String(""), Currency: "EUR",
		Lines: []*orderv1.OrderLine{{Number: math.MaxUint32, Sku: "S", Quantity: -2,
			UnitPrice: &money.Money{CurrencyCode: "EUR", Units: -1, Nanos: -500_000_000}}},
		Total:     &money.Money{CurrencyCode: "EUR", Units: math.MinInt64, Nanos: -999_999_999},
		OrderedAt: &timestamppb.Timestamp{Seconds: -1, Nanos: 999_999_000},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	value, err := plan.Encode(written)
	if err != nil {
		t.Fatal(err)
	}
	var generic any
	parsed := avro.MustParse(schema)
	if _, err := parsed.Decode(value, &generic); err != nil {
		t.Fatal(err)
	}
	got, err := parsed.EncodeJSON(generic)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"placed":{`, `"order_id":"o1"`, `"customer_id":""`, `"number":4294967295`, `"quantity":-2`,
		`"ordered_at":-1`, `"lines_added":null`, `"_unknown":null`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	placed := generic.(map[string]any)["placed"].(map[string]any)
	if got, want := fmt.Sprint(placed["total"].(map[string]any)["amount"]),
		"-9223372036854775808999999999/1000000000"; got != want {
		t.Errorf("the total is %s, want %s", got, want)
	}
}

// What Avro cannot represent is refused with a reason.
func TestLossIsRejected(t *testing.T) {
	t.Parallel()
	_, plan := newPlan(t, message(t, event.Product))
	price := func(m *money.Money, at *timestamppb.Timestamp) []byte {
		b, err := proto.Marshal(&catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{Price: m, ValidFrom: at}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		message []byte
		want    string
	}{
		"nanoseconds": {price(nil, &timestamppb.Timestamp{Nanos: 1}),
			"PriceSet.valid_from: time 0 s 1 ns has fractions of a microsecond"},
		"beyond a long":        {price(nil, &timestamppb.Timestamp{Seconds: math.MaxInt64}), "out of range"},
		"negative nanoseconds": {price(nil, &timestamppb.Timestamp{Seconds: 1, Nanos: -1000}), "out of range"},
		"two signs": {price(&money.Money{Units: 1, Nanos: -1}, nil),
			"PriceSet.price: 1 units and -1 nanos are not an amount of money"},
		"more nanos than a unit":    {price(&money.Money{Nanos: 1_000_000_000}, nil), "not an amount of money"},
		"not UTF-8":                 {[]byte("\x1a\x03\x0a\x01\xff"), "not UTF-8"},
		"an explicit zero":          {[]byte("\x1a\x02\x0a\x00"), "would not be decoded byte for byte"},
		"a member of a oneof twice": {[]byte("\x1a\x00\x1a\x00"), "would not be decoded byte for byte"},
		"two members of a oneof":    {[]byte("\x0a\x00\x1a\x00"), "another member of its oneof"},
		"cut off":                   {[]byte("\x1a\x03\x0a"), "unexpected EOF"},
		"of another wire type":      {[]byte("\x18\x03"), "wire type 0, want 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if value, err := plan.Encode(c.message); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %x and error %v, want one that contains %q", value, err, c.want)
			}
		})
	}
}

// Oneofs of one record do not affect each other, however many there are.
func TestManyOneofs(t *testing.T) {
	t.Parallel()
	const oneofs = 100
	text := `syntax = "proto3"; message M {`
	var written []byte
	for n := range protowire.Number(oneofs) {
		text += fmt.Sprintf(" oneof o%d { bool f%d = %d; }", n, n, n+1)
		written = protowire.AppendVarint(protowire.AppendTag(written, n+1, protowire.VarintType), 1)
	}
	_, plan := newPlan(t, protoavrotest.Compile(t, text+"}").Messages().ByName("M"))
	value, err := plan.Encode(written)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := plan.Decode(value); err != nil || !bytes.Equal(back, written) {
		t.Errorf("came back as %x, error %v", back, err)
	}
}

// What a newer program added is in the field _unknown for readers of Avro, and is restored for
// ours.
func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	schema, plan := newPlan(t, message(t, event.Product))
	written := []byte("\x1a\x04\x0a\x02ab\xfa\x01\x03new") // price_set, and field 31
	value, err := plan.Encode(written)
	if err != nil {
		t.Fatal(err)
	}
	var seen map[string]any
	if _, err := avro.MustParse(schema).Decode(value, &seen); err != nil {
		t.Fatal(err)
	}
	if whole, _ := seen["_unknown"].([]byte); !bytes.Equal(whole, written) ||
		seen["price_set"].(map[string]any)["sku"] != "ab" {
		t.Errorf("readers of Avro see %v", seen)
	}
	if back, err := plan.Decode(value); err != nil || !bytes.Equal(back, written) {
		t.Errorf("came back as %x, error %v", back, err)
	}
}

// A reader needs only the writer's schema: an older program gets a newer one's events whole, and
// vice versa.
func TestOldAndNewReadersAreCompatible(t *testing.T) {
	t.Parallel()
	const before = `syntax = "proto3"; package test.v1;
message E { oneof event { A a = 1; } } message A { string id = 1; K kind = 3; } enum K { K_NONE = 0; K_ONE = 1; }`
	const after = `syntax = "proto3"; package test.v1;
message E { oneof event { A a = 1; B b = 2; } } message A { string id = 1; repeated sint32 sizes = 2; K kind = 3; optional uint32 n = 4; } enum K { K_NONE = 0; K_ONE = 1; K_TWO = 2; }
message B { string id = 1; }`
	oldSchema, _ := newPlan(t, protoavrotest.Compile(t, before).Messages().ByName("E"))
	of := protoavrotest.Compile(t, after).Messages().ByName("E")
	newSchema, newer := newPlan(t, of)
	if err := avro.CheckCompatibility(avro.MustParse(oldSchema), avro.MustParse(newSchema)); err != nil {
		t.Errorf("new readers cannot read old events: %v", err)
	}
	if err := avro.CheckCompatibility(avro.MustParse(newSchema), avro.MustParse(oldSchema)); err != nil {
		t.Errorf("old readers cannot read new events: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		written, err := protoavrotest.Marshal(protoavrotest.Generate(t, of, false, 0))
		if err != nil {
			t.Fatal(err)
		}
		value, err := newer.Encode(written)
		if err != nil {
			t.Fatal(err)
		}
		// The reader's program does not know the message at all: the schema suffices.
		compiled, err := protoavro.Compile(newSchema)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := compiled.Decode(nil, value); err != nil || !bytes.Equal(back, written) {
			t.Fatalf("%x came back as %x, error %v", written, back, err)
		}
	})
}

// Messages that Avro cannot represent are refused when their schema is derived.
func TestUnsupportedMessages(t *testing.T) {
	t.Parallel()
	for want, text := range map[string]string{
		"map keys must be strings in Avro": `syntax = "proto3"; message M { map<int32, string> m = 1; }`,
		"not packed":                       `syntax = "proto3"; message M { repeated int32 n = 1 [packed = false]; }`,
		"messages without fields":          `syntax = "proto3"; message M { repeated N n = 1; } message N {}`,
		"first number of enum E is not 0":  `syntax = "proto2"; message M { optional E e = 1; } enum E { A = 1; }`,
		"group":                            `syntax = "proto2"; message M { optional group G = 1 { optional int32 n = 1; } }`,
		"extensions":                       `syntax = "proto2"; message M { extensions 1 to 9; }`,
		"want a number from 1 to 4096":     `syntax = "proto3"; message M { int32 n = 5000; }`,
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			if _, err := protoavro.Schema(protoavrotest.Compile(t, text).Messages().ByName("M")); err == nil ||
				!strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one that contains %q", err, want)
			}
		})
	}
}

// Schemas that are not ours are refused rather than guessed at.
func TestUnsupportedSchemas(t *testing.T) {
	t.Parallel()
	for want, schema := range map[string]string{
		"not an Avro schema":                `{"type": "nonsense"}`,
		"its root is not a record":          `"string"`,
		"protobuf.number is <nil>":          `{"type":"record","name":"R","fields":[{"name":"f","type":"string"}]}`,
		"duplicate field number 1":          `{"type":"record","name":"R","fields":[{"name":"f","type":"string","protobuf.number":1},{"name":"g","type":"string","protobuf.number":1}]}`,
		"unsupported union":                 `{"type":"record","name":"R","fields":[{"name":"f","type":["string","null"],"protobuf.number":1}]}`,
		`logical type "date"`:               `{"type":"record","name":"R","fields":[{"name":"f","type":{"type":"int","logicalType":"date"},"protobuf.number":1}]}`,
		"must have a number for each":       `{"type":"record","name":"R","fields":[{"name":"f","type":{"type":"enum","name":"E","symbols":["A"]},"protobuf.number":1}]}`,
		"must be the last":                  `{"type":"record","name":"R","fields":[{"name":"_unknown","type":"bytes"}]}`,
		"a message, or a member of a oneof": `{"type":"record","name":"R","fields":[{"name":"f","type":"string","protobuf.number":1,"protobuf.oneof":"o"}]}`,
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			if _, err := protoavro.Compile(schema); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one that contains %q", err, want)
			}
		})
	}
}

// FuzzAvro decodes untrusted bytes as Avro: no panic, and a successful result is a well-formed
// message.
func FuzzAvro(f *testing.F) {
	_, order := newPlan(f, message(f, event.Order))
	_, all := newPlan(f, protoavrotest.Compile(f, protoavrotest.Everything).Messages().ByName("Everything"))
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Add([]byte("\x02\x04o1\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, plan := range []plan{order, all} {
			message, err := plan.Decode(value)
			if err != nil {
				continue
			}
			if len(message) > 64*len(value)+64 {
				t.Errorf("%d bytes became %d", len(value), len(message))
			}
		}
		var e orderv1.OrderEvent
		message, err := order.Decode(value)
		if err != nil || proto.Unmarshal(message, &e) != nil { // a message from _unknown is handed on unread
			return
		}
		if again, err := order.Encode(message); err == nil {
			if back, err := order.Decode(again); err != nil || !bytes.Equal(back, message) {
				t.Errorf("%x came back as %x, error %v", message, back, err)
			}
		}
	})
}

// FuzzMessage encodes untrusted bytes as Avro: no panic, and a successful result decodes to the
// same bytes.
func FuzzMessage(f *testing.F) {
	_, plan := newPlan(f, protoavrotest.Compile(f, protoavrotest.Everything).Messages().ByName("Everything"))
	seed, err := hex.DecodeString("08018a01020801")
	f.Add(seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		value, err := plan.Encode(message)
		if err != nil {
			return
		}
		if back, err := plan.Decode(value); err != nil || !bytes.Equal(back, message) {
			t.Errorf("%x came back as %x, error %v", message, back, err)
		}
	})
}
