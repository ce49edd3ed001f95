package tracking

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"
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
		s := scanner{b: []byte(text)}
		_, err := s.value(nil)
		if err == nil {
			err = s.end()
		}
		if at := (*syntaxError)(nil); !errors.As(err, &at) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzScanner compares the scanner with encoding/json: it accepts the same texts, except those that
// are not UTF-8 or nested too deep, and compacts them to the same bytes.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{
		`{"a" : [1, -2.5e+10, true ,false,null, "x\u00e9\n\"" ] , "b":{} , "c": [ ]}`, `"\ud800"`, "0", "-0.0", `[[[[]]]]`, "tru", `{"a":}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := scanner{b: text}
		got, err := s.value(nil)
		if err == nil {
			err = s.end()
		}
		var want bytes.Buffer
		valid := json.Compact(&want, text) == nil && utf8.Valid(text)
		switch {
		case err == nil && !valid:
			t.Fatalf("%q is accepted", text)
		case err == nil && !bytes.Equal(got, want.Bytes()):
			t.Fatalf("%q became %q, want %q", text, got, want.Bytes())
		case err != nil && valid && !errors.Is(err, errNesting):
			t.Fatalf("%q is refused: %v", text, err)
		}
		if err != nil {
			return
		}
		if text = bytes.TrimSpace(text); len(text) > 0 && text[0] == '"' {
			var want string
			if json.Unmarshal(text, &want) != nil || unquote(text) != want {
				t.Fatalf("%q is the text %q, want %q", text, unquote(text), want)
			}
		}
	})
}
