package plot

import (
	"bytes"
	"image/png"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/quality"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// report returns a report of days whose values fill adds.
func report(name string, kind exact.ResultKind, days, entities int, fill func(d *quality.Distribution, day int, rnd *rand.Rand)) (*quality.Report, *quality.Measured) {
	r := &quality.Report{Group: "g/v1", At: now, Entities: int64(10 * entities), Sampled: entities}
	m := &quality.Measured{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for day := range days + 1 {
		d := quality.Distribution{Output: name, Kind: kind}
		for range entities {
			fill(&d, day, rnd)
		}
		r.Days = append(r.Days, quality.Day{At: now.AddDate(0, 0, -day), Found: int64(entities)})
		if day == 0 {
			m.Current = d
			continue
		}
		m.Daily = append(m.Daily, d)
		for b, n := range d.Buckets {
			m.Reference.AddNumber(quality.Middle(b), n)
		}
		for s, n := range d.Texts {
			m.Reference.AddText(s, n)
		}
		m.Reference.Nulls += d.Nulls
	}
	m.Reference.Output, m.Reference.Kind = name, kind
	m.PSI = quality.PSI(&m.Reference, &m.Current)
	r.Features = []quality.Measured{*m}
	return r, m
}

// drawings are reports of each kind of feature.
func drawings() map[string]func() (*quality.Report, *quality.Measured) {
	return map[string]func() (*quality.Report, *quality.Measured){
		"amounts": func() (*quality.Report, *quality.Measured) {
			return report("amount_30d", exact.FloatResult, 28, 1000, func(d *quality.Distribution, day int, rnd *rand.Rand) {
				shift := 0.
				if day < 4 {
					shift = 0.8
				}
				switch rnd.IntN(10) {
				case 0:
					d.Nulls++
				case 1, 2:
					d.AddNumber(0, 1)
				default:
					d.AddNumber(math.Exp(3+shift+1.5*rnd.NormFloat64()), 1)
				}
			})
		},
		"counts": func() (*quality.Report, *quality.Measured) {
			return report("orders_7d", exact.IntResult, 14, 400, func(d *quality.Distribution, _ int, rnd *rand.Rand) { d.AddNumber(float64(rnd.IntN(5)), 1) })
		},
		"balances": func() (*quality.Report, *quality.Measured) {
			return report("balance", exact.FloatResult, 7, 400, func(d *quality.Distribution, _ int, rnd *rand.Rand) { d.AddNumber(50*rnd.NormFloat64(), 1) })
		},
		"countries": func() (*quality.Report, *quality.Measured) {
			return report("country", exact.TextResult, 28, 500, func(d *quality.Distribution, day int, rnd *rand.Rand) {
				all := []string{"GB", "GB", "GB", "FR", "DE", "IE", "ES", "\x1b[31mred\x07 and a long name of a country"}
				if day < 3 {
					all[4] = "FR"
				}
				d.AddText(all[rnd.IntN(len(all))], 1)
			})
		},
		"nothing": func() (*quality.Report, *quality.Measured) {
			return report("nothing", exact.FloatResult, 3, 0, func(*quality.Distribution, int, *rand.Rand) {})
		},
		"nulls": func() (*quality.Report, *quality.Measured) {
			return report("nulls", exact.FloatResult, 3, 10, func(d *quality.Distribution, _ int, _ *rand.Rand) { d.Nulls++ })
		},
	}
}

// TestText: the drawing has all ranges and days, its lines are not too long, and nothing in it
// controls a terminal.
func TestText(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"amounts":   {"g/v1: amount_30d at 2026-03-01 12:00 UTC, PSI 0.", "1000 of 10000 entities", "\n     0  ", "null", "2026-02-01", "┃"},
		"counts":    {"2026-02-15", "PSI 0.0", "\n3   20.", "█", "▒"},
		"balances":  {"≤ -", "> "},
		"countries": {"GB", "�[31mred� and a long na…", "most frequent"},
		"nothing":   {"no entity of the sample has facts"},
		"nulls":     {"null  100.0 %"},
	} {
		r, m := drawings()[name]()
		var b bytes.Buffer
		if err := Text(&b, r, m, 100); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: no %q in\n%s", name, w, b.String())
			}
		}
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSuffix(line, "\n")
			if utf8.RuneCountInString(line) > 100 || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%s: line %q", name, line)
			}
		}
	}
}

// TestMissingDays: a day without vectors says why.
func TestMissingDays(t *testing.T) {
	t.Parallel()
	r, m := drawings()["counts"]()
	r.Days[2].Missing, m.Daily[1] = "ClickHouse is away", quality.Distribution{}
	var b bytes.Buffer
	if err := Text(&b, r, m, 80); err != nil || !strings.Contains(b.String(), "2026-02-27 ClickHouse is away\n") {
		t.Errorf("%v:\n%s", err, b.String())
	}
	if err := PNG(&b, r, m); err != nil {
		t.Error(err)
	}
}

// TestPNG: each kind of feature makes a picture.
func TestPNG(t *testing.T) {
	t.Parallel()
	for name, of := range drawings() {
		r, m := of()
		var b bytes.Buffer
		if err := PNG(&b, r, m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		img, err := png.Decode(&b)
		if err != nil || img.Bounds().Dx() != 960 || img.Bounds().Dy() != 960 {
			t.Errorf("%s: %v, %v", name, img.Bounds(), err)
		}
	}
}

// TestBarsAreShares: whatever the values are, the bars are all of them.
func TestBarsAreShares(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.OneOf(rapid.Float64(), rapid.Float64Range(-5, 100),
			rapid.SampledFrom([]float64{0, math.SmallestNonzeroFloat64, 1.1e-308, math.MaxFloat64, -math.MaxFloat64}))
		values := rapid.SliceOfN(numbers, 1, 60).Draw(t, "values")
		m := &quality.Measured{}
		for i, x := range values {
			d := &m.Current
			if i%2 == 0 {
				d = &m.Reference
			}
			if x == 99 {
				d.Nulls++
			} else {
				d.AddNumber(x, 1)
			}
		}
		var current, reference float64
		for _, b := range bars(m) {
			current, reference = current+b.current, reference+b.reference
		}
		if math.Abs(reference-1) > 1e-9 || len(values) > 1 && math.Abs(current-1) > 1e-9 {
			t.Errorf("%v and %v of the values are shown: %+v", current, reference, bars(m))
		}
	})
}
