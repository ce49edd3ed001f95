package avro_test

import (
	"strings"
	"testing"

	"github.com/apache/iceberg-go"
	twmb "github.com/twmb/avro"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/lake/avro"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const everything = `{"type":"record","name":"Everything","namespace":"shop","fields":[
 {"name":"b","type":"boolean","doc":"yes or no"},{"name":"i","type":"int"},{"name":"l","type":"long"},{"name":"f","type":"float"},{"name":"d","type":"double"},
 {"name":"s","type":"string"},{"name":"y","type":"bytes"},{"name":"x","type":{"type":"fixed","name":"X","size":3}},
 {"name":"e","type":{"type":"enum","name":"E","symbols":["RED","GREEN"]}},{"name":"e2","type":"E"},
 {"name":"n","type":"null"},{"name":"o","type":["null","string"]},{"name":"o2","type":["long","null"]},
 {"name":"a","type":{"type":"array","items":["null","int"]}},{"name":"m","type":{"type":"map","values":{"type":"array","items":"string"}}},
 {"name":"r","type":["null",{"type":"record","name":"R","fields":[{"name":"z","type":"shop.E"},{"name":"none","type":{"type":"record","name":"None","fields":[]}}]}]},
 {"name":"u","type":["null","string","long",{"type":"record","name":"Part","fields":[{"name":"p","type":"int"}]}]},
 {"name":"dec","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}},
 {"name":"decf","type":{"type":"fixed","name":"D","size":4,"logicalType":"decimal","precision":9,"scale":0}},
 {"name":"date","type":{"type":"int","logicalType":"date"}},{"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
 {"name":"tu","type":{"type":"long","logicalType":"timestamp-micros"}},{"name":"tod","type":{"type":"int","logicalType":"time-millis"}},
 {"name":"id","type":{"type":"string","logicalType":"uuid"}},
 {"name":"tree","type":{"type":"record","name":"Tree","fields":[{"name":"v","type":"int"},{"name":"next","type":["null","Tree"]}]}}
]}`

const everythingJSON = `{"b":true,"i":-5,"l":5000000000,"f":0.5,"d":0.25,"s":"ü","y":"\u0001","x":"abc","e":"GREEN","e2":"RED","n":null,"o":{"string":"x"},"o2":null,
 "a":[{"int":1},null],"m":{"k":["v","w"]},"r":{"shop.R":{"z":"RED","none":{}}},"u":{"shop.Part":{"p":7}},"dec":"\u0004\u00d2","decf":"\u00ff\u00ff\u00ff\u00fe",
 "date":1,"ts":1500,"tu":1500,"tod":2,"id":"01890a5d-ac96-774b-bcce-b302099a8057","tree":{"v":1,"next":{"shop.Tree":{"v":2,"next":{"shop.Tree":{"v":3,"next":null}}}}}}`

func compile(t testing.TB, schema string, references ...string) *avro.Plan {
	t.Helper()
	p, err := avro.Compile(schema, references...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func encode(t testing.TB, schema, value string) []byte {
	t.Helper()
	s, err := twmb.Parse(schema)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := s.DecodeJSON([]byte(value), &v, twmb.TaggedUnions()); err != nil {
		t.Fatal(err)
	}
	b, err := s.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func columnsOf(t testing.TB, fields []columnar.Field) *columnar.Columns {
	t.Helper()
	c, err := columnar.New(columnar.WithIDs(fields))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rows(t testing.TB, c *columnar.Columns) string {
	t.Helper()
	rec := c.Record()
	defer rec.Release()
	b, err := rec.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func text(fields []columnar.Field) string { return columnar.Struct{Fields: fields}.String() }

// Every type is decoded to its column.
func TestAllTypes(t *testing.T) {
	t.Parallel()
	p := compile(t, everything)
	const columns = "struct<b boolean, i int, l long, f float, d double, s string, y binary, x fixed[3], e string, e2 string, o string, o2 long, " +
		"a list<int>, m map<string, list<string>>, r struct<z string, none struct<_present boolean>>, u struct<string string, long long, Part struct<p int>>, " +
		"dec decimal(20, 2), decf decimal(9, 0), date date, ts timestamptz, tu timestamptz, tod long, id uuid, tree struct<v int, next string>>"
	if got := text(p.Fields()); got != columns {
		t.Errorf("columns %s\nwant    %s", got, columns)
	}
	if doc := p.Fields()[0].Doc; doc != "yes or no" {
		t.Errorf("b is described as %q", doc)
	}
	c := columnsOf(t, p.Fields())
	d, err := p.Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	value := encode(t, everything, everythingJSON)
	if err := d.Append(value); err != nil {
		t.Fatal(err)
	}
	const want = `[{"a":[1,null],"b":true,"d":0.25,"date":"1970-01-02","dec":"12.34","decf":"-2","e":"GREEN","e2":"RED","f":0.5,"i":-5,` +
		`"id":"01890a5d-ac96-774b-bcce-b302099a8057","l":5000000000,"m":[{"key":"k","value":["v","w"]}],"o":"x","o2":null,"r":{"none":{"_present":true},"z":"RED"},"s":"ü",` +
		`"tod":2000,"tree":{"next":"{\"v\":2,\"next\":{\"v\":3,\"next\":null}}","v":1},"ts":"1970-01-01T00:00:01.5Z","tu":"1970-01-01T00:00:00.0015Z",` +
		`"u":{"Part":{"p":7},"long":null,"string":null},"x":"YWJj","y":"AQ=="}
]`
	if got := rows(t, c); got != want {
		t.Errorf("rows %s\nwant %s", got, want)
	}
	// A value that is truncated anywhere, or has trailing bytes, leaves nothing behind.
	for n := range len(value) {
		if err := d.Append(value[:n]); err == nil {
			t.Errorf("%d bytes of %d are taken for the whole", n, len(value))
		}
	}
	if err := d.Append(append(value, 0)); err == nil || !strings.Contains(err.Error(), "1 bytes follow its end") {
		t.Errorf("error %v", err)
	}
	if got := rows(t, c); got != want {
		t.Errorf("after bad values: rows %s", got)
	}
}

// Values of older and newer schemas go into one table: missing fields are null, and the wider type
// holds both.
func TestSchemasOfOneTable(t *testing.T) {
	t.Parallel()
	schema := func(fields string) string { return `{"type":"record","name":"R","fields":[` + fields + `]}` }
	older := schema(`{"name":"n","type":"int"},{"name":"f","type":"float"},{"name":"gone","type":"string"},{"name":"in","type":{"type":"record","name":"I","fields":[{"name":"a","type":"int"}]}},{"name":"l","type":{"type":"array","items":"int"}}`)
	newer := schema(`{"name":"in","type":{"type":"record","name":"I","fields":[{"name":"b","type":"string"},{"name":"a","type":"long"}]}},{"name":"n","type":["null","long"]},{"name":"f","type":"double"},{"name":"more","type":"string"},{"name":"l","type":{"type":"array","items":["null","long"]}}`)
	plans := []*avro.Plan{compile(t, older), compile(t, newer)}
	values := [][]byte{
		encode(t, older, `{"n":1,"f":0.5,"gone":"g","in":{"a":1},"l":[1]}`), encode(t, newer, `{"in":{"b":"b","a":5000000000},"n":null,"f":0.25,"more":"m","l":[null]}`),
	}
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		fields, err := evolution.Union(columnar.WithIDs(plans[order[0]].Fields()), plans[order[1]].Fields())
		if err != nil {
			t.Fatal(err)
		}
		c := columnsOf(t, fields)
		for _, n := range []int{0, 1} {
			d, err := plans[n].Bind(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Append(values[n]); err != nil {
				t.Fatal(err)
			}
			for i, f := range fields { // as the caller does
				if c.Column(i).Len() == n {
					if f.Name != "gone" && f.Name != "more" {
						t.Errorf("column %s is not filled", f.Name)
					}
					c.Column(i).AppendNull()
				}
			}
		}
		const want = `[{"f":0.5,"gone":"g","in":{"a":1,"b":null},"l":[1],"more":null,"n":1}
,{"f":0.25,"gone":null,"in":{"a":5000000000,"b":"b"},"l":[null],"more":"m","n":null}
]`
		if got := rows(t, c); got != want {
			t.Errorf("%v: rows %s\nwant %s", order, got, want)
		}
	}
}

// Types of referenced schemas are resolved.
func TestReferences(t *testing.T) {
	t.Parallel()
	const who = `{"type":"record","name":"Who","namespace":"web","fields":[{"name":"id","type":"string"}]}`
	p := compile(t, `{"type":"record","name":"Click","namespace":"web","fields":[{"name":"who","type":"Who"},{"name":"by","type":["null","web.Who"]}]}`, who)
	if got, want := text(p.Fields()), "struct<who struct<id string>, by struct<id string>>"; got != want {
		t.Errorf("columns %s, want %s", got, want)
	}
	if got, want := text(compile(t, `"long"`).Fields()), "struct<value long>"; got != want {
		t.Errorf("columns %s, want %s", got, want)
	}
}

// Invalid schemas and values are refused with the field and the reason.
func TestRefused(t *testing.T) {
	t.Parallel()
	for schema, want := range map[string]string{
		`{`: "not an Avro schema",
		`{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"A","type":"int"}]}`:                                       "A: has the same column name as field a",
		`{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"}}]}`:                                       "a: an array of nulls",
		`{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"record","name":"I","fields":[{"name":"b","type":"Nowhere"}]}}]}`: "not an Avro schema",
	} {
		if _, err := avro.Compile(schema); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", schema, err, want)
		}
	}
	const schema = `{"type":"record","name":"R","fields":[{"name":"in","type":{"type":"record","name":"I","fields":[{"name":"id","type":{"type":"string","logicalType":"uuid"}},
		{"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":2}},{"name":"e","type":{"type":"enum","name":"E","symbols":["A"]}},{"name":"t","type":{"type":"long","logicalType":"timestamp-millis"}}]}}]}`
	p := compile(t, schema)
	c := columnsOf(t, p.Fields())
	d, err := p.Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	id := "\x4801890a5d-ac96-774b-bcce-b302099a8057"
	for value, want := range map[string]string{
		"\x02x":         `in.id: "x" is not a UUID`,
		id + "\x02\x64": "in.d: decimal of more than 2 digits",
		id + "\x00\x02": "in.e: symbol 1 of an enum of 1",
		id + "\x00\x00" + "\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01": "in.t: 9223372036854775807 milliseconds",
		"\x01":                  "in.id: unexpected end of the value",
		id + "\x00\x00\x00\x00": "1 bytes follow its end",
	} {
		if err := d.Append([]byte(value)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", value, err, want)
		}
	}
	if c.Rows() != 0 {
		t.Errorf("%d rows of values that are none", c.Rows())
	}
}

// Any bytes give a complete row or none, and what our decoder accepts, the library accepts, too.
func FuzzValue(f *testing.F) {
	f.Add(encode(f, everything, everythingJSON))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, value []byte) {
		p := compile(t, everything)
		c := columnsOf(t, p.Fields())
		d, err := p.Bind(c)
		if err != nil {
			t.Fatal(err)
		}
		err = d.Append(value)
		rec := c.Record() // panics where a row is not whole
		defer rec.Release()
		if want := map[bool]int64{true: 1, false: 0}[err == nil]; rec.NumRows() != want {
			t.Fatalf("%d rows, error %v", rec.NumRows(), err)
		}
		if err != nil {
			return
		}
		var v any
		if _, err := twmb.MustParse(everything).Decode(value, &v); err != nil {
			t.Fatalf("the library does not take what we took: %v", err)
		}
	})
}

// The columns of every schema that compiles are valid.
func FuzzSchema(f *testing.F) {
	f.Add(everything)
	f.Fuzz(func(t *testing.T, schema string) {
		p, err := avro.Compile(schema)
		if err != nil {
			return
		}
		if _, err := columnar.New(columnar.WithIDs(p.Fields())); err != nil {
			t.Fatalf("%s: %v", schema, err)
		}
	})
}

// A value without columns is a row, and an invalid one is not.
func TestNoColumns(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{`{"type":"record","name":"R","fields":[]}`, `"null"`, `{"type":"record","name":"R","fields":[{"name":"n","type":"null"}]}`} {
		p := compile(t, schema)
		c := columnsOf(t, append(p.Fields(), columnar.Field{Name: "of the caller", Type: iceberg.PrimitiveTypes.Int64}))
		d, err := p.Bind(c)
		if err != nil || len(p.Fields()) != 0 {
			t.Fatalf("%s: columns %v, %v", schema, p.Fields(), err)
		}
		if err := d.Append(nil); err != nil {
			t.Errorf("%s: %v", schema, err)
		}
		c.Column(0).AppendNull()
		if err := d.Append([]byte{0}); err == nil || c.Rows() != 1 {
			t.Errorf("%s: a byte too many: %v, and %d rows", schema, err, c.Rows())
		}
	}
}
