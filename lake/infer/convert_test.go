package infer_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/iceberg-go"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/infer"
)

// existing returns a table of another engine with one column v.
func existing(t testing.TB, of columnar.Type) *table {
	t.Helper()
	return existingWith(t, columnar.Field{Name: "v", Type: of})
}

func existingWith(t testing.TB, fields ...columnar.Field) *table {
	t.Helper()
	step, err := evolution.New(append([]columnar.Field{options.ExtraField()}, fields...), nil)
	if err != nil {
		t.Fatal(err)
	}
	tab := &table{t: t, o: options, schema: step.Schema, keys: step.Keys}
	tab.refresh()
	return tab
}

// An existing column is filled if the value converts exactly. Other values are preserved beside it
// as written.
func TestExistingColumns(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	for _, c := range []struct {
		of     columnar.Type
		fill   map[string]string // JSON to what the column then has, as Arrow writes it
		beside []string
	}{
		{p.Int32, map[string]string{`7`: `7`, `-2147483648`: `-2147483648`}, []string{`2147483648`, `"7"`, `true`, `[7]`}},
		{p.Int64, map[string]string{`7`: `7`, `9223372036854775807`: `9223372036854775807`}, []string{`9223372036854775808`, `"7"`}},
		{p.Float32, map[string]string{`7`: `7`, `9.99`: `9.99`, `-1e-3`: `-0.001`}, []string{`0.123456789012`, `16777217`, `1e39`, `"1.5"`}},
		{p.Float64, map[string]string{`9.99`: `9.99`, `7`: `7`}, []string{`9007199254740993`, `1e400`}},
		{
			iceberg.DecimalTypeOf(10, 2), map[string]string{
				`7`: `"7"`, `9.99`: `"9.99"`, `-0.5`: `"-0.5"`, `1.230`: `"1.23"`, `1e2`: `"100"`, `"9.99"`: `"9.99"`, `0`: `"0"`, `-0`: `"0"`,
				`99999999.99`: `"99999999.99"`, `12e-1`: `"1.2"`,
			},
			[]string{`9.999`, `123456789`, `1e-3`, `1e9223372036854775807`, `1e-9223372036854775808`, `"nine"`, `"9.99 "`, `" 9.99"`, `""`, `true`},
		},
		{iceberg.DecimalTypeOf(38, 0), map[string]string{`12345678901234567890123456789012345678`: `"12345678901234567890123456789012345678"`}, []string{`1e38`, `0.5`}},
		{
			p.Date, map[string]string{`"2024-01-01"`: `"2024-01-01"`, `"0001-01-01"`: `"0001-01-01"`, `"9999-12-31"`: `"9999-12-31"`, `"2024-02-29"`: `"2024-02-29"`},
			[]string{`"2023-02-29"`, `"2024-1-1"`, `"0000-12-31"`, `"10000-01-01"`, `"2024-01-01T00:00:00Z"`, `19723`, `""`, `"today"`},
		},
		{
			p.Time, map[string]string{`"10:00:00"`: `"10:00:00"`, `"23:59:59.999999"`: `"23:59:59.999999"`, `"00:00"`: `"00:00:00"`},
			[]string{`"24:00:00"`, `"10:00:00.0000001"`, `"1:00:00"`, `"10:00:00Z"`, `"10:00:00,5"`, `36000`, `"10:60:00"`},
		},
		{
			p.Timestamp, map[string]string{`"2024-01-01T10:00:00.5"`: `"2024-01-01T10:00:00.5"`},
			[]string{`"2024-01-01T10:00:00Z"`, `"2024-01-01"`, `"0000-01-01T00:00:00"`, `"2024-01-01T10:00:00.0000001"`, `1704103200`},
		},
		{
			p.TimestampTz, map[string]string{`"2024-01-01T10:00:00+02:00"`: `"2024-01-01T08:00:00Z"`},
			[]string{`"2024-01-01T10:00:00"`, `"9999-12-31T23:59:59-23:00"`, `1704103200000`},
		},
		{
			p.UUID, map[string]string{`"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`: `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`},
			[]string{`"6ba7b8109dad11d180b400c04fd430c8"`, `"{6ba7b810-9dad-11d1-80b4-00c04fd430c8}"`, `"6ba7b810-9dad-11d1-80b4-00c04fd430cx"`, `1`},
		},
		{p.Binary, map[string]string{`"AQI="`: `"AQI="`}, []string{`"AQI"`, `"AQJ="`, `"a b"`, `"A\nQI="`, `1`}},
		{iceberg.FixedTypeOf(2), map[string]string{`"AQI="`: `"AQI="`}, []string{`"AQ=="`, `"AQID"`}},
		{p.Bool, map[string]string{`true`: `true`, `false`: `false`}, []string{`1`, `"true"`}},
	} {
		t.Run(c.of.String(), func(t *testing.T) {
			t.Parallel()
			for value, want := range c.fill {
				tab := existing(t, c.of)
				if got := filled(t, tab, fmt.Sprintf(`{"v":%s}`, value)); got["v"] != want || len(got) != 1 {
					t.Errorf("%s became %v, want %s", value, got, want)
				}
			}
			for _, value := range c.beside {
				tab := existing(t, c.of)
				got := filled(t, tab, fmt.Sprintf(`{"v":%s}`, value))
				text, _ := json.Marshal(value)
				if len(got) != 1 || got["v_json"] != string(text) && got["v_double"] != value {
					t.Errorf("%s became %v, want it beside the column", value, got)
				}
			}
		})
	}
}

// filled lands an object and returns the non-null columns of its row, as Arrow formats them.
func filled(t testing.TB, tab *table, object string) map[string]string {
	t.Helper()
	o, err := infer.Parse([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		columns, err := columnar.New(tab.fields)
		if err != nil {
			t.Fatal(err)
		}
		d, err := tab.o.Bind(columns)
		if err != nil {
			t.Fatal(err)
		}
		if d.Append(o) != nil {
			tab.grow([]*infer.Object{o})
			continue
		}
		rec := columns.Record()
		defer rec.Release()
		b, err := rec.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var rows []map[string]json.RawMessage
		if err := json.Unmarshal(b, &rows); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for name, v := range rows[0] {
			if string(v) != "null" {
				out[name] = string(v)
			}
		}
		return out
	}
	t.Fatalf("%s has no row", object)
	return nil
}

// A decimal has exactly the number that was written, or it is not filled.
func TestDecimalsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		precision := rapid.IntRange(1, 38).Draw(r, "precision")
		scale := rapid.IntRange(0, precision).Draw(r, "scale")
		text := rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?`).Draw(r, "number")
		columns, err := columnar.New(columnar.WithIDs([]columnar.Field{options.ExtraField(), {Name: "v", Type: iceberg.DecimalTypeOf(precision, scale)}}))
		if err != nil {
			r.Fatal(err)
		}
		d, err := options.Bind(columns)
		if err != nil {
			r.Fatal(err)
		}
		o, err := infer.Parse([]byte(`{"v":` + text + `}`))
		if err != nil {
			r.Fatal(err)
		}
		want, ok := new(big.Rat).SetString(text)
		if !ok {
			r.Fatalf("%s is no number", text)
		}
		want.Mul(want, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)))
		fits := want.IsInt() && len(strings.TrimPrefix(want.Num().String(), "-")) <= precision
		if err := d.Append(o); fits != (err == nil) {
			r.Fatalf("%s into decimal(%d, %d): %v", text, precision, scale, err)
		}
		if fits {
			if got := columns.Column(1).(*columnar.Decimals).Values()[0]; got != decimal128.FromBigInt(want.Num()) {
				r.Fatalf("%s became %s", text, got.BigInt())
			}
		}
	})
}

// A field without a column of its name fills the one whose name differs only in case.
func TestNamesThatDifferInCase(t *testing.T) {
	t.Parallel()
	id := columnar.Field{Name: "id", Type: iceberg.PrimitiveTypes.Int64}
	for object, want := range map[string]string{
		`{"ID":1}`:                  `map[id:1]`,
		`{"Id":1,"id":2}`:           `map[_extra:"{\"Id\":1}" id:2]`, // the one of that name has it
		`{"Id":1,"ID":2}`:           `map[_extra:"{\"ID\":2}" id:1]`, // the first has it
		`{"id":null,"ID":3}`:        `map[id:3]`,                     // null is as if it were not there
		`{"ID":"x"}`:                `map[id_json:"\"x\""]`,
		`{"ID":1.5}`:                `map[id_double:1.5]`,
		`{"WHO":{"NAME":"Ann"}}`:    `map[who:{"name":"Ann"}]`,
		`{"ALL":[{"X":1},{"x":2}]}`: `map[all:[{"x":1},{"x":2}]]`,
		`{"other":1}`:               `map[other:1]`,
		`{"\u0130d":1}`:             "map[\u0130d:1]", // a letter of its own, whatever lower case makes of it
		`{"_KEY":1}`:                `map[_extra:"{\"_KEY\":1}"]`,
	} {
		tab := existingWith(t, id,
			columnar.Field{Name: "who", Type: columnar.Struct{Fields: []columnar.Field{{Name: "name", Type: iceberg.PrimitiveTypes.String}}}},
			columnar.Field{Name: "all", Type: columnar.List{Element: columnar.Field{Name: "element", Type: columnar.Struct{Fields: []columnar.Field{{Name: "x", Type: iceberg.PrimitiveTypes.Int64}}}}}})
		if got := fmt.Sprint(filled(t, tab, object)); got != want {
			t.Errorf("%s became %s, want %s", object, got, want)
		}
	}
}

// An object fills a map column if each name is a key and each value converts exactly. Others are
// preserved beside it.
func TestExistingMaps(t *testing.T) {
	t.Parallel()
	p := iceberg.PrimitiveTypes
	mapOf := func(key, value columnar.Type) columnar.Type {
		return columnar.Map{Key: columnar.Field{Name: "key", Type: key, Required: true}, Value: columnar.Field{Name: "value", Type: value}}
	}
	point := columnar.Struct{Fields: []columnar.Field{{Name: "x", Type: p.Int64}}}
	for _, c := range []struct {
		of     columnar.Type
		fill   map[string]string
		beside []string
	}{
		{mapOf(p.String, p.String), map[string]string{
			`{"a":"1","b":""}`: `[{"key":"a","value":"1"},{"key":"b","value":""}]`, `{}`: `[]`, `{"a":null}`: `[{"key":"a","value":null}]`,
			`{"":"x"}`: `[{"key":"","value":"x"}]`, `{"é.ü/%":"x"}`: `[{"key":"é.ü/%","value":"x"}]`,
		}, []string{`{"a":1}`, `{"a":"1","b":true}`, `[]`, `"a"`, `7`, `{"a":["x"]}`, `{"\ud800":"x"}`}},
		{mapOf(p.String, p.Int64), map[string]string{`{"a":7}`: `[{"key":"a","value":7}]`}, []string{`{"a":"7"}`, `{"a":7.5}`}},
		{mapOf(p.Int32, p.Date), map[string]string{`{"7":"2024-01-01","-1":null}`: `[{"key":7,"value":"2024-01-01"},{"key":-1,"value":null}]`},
			[]string{`{"07":"2024-01-01"}`, `{"2147483648":"2024-01-01"}`, `{"7.0":"2024-01-01"}`, `{"a":"2024-01-01"}`, `{"7":"x"}`, `{"+7":null}`}},
		{mapOf(p.UUID, p.String), nil, []string{`{"6ba7b810-9dad-11d1-80b4-00c04fd430c8":"x"}`}},
		{mapOf(p.String, columnar.List{Element: columnar.Field{Name: "element", Type: p.Float64}}), map[string]string{`{"a":[1.5,2]}`: `[{"key":"a","value":[1.5,2]}]`}, []string{`{"a":[1.5,"x"]}`, `{"a":1}`}},
		{mapOf(p.String, mapOf(p.String, p.Bool)), map[string]string{`{"a":{"b":true}}`: `[{"key":"a","value":[{"key":"b","value":true}]}]`}, []string{`{"a":{"b":1}}`}},
		{mapOf(p.String, point), map[string]string{
			`{"a":{"x":1},"b":null}`: `[{"key":"a","value":{"x":1}},{"key":"b","value":null}]`,
			`{"a":{"x":1,"y":"z"}}`:  `[{"key":"a","value":{"x":1,"y":"z"}}]`, // the struct grows, as any does
		}, []string{`{"a":1}`}},
	} {
		for value, want := range c.fill {
			if got := filled(t, existing(t, c.of), fmt.Sprintf(`{"v":%s}`, value)); got["v"] != want || len(got) != 1 {
				t.Errorf("%s: %s became %v, want %s", c.of, value, got, want)
			}
		}
		for _, value := range c.beside {
			got := filled(t, existing(t, c.of), fmt.Sprintf(`{"v":%s}`, value))
			if text, _ := json.Marshal(value); len(got) != 1 || got["v_json"] != string(text) {
				t.Errorf("%s: %s became %v, want it beside the column", c.of, value, got)
			}
		}
	}
}
