package duration_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/duration"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "1us": time.Microsecond, "1h30m": 90 * time.Minute, "-15m": -15 * time.Minute,
		"1d": 24 * time.Hour, "90d": 90 * 24 * time.Hour, "1.5d": 36 * time.Hour, "1d12h": 36 * time.Hour,
		"-1d12h": -36 * time.Hour, "+2d": 48 * time.Hour, "0d": 0, "2w": 14 * 24 * time.Hour, "1w1d12h": 204 * time.Hour, "15250w": 106750 * 24 * time.Hour, "106751d": 106751 * 24 * time.Hour,
	} {
		if got, err := duration.Parse(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "d", "1", "1x", "day", "1 d", "1dd", "1d1d", "--1d", "+-1d", "1d-1h", "12h1d", "1d12", "-d", "1e3d",
		"106752d", "106751d24h", "9999999999d", "15251w", "1d1w", "w", "1w-1d", "-1w+1d",
	} {
		if got, err := duration.Parse(text); err == nil || !strings.Contains(err.Error(), "such as 90s, 15m, 12h or 30d") {
			t.Errorf("%q: %v, %v, want an error with examples", text, got, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 25 * time.Hour: "25h",
		24 * time.Hour: "1d", 2160 * time.Hour: "90d", -48 * time.Hour: "-2d", time.Hour + time.Second: "1h0m1s",
	} {
		if got := duration.Format(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// TestRoundTrip: every duration is read as it was written, and Go's syntax means the same as in Go.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64().Draw(t, "d"))
		if rapid.Bool().Draw(t, "days") {
			d -= d % (24 * time.Hour)
		}
		for _, text := range []string{duration.Format(d), d.String()} {
			if got, err := duration.Parse(text); err != nil || got != d {
				t.Fatalf("%q of %d ns: %d, %v", text, d, got, err)
			}
		}
	})
}

// FuzzParse: a text without long units means what it means to Go, and no text panics.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"1d12h", "-90s", "1.5d", "106752d", "+-1d", "1w1d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := duration.Parse(text)
		if strings.ContainsAny(text, "dw") {
			return
		}
		if want, wantErr := time.ParseDuration(text); got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%q: %v, %v; Go: %v, %v", text, got, err, want, wantErr)
		}
	})
}
