package plot

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/features/quality"
)

// MinWidth is the smallest width that Text draws in, in characters.
const MinWidth = 72

const (
	labelWidth = maxLabel
	shareWidth = 8 // "100.0 % "
)

// Text draws in lines of at most width characters, but at least MinWidth.
func Text(w io.Writer, r *quality.Report, m *quality.Measured, width int) error {
	width = max(width, MinWidth)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%d of %d entities; nulls %s, in the reference %s\n\n", title(r, m), r.Sampled, r.Entities,
		percent(m.Current.NullShare()), percent(m.Reference.NullShare()))
	textHistogram(&b, bars(m), width)
	b.WriteByte('\n')
	textDays(&b, r, m, width)
	_, err := io.WriteString(w, b.String())
	return err
}

// textHistogram draws the current values on the left and the reference on the right.
func textHistogram(b *strings.Builder, all []bar, width int) {
	longest, most := 0, 0.0
	for _, x := range all {
		longest = max(longest, utf8.RuneCountInString(x.label))
		most = max(most, x.current, x.reference)
	}
	if most == 0 {
		b.WriteString("no entity of the sample has facts\n")
		return
	}
	size := (width - longest - 2*shareWidth - 4) / 2
	fmt.Fprintf(b, "%s  %s  %s\n", pad("", longest), pad("now", shareWidth+size), "reference")
	for _, x := range all {
		fmt.Fprintf(b, "%s  %7s %s  %7s %s\n", padLeft(x.label, longest), percent(x.current),
			pad(strings.Repeat("█", cells(x.current/most, size)), size), percent(x.reference),
			strings.Repeat("▒", cells(x.reference/most, size)))
	}
}

// cells returns the length of a bar. Any share that is not 0 is visible.
func cells(share float64, size int) int {
	n := int(share*float64(size) + 0.5)
	if n == 0 && share > 0 {
		return 1
	}
	return min(n, size)
}

// textDays draws a line per day.
func textDays(b *strings.Builder, r *quality.Report, m *quality.Measured, width int) {
	both := merged(m)
	numbers := len(both.Buckets) > 0
	if numbers {
		fmt.Fprintf(b, "%-10s %6s %8s %9s %9s %9s  5 %% ├ 25 %% ▓ median ┃ 75 %% ▓ 95 %% ┤\n",
			"day", "found", "nulls", "10 %", "median", "90 %")
	} else {
		fmt.Fprintf(b, "%-10s %6s %8s  %s\n", "day", "found", "nulls", "most frequent")
	}
	s := scaleOf(both)
	for _, d := range days(r, m) {
		fmt.Fprintf(b, "%-10s ", d.At.UTC().Format(time.DateOnly))
		switch {
		case d.Missing != "":
			b.WriteString(cut(d.Missing, width-12))
		case numbers && len(d.distribution.Buckets) > 0:
			fmt.Fprintf(b, "%6d %8s %9s %9s %9s  %s", d.Found, percent(d.distribution.NullShare()),
				quantile(d.distribution, 0.1), quantile(d.distribution, 0.5), quantile(d.distribution, 0.9),
				box(d.distribution, s, width-58))
		default:
			fmt.Fprintf(b, "%6d %8s  %s", d.Found, percent(d.distribution.NullShare()),
				cut(frequent(d.distribution), width-28))
		}
		b.WriteByte('\n')
	}
}

func quantile(d *quality.Distribution, q float64) string {
	x, _ := d.Quantile(q)
	return number(x)
}

// box draws the quantiles of a day on a scale of width characters.
func box(d *quality.Distribution, s scale, width int) string {
	line := []rune(strings.Repeat(" ", width))
	at := func(q float64) int {
		x, _ := d.Quantile(q)
		return int(s.place(x)*float64(width-1) + 0.5)
	}
	fill := func(from, to int, r rune) {
		for i := from; i <= to; i++ {
			line[i] = r
		}
	}
	fill(at(0.05), at(0.95), '─')
	line[at(0.05)], line[at(0.95)] = '├', '┤'
	fill(at(0.25), at(0.75), '▓')
	line[at(0.5)] = '┃'
	return strings.TrimRight(string(line), " ")
}

// frequent lists the three most frequent texts and their shares.
func frequent(d *quality.Distribution) string {
	if len(d.Texts) == 0 {
		return "–"
	}
	var all []string
	for _, s := range d.Frequent(3) {
		all = append(all, Label(s)+" "+percent(share(d.Texts[s], d)))
	}
	return strings.Join(all, ", ")
}

// cut shortens a text to n characters.
func cut(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return s
}

// pad and padLeft fill a text up to n characters. fmt counts bytes of some widths, and these do not.
func pad(s string, n int) string { return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s))) }

func padLeft(s string, n int) string {
	return strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s))) + s
}
