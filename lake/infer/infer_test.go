package infer_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/apache/iceberg-go"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/infer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var options = infer.Options{Extra: "_extra", Reserved: []string{"_key"}}

// table does what a lander does with a growing table, without files.
type table struct {
	t      testing.TB
	o      infer.Options
	schema *iceberg.Schema
	keys   evolution.Keys
	fields []columnar.Field
	rows   []map[string]any // as read back: columns by name, JSON in place of structs and lists
}

func newTable(t testing.TB, o infer.Options) *table {
	t.Helper()
	step, err := evolution.New([]columnar.Field{o.ExtraField()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tab := &table{t: t, o: o, schema: step.Schema, keys: step.Keys}
	tab.refresh()
	return tab
}

func (tab *table) refresh() {
	var err error
	if tab.fields, err = evolution.Columns(tab.schema, tab.keys); err != nil {
		tab.t.Fatal(err)
	}
}

// land appends a batch of objects. If one needs columns, all of them are considered.
func (tab *table) land(batch ...string) {
	tab.t.Helper()
	objects := make([]*infer.Object, len(batch))
	for i, text := range batch {
		var err error
		if objects[i], err = infer.Parse([]byte(text)); err != nil {
			tab.t.Fatalf("%s: %v", text, err)
		}
	}
	for i := range objects {
		for tries := 0; ; tries++ {
			columns, err := columnar.New(tab.fields)
			if err != nil {
				tab.t.Fatal(err)
			}
			d, err := tab.o.Bind(columns)
			if err != nil {
				tab.t.Fatal(err)
			}
			if err = d.Append(objects[i]); err == nil {
				columns.Record().Release() // panics where a row is not whole
				tab.rows = append(tab.rows, read(tab.fields, columns))
				break
			}
			if !errors.Is(err, infer.ErrGrow) || tries > 0 {
				tab.t.Fatalf("%s: after %d tries: %v", batch[i], tries, err)
			}
			tab.grow(objects[i:])
		}
	}
}

func (tab *table) grow(objects []*infer.Object) {
	tab.t.Helper()
	want, changed := tab.o.Grow(tab.fields, objects...)
	if !changed {
		tab.t.Fatal("nothing grows")
	}
	step, err := evolution.Of(tab.schema, tab.schema.HighestFieldID(), tab.keys, want)
	if err != nil {
		tab.t.Fatal(err)
	}
	if len(step.Changes) == 0 {
		tab.t.Fatalf("it is said to grow, and is the same: %v", want)
	}
	tab.schema, tab.keys = step.Schema, step.Keys
	tab.refresh()
	if _, again := tab.o.Grow(tab.fields, objects...); again {
		tab.t.Fatalf("it would grow again for the same objects: %v", tab.fields)
	}
}

func (tab *table) columns() string {
	var all []string
	for _, f := range tab.fields[1:] {
		all = append(all, f.Name+" "+f.Type.String())
	}
	return strings.Join(all, ", ")
}

// read returns the only row of columns.
func read(fields []columnar.Field, columns *columnar.Columns) map[string]any {
	row := map[string]any{}
	for i, f := range fields {
		if v := valueOf(f.Type, columns.Column(i), 0); v != nil {
			row[f.Identity()] = v
		}
	}
	return row
}

// valueOf returns the value in row i of a column, or nil for null.
func valueOf(t columnar.Type, col columnar.Column, i int) any {
	if valid := col.Validity(); valid != nil && !bitutil.BitIsSet(valid, i) {
		return nil
	}
	switch col := col.(type) {
	case *columnar.Bools:
		return bitutil.BitIsSet(col.Values(), i)
	case *columnar.Int64s:
		if t.String() == "timestamptz" {
			return time.UnixMicro(col.Values()[i]).UTC()
		}
		return json.Number(strconv.FormatInt(col.Values()[i], 10))
	case *columnar.Float64s:
		return json.Number(strconv.FormatFloat(col.Values()[i], 'g', -1, 64))
	case *columnar.Bytes:
		return string(col.Value(i))
	case *columnar.Structs:
		out := map[string]any{}
		for n, f := range t.(columnar.Struct).Fields {
			if v := valueOf(f.Type, col.Children()[n], i); v != nil {
				out[f.Identity()] = v
			}
		}
		return out
	case *columnar.Lists:
		out := []any{}
		for n := col.Offsets()[i]; n < col.Offsets()[i+1]; n++ {
			out = append(out, valueOf(t.(columnar.List).Element.Type, col.Element(), int(n)))
		}
		return out
	}
	panic(fmt.Sprintf("%T", col))
}

func TestColumns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o       infer.Options
		batches [][]string
		columns string
		rows    string // of the last batch, as JSON
	}{
		"types": {
			batches: [][]string{{`{"a":1,"b":1.5,"c":"x","d":true,"e":{"f":[1,2]},"g":null}`}},
			columns: "a long, b double, c string, d boolean, e struct<f list<long>>",
			rows:    `{"a":1,"b":1.5,"c":"x","d":true,"e":{"f":[1,2]}}`,
		},
		"whole numbers and fractions in one batch are doubles": {
			batches: [][]string{{`{"a":1}`, `{"a":1.5}`}}, columns: "a double", rows: `{"a":1} {"a":1.5}`,
		},
		"a fraction where there are whole numbers": {
			batches: [][]string{{`{"a":1}`}, {`{"a":1.5}`, `{"a":2}`}}, columns: "a long, a_double double", rows: `{"double:a":1.5} {"a":2}`,
		},
		"text where there are numbers": {
			batches: [][]string{{`{"a":1}`}, {`{"a":"n/a"}`, `{"a":[1]}`}}, columns: "a long, a_json string", rows: `{"json:a":"\"n/a\""} {"json:a":"[1]"}`,
		},
		"mixed from the beginning": {
			batches: [][]string{{`{"a":1}`, `{"a":"x"}`}, {`{"a":{"b": 1}}`}}, columns: "a string", rows: `{"json:a":"{\"b\": 1}"}`,
		},
		"a mixed array": {
			batches: [][]string{{`{"a":[1,"x"],"b":[[1],["x"]]}`}}, columns: "a string, b string", rows: `{"json:a":"[1,\"x\"]","json:b":"[[1],[\"x\"]]"}`,
		},
		"an array that no longer fits": {
			batches: [][]string{{`{"a":[1,2]}`}, {`{"a":[1,2.5]}`, `{"a":[]}`}}, columns: "a list<long>, a_json string", rows: `{"json:a":"[1,2.5]"} {"a":[]}`,
		},
		"objects in arrays grow": {
			batches: [][]string{{`{"a":[{"b":1}]}`}, {`{"a":[{"b":"x"},{"c":true},null,{}]}`}}, columns: "a list<struct<b long, b_json string, c boolean>>",
			rows: `{"a":[{"json:b":"\"x\""},{"c":true},null,{}]}`,
		},
		"what is empty": {
			batches: [][]string{{`{"a":{},"b":[],"c":[[]],"d":[null]}`}, {`{"a":{"x":1},"b":[1]}`, `{"a":{},"b":[]}`}},
			columns: "a struct<x long>, b list<long>", rows: `{"a":{"x":1},"b":[1]} {"a":{},"b":[]}`,
		},
		"what is empty is kept": {batches: [][]string{{`{"a":{},"b":[],"c":[[]],"d":[null]}`}}, rows: `{"_extra":"{\"a\":{},\"b\":[],\"c\":[[]],\"d\":[null]}"}`},
		"what is empty in an array": {
			batches: [][]string{{`{"a":[{"b":1},{"c":[]},{"b":2},{"c":{}}]}`}}, columns: "a list<struct<b long>>",
			rows: `{"_extra":"{\"a\":[null,{\"c\":[]},null,{\"c\":{}}]}","a":[{"b":1},{},{"b":2},{}]}`,
		},
		"numbers that no double has": {
			batches: [][]string{{`{"a":0.12345678901234567890}`, `{"a":0.5}`, `{"a":9007199254740993}`, `{"a":1e400}`}}, columns: "a double, a_json string",
			rows: `{"json:a":"0.12345678901234567890"} {"a":0.5} {"json:a":"9007199254740993"} {"json:a":"1e400"}`,
		},
		"long numbers": {
			batches: [][]string{{`{"a":9223372036854775807,"b":9223372036854775808}`}, {`{"a":9223372036854775808}`}}, columns: "a long, b double, b_json string, a_json string",
			rows: `{"json:a":"9223372036854775808"}`,
		},
		"times": {
			o: infer.Options{Times: true}, batches: [][]string{{`{"a":"2026-11-25T10:00:00.5+01:00","b":"2026-11-25"}`}, {`{"a":"soon"}`, `{"a":"2026-11-25T10:00:00.0000001Z"}`}},
			columns: "a timestamptz, b string, a_json string", rows: `{"json:a":"\"soon\""} {"json:a":"\"2026-11-25T10:00:00.0000001Z\""}`,
		},
		"times and text in one batch": {
			o: infer.Options{Times: true}, batches: [][]string{{`{"a":"2026-11-25T10:00:00Z"}`, `{"a":"soon"}`}}, columns: "a string", rows: `{"a":"2026-11-25T10:00:00Z"} {"a":"soon"}`,
		},
		"times are text unless asked for": {batches: [][]string{{`{"a":"2026-11-25T10:00:00Z"}`}}, columns: "a string", rows: `{"a":"2026-11-25T10:00:00Z"}`},
		"names": {
			batches: [][]string{{`{"a.b":1,"A":1,"a":2,"_KEY":3,"_extra":4,"":5,"a_b":6,"x\ny":7}`}}, columns: "a_b long, A long, x_y long",
			rows: `{"A":1,"_extra":"{\"a\":2,\"_KEY\":3,\"_extra\":4,\"\":5,\"a_b\":6}","name:a.b":1,"name:x\ny":7}`,
		},
		"a name that a column beside another has": {
			batches: [][]string{{`{"a":1}`}, {`{"a":"x"}`}, {`{"a_json":1}`}}, columns: "a long, a_json string", rows: `{"_extra":"{\"a_json\":1}"}`,
		},
		"no name is left for a column beside another": {
			batches: [][]string{{`{"a":1,"a_json":true}`}, {`{"a":"x"}`}}, columns: "a long, a_json boolean", rows: `{"_extra":"{\"a\":\"x\"}"}`,
		},
		"text that is none": {
			batches: [][]string{{`{"a":"\ud800","b":"\ud83d\ude00","\udc00":1,"c":"\ufffd"}`}, {`{"b":"\ude00"}`}}, columns: "a string, b string, c string, b_json string",
			rows: `{"json:b":"\"\\ude00\""}`,
		},
		"too many": {
			o: infer.Options{Columns: 4}, batches: [][]string{{`{"a":1,"b":2,"c":{"d":1,"e":1},"f":1}`}}, columns: "a long, b long, f long",
			rows: `{"_extra":"{\"c\":{\"d\":1,\"e\":1}}","a":1,"b":2,"f":1}`,
		},
		"too deep": {
			o: infer.Options{Depth: 2}, batches: [][]string{{`{"a":{"b":{"c":1},"d":[1],"e":1},"f":[1]}`}}, columns: "a struct<e long>, f list<long>",
			rows: `{"_extra":"{\"a\":{\"b\":{\"c\":1},\"d\":[1]}}","a":{"e":1},"f":[1]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.o.Extra, c.o.Reserved = options.Extra, options.Reserved
			tab := newTable(t, c.o)
			for _, batch := range c.batches {
				tab.rows = nil
				tab.land(batch...)
			}
			var rows []string
			for _, row := range tab.rows {
				b, err := json.Marshal(row)
				if err != nil {
					t.Fatal(err)
				}
				rows = append(rows, string(b))
			}
			if got := strings.Join(rows, " "); tab.columns() != c.columns || got != c.rows {
				t.Errorf("columns %s\nwant    %s\nrows %s\nwant %s", tab.columns(), c.columns, got, c.rows)
			}
		})
	}
}

func TestNotAnObject(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``: "not JSON", `{`: "not JSON", `[1]`: "not an object", `1`: "not an object", `null`: "not an object", "{\"a\":\"\xff\"}": "not UTF-8",
		`{"a":1,"b":{"c":1,"c":2}}`: `has the name "c" twice`, `{"a":1,"\u0061":2}`: `has the name "a" twice`, `{"a":01}`: "not JSON", `{} {}`: "not JSON",
		strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000): "not JSON",
	} {
		if _, err := infer.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: error %v, want %s", text, err, want)
		}
	}
}

// For any objects in any batches, each is complete in its row, in its columns and the extra ones.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		o := options
		o.Times, o.Columns, o.Depth = rapid.Bool().Draw(r, "times"), rapid.SampledFrom([]int{0, 3, 12}).Draw(r, "columns"), rapid.IntRange(0, 4).Draw(r, "depth")
		tab := newTable(t, o)
		var want []string
		for range rapid.IntRange(1, 4).Draw(r, "batches") {
			batch := rapid.SliceOfN(objects(3), 1, 4).Draw(r, "batch")
			want = append(want, batch...)
			tab.land(batch...)
		}
		for i, text := range want {
			sameObject(t, tab.o, tab.rows[i], text)
		}
	})
}

// objects draws JSON objects that often disagree.
func objects(depth int) *rapid.Generator[string] {
	name := rapid.SampledFrom([]string{"a", "b", "A", "a.b", "a_json", "b_double", "_extra", "", "ü\"", "\\ud800"})
	return rapid.Custom(func(r *rapid.T) string {
		members := rapid.SliceOfNDistinct(rapid.Custom(func(r *rapid.T) [2]string {
			n := name.Draw(r, "name")
			if n != `\ud800` {
				b, _ := json.Marshal(n)
				n = string(b)
			} else {
				n = `"` + n + `"`
			}
			return [2]string{n, values(depth).Draw(r, "value")}
		}), 0, 4, func(m [2]string) string { return m[0] }).Draw(r, "members")
		var parts []string
		for _, m := range members {
			parts = append(parts, m[0]+": "+m[1])
		}
		return "{" + strings.Join(parts, ", ") + "}"
	})
}

func values(depth int) *rapid.Generator[string] {
	scalars := rapid.SampledFrom([]string{
		"null", "true", "false", "0", "-0", "1", "-7", "9007199254740993", "9223372036854775807", "18446744073709551616", "1.0", "1.5", "-0.0", "1e2", "0.1",
		"0.12345678901234567890", "1e-7", "1e999", `""`, `"x"`, `"2026-11-25T10:00:00Z"`, `"2026-11-25T10:00:00.123456789Z"`, `"\ud800"`, `"\ud83d\ude00"`, `"1"`,
	})
	if depth == 0 {
		return scalars
	}
	return rapid.Custom(func(r *rapid.T) string {
		switch rapid.IntRange(0, 4).Draw(r, "kind") {
		case 0:
			return objects(depth-1).Draw(r, "object")
		case 1:
			return "[" + strings.Join(rapid.SliceOfN(values(depth-1), 0, 3).Draw(r, "items"), ",") + "]"
		}
		return scalars.Draw(r, "scalar")
	})
}

// sameObject reassembles a row and compares it with its object.
func sameObject(t testing.TB, o infer.Options, row map[string]any, text string) {
	t.Helper()
	row = maps.Clone(row)
	extra, _ := row[o.Extra].(string)
	delete(row, o.Extra)
	want := normal(parse(t, text))
	got := called(restored(t, row), want)
	if extra != "" {
		got = merge(t, got, parse(t, extra))
	}
	if !reflect.DeepEqual(normal(got), want) {
		t.Fatalf("%s\nbecame %v\nwhich is %v\nwant     %v", text, row, normal(got), want)
	}
}

// parse keeps what encoding/json does not: unpaired surrogates.
func parse(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(strings.ReplaceAll(text, `\ud800`, `<half>`)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// restored converts columns back to fields.
func restored(t testing.TB, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			kind, name, keyed := strings.Cut(key, ":")
			if !keyed {
				name = key
			}
			if _, twice := out[name]; twice {
				t.Fatalf("field %q has two values in %v", name, v)
			}
			if out[name] = restored(t, inner); keyed && kind == "json" {
				out[name] = parse(t, inner.(string))
			}
		}
		return out
	case []any:
		out := []any{}
		for _, inner := range v {
			out = append(out, restored(t, inner))
		}
		return out
	}
	return v
}

// called names fields as the object does, if a column's name differs only in case.
func called(have, want any) any {
	switch have := have.(type) {
	case map[string]any:
		fields, _ := want.(map[string]any)
		out := map[string]any{}
		for name, inner := range have {
			if _, there := fields[name]; !there {
				for field := range fields {
					if _, other := have[field]; !other && strings.EqualFold(field, name) {
						name = field
					}
				}
			}
			out[name] = called(inner, fields[name])
		}
		return out
	case []any:
		items, _ := want.([]any)
		for i := range min(len(have), len(items)) {
			have[i] = called(have[i], items[i])
		}
	}
	return have
}

func merge(t testing.TB, have, more any) any {
	switch more := more.(type) {
	case map[string]any:
		into, ok := have.(map[string]any)
		if !ok {
			if have != nil {
				t.Fatalf("%v has a value, and so has what is beside it: %v", have, more)
			}
			return more
		}
		for name, v := range more {
			into[name] = merge(t, into[name], v)
		}
		return into
	case []any:
		into, ok := have.([]any)
		if !ok {
			return more
		}
		for i, v := range more {
			into[i] = merge(t, into[i], v)
		}
		return into
	case nil:
		return have
	}
	if have != nil {
		t.Fatalf("%v has a value, and so has what is beside it: %v", have, more)
	}
	return more
}

// normal makes values equal that count as the same: null and absent, and different forms of a
// number or an instant.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, inner := range v {
			if inner != nil {
				out[name] = normal(inner)
			}
		}
		return out
	case []any:
		out := []any{}
		for _, inner := range v {
			out = append(out, normal(inner))
		}
		return out
	case json.Number:
		s := string(v)
		if f, err := v.Float64(); err == nil && !math.IsInf(f, 0) && !slices.Contains([]string{"9007199254740993", "0.12345678901234567890", "9223372036854775807", "18446744073709551616"}, s) {
			s = strconv.FormatFloat(f, 'g', -1, 64)
		}
		return json.Number(s)
	case string:
		if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return at.UTC().Format(time.RFC3339Nano)
		}
	case time.Time:
		return v.Format(time.RFC3339Nano)
	}
	return v
}

func FuzzObject(f *testing.F) {
	for _, seed := range []string{`{"a":1,"b":[{"c":null}],"d":"\ud800\u0000"}`, `{"a":[1,2.5,"x"],"a.b":{}}`, `{"a":1e400,"":[[]]}`, `{"x":-0.0,"X":"2026-11-25T10:00:00Z"}`} {
		f.Add([]byte(seed), []byte(`{"a":"z","b":[1]}`))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		o := options
		o.Times = true
		tab := newTable(t, o)
		for _, b := range [][]byte{first, second, first} {
			if _, err := infer.Parse(b); err != nil {
				continue
			}
			tab.land(string(b))
		}
	})
}

// A string becomes a time if the column can hold all of its digits. Others stay as written.
func TestTimesAreExactOrText(t *testing.T) {
	t.Parallel()
	o := options
	o.Times = true
	for text, micros := range map[string]int64{
		"2024-06-10T06:13:20.123456Z":      1_718_000_000_123_456,
		"1969-12-31T23:59:59.999999Z":      -1,
		"0001-01-01T00:00:00Z":             timeunit.MinMicro,
		"9999-12-31T23:59:59.999999Z":      timeunit.MaxMicro,
		"9999-12-31T23:59:59.999999-00:01": 0, // of the year 10000
		"0001-01-01T00:00:00+00:01":        0, // of the year 0
		"2024-06-10T06:13:20.1234567Z":     0, // more digits than microseconds have
		"2024-02-30T00:00:00Z":             0,
	} {
		tab := newTable(t, o)
		tab.land(`{"at":"2000-01-01T00:00:00Z"}`, fmt.Sprintf(`{"at":%q}`, text))
		row := tab.rows[1]
		if micros == 0 {
			if row["json:at"] == nil && row["at"] != text {
				t.Errorf("%s became %v", text, row)
			}
			continue
		}
		if at, ok := row["at"].(time.Time); !ok || at.UnixMicro() != micros {
			t.Errorf("%s became %v", text, row)
		}
	}
}
