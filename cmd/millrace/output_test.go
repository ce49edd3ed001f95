package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode"

	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
)

// Visitors choose texts in profiles and vectors. A terminal must not act on them.
func TestTablesArePlain(t *testing.T) {
	const hostile = "\x1b[31mred\x1b]0;title\a\r\n\u202eX\u009b"
	var out bytes.Buffer
	printTable(&out, []string{"feature", hostile}, [][]any{{"last_page", hostile}, {hostile, 7}})
	printProfile(&out, &customer360v1.GetProfileResponse{Profile: &customer360v1.Profile{CustomerIds: []string{"a", "b"},
		Behavior: &customer360v1.Behavior{Events: 2, LastPage: hostile, Counts: map[string]uint64{hostile: 1, "page": 1}}}})
	for _, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q is printed: %q", r, out.String())
		}
	}
	if !strings.Contains(out.String(), "│ b ") || !strings.Contains(out.String(), "X") {
		t.Errorf("lines or texts are missing: %s", out.String())
	}
}
