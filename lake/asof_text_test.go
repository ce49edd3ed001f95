package lake

import (
	"testing"
	"time"
)

// TestAges: an age may be in days, and its sign is ignored.
func TestAges(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"15m": now.Add(-15 * time.Minute), "-15m": now.Add(-15 * time.Minute), "2d": now.AddDate(0, 0, -2),
		"1d12h": now.Add(-36 * time.Hour), "2026-11-25T10:00:00Z": time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC),
	} {
		if got, err := ParseAsOf(text, now); err != nil || !got.Time.Equal(want) {
			t.Errorf("%s: %v, %v, want %v", text, got.Time, err, want)
		}
	}
	if _, err := ParseAsOf("2 days", now); err == nil {
		t.Error("2 days are accepted")
	}
}
