// Package plot draws how the values of a feature are distributed: beside the reference, and day by
// day. Text draws on a terminal, and PNG draws a picture. bars.go has what both show.
//
// It is the only package that imports gonum/plot. Texts that are values of features come from
// outside: they are shown without control characters, and cut.
package plot

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"github.com/millrace/millrace/features/quality"
)

// maxLabel is the number of characters of a text that are shown.
const maxLabel = 24

// Label returns a text that is safe to show: without control characters, and not too long.
func Label(s string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '�'
	}, s)
	if runes := []rune(clean); len(runes) > maxLabel {
		return string(runes[:maxLabel-1]) + "…"
	}
	if clean == "" {
		return `""`
	}
	return clean
}

// number formats a number for a label.
func number(x float64) string {
	if a := math.Abs(x); a >= 1000 && a < 1e7 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

// percent formats a share.
func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + " %" }

// title returns what a drawing shows, in one line.
func title(r *quality.Report, m *quality.Measured) string {
	return fmt.Sprintf("%s: %s at %s, PSI %.3f", r.Group, m.Current.Output,
		r.At.UTC().Format("2006-01-02 15:04 UTC"), m.PSI)
}

// day is one line of the drawing over time: a day of the reference or the current one.
type day struct {
	quality.Day
	distribution *quality.Distribution
}

// days returns the days from the oldest to the current one.
func days(r *quality.Report, m *quality.Measured) []day {
	var all []day
	for i := len(r.Days) - 1; i > 0; i-- {
		if i <= len(m.Daily) {
			all = append(all, day{r.Days[i], &m.Daily[i-1]})
		}
	}
	if len(r.Days) > 0 {
		all = append(all, day{r.Days[0], &m.Current})
	}
	return all
}
