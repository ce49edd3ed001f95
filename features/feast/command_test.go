package feast

import (
	"strings"
	"testing"
)

// TestDamagedCommands: what is wrong with a command is said without Go's types.
func TestDamagedCommands(t *testing.T) {
	for text, want := range map[string]string{
		`{"feature_refs": "a:b"}`:      "feature_refs: want a list, got a text",
		`{"full_feature_names": 1}`:    "full_feature_names: want true or false, got a number",
		`{"api"; "x"}`:                 "line 1, column 7: not JSON: ",
		`{"feature_view_names": ["a"]`: "the JSON ends too early",
	} {
		if _, err := parseCommand([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}
