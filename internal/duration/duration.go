// Package duration reads and writes durations as people write them: in Go's syntax, and in days and
// weeks. A day has 24 hours, as in the windows of features.
//
// It is the only place that knows the units d and w. Flags, settings, --as-of and the periods of segments
// use it.
package duration

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Parse returns the duration that a text such as "90s", "1h30m", "30d" or "1w1d12h" means. An error
// does not repeat the text: callers name where it was.
func Parse(text string) (time.Duration, error) {
	rest := strings.TrimLeft(text, "+-")
	if len(text)-len(rest) > 1 {
		return 0, errWanted
	}
	sum, long := time.Duration(0), false
	for _, unit := range longUnits {
		number, after, found := strings.Cut(rest, unit.name)
		if !found {
			continue
		}
		d, err := parsed(number + "h")
		if err != nil || strings.ContainsAny(number, "hmnuµμs+-") || d > (math.MaxInt64-sum)/unit.hours {
			return 0, errWanted
		}
		sum, rest, long = sum+d*unit.hours, after, true
	}
	if !long {
		return parsed(text)
	}
	if rest != "" {
		d, err := parsed(rest)
		if err != nil || strings.ContainsAny(rest, "+-") || d > math.MaxInt64-sum {
			return 0, errWanted
		}
		sum += d
	}
	if strings.HasPrefix(text, "-") {
		sum = -sum
	}
	return sum, nil
}

// longUnits are the units that Go's syntax does not have, from the longest one.
var longUnits = []struct {
	name  string
	hours time.Duration
}{{"w", 7 * 24}, {"d", 24}}

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
