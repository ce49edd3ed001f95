package lake

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/lake/declare"
)

// Recorded faults are bounded in size, expire, and are ignored if they are malformed.
func TestReadFault(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	at := func(when time.Time) string {
		return fmt.Sprintf(`{"reason":"r","remedy":"m","at":%q}`, when.Format(time.RFC3339))
	}
	for text, want := range map[string]bool{
		at(now): true, at(now.Add(-time.Minute)): true, at(now.Add(time.Minute)): true, at(now.Add(-time.Hour)): false,
		"": false, "{": false, `{"reason":""}`: false, `{"reason":"r"}`: false, "\x00": false,
	} {
		fault := readFault(declare.Table{Name: "notes"}, text, now.Add(-faultTTL))
		if (fault != nil) != want {
			t.Errorf("%q: %v", text, fault)
		}
	}
	if text := truncate(strings.Repeat("é", 2000)); len(text) > maxFaultText || !strings.HasPrefix(text, "é") {
		t.Errorf("%d bytes", len(text))
	}
}
