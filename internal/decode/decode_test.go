package decode_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/millrace/millrace/internal/decode"
)

// thing is what the tests decode: a bit of everything that settings and manifests have.
type thing struct {
	Name   string             `json:"name" yaml:"name"`
	Count  int                `json:"count" yaml:"count"`
	Small  uint8              `json:"small" yaml:"small"`
	Share  float64            `json:"share" yaml:"share"`
	On     bool               `json:"on" yaml:"on"`
	Age    time.Duration      `json:"-" yaml:"age"`
	Level  slog.Level         `json:"-" yaml:"level"`
	List   []string           `json:"list" yaml:"list"`
	Map    map[int32]int64    `json:"map" yaml:"-"`
	Parts  map[string]part    `json:"parts" yaml:"parts"`
	Below  *part              `json:"below" yaml:"below"`
	Any    any                `json:"any" yaml:"any"`
	Limits map[string]float64 `json:"limits" yaml:"limits"`
}

type part struct {
	Number int           `json:"number" yaml:"number"`
	Wait   time.Duration `json:"-" yaml:"wait"`
	Below  *part         `json:"below" yaml:"below"`
}

func TestJSON(t *testing.T) {
	var got thing
	err := decode.JSON([]byte(` {"name": "a", "small": 255, "map": {"1": 2}, "below": {"below": {"number": 3}}} `), &got)
	if err != nil || got.Name != "a" || got.Map[1] != 2 || got.Below.Below.Number != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	for text, want := range map[string]string{
		``:                                    "it is empty",
		" \n":                                 "it is empty",
		`{"name": "a"`:                        "the JSON ends too early",
		"{\n  \"name\": a}":                   "line 2, column 11: not JSON: invalid character 'a' looking for beginning of value",
		`{"name": 5}`:                         "name: want a text, got a number",
		`{"count": "5"}`:                      "count: want a whole number of at most 64 bits, got a text",
		`{"count": 5.5}`:                      "count: want a whole number of at most 64 bits, got a number",
		`{"small": 256}`:                      "small: want a whole number of at most 8 bits that is not negative, got a number",
		`{"share": true}`:                     "share: want a number, got true or false",
		`{"on": 1}`:                           "on: want true or false, got a number",
		`{"list": {}}`:                        "list: want a list, got an object",
		`{"parts": [1]}`:                      "parts: want an object, got a list",
		`{"below": {"below": {"number":[]}}}`: "below.below.number: want a whole number of at most 64 bits, got a list",
		`[]`:                                  "the JSON value: want an object, got a list",
		`{"title": "a"}`:                      `unknown field "title"`,
		`{} {}`:                               "line 1, column 4: something follows the JSON value",
	} {
		err := decode.JSON([]byte(text), new(thing))
		if err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}

func TestYAML(t *testing.T) {
	var got thing
	err := decode.YAML([]byte(`
name: 12
age: 1d12h
level: debug
list: [a, 'b']
parts: {a: &a {number: 1, wait: 90d}, b: *a, c: {<<: *a, number: 2}}
limits: {x: 1}
below: ~
any: {x: [1, {}]}
`), &got)
	want := thing{Name: "12", Age: 36 * time.Hour, Level: slog.LevelDebug, List: []string{"a", "b"},
		Parts: map[string]part{"a": {Number: 1, Wait: 2160 * time.Hour}, "b": {Number: 1, Wait: 2160 * time.Hour},
			"c": {Number: 2, Wait: 2160 * time.Hour}},
		Limits: map[string]float64{"x": 1}, Any: map[string]any{"x": []any{1, map[string]any{}}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for text, want := range map[string]string{
		"":                                  "it is empty",
		"# nothing":                         "it is empty",
		"name: [":                           "not YAML: ",
		"\tname: a":                         "not YAML: ",
		"a":                                 "want keys with values",
		"name: a\ncount: many":              "line 2: count: want a whole number of at most 64 bits",
		"small: 256":                        "line 1: small: want a whole number of at most 8 bits that is not negative",
		"share: much":                       "line 1: share: want a number",
		"on: perhaps":                       "line 1: on: want true or false",
		"name: {a: b}":                      "line 1: name: want a text",
		"list: a":                           "line 1: list: want a list",
		"list:\n- a\n- [b]":                 "line 3: list[1]: want a text",
		"age: 1 day":                        "line 1: age: want a duration such as 90s, 15m, 12h or 30d",
		"age: [1d]":                         "line 1: age: want a duration",
		"level: loud":                       "line 1: level: want debug, info, warn or error",
		"parts: {a: {number: x}}":           "line 1: parts.a.number: want a whole number",
		"below:\n  below:\n    nmuber: 1":   "line 3: below.below.nmuber: unknown key: want some of below, number, wait",
		"parts: {a: 1}":                     "line 1: parts.a: want keys with values",
		"count: 1\ncount: 2":                "line 2: count: the key is there twice",
		"? [a]\n: b":                        "want a text as the key",
		"parts: {a: &a {x: 1}, b: *a}":      "line 1: parts.a.x: unknown key",
		"below: {<<: {nmuber: 1}}":          "line 1: below.nmuber: unknown key",
		"below: &x {below: *x}":             "contains itself",
		"limits: {x: 1, y: [secret-9f8e7]}": "line 1: limits.y: want a number",
	} {
		err := decode.YAML([]byte(text), new(thing))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %s", text, err, want)
		} else if strings.Contains(err.Error(), "9f8e7") {
			t.Errorf("%q: the error repeats the value: %v", text, err)
		}
	}
}

// goText is what no error may contain.
var goText = []string{"json:", "yaml:", "Go ", "decode_test.", "strconv", "time.", "!!"}

// FuzzJSON: JSON accepts what encoding/json accepts, and its errors are not about Go.
func FuzzJSON(f *testing.F) {
	for _, text := range []string{`{"name": 5}`, `{"list": [1]}`, `{"parts": {"a": {"number": 1e99}}}`, `{"map": {"x": 1}}`, `{} 1`, `"`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got, want thing
		err := decode.JSON(text, &got)
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		wantErr := d.Decode(&want)
		if wantErr != nil && err == nil || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; encoding/json: %+v, %v", text, got, err, want, wantErr)
		}
		plain(t, text, err)
	})
}

// FuzzYAML: a document that yaml decodes is decoded to the same, and a document that it refuses is
// decoded only if it has days.
func FuzzYAML(f *testing.F) {
	for _, text := range []string{"name: a\nage: 5m", "parts: {a: &a {wait: 1d}, b: *a, c: {<<: *a}}", "below: &x {below: *x}", "? [a]\n: b",
		"list: [1, ~]", "any: {1: 2}", "a: &a [*a]", "<<: [*x, {}]", "count: 0x1F", "level: INFO+2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got, want thing
		err := decode.YAML([]byte(text), &got)
		d := yaml.NewDecoder(strings.NewReader(text))
		d.KnownFields(true)
		wantErr := d.Decode(&want)
		switch {
		case errors.Is(err, decode.ErrEmpty):
		case err != nil && strings.Contains(err.Error(), "want a text as the key"): // yaml ignores such keys
		case wantErr == nil && (err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want)): // NaN differs from itself
			t.Errorf("%q: %+v, %v; yaml: %+v", text, got, err, want)
		case wantErr != nil && err == nil && !strings.Contains(wantErr.Error(), "Duration"):
			t.Errorf("%q: %+v; yaml: %v", text, got, wantErr)
		}
		plain(t, []byte(text), err)
	})
}

// plain fails if an error is about Go. The text itself may contain such words.
func plain(t *testing.T, text []byte, err error) {
	t.Helper()
	for _, words := range goText {
		if err != nil && strings.Contains(err.Error(), words) && !bytes.Contains(text, []byte(words)) {
			t.Errorf("%q: the error is about Go: %v", text, err)
		}
	}
}
