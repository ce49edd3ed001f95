package main

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// TestEncodings checks that both encodings of an event have its values, and the sizes that the
// benchmark claims.
func TestEncodings(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("flat.proto")
	if err != nil {
		t.Fatal(err)
	}
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
		Accessor: protocompile.SourceAccessorFromMap(map[string]string{"flat.proto": string(text)}),
	})}
	files, err := compiler.Compile(context.Background(), "flat.proto")
	if err != nil {
		t.Fatal(err)
	}
	descriptor := files[0].Messages().ByName("Event")

	const n = 20_000
	var protobufBytes, jsonBytes int
	for i := range int64(n) {
		e := eventAt(5_000_000 + i) // the middle of ten million
		wire, object := e.appendProtobuf(nil), e.appendJSON(nil)
		protobufBytes += len(wire)
		jsonBytes += len(object)

		m := dynamicpb.NewMessage(descriptor)
		if err := proto.Unmarshal(wire, m); err != nil {
			t.Fatal(err)
		}
		if len(m.GetUnknown()) > 0 {
			t.Fatalf("flat.proto does not know %x", m.GetUnknown())
		}
		field := func(name protoreflect.Name) protoreflect.Value { return m.Get(descriptor.Fields().ByName(name)) }
		at := field("at").Message()
		part := func(name protoreflect.Name) int64 { return at.Get(at.Descriptor().Fields().ByName(name)).Int() }
		fromWire := event{
			ID: field("id").Int(), Customer: field("customer").Int(), Type: field("type").String(), SKU: field("sku").String(),
			Qty: int32(field("qty").Int()), Price: field("price").Float(),
			Currency: field("currency").String(), Country: field("country").String(),
			Device: field("device").String(), New: field("new").Bool(),
			At:      time.Unix(part("seconds"), part("nanos")).UnixMilli(),
			Session: field("session").Int(), Page: field("page").String(),
		}
		if fromWire != e {
			t.Fatalf("Protobuf has %+v, want %+v", fromWire, e)
		}
		var o struct {
			ID                        int64
			Customer                  int64 `json:"customer"`
			Type, SKU                 string
			Qty                       int32
			Price                     float64
			Currency, Country, Device string
			New                       bool `json:"new"`
			At, Session               int64
			Page                      string
		}
		if err := json.Unmarshal(object, &o); err != nil {
			t.Fatal(err)
		}
		if fromJSON := event(o); fromJSON != e {
			t.Fatalf("JSON has %+v, want %+v", fromJSON, e)
		}
	}
	t.Logf("%.1f bytes in Protobuf, %.1f in JSON", float64(protobufBytes)/n, float64(jsonBytes)/n)
	if mean := protobufBytes / n; mean < 86 || mean > 94 {
		t.Errorf("an event has %d bytes in Protobuf, want about 90", mean)
	}
	if mean := jsonBytes / n; mean < 202 || mean > 212 {
		t.Errorf("an event has %d bytes in JSON, want about 208", mean)
	}
}
