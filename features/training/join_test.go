package training

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// spineRow is a row of a spine in tests. A zero known means everything.
type spineRow struct {
	entity    string
	at, known time.Time
}

// vectors computes the vectors of rows as Build does, in as many ranges.
func vectors(t testing.TB, outputs []groupOutput, facts Facts, rows []spineRow, ranges division) [][]exact.Result {
	t.Helper()
	p, err := compile(outputs)
	if err != nil {
		t.Fatal(err)
	}
	var sources []*features.Source
	for _, s := range p.sources {
		sources = append(sources, s.source)
	}
	positions, err := facts.Positions(t.Context(), sources)
	if err != nil {
		t.Fatal(err)
	}
	j := joiner{facts: facts, positions: positions, first: math.MinInt64, last: math.MaxInt64}
	if len(rows) > 0 {
		j.first, j.last = math.MaxInt64, math.MinInt64
	}
	for _, r := range rows {
		j.first, j.last = min(j.first, r.at.UnixMicro()), max(j.last, r.at.UnixMicro())
	}
	result := make([][]exact.Result, len(rows))
	for part := range ranges.ranges() {
		r := ranges.at(part)
		entities := &entities{}
		var mine []row
		for i, s := range rows {
			if !r.Contains(s.entity) {
				continue
			}
			known := int64(forever)
			if !s.known.IsZero() {
				known = s.known.UnixMicro()
			}
			mine = append(mine, row{number: int64(i), entity: entities.add([]byte(s.entity)), at: s.at.UnixMicro(), known: known})
		}
		sorted := entities.sort()
		for i := range mine {
			mine[i].entity = sorted[mine[i].entity]
		}
		_, err := j.join(t.Context(), p, r, entities, mine, func(r row, values []exact.Result) {
			result[r.number] = slices.Clone(values)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return result
}

// everyOutput is a group with all aggregates, conditions and windows.
func everyOutput() *features.Group {
	windows := []features.Window{
		features.Window(time.Microsecond), features.Window(3 * time.Microsecond), features.Window(10 * time.Microsecond),
		features.Lifetime,
	}
	g := &features.Group{
		Name: "every", Version: 1, Entity: "customer_id", Description: "d", Owner: "o",
		Sources: []features.Source{
			{Name: "orders", Topic: "orders", Project: project, Columns: []features.Column{
				{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "items", Kind: exact.Number},
				{Name: "country", Kind: exact.Text},
			}},
			{Name: "visits", Topic: "visits", Project: project,
				Columns: []features.Column{{Name: "page", Kind: exact.Text}}},
		},
	}
	add := func(f features.Feature) {
		f.Windows = windows
		if f.Name == "" {
			f.Name = fmt.Sprintf("f%d", len(g.Features))
		}
		if f.Source == "" {
			f.Source = "orders"
		}
		g.Features = append(g.Features, f)
	}
	gb := []features.Condition{{Column: "country", Op: features.Equal, Value: exact.TextValue("GB")}}
	large := []features.Condition{{Column: "items", Op: features.More, Value: exact.IntValue(exact.FromInt64(1))}}
	add(features.Feature{Aggregate: exact.Count})
	add(features.Feature{Aggregate: exact.Count, Where: gb})
	add(features.Feature{Aggregate: exact.Count, Source: "visits"})
	for _, column := range []string{"total", "items"} {
		for _, a := range []exact.Aggregate{exact.Sum, exact.Mean, exact.Min, exact.Max, exact.StdDev} {
			add(features.Feature{Aggregate: a, Column: column})
			add(features.Feature{Aggregate: a, Column: column, Where: large})
		}
		add(features.Feature{Aggregate: exact.Quantile, Column: column, Q: 0.5})
		add(features.Feature{Aggregate: exact.Quantile, Column: column, Q: 0.9, Where: gb})
	}
	for _, column := range []string{"total", "items", "country"} {
		add(features.Feature{Aggregate: exact.First, Column: column})
		add(features.Feature{Aggregate: exact.Last, Column: column, Where: gb})
		add(features.Feature{Aggregate: exact.Distinct, Column: column})
		add(features.Feature{Aggregate: exact.Top, Column: column, K: 2})
		add(features.Feature{Aggregate: exact.Top, Column: column, K: 1})
	}
	add(features.Feature{Aggregate: exact.Last, Age: true})
	add(features.Feature{Aggregate: exact.First, Age: true, Source: "visits"})
	add(features.Feature{Aggregate: exact.Last, Column: "page", Source: "visits"})
	add(features.Feature{Aggregate: exact.Sum, Column: "total", Where: gb,
		Over: &features.Feature{Name: "n", Source: "orders", Aggregate: exact.Count}})
	add(features.Feature{Aggregate: exact.Count,
		Over: &features.Feature{Name: "n", Source: "visits", Aggregate: exact.Count}})
	return g
}

func project(event.Event) ([]features.Fact, error) { return nil, nil }

// base is the time around which tests place facts and rows.
var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func tick(n int) time.Time { return base.Add(time.Duration(n) * time.Microsecond) }

// drawFacts draws the facts of a source: few entities and times, so that everything coincides, with
// corrections and retractions in the order of the log, whose known times may be in any order.
func drawFacts(t *rapid.T, source features.Source, ordered bool) []features.Fact {
	number := rapid.OneOf(
		rapid.Map(rapid.Int64Range(-3, 3), exact.FromInt64), rapid.Map(rapid.Int64(), exact.FromInt64),
		rapid.Map(rapid.Int64(), func(units int64) exact.Int { return exact.FromMoney(units, 0) }))
	at := map[string]int{} // versions of a fact share its time
	var facts []features.Fact
	for i := range rapid.IntRange(0, 25).Draw(t, source.Name) {
		f := features.Fact{
			Entity:    rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "entity"),
			Key:       rapid.SampledFrom([]string{"1", "2", "10", "x", "y", "z"}).Draw(t, "key"),
			Retracted: rapid.IntRange(0, 5).Draw(t, "retracted") == 0,
			Origin:    features.Origin{Topic: source.Topic, Offset: int64(i / 2), Index: int32(i % 2)},
		}
		id := f.Entity + "/" + f.Key
		if _, ok := at[id]; !ok {
			at[id] = rapid.IntRange(-12, 12).Draw(t, "at")
		}
		f.At = tick(at[id])
		f.Known = tick(rapid.IntRange(-15, 15).Draw(t, "known"))
		if ordered { // as one clock writes them
			f.Known = tick(at[id] + i/4)
		}
		for _, c := range source.Columns {
			switch {
			case rapid.IntRange(0, 4).Draw(t, "null") == 0:
				f.Values = append(f.Values, exact.Value{})
			case c.Kind == exact.Text:
				f.Values = append(f.Values, exact.TextValue(rapid.SampledFrom([]string{"GB", "FR", ""}).Draw(t, "text")))
			default:
				f.Values = append(f.Values, exact.IntValue(number.Draw(t, "number")))
			}
		}
		facts = append(facts, f)
	}
	return rapid.Permutation(facts).Draw(t, "arrival")
}

// drawRows draws a spine with duplicates, ties, unknown entities, and any known times.
func drawRows(t *rapid.T) []spineRow {
	mode := rapid.SampledFrom([]string{KnownAt, KnownLatest, "column"}).Draw(t, "known mode")
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) spineRow {
		r := spineRow{
			entity: rapid.SampledFrom([]string{"a", "b", "", "unknown"}).Draw(t, "entity"),
			at:     tick(rapid.IntRange(-20, 30).Draw(t, "at")),
		}
		switch mode {
		case KnownAt:
			r.known = r.at
		case "column":
			r.known = tick(rapid.IntRange(-20, 20).Draw(t, "known"))
		}
		return r
	}), 1, 12).Draw(t, "rows")
}

// TestEqualsEvaluate: every vector equals the scan that defines it, to the last bit.
func TestEqualsEvaluate(t *testing.T) {
	t.Parallel()
	g := everyOutput()
	outputs, err := (&Config{Groups: []*features.Group{g}}).selected()
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		ordered := rapid.Bool().Draw(rt, "ordered")
		facts := Slice{}
		for _, s := range g.Sources {
			facts[s.Name] = drawFacts(rt, s, ordered)
		}
		rows := drawRows(rt)
		got := vectors(t, outputs, facts, rows, rapid.SampledFrom([]division{nil, {"a"}, {"a", "b"}, {"b", "c", "z"}}).Draw(rt, "ranges"))
		for i, r := range rows {
			want := features.Evaluate(g, facts, r.entity, r.at, r.known)
			for n, o := range outputs {
				if !got[i][n].Equal(want.Values[n]) {
					rt.Fatalf("%s (%s) of %q at %s known %s is %+v, want %+v", o.column, o.output.Feature.Aggregate,
						r.entity, r.at, r.known, got[i][n], want.Values[n])
				}
			}
		}
	})
}

// TestManyFacts: the same with more facts than a chunk, many rows of an entity, and several chains.
func TestManyFacts(t *testing.T) {
	t.Parallel()
	g := everyOutput()
	outputs, err := (&Config{Groups: []*features.Group{g}}).selected()
	if err != nil {
		t.Fatal(err)
	}
	facts := Slice{}
	for i := range chunkRows + 100 {
		at, key := 7*i%1000, fmt.Sprint(i)
		if i%50 == 49 { // a correction of the fact before
			at, key = 7*(i-1)%1000, fmt.Sprint(i-1)
		}
		n := exact.FromInt64(int64(i*i%1001 - 500))
		if i%997 == 0 {
			n = exact.FromMoney(math.MaxInt64, 0)
		}
		facts["orders"] = append(facts["orders"], features.Fact{
			Entity: fmt.Sprint(i % 1000 % 3), Key: key, At: tick(at), Known: tick(at + i%9), Retracted: i%101 == 0,
			Origin: features.Origin{Offset: int64(i)},
			Values: []exact.Value{exact.IntValue(n), exact.IntValue(exact.FromInt64(int64(i % 13))), exact.TextValue("GB")},
		})
	}
	var rows []spineRow
	for i := range 40 {
		rows = append(rows, spineRow{fmt.Sprint(i % 2), tick(25 * i), tick(25*i + (i*37)%50 - 20)})
	}
	got := vectors(t, outputs, facts, rows, division{"1"})
	for i, r := range rows {
		want := features.Evaluate(g, facts, r.entity, r.at, r.known)
		for n, o := range outputs {
			if !got[i][n].Equal(want.Values[n]) {
				t.Fatalf("%s of row %d is %+v, want %+v", o.column, i, got[i][n], want.Values[n])
			}
		}
	}
}
