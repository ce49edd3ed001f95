package features

import (
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/exact"
)

func testGroup() *Group {
	return &Group{
		Name: "activity", Version: 1, Entity: "customer_id", Description: "d", Owner: "o",
		Sources: []Source{{
			Name: "orders", Topic: "millrace.orders",
			Columns: []Column{{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text}},
			Project: func(event.Event) ([]Fact, error) { return nil, nil },
		}},
		Features: []Feature{
			{Name: "orders", Source: "orders", Aggregate: exact.Count, Windows: []Window{Day, Lifetime}},
			{Name: "spent", Source: "orders", Aggregate: exact.Sum, Column: "total", Windows: []Window{Day},
				Where: []Condition{{Column: "country", Op: Equal, Value: exact.TextValue("GB")}}},
			{Name: "per_order", Source: "orders", Aggregate: exact.Sum, Column: "total", Windows: []Window{Lifetime},
				Over: &Feature{Name: "n", Source: "orders", Aggregate: exact.Count}},
			{Name: "since", Source: "orders", Aggregate: exact.Last, Age: true, Windows: []Window{Lifetime}},
		},
	}
}

// TestEvaluate: both edges of a window are exact, corrections replace, and knowledge has a time.
func TestEvaluate(t *testing.T) {
	g := testGroup()
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fact := func(key string, before, known time.Duration, offset int64, units int64) Fact {
		return Fact{
			Entity: "c", Key: key, At: at.Add(-before), Known: at.Add(-known), Origin: Origin{Offset: offset},
			Values: []exact.Value{exact.IntValue(exact.FromMoney(units, 0)), exact.TextValue("GB")},
		}
	}
	const day, tick = 24 * time.Hour, time.Microsecond
	retracted := fact("edge", day-tick, 0, 9, 0)
	retracted.Retracted, retracted.Values = true, make([]exact.Value, 2)
	facts := map[string][]Fact{"orders": {
		retracted,
		fact("outside", day, 3*time.Hour, 1, 5), // exactly a day old
		fact("edge", day-tick, 2*time.Hour, 2, 7),
		fact("now", 0, time.Hour, 3, 11),
		fact("later", -tick, time.Hour, 4, 13),
	}}
	integer := func(v int64) exact.Result { return exact.Result{Kind: exact.IntResult, Int: v} }
	float := func(v float64) exact.Result { return exact.Result{Kind: exact.FloatResult, Float: v} }
	for name, test := range map[string]struct {
		known time.Time
		want  []exact.Result
	}{
		"all":               {time.Time{}, []exact.Result{integer(1), integer(2), float(11), float(8), float(0)}},
		"before correction": {at.Add(-time.Minute), []exact.Result{integer(2), integer(3), float(18), float(23. / 3), float(0)}},
		"before the last":   {at.Add(-2 * time.Hour), []exact.Result{integer(1), integer(2), float(7), float(6), float(86399.999999)}},
	} {
		t.Run(name, func(t *testing.T) {
			v := Evaluate(g, facts, "c", at, test.known)
			for i, o := range g.Outputs() {
				if !v.Values[i].Equal(test.want[i]) {
					t.Errorf("%s is %+v, want %+v", o.Name, v.Values[i], test.want[i])
				}
			}
			if !v.Found {
				t.Error("the entity was not found")
			}
		})
	}
	if v := Evaluate(g, facts, "another", at, time.Time{}); v.Found || !v.Values[0].Equal(integer(0)) ||
		!v.Values[4].Equal(exact.Result{}) {
		t.Errorf("an unknown entity has %+v, want a count of 0 and a null age", v)
	}
}

func TestCheck(t *testing.T) {
	for name, breakIt := range map[string]func(*Group){
		"version":          func(g *Group) { g.Version = 0 },
		"owner":            func(g *Group) { g.Owner = "" },
		"unknown source":   func(g *Group) { g.Features[0].Source = "clicks" },
		"unknown column":   func(g *Group) { g.Features[1].Column = "net" },
		"sum of text":      func(g *Group) { g.Features[1].Column = "country" },
		"kind of constant": func(g *Group) { g.Features[1].Where[0].Value = exact.IntValue(exact.FromInt64(1)) },
		"twice":            func(g *Group) { g.Features[0].Windows = []Window{Day, Day} },
		"negative window":  func(g *Group) { g.Features[0].Windows = []Window{-Day} },
		"nested quotient":  func(g *Group) { g.Features[2].Over.Over = &Feature{} },
		"age of a sum":     func(g *Group) { g.Features[1].Age = true },
	} {
		t.Run(name, func(t *testing.T) {
			g := testGroup()
			breakIt(g)
			if g.Check() == nil {
				t.Error("accepted")
			}
		})
	}
}
