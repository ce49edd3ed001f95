package serving

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
)

// floats are numbers of features: whole ones, amounts of money, times in microseconds, and any others.
var floats = rapid.OneOf(
	rapid.Float64Range(-math.MaxFloat64, math.MaxFloat64),
	rapid.Map(rapid.Int64(), func(n int64) float64 { return float64(n) }),
	rapid.Map(rapid.Int64Range(-1e12, 1e12), func(n int64) float64 { return float64(n) / 100 }),
	rapid.Map(rapid.Int64Range(-1e16, 1e16), func(n int64) float64 { return float64(n) / 1e6 }),
	rapid.Map(rapid.Int64Range(-1e16, 1e16), func(n int64) float64 { return math.Nextafter(float64(n)/100, math.Inf(1)) }),
	rapid.SampledFrom([]float64{0, math.Copysign(0, -1), 0.29, 1.005, 0.1 + 0.2, 1e-4, math.Nextafter(1e-4, 0), 9.99e-5, 1e15,
		1e16, math.Nextafter(1e16, 0), 999999999.999999, 1e9 - 1e-6, 1e9 + 0.01, 5e-324, math.MaxFloat64}))

// pythonRepr returns what Python's repr does with a float, by the shortest digits that strconv finds.
func pythonRepr(f float64) string {
	if size := math.Abs(f); size != 0 && (size < 1e-4 || size >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	text := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}

// TestFloats compares the ways for frequent numbers with the general one.
func TestFloats(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := floats.Draw(t, "float")
		if got := string(appendFloat([]byte("["), f)); got != "["+pythonRepr(f) {
			t.Fatalf("%v became %s, want %s", f, got, pythonRepr(f))
		}
	})
}

// TestFeastAnswer compares answers with ones that are put together of the texts of all values, byte by byte.
func TestFeastAnswer(t *testing.T) {
	t.Parallel()
	text := rapid.String()
	value := rapid.OneOf(
		rapid.Just(exact.Result{}),
		rapid.Map(rapid.Int64(), func(n int64) exact.Result { return exact.Result{Kind: exact.IntResult, Int: n} }),
		rapid.Map(floats, func(f float64) exact.Result { return exact.Result{Kind: exact.FloatResult, Float: f} }),
		rapid.Map(text, func(s string) exact.Result { return exact.Result{Kind: exact.TextResult, Text: s} }),
		rapid.Map(rapid.SliceOfN(text, 0, 4), func(all []string) exact.Result {
			return exact.Result{Kind: exact.TextsResult, Texts: all}
		}))
	m := &memory{} // is used again, as in a server
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "entities")
		p := &feastPlan{tail: []byte(`]}}`)}
		width := rapid.IntRange(1, 3).Draw(t, "values of a vector")
		m.found = m.found[:0]
		for range rapid.IntRange(1, 3).Draw(t, "views") {
			found := make([]online.Vector, n)
			for i := range found {
				found[i] = online.Vector{
					Found:  rapid.IntRange(0, 3).Draw(t, "found") > 0,
					Newest: rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-1e15, 1e16)).Draw(t, "newest"),
					Values: rapid.SliceOfN(value, width, width).Draw(t, "values"),
				}
			}
			m.found = append(m.found, found)
		}
		p.outputs = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) feastOutput {
			return feastOutput{rapid.IntRange(0, len(m.found)-1).Draw(t, "view"), rapid.IntRange(0, width-1).Draw(t, "output")}
		}), 1, 5).Draw(t, "outputs")
		keys := feastEntities{{key: text.Draw(t, "key")}}
		for i := range n {
			keys[0].values = append(keys[0].values, strconv.Itoa(i))
		}
		got := string(m.appendAnswer(nil, keys, p))
		if want := feastAnswer(t, keys, m.found, p.outputs); got != want {
			t.Fatalf("answer\n%s\nwant\n%s", got, want)
		}
		if !json.Valid([]byte(got)) {
			t.Fatalf("not JSON: %s", got)
		}
	})
}

// feastAnswer returns the answer for one key.
func feastAnswer(t *rapid.T, keys feastEntities, found [][]online.Vector, outputs []feastOutput) string {
	column := func(values, statuses, times []string) string {
		return fmt.Sprintf(`{"values":[%s],"statuses":[%s],"event_timestamps":[%s]}`,
			strings.Join(values, ","), strings.Join(statuses, ","), strings.Join(times, ","))
	}
	quoted := func(s string) string {
		text := string(appendQuoted(nil, s))
		var meant string
		if err := json.Unmarshal([]byte(text), &meant); err != nil || meant != s {
			t.Fatalf("%s means %q (%v), want %q", text, meant, err, s)
		}
		return text
	}
	present, epoch := make([]string, len(keys[0].values)), make([]string, len(keys[0].values))
	for i := range present {
		present[i], epoch[i] = `"PRESENT"`, `"1970-01-01T00:00:00Z"`
	}
	columns := []string{column(keys[0].values, present, epoch)}
	for _, o := range outputs {
		var values, statuses, times []string
		for _, v := range found[o.view] {
			value, status := "null", `"PRESENT"`
			switch r := v.Values[o.output]; {
			case !v.Found:
				status = `"NOT_FOUND"`
			case r.Kind == exact.IntResult:
				value = strconv.FormatInt(r.Int, 10)
			case r.Kind == exact.FloatResult:
				value = pythonRepr(r.Float)
			case r.Kind == exact.TextResult:
				value = quoted(r.Text)
			case r.Kind == exact.TextsResult:
				items := make([]string, len(r.Texts))
				for i, text := range r.Texts {
					items[i] = quoted(text)
				}
				value = "[" + strings.Join(items, ",") + "]"
			default:
				status = `"NULL_VALUE"`
			}
			layout := "2006-01-02T15:04:05.000000Z"
			switch {
			case v.Newest%1_000_000 == 0:
				layout = "2006-01-02T15:04:05Z"
			case v.Newest%1_000 == 0:
				layout = "2006-01-02T15:04:05.000Z"
			}
			values, statuses = append(values, value), append(statuses, status)
			times = append(times, time.UnixMicro(v.Newest).UTC().Format(`"`+layout+`"`))
		}
		columns = append(columns, column(values, statuses, times))
	}
	return `{"results":[` + strings.Join(columns, ",") + `],"metadata":{"feature_names":[` + quoted(keys[0].key) + `]}}`
}

// BenchmarkAnswer is the encoding of an answer with 50 features, most of them numbers.
func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			p, keys := &feastPlan{tail: []byte(`]}}`)}, feastEntities{{key: "customer_id"}}
			found := make([]online.Vector, n)
			for i := range found {
				keys[0].values = append(keys[0].values, `"0198c8f2-0000-7000-8000-000000000001"`)
				found[i] = online.Vector{Found: true, Newest: 1_700_000_000_123_456}
				for j := range 50 {
					found[i].Values = append(found[i].Values, []exact.Result{
						{Kind: exact.IntResult, Int: int64(i + j)}, {Kind: exact.FloatResult, Float: float64(i+j) * 10},
						{Kind: exact.FloatResult, Float: float64(1234+i+j) / 100},
						{Kind: exact.FloatResult, Float: float64(1_234_567_890+i+j) / 1e6},
						{Kind: exact.FloatResult, Float: float64(i+j+1) / 3}}[j%5])
				}
			}
			for j := range 50 {
				p.outputs = append(p.outputs, feastOutput{0, j})
			}
			m := &memory{found: [][]online.Vector{found}}
			b.ReportAllocs()
			for b.Loop() {
				m.answer = m.appendAnswer(m.answer[:0], keys, p)
			}
			b.SetBytes(int64(len(m.answer)))
		})
	}
}
