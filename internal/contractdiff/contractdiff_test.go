package contractdiff_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/contractdiff"
)

// message returns the message E of a contract.
func message(t testing.TB, text string) protoreflect.MessageDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
		Accessor: protocompile.SourceAccessorFromMap(map[string]string{"test.proto": "syntax = \"proto3\";\n" + text}),
	})}
	files, err := c.Compile(t.Context(), "test.proto")
	if err != nil {
		t.Fatal(err)
	}
	return files[0].Messages().ByName("E")
}

// placed is an events message whose only event type has the given fields.
func placed(fields string) string {
	return "message E { oneof event { Placed placed = 1; } }\nenum Color { RED = 0; BLUE = 1; }\n" +
		"message Line { string sku = 1; }\nmessage Placed {" + fields + "}"
}

func TestCompare(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after string
		want          string // what, and a part of the effect; empty if nothing changed
		breaks        bool
	}{
		"nothing": {placed("string id = 1;"), placed("string id = 1;"), "", false},
		"a new field": {placed("string id = 1;"), placed("string id = 1; string tax = 2;"),
			`field tax = 2 is new: stored events read as ""`, false},
		"a new optional field": {placed("string id = 1;"), placed("string id = 1; optional string tax = 2;"),
			"field tax = 2 is new: stored events do not have it", false},
		"a new list": {placed("string id = 1;"), placed("string id = 1; repeated Line lines = 2;"),
			"field lines = 2 is new: stored events have none", false},
		"a field on a reserved number": {placed("reserved 2; string id = 1;"), placed("string id = 1; string tax = 2;"),
			"field tax = 2 is new: number 2 was reserved", true},
		"a removed field": {placed("string id = 1; string tax = 2;"), placed("string id = 1;"),
			"field tax = 2 is gone: stored values stay in the events, as unknown fields, and readers do not see them; reserve number 2", true},
		"a removed and reserved field": {placed("string id = 1; string tax = 2;"), placed("reserved 2; string id = 1;"),
			"field tax = 2 is gone: stored values stay in the events", true},
		"a new name": {placed("string id = 1;"), placed("string order = 1;"),
			"field id = 1 is called order: stored events read as before", false},
		"a wider type": {placed("int32 n = 1;"), placed("int64 n = 1;"), "field n was int32 and is int64: stored values read as before", false},
		"a narrower type": {placed("int64 n = 1;"), placed("int32 n = 1;"),
			"field n was int64 and is int32: stored values that the new type cannot hold", true},
		"zigzag": {placed("int64 n = 1;"), placed("sint64 n = 1;"),
			"field n was int64 and is sint64: stored values are decoded as other values", true},
		"another encoding": {placed("int64 n = 1;"), placed("string n = 1;"),
			"field n was int64 and is string: stored values are not read", true},
		"another message":       {placed("Line l = 1;"), placed("Placed l = 1;"), "field l was Line and is Placed", true},
		"a list of one":         {placed("Line l = 1;"), placed("repeated Line l = 1;"), "field l was singular and is repeated", true},
		"the last of a list":    {placed("repeated Line l = 1;"), placed("Line l = 1;"), "of several stored values", true},
		"a map":                 {placed("repeated Line l = 1;"), placed("map<string, Line> l = 1;"), "field l was repeated and is map", true},
		"optional now":          {placed("int64 n = 1;"), placed("optional int64 n = 1;"), "field n is optional now", true},
		"not optional any more": {placed("optional int64 n = 1;"), placed("int64 n = 1;"), "field n is not optional any more", true},
		"into a oneof": {placed("string a = 1; string b = 2;"), placed("oneof one { string a = 1; string b = 2; }"),
			"field a moved into the oneof one", true},
		"a new event type": {placed(""), strings.Replace(placed(""), "Placed placed = 1;", "Placed placed = 1; Line line = 2;", 1),
			"the event type Line is new: stored streams have none", false},
		"a removed event type": {strings.Replace(placed(""), "Placed placed = 1;", "Placed placed = 1; Line line = 2;", 1), placed(""),
			"the event type Line is gone: services refuse", true},
		"a field of a nested message": {placed("repeated Line l = 1;"),
			strings.Replace(placed("repeated Line l = 1;"), "string sku = 1;", "string sku = 1; int32 n = 2;", 1),
			"field n = 2 is new", false},
		"a value of a map": {placed("map<string, int32> m = 1;"), placed("map<string, string> m = 1;"), "field value was int32 and is string", true},
		"a new value of an enum": {placed("Color c = 1;"), strings.Replace(placed("Color c = 1;"), "BLUE = 1;", "BLUE = 1; GREEN = 2;", 1),
			"value GREEN = 2 of Color is new", false},
		"a removed value of an enum": {placed("Color c = 1;"), strings.Replace(placed("Color c = 1;"), "BLUE = 1;", "", 1),
			"value BLUE = 1 of Color is gone", true},
		"a new name of an enum's value": {placed("Color c = 1;"), strings.Replace(placed("Color c = 1;"), "BLUE = 1;", "NAVY = 1;", 1),
			"value BLUE = 1 of Color is called NAVY", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changes := contractdiff.Compare(message(t, c.before), message(t, c.after))
			if c.want == "" {
				if len(changes) > 0 {
					t.Errorf("got %+v, want no change", changes)
				}
				return
			}
			if !slices.ContainsFunc(changes, func(ch contractdiff.Change) bool {
				return strings.Contains(ch.What+": "+ch.Effect, c.want) && ch.Breaks == c.breaks
			}) {
				t.Errorf("got %+v, want %q, breaks %t", changes, c.want, c.breaks)
			}
		})
	}
}

// TestSafeTypesReadTheSame: where Compare calls a change of a field's type safe, each stored value
// reads as an equal one.
func TestSafeTypesReadTheSame(t *testing.T) {
	t.Parallel()
	kinds := []string{"int32", "int64", "uint32", "uint64", "sint32", "sint64", "bool", "fixed32", "fixed64",
		"sfixed32", "sfixed64", "Color", "float", "double"}
	versions := map[string]protoreflect.MessageDescriptor{}
	for _, k := range kinds {
		versions[k] = message(t, placed(k+" n = 1;")).Fields().ByNumber(1).Message()
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := rapid.SampledFrom(kinds).Draw(t, "from"), rapid.SampledFrom(kinds).Draw(t, "to")
		for _, ch := range contractdiff.Compare(versions[from], versions[to]) {
			if ch.Breaks {
				return
			}
		}
		old := dynamicpb.NewMessage(versions[from])
		wire := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), rapid.Uint64().Draw(t, "value"))
		if err := proto.Unmarshal(wire, old); err != nil {
			t.Fatal(err)
		}
		wire, err := proto.Marshal(old)
		if err != nil {
			t.Fatal(err)
		}
		now := dynamicpb.NewMessage(versions[to])
		if err := proto.Unmarshal(wire, now); err != nil {
			t.Fatal(err)
		}
		if was, is := number(old), number(now); was != is {
			t.Errorf("%s to %s: %v reads as %v", from, to, was, is)
		}
	})
}

// number returns the field n of a message as an integer.
func number(m *dynamicpb.Message) int64 {
	switch v := m.Get(m.Descriptor().Fields().ByNumber(1)).Interface().(type) {
	case int32:
		return int64(v)
	case int64:
		return v
	case uint32:
		return int64(v)
	case uint64:
		return int64(v)
	case protoreflect.EnumNumber:
		return int64(v)
	case bool:
		if v {
			return 1
		}
	}
	return 0
}
