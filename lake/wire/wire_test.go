package wire_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/wire"
)

// Each text is a message, and its column as Arrow prints it.
func TestColumns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text   string
		column string
		want   string
	}{
		{`a_bool: true`, "a_bool", `true`},
		{``, "a_bool", `false`},
		{`a_int32: -2147483648`, "a_int32", `-2147483648`},
		{`a_sint32: -2147483648`, "a_sint32", `-2147483648`},
		{`a_sfixed32: -7`, "a_sfixed32", `-7`},
		{`a_uint32: 4294967295`, "a_uint32", `4294967295`},
		{`a_fixed32: 4294967295`, "a_fixed32", `4294967295`},
		{`a_int64: -9223372036854775808`, "a_int64", `-9223372036854775808`},
		{`a_sint64: -9223372036854775808`, "a_sint64", `-9223372036854775808`},
		{`a_sfixed64: -7`, "a_sfixed64", `-7`},
		{`a_uint64: 18446744073709551615`, "a_uint64", `18446744073709551615`},
		{`a_fixed64: 18446744073709551615`, "a_fixed64", `18446744073709551615`},
		{`a_float: 1.5`, "a_float", `1.5`},
		{`a_double: -1.25`, "a_double", `-1.25`},
		{`a_string: "grün"`, "a_string", `grün`},
		{``, "a_string", ``},
		{`a_bytes: "\001"`, "a_bytes", `AQ==`},
		{`a_colour: COLOUR_BLUE`, "a_colour", `COLOUR_BLUE`},
		{`a_colour: COLOUR_BELOW`, "a_colour", `COLOUR_BELOW`},
		{``, "a_colour", `COLOUR_UNSPECIFIED`},
		{`a_colour: 1234`, "a_colour", `1234`},
		{`a_time: {seconds: 1 nanos: 123456789}`, "a_time", `1970-01-01T00:00:01.123456Z`},
		{`a_time: {seconds: -1 nanos: 999999999}`, "a_time", `1969-12-31T23:59:59.999999Z`},
		{``, "a_time", `(null)`},
		{`a_time: {}`, "a_time", `1970-01-01T00:00:00Z`},
		{`a_duration: {seconds: -2 nanos: -5}`, "a_duration", `-2000000005`},
		{``, "a_duration", `(null)`},
		{`a_price: {currency_code: "EUR" units: 3 nanos: 250000000}`, "a_price", `3.25`},
		{`a_price: {currency_code: "EUR" units: -9223372036854775808 nanos: -999999999}`, "a_price", `-9223372036854775808.999999999`},
		{`a_price: {currency_code: "EUR"}`, "a_price_currency", `EUR`},
		{``, "a_price", `(null)`},
		{``, "a_price_currency", `(null)`},
		{`a_inner: {name: "n" deep: {note: {value: "x"}}}`, "a_inner",
			`{"deep":{"at":null,"labels":[],"note":"x","tags":[]},"deeps":[],"name":"n","number":null,"price":null,"price_currency":null,"x":null,"y":null}`},
		{``, "a_inner", `(null)`},
		{`itself: {a_bool: true}`, "itself", `CAE=`},
		{`nothing: {}`, "nothing", `{"_present":true}`},
		{``, "nothing", `(null)`},
		{`strings: ["a", ""]`, "strings", `["a",""]`},
		{``, "strings", `[]`},
		{`prices: {currency_code: "EUR" units: 1}`, "prices", `[{"amount":"1","currency":"EUR"}]`},
		{`int32s: [1, -1]`, "int32s", `[1,-1]`},
		{`int64s: [1, -1]`, "int64s", `[1,-1]`},
		{`wrapped: {} wrapped: {value: "x"}`, "wrapped", `["","x"]`},
		{`maybe_string: ""`, "maybe_string", ``},
		{``, "maybe_string", `(null)`},
		{``, "maybe_colour", `(null)`},
		{`wrapped_int64: {}`, "wrapped_int64", `0`},
		{``, "wrapped_int64", `(null)`},
		{`wrapped_uint64: {value: 18446744073709551615}`, "wrapped_uint64", `18446744073709551615`},
		{`by_string: {key: "a" value: 1}`, "by_string", `[{"key":"a","value":1}]`},
		{``, "by_string", `[]`},
		{`by_string: {}`, "by_string", `[{"key":"","value":0}]`},
		{`by_uint64: {key: 1}`, "by_uint64", `[{"key":"1","value":"COLOUR_UNSPECIFIED"}]`},
		{`by_bool: {key: true value: {currency_code: "X"}}`, "by_bool", `[{"key":true,"value":{"amount":"0","currency":"X"}}]`},
		{`choice_bool: false`, "choice_bool", `false`},
		{`choice_string: "s"`, "choice_bool", `(null)`},
		{`choice_deep: {}`, "choice_deep", `{"at":null,"labels":[],"note":null,"tags":[]}`},
		{`choice_price: {currency_code: "EUR"}`, "choice_price", `0`},
		{`far_away: 3`, "far_away", `3`},
	} {
		m := dynamicpb.NewMessage(everything)
		if err := prototext.Unmarshal([]byte(c.text), m); err != nil {
			t.Fatal(err)
		}
		tab := newTable(t, everything)
		if err := tab.Append(marshal(t, m)); err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		rec := tab.record(t)
		if got := rec.Column(rec.Schema().FieldIndices(c.column)[0]).ValueStr(0); got != c.want {
			t.Errorf("%s: column %s says %s, not %s", c.text, c.column, got, c.want)
		}
		checkRow(t, m, rec, 0)
	}
}

// Fields may occur in any order, several times, and lists in both encodings.
func TestDuplicateFields(t *testing.T) {
	t.Parallel()
	for name, texts := range map[string][]string{
		"scalar":                        {`a_int32: 1 a_string: "a"`, `a_int32: 2 a_string: ""`, `a_string: "b"`},
		"message":                       {`a_inner: {name: "a" number: 1}`, `a_inner: {name: "b"}`},
		"deep message":                  {`a_inner: {deep: {tags: "a"}}`, `a_inner: {deep: {tags: "b"}}`},
		"times":                         {`a_time: {seconds: 5}`, `a_time: {nanos: 5000}`},
		"halves that are none":          {`a_price: {units: 5}`, `a_price: {nanos: -5}`, `a_price: {units: -1 currency_code: "A"}`},
		"wrappers":                      {`wrapped_string: {value: "a"}`, `wrapped_string: {}`},
		"one of several":                {`choice_bool: true`, `choice_string: "x"`, `choice_deep: {tags: "a"}`, `choice_deep: {tags: "b"}`},
		"one of several, back again":    {`choice_deep: {tags: "a"}`, `choice_bool: true`, `choice_deep: {tags: "b"}`},
		"lists":                         {`int32s: 1 inners: {name: "a"}`, `int32s: 2 inners: {name: "b"}`},
		"keys":                          {`by_string: {key: "a" value: 1}`, `by_string: {key: "b" value: 2}`, `by_string: {key: "a" value: 3}`},
		"keys of booleans":              {`by_bool: {key: true}`, `by_bool: {key: false}`, `by_bool: {key: true value: {units: 1}}`},
		"a message inside itself":       {`itself: {a_int32: 1 strings: "a"}`, `itself: {strings: "b"}`},
		"what is a message in a oneof":  {`a_inner: {x: 1}`, `a_inner: {y: {tags: "q"}}`},
		"unknown beside what is merged": {`itself: {} a_inner: {}`, `a_inner: {deep: {}}`},
	} {
		var b []byte
		for _, text := range texts {
			m := dynamicpb.NewMessage(everything)
			if err := prototext.Unmarshal([]byte(text), m); err != nil {
				t.Fatal(err)
			}
			b = append(b, marshal(t, m)...)
		}
		for _, b := range [][]byte{b, slices.Concat(protowire.AppendVarint(protowire.AppendTag(nil, 12345, 0), 7), b)} {
			want, err := parse(everything, b)
			if err != nil {
				t.Fatal(err)
			}
			tab := newTable(t, everything)
			if err := tab.Append(b); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			checkRow(t, want, tab.record(t), 0)
		}
	}
	t.Run("many keys", func(t *testing.T) {
		t.Parallel()
		for _, distinct := range []int{40, 39} {
			var b []byte
			for i := range byte(40) {
				key := i % byte(distinct)
				for number, entry := range map[protowire.Number][]byte{
					81: {0x0a, 1, key, 0x10, i}, 82: {0x08, key, 0x12, 2, 0x20, i}, 83: {0x08, key, 0x10, i}, 86: {0x08, key},
				} {
					b = protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), entry)
				}
			}
			want, err := parse(everything, b)
			if err != nil {
				t.Fatal(err)
			}
			tab := newTable(t, everything)
			if err := tab.Append(b); err != nil {
				t.Fatal(err)
			}
			checkRow(t, want, tab.record(t), 0)
		}
	})
}

// Messages as bytes that a marshaller would not write.
func TestUnusualEncodings(t *testing.T) {
	t.Parallel()
	tag := protowire.AppendTag
	bytesOf := protowire.AppendBytes
	for name, b := range map[string][]byte{
		"long tag":                     {0x88, 0x80, 0x00, 0x01},
		"long varint":                  {0x08, 0x81, 0x80, 0x80, 0x00},
		"a bool above one":             {0x08, 0x7f},
		"int32 from 64 bits":           protowire.AppendVarint(tag(nil, 2, protowire.VarintType), 1<<40|7),
		"sint32 from 64 bits":          protowire.AppendVarint(tag(nil, 3, protowire.VarintType), 1<<40|7),
		"another wire type is unknown": protowire.AppendFixed32(tag(nil, 1, protowire.Fixed32Type), 1),
		"packed where it need not be":  bytesOf(tag(nil, 37, protowire.BytesType), []byte{1, 2, 3}),
		"one by one where packed":      {0xf8, 0x01, 1, 0xf8, 0x01, 0},
		"packed and empty":             bytesOf(tag(nil, 37, protowire.BytesType), nil),
		"entry with value before key":  bytesOf(tag(nil, 81, protowire.BytesType), []byte{0x10, 1, 0x0a, 1, 'k'}),
		"entry with key twice":         bytesOf(tag(nil, 81, protowire.BytesType), []byte{0x0a, 1, 'a', 0x0a, 1, 'b'}),
		"entry with value twice":       bytesOf(tag(nil, 82, protowire.BytesType), []byte{0x12, 3, 0x0a, 1, 'a', 0x12, 2, 0x20, 5}),
		"entry with an unknown field":  bytesOf(tag(nil, 81, protowire.BytesType), []byte{0x18, 1}),
		"entry with unknown in value":  bytesOf(tag(nil, 82, protowire.BytesType), []byte{0x12, 2, 0x50, 5, 0x08, 3}),
		"unknown in a time":            bytesOf(tag(nil, 17, protowire.BytesType), []byte{0x08, 1, 0x18, 9}),
		"unknown in money":             bytesOf(tag(nil, 19, protowire.BytesType), []byte{0x20, 1, 0x08, 7}),
		"unknown in a wrapper":         bytesOf(tag(nil, 73, protowire.BytesType), []byte{0x10, 1}),
		"unknown in the third time": append(append(bytesOf(tag(nil, 47, protowire.BytesType), nil), bytesOf(tag(nil, 47, protowire.BytesType), nil)...),
			append(bytesOf(tag(nil, 47, protowire.BytesType), []byte{0x18, 9}), bytesOf(tag(nil, 47, protowire.BytesType), nil)...)...),
		"unknown in an empty message": bytesOf(tag(nil, 22, protowire.BytesType), []byte{0x08, 1}),
		"unknown group":               {0xb3, 0x0f, 0x08, 0x01, 0xb4, 0x0f},
		"seconds twice":               bytesOf(tag(nil, 17, protowire.BytesType), []byte{0x08, 1, 0x08, 2}),
		"map by an unknown key":       bytesOf(tag(nil, 86, protowire.BytesType), nil),
		"empty":                       nil,
	} {
		want, err := parse(everything, b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		tab := newTable(t, everything)
		if err := tab.Append(b); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Run(name, func(t *testing.T) { checkRow(t, want, tab.record(t), 0) })
	}
}

// proto.Unmarshal panics for a dynamic message, so it is parsed as a generated one.
func TestDuplicateKeyWithOtherWireType(t *testing.T) {
	t.Parallel()
	entry := []byte{0x0a, 1, 'a', 0x08, 1, 0x10, 7}
	tab := newTable(t, everything)
	if err := tab.Append(protowire.AppendBytes(protowire.AppendTag(nil, 81, protowire.BytesType), entry)); err != nil {
		t.Fatal(err)
	}
	rec := tab.record(t)
	if got := rec.Column(rec.Schema().FieldIndices("by_string")[0]).ValueStr(0); got != `[{"key":"a","value":7}]` {
		t.Errorf("the map is %s", got)
	}
}

// Errors name the field, with indices in lists, and the reason.
func TestErrorsHavePaths(t *testing.T) {
	t.Parallel()
	text := func(s string) []byte {
		m := dynamicpb.NewMessage(everything)
		if err := prototext.Unmarshal([]byte(s), m); err != nil {
			t.Fatal(err)
		}
		return marshal(t, m)
	}
	field := func(n protowire.Number, content ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), content)
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"cut off":               {text(`a_string: "hello"`)[:4], "a_string: unexpected end"},
		"cut off in a tag":      {[]byte{0x80}, "unexpected end"},
		"no field":              {[]byte{0x00}, "invalid field number"},
		"varint without end":    {[]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "a_int32: number of more than 64 bits"},
		"fixed cut off":         {[]byte{0x25, 1}, "a_sfixed32: unexpected end"},
		"length beyond the end": {[]byte{0x72, 0xff, 0xff, 0xff, 0xff, 0x7f, 'a'}, "a_string: unexpected end"},
		"not UTF-8":             {field(14, 0xff), "a_string: invalid UTF-8"},
		"not UTF-8 in a map":    {field(81, 0x0a, 1, 0xff), "by_string.key: invalid UTF-8"},
		"not UTF-8 in a list":   {append(field(44, 'a'), field(44, 0xff)...), "strings[1]: invalid UTF-8"},
		"not UTF-8, overridden": {append(field(14, 0xff), field(14, 'a')...), "a_string: invalid UTF-8"},
		"deep in a list":        {append(field(50), field(50, append(field(3), field(3, field(1, 0xff)...)...)...)...), "inners[1].deeps[1].tags[0]: invalid UTF-8"},
		"deep, refused":         {text(`inners: {} inners: {deep: {at: {nanos: -1}}}`), "inners[1].deep.at: 0 seconds and -1 nanos are outside of the years 1 to 9999"},
		"refused in a list":     {text(`prices: {} prices: {units: 1 nanos: -1}`), "prices[1]: 1 units and -1 nanos are not an amount"},
		"packed":                {field(32, 1, 2, 0x80), "int32s[2]: unexpected end"},
		"time of the year 0":    {text(`a_time: {seconds: -62135596801}`), "a_time: -62135596801 seconds and 0 nanos are outside of the years 1 to 9999"},
		"time of the year 10000": {
			text(`a_time: {seconds: 253402300800}`), "a_time: 253402300800 seconds and 0 nanos are outside of the years 1 to 9999"},
		"signs of a duration": {text(`a_duration: {seconds: 1 nanos: -1}`), "a_duration: 1 seconds and -1 nanos are not a duration"},
		"a long duration":     {text(`a_duration: {seconds: 9223372037}`), "a_duration: 9223372037 seconds and 0 nanos exceed 64 bits of nanoseconds"},
		"nanos of money":      {text(`a_price: {nanos: 1000000000}`), "a_price: 0 units and 1000000000 nanos are not an amount"},
		"currency":            {field(19, 0x0a, 1, 0xff), "a_price.currency_code: invalid UTF-8"},
		"refused, and worse":  {append(text(`a_price: {nanos: 1000000000}`), field(14, 0xff)...), "a_string: invalid UTF-8"},
		"unknown":             {[]byte{0x92, 0x3f, 5}, "unknown field 1010: unexpected end"},
		"inside itself":       {field(21, 0x72, 1, 0xff), "itself.a_string: invalid UTF-8"},
		"a number too high":   {protowire.AppendVarint(nil, 1<<32), "invalid field number"},
		"group without end":   {[]byte{0xb3, 0x0f}, "unknown field 246: unexpected end"},
	} {
		tab := newTable(t, everything)
		if err := tab.Append(text(`a_string: "before"`)); err != nil {
			t.Fatal(err)
		}
		if err := tab.Append(c.b); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, not %s", name, err, c.want)
		}
		if err := tab.Append(text(`a_string: "after"`)); err != nil {
			t.Fatal(err)
		}
		if rec := tab.record(t); rec.NumRows() != 2 || rec.Column(14-1).ValueStr(1) != "after" {
			t.Errorf("%s: the rows are %v", name, rec)
		}
	}
}

// Messages may be nested as deep as Protobuf allows, and not deeper.
func TestDepth(t *testing.T) {
	t.Parallel()
	nested := func(n int) []byte {
		var b []byte
		for range n {
			b = protowire.AppendBytes(protowire.AppendTag(nil, 21, protowire.BytesType), b)
		}
		return b
	}
	tab := newTable(t, everything)
	if err := tab.Append(nested(99)); err != nil {
		t.Error(err)
	}
	if err := tab.Append(nested(100)); err == nil {
		t.Error("101 messages in each other are taken")
	}
	if _, err := parse(everything, nested(100)); err == nil {
		t.Error("protobuf takes them")
	}
}

// Groups, required fields and extensions of proto2 are supported.
func TestProto2(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`id: "a"`,
		`id: "a" count: 0 mood: BAD`,
		`id: "a" Detail: {text: "t" Item: {n: 1} Item: {n: 2}} unpacked: [1, 2] packed: [3, 4]`,
		`id: "a" moods: {key: "k"} itself: {id: "b"}`,
	} {
		m := dynamicpb.NewMessage(legacy)
		if err := prototext.Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		b := marshal(t, m)
		tab := newTable(t, legacy)
		extension := protowire.AppendString(protowire.AppendTag(nil, 100, protowire.BytesType), "more")
		inGroup := protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(protowire.AppendTag(nil, 4, protowire.StartGroupType), 9, 0), 1), 4, protowire.EndGroupType)
		for row, b := range [][]byte{b, slices.Concat(b, extension), slices.Concat(b, b), slices.Concat(b, inGroup)} {
			want, err := parse(legacy, b)
			if err != nil {
				t.Fatal(err)
			}
			if err := tab.Append(b); err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			checkRow(t, want, tab.record(t), row)
		}
	}
	for text, want := range map[string]string{
		`count: 1`:                   "id: required field is missing",
		`id: "a" Detail: {Item: {}}`: "detail.item[0].n: required field is missing",
	} {
		m := dynamicpb.NewMessage(legacy)
		if err := (prototext.UnmarshalOptions{AllowPartial: true}).Unmarshal([]byte(text), m); err != nil {
			t.Fatal(err)
		}
		if err := newTable(t, legacy).Append(marshal(t, m)); err == nil || err.Error() != want {
			t.Errorf("%s: the error is %v, not %s", text, err, want)
		}
	}
}

// Columns have the keys, descriptions and types that follow from the message.
func TestFields(t *testing.T) {
	t.Parallel()
	plan, err := wire.Compile(everything, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ key, doc, typ string }{
		"a_bool":           {"1", "Whether. Or not.", "boolean"},
		"a_duration":       {"18", "How long. (nanoseconds)", "long"},
		"a_price":          {"19", "", "decimal(38, 9)"},
		"a_price_currency": {"19.currency", "currency of a_price", "string"},
		"itself":           {"21", "test.v1.Everything in Protobuf's wire format, for it is inside itself here", "binary"},
		"by_int32":         {"82", "", ""},
		"wrapped_uint64":   {"77", "", "decimal(20, 0)"},
		"prices":           {"49", "", "list<struct<amount decimal(38, 9), currency string>>"},
	} {
		for _, f := range plan.Fields() {
			if f.Name == name && (f.Key != want.key || f.Doc != want.doc || want.typ != "" && f.Type.String() != want.typ) {
				t.Errorf("%s is %+v, not %+v", name, f, want)
			}
			if f.Required {
				t.Errorf("%s is required", name)
			}
		}
	}
	schema, err := columnar.ArrowSchema(plan.Fields())
	if err != nil {
		t.Fatal(err)
	}
	if id, _ := schema.Field(0).Metadata.GetValue("PARQUET:field_id"); id != "1" {
		t.Errorf("the first column has the id %q", id)
	}
}

// Messages that cannot be columns are refused with the reason.
func TestCompileErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`message M { int32 offset = 1; }`:                                                                   "columns of M: field offset has the name of a column that every table has; rename it",
		`message M { bytes _unknown = 1; }`:                                                                 "columns of M: fields _unknown and _unknown would have the same column name; rename one",
		`message M { N n = 1; } message N { int32 a = 1; int32 A = 2; }`:                                    "columns of M: n: fields a and A would have the same column name; rename one",
		"import \"google/type/money.proto\"; message M { google.type.Money p = 1; string p_currency = 2; }": "columns of M: fields p_currency and p_currency would have the same column name; rename one",
	} {
		file, err := compileProto(`syntax = "proto3"; ` + text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = wire.Compile(file.Messages().ByName("M"), wire.Options{Unknown: wire.UnknownColumn, Reserved: []string{"offset"}})
		if err == nil || err.Error() != want {
			t.Errorf("%s: the error is %v, not %s", text, err, want)
		}
	}
	t.Run("a message that unfolds without end", func(t *testing.T) {
		t.Parallel()
		var text strings.Builder
		text.WriteString(`syntax = "proto3"; message M20 {}`)
		for i := range 20 {
			fmt.Fprintf(&text, "message M%d { M%d a = 1; M%d b = 2; }\n", i, i+1, i+1)
		}
		file, err := compileProto(text.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := wire.Compile(file.Messages().ByName("M0"), wire.Options{}); err == nil || !strings.Contains(err.Error(), "more than 10000 columns") {
			t.Error(err)
		}
	})
	file, err := compileProto(`syntax = "proto3"; message M {}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.Compile(file.Messages().ByName("M"), wire.Options{}); err == nil {
		t.Error("a message without fields makes a table without columns")
	}
}

// A table may have columns of fields that the message has lost, in any order and inside structs.
func TestTablesWithMoreColumns(t *testing.T) {
	t.Parallel()
	plan, err := wire.Compile(everything, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		t.Fatal(err)
	}
	lost := columnar.Field{Key: "999", Name: "lost", Type: plan.Fields()[0].Type}
	fields := append([]columnar.Field{lost}, plan.Fields()...)
	for i, f := range fields {
		if s, ok := f.Type.(columnar.Struct); ok {
			fields[i].Type = columnar.Struct{Fields: append([]columnar.Field{lost}, s.Fields...)}
		}
	}
	columns, err := columnar.New(fields)
	if err != nil {
		t.Fatal(err)
	}
	d, err := plan.Bind(columns)
	if err != nil {
		t.Fatal(err)
	}
	m := dynamicpb.NewMessage(everything)
	if err := prototext.Unmarshal([]byte(`a_string: "x" a_inner: {name: "y"} nothing: {}`), m); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{marshal(t, m), nil, {0x08}, marshal(t, m)} {
		columns.Column(0).AppendNull() // before the message, so that it must go where that fails
		if err := d.Append(b); err != nil && len(b) != 1 {
			t.Fatal(err)
		}
	}
	rec := columns.Record()
	if err := validate(rec); err != nil {
		t.Fatal(err)
	}
	if rec.NumRows() != 3 {
		t.Errorf("there are %d rows", rec.NumRows())
	}
	checkRow(t, m, rec, 0)
	checkRow(t, dynamicpb.NewMessage(everything), rec, 1)
	checkRow(t, m, rec, 2)
	if typ := rec.Schema().Field(0).Type; !arrow.TypeEqual(typ, arrow.FixedWidthTypes.Boolean) {
		t.Error(typ)
	}

	fields[3].Type = fields[1].Type
	if columns, err = columnar.New(fields); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Bind(columns); err == nil || !strings.Contains(err.Error(), "a_sint32: the column has type boolean, want int") {
		t.Error(err)
	}
}

// Once buffers have grown, rows allocate no memory, and neither do rows with unknown fields.
func TestRowsDoNotAllocate(t *testing.T) {
	m := dynamicpb.NewMessage(everything)
	text := `a_string: "x" a_price: {units: 1} inners: {deep: {at: {seconds: 5}}} by_string: {key: "a"} by_string: {key: "b"} choice_wrapped: {value: 7}`
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 12345, protowire.VarintType), 7))
	b, tab := marshal(t, m), newTable(t, everything)
	rows := func() {
		tab.columns.Reset()
		for range 100 {
			if err := tab.Append(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows()
	if n := testing.AllocsPerRun(10, rows); n > 0 {
		t.Errorf("100 rows make %v allocations", n)
	}
}
