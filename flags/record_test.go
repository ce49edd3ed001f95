package flags

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

var someChange = Change{ID: "0192f0c0-0000-7000-8000-000000000001", By: "anna", Reason: "more room",
	At: time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)}

const changeJSON = `"change":{"id":"0192f0c0-0000-7000-8000-000000000001","by":"anna","reason":"more room","at":"2026-12-01T08:00:00Z"}`

func TestDecode(t *testing.T) {
	t.Parallel()
	flag := func(of Type, value string) Flag {
		return Flag{Name: "a.b", Type: of, Value: json.RawMessage(value), Change: someChange}
	}
	rollout := Flag{Name: "a.b", Type: Bool, Description: "try it", Change: someChange, Rollout: []Variant{
		{"on", json.RawMessage("true"), []Range{{0, 1000}, {9000, 10000}}}, {"off", json.RawMessage("false"), []Range{{1000, 9000}}}}}
	for text, want := range map[string]Flag{
		`{"version":1,"type":"bool","value":true,` + changeJSON + `}`:                flag(Bool, "true"),
		`{"version":1,"type":"int","value":-9223372036854775808,` + changeJSON + `}`: flag(Int, "-9223372036854775808"),
		`{"version":1,"type":"float","value":1e-3,` + changeJSON + `}`:               flag(Float, "1e-3"),
		`{"version":1,"type":"string","value":"","new":1,` + changeJSON + `}`:        flag(String, `""`), // fields of later releases
		`{"version":1,"type":"object","value":{ "a" : [1] },` + changeJSON + `}`:     flag(Object, `{"a":[1]}`),
		`{"version":1,"type":"bool","description":"try it","rollout":[
			{"name":"on","value":true,"ranges":[{"from":0,"to":1000},{"from":9000,"to":10000}]},
			{"name":"off","value":false,"ranges":[{"from":1000,"to":9000}]}],` + changeJSON + `}`: rollout,
	} {
		got, err := decode("a.b", []byte(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decode(%s) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	with := func(rest string) string { return `{"version":1,` + rest + `,` + changeJSON + `}` }
	for what, c := range map[string]struct{ name, value string }{
		"no JSON":            {"a", "flag"},
		"empty":              {"a", ""},
		"null":               {"a", "null"},
		"another version":    {"a", `{"version":2,"type":"bool","value":true,` + changeJSON + `}`},
		"no value":           {"a", with(`"type":"bool"`)},
		"null as value":      {"a", with(`"type":"bool","value":null`)},
		"both":               {"a", with(`"type":"bool","value":true,"rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":10000}]}]`)},
		"no type":            {"a", with(`"value":true`)},
		"an unknown type":    {"a", with(`"type":"list","value":[]`)},
		"another type":       {"a", with(`"type":"bool","value":"true"`)},
		"a fraction":         {"a", with(`"type":"int","value":1.5`)},
		"an exponent":        {"a", with(`"type":"int","value":1e3`)},
		"a large integer":    {"a", with(`"type":"int","value":9223372036854775808`)},
		"a large float":      {"a", with(`"type":"float","value":1e400`)},
		"a list":             {"a", with(`"type":"object","value":[1]`)},
		"a large value":      {"a", with(`"type":"string","value":"` + strings.Repeat("x", maxValue) + `"`)},
		"a large record":     {"a", with(`"type":"bool","value":true,"x":"` + strings.Repeat("x", maxRecord) + `"`)},
		"no name":            {"", with(`"type":"bool","value":true`)},
		"a name in capitals": {"Checkout", with(`"type":"bool","value":true`)},
		"a name with ..":     {"a..b", with(`"type":"bool","value":true`)},
		"a long name":        {strings.Repeat("a", maxName+1), with(`"type":"bool","value":true`)},
		"a long description": {"a", with(`"type":"bool","value":true,"description":"` + strings.Repeat("x", maxText+1) + `"`)},
		"no change":          {"a", `{"version":1,"type":"bool","value":true}`},
		"an empty rollout":   {"a", with(`"type":"bool","rollout":[]`)},
		"a gap":              {"a", with(`"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":9999}]}]`)},
		"an overlap": {"a", with(`"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":5001}]},
			{"name":"off","value":false,"ranges":[{"from":5000,"to":10000}]}]`)},
		"an empty range":     {"a", with(`"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":10000},{"from":5,"to":5}]}]`)},
		"beyond the buckets": {"a", with(`"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":10001}]}]`)},
		"the same variant": {"a", with(`"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":5000}]},
			{"name":"on","value":false,"ranges":[{"from":5000,"to":10000}]}]`)},
		"a variant of another type": {"a", with(`"type":"bool","rollout":[{"name":"on","value":1,"ranges":[{"from":0,"to":10000}]}]`)},
	} {
		if f, err := decode(c.name, []byte(c.value)); err == nil {
			t.Errorf("%s: accepted as %+v", what, f)
		}
	}
}

// FuzzDecode decodes any record of the topics. What is accepted is valid, and survives a round trip.
func FuzzDecode(f *testing.F) {
	f.Add("a.b", []byte(`{"version":1,"type":"object","value":{ "a":[1]},`+changeJSON+`}`))
	f.Add("a", []byte(`{"version":1,"type":"bool","rollout":[{"name":"on","value":true,"ranges":[{"from":0,"to":10000}]}],`+changeJSON+`}`))
	f.Add("a", []byte(`{"version":1,"before":-1,`+changeJSON+`}`))
	f.Add("a", []byte(`{"version":1,"before":7,`+changeJSON+`,"after":{"version":1,"type":"int","value":1,`+changeJSON+`}}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		if e, err := decodeEntry(name, value); err == nil && e.After != nil && e.After.Validate() != nil {
			t.Errorf("an entry with an invalid flag: %+v", e.After)
		}
		flag, err := decode(name, value)
		if err != nil {
			return
		}
		if err := flag.Validate(); err != nil {
			t.Fatalf("%+v: %v", flag, err)
		}
		for _, v := range flag.Rollout {
			_ = flag.VariantOf(v.Name)
		}
		b, err := encode(flag)
		if err != nil { // as compact JSON escapes some characters, it may be larger
			return
		}
		again, err := decode(name, b)
		if err != nil || !reflect.DeepEqual(again, flag) {
			t.Errorf("%+v\nbecame %+v: %v", flag, again, err)
		}
	})
}
