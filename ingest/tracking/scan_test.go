package tracking

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// TestScannerRefuses checks texts that are refused, although encoding/json accepts some of them.
func TestScannerRefuses(t *testing.T) {
	t.Parallel()
	deep := bytes.Repeat([]byte("["), maxNesting+1)
	for name, text := range map[string]string{
		"nothing": "", "a space": " ", "two values": "1 2", "a comma at the end": `{"a":1,}`, "no comma": `[1 2]`,
		"no colon": `{"a" 1}`, "a key that is a number": `{1:2}`, "half a word": "tru", "half an escape": `"\u12"`,
		"a leading zero": "01", "a lone minus": "-", "a lone point": "1.", "a lone exponent": "1e", "a line break": "\"\n\"",
		"a string without an end": `"a`, "bytes": "\"\xff\"", "half a rune": "\"\xe2\x82\"",
		"too deep": string(append(deep, bytes.Repeat([]byte("]"), maxNesting+1)...)),
	} {
		s := newScanner([]byte(text))
		_, err := s.compact()
		if err == nil {
			err = s.end()
		}
		if at := (*syntaxError)(nil); !errors.As(err, &at) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReadableByAll checks values that encoding/json accepts, but of which ClickHouse could read nothing, nor
// of the object that they are in.
func TestReadableByAll(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"\ud83d" : "a\ud83d"}`:          "{\"\ufffd\":\"a\ufffd\"}",
		`"\udc00\ud83d\ude00\\ud83d\n"`:   "\"\ufffd" + `\ud83d\ude00\\ud83d\n"`,
		`"\ud83d\ud83d\ude00\ud83dude00"`: "\"\ufffd" + `\ud83d\ude00` + "\ufffdude00\"",
		`[18446744073709551615, -9223372036854775808, 1.5e300, 1e-999, 0.1234567890123456789]`: `[18446744073709551615,` +
			`-9223372036854775808,1.5e300,1e-999,0.1234567890123456789]`,
		`[18446744073709551616,-9223372036854775809]`: `[1.8446744073709551616e19,-9.223372036854775809e18]`,
		`{"id":123456789012345678901234567890}`:       `{"id":1.23456789012345678901234567890e29}`,
	} {
		s := newScanner([]byte(text))
		got, err := s.compact()
		if err != nil || got != want || s.overflow {
			t.Errorf("%s became %s (%v, out of range %t), want %s", text, got, err, s.overflow, want)
		}
	}
	for _, text := range []string{`1e309`, `{"a":[-1e999]}`, strings.Repeat("9", 400)} {
		s := newScanner([]byte(text))
		if _, err := s.compact(); err != nil || !s.overflow {
			t.Errorf("%s is in range (%v)", text, err)
		}
	}
}

// FuzzScanner compares the scanner with encoding/json: it accepts the same texts, except those that
// are not UTF-8 or nested too deep, and compacts them to the same bytes, or to others with the same meaning
// if ClickHouse cannot read these.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"a" : [1, -2.5e+10, true ,false,null, "x\u00e9\n\"" ] , "b":{} , "c": [ ]}`, `"\ud800"`, `["\ud83d\ude00\udc00", 123456789012345678901234567890, 1e999]`, "0", "-0.0",
		`{"a":{"b":1},"c":[{"b":1,"\u0062":2}]}`, `{"a":1,"A":1,"\ud800":1,"\ud801":1}`, `[[[[]]]]`, "tru", `{"a":}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := newScanner(text)
		got, err := s.compact()
		if err == nil {
			err = s.end()
		}
		var want bytes.Buffer
		valid := json.Compact(&want, text) == nil && utf8.Valid(text)
		switch {
		case err == nil && !valid:
			t.Fatalf("%q is accepted", text)
		case err == nil && !s.overflow && got != want.String() && !equalJSON([]byte(got), want.Bytes()):
			t.Fatalf("%q became %q, want %q", text, got, want.Bytes())
		case err != nil && valid && !errors.Is(err, errNesting):
			t.Fatalf("%q is refused: %v", text, err)
		}
		if err != nil {
			return
		}
		if repeated := repeatsKey(json.NewDecoder(strings.NewReader(got))); repeated != (s.repeated != "") {
			t.Fatalf("%q repeats a key: %t, but found %q", text, repeated, s.repeated)
		}
		if text = bytes.TrimSpace(text); len(text) > 0 && text[0] == '"' {
			var want string
			if json.Unmarshal(text, &want) != nil || unquote(text) != want {
				t.Fatalf("%q is the text %q, want %q", text, unquote(text), want)
			}
		}
	})
}

// repeatsKey reports whether an object of a JSON text has a key twice.
func repeatsKey(d *json.Decoder) bool {
	begin, err := d.Token()
	if err != nil || begin != json.Delim('{') && begin != json.Delim('[') {
		return false
	}
	repeated, keys := false, map[json.Token]bool{}
	for d.More() {
		if begin == json.Delim('{') {
			key, _ := d.Token()
			repeated = repeated || keys[key]
			keys[key] = true
		}
		repeated = repeatsKey(d) || repeated
	}
	_, _ = d.Token()
	return repeated
}

// TestRepeatedKeys checks that a repeated key is found among few keys and among many, and named.
func TestRepeatedKeys(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 15, 16, 17, 18, 200} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, `"k%d":{"k0":0},`, i)
		}
		for last, want := range map[string]string{"other": "", "k0": `"k0"`, fmt.Sprintf(`\u006b%d`, n-1): fmt.Sprintf(`"k%d"`, n-1)} {
			s := newScanner([]byte("[{" + text.String() + `"` + last + `":1}]`))
			if _, err := s.compact(); err != nil || s.repeated != want {
				t.Errorf("%d keys and %s: %s twice (%v), want %q", n, last, s.repeated, err, want)
			}
		}
	}
}

// TestPlain compares what is looked at eight bytes at a time with one byte at a time.
func TestPlain(t *testing.T) {
	t.Parallel()
	bytesOf := rapid.SliceOf(rapid.OneOf(rapid.Byte(), rapid.ByteRange(' ', '~'), rapid.SampledFrom([]byte("\"\\\x00\x1f\x20\x7f\x80\xff"))))
	rapid.Check(t, func(t *rapid.T) {
		b := bytesOf.Draw(t, "bytes")
		want := slices.IndexFunc(b, func(c byte) bool { return c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf })
		if want < 0 {
			want = len(b)
		}
		if got := plain(b); got != want {
			t.Fatalf("%q begins with %d plain characters, want %d", b, got, want)
		}
	})
}

// equalJSON reports whether two texts mean the same to readers whose numbers are floating-point ones.
func equalJSON(a, b []byte) bool {
	var values [2]any
	return json.Unmarshal(a, &values[0]) == nil && json.Unmarshal(b, &values[1]) == nil &&
		reflect.DeepEqual(values[0], values[1])
}
