// Package duration reads and writes durations as people write them: in Go's syntax, and in days. A
// day has 24 hours, as in the windows of features.
//
// It is the only place that knows the unit d. Flags, settings and --as-of use it.
package duration

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Parse returns the duration that a text such as "90s", "1h30m", "30d" or "1d12h" means. An error
// does not repeat the text: callers name where it was.
func Parse(text string) (time.Duration, error) {
	unsigned := strings.TrimLeft(text, "+-")
	days, rest, found := strings.Cut(unsigned, "d")
	if !found {
		return parsed(text)
	}
	d, err := parsed(days + "h")
	if err == nil && d > math.MaxInt64/24 {
		err = errWanted
	}
	if err != nil || len(text)-len(unsigned) > 1 || strings.ContainsAny(days, "hmnuµμs+-") {
		return 0, errWanted
	}
	d *= 24
	if rest != "" {
		more, err := parsed(rest)
		if err != nil || strings.ContainsAny(rest, "+-") || d > math.MaxInt64-more {
			return 0, errWanted
		}
		d += more
	}
	if strings.HasPrefix(text, "-") {
		d = -d
	}
	return d, nil
}

// errWanted is the only error: time.ParseDuration's are in terms of its own syntax.
var errWanted = fmt.Errorf("want a duration such as 90s, 15m, 12h or 30d, of at most %d days", math.MaxInt64/day)

const day = 24 * time.Hour

// parsed is time.ParseDuration with the error of this package.
func parsed(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errWanted
	}
	return d, nil
}

// Format returns the shortest text that Parse reads as d, in days if it is a number of whole days.
func Format(d time.Duration) string {
	if d != 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := d.String()
	// Go writes 15m as 15m0s, and 12h as 12h0m0s.
	if short, zero := strings.CutSuffix(text, "m0s"); zero {
		text = short + "m"
	}
	if short, zero := strings.CutSuffix(text, "h0m"); zero {
		text = short + "h"
	}
	return text
}
