package features

import (
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/features/exact"
)

// TestDescribe: a definition in words says all that the value depends on.
func TestDescribe(t *testing.T) {
	t.Parallel()
	g := testGroup()
	price := func(v int64) exact.Value { return exact.IntValue(exact.FromMoney(0, int32(v))) }
	g.Features = append(g.Features,
		Feature{Name: "best", Source: "orders", Aggregate: exact.Top, Column: "country", K: 3, Windows: []Window{Hour}},
		Feature{Name: "median", Source: "orders", Aggregate: exact.Quantile, Column: "total", Q: 0.5, Windows: []Window{Hour},
			Where: []Condition{{Column: "total", Op: More, Value: price(-1_500_000_00)}, {Column: "country", Op: In, Values: []exact.Value{
				exact.TextValue("GB"), exact.TextValue("IE"),
			}}}},
		Feature{Name: "several", Source: "orders", Aggregate: exact.Max, Column: "total", Windows: []Window{Hour},
			Where: []Condition{{Column: "total", Op: NotEqual, Value: exact.IntValue(exact.FromMoney(20, 0))}}},
	)
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
	d := g.Describe()
	for i, want := range []FeatureDescription{
		{Feature: "orders", Definition: "count() from orders", Type: "integer", Windows: []string{"1d", "lifetime"},
			Outputs: []string{"orders_1d", "orders_lifetime"}},
		{Feature: "spent", Definition: "sum(total) from orders where country = GB", Type: "number", Windows: []string{"1d"},
			Outputs: []string{"spent_1d"}},
		{Feature: "per_order", Definition: "sum(total) from orders, divided by count() from orders", Type: "number", Nullable: true,
			Windows: []string{"lifetime"}, Outputs: []string{"per_order_lifetime"}},
		{Feature: "since", Definition: "seconds since the last from orders", Type: "number", Nullable: true,
			Windows: []string{"lifetime"}, Outputs: []string{"since_lifetime"}},
		{Feature: "best", Definition: "top 3 of country from orders", Type: "texts", Windows: []string{"1h"},
			Outputs: []string{"best_1h"}},
		{Feature: "median", Definition: "quantile 0.5 of total from orders where total > -0.15 and country in (GB, IE)",
			Type: "number", Nullable: true, Windows: []string{"1h"}, Outputs: []string{"median_1h"}},
		{Feature: "several", Definition: "max(total) from orders where total != 20", Type: "number", Nullable: true,
			Windows: []string{"1h"}, Outputs: []string{"several_1h"}},
	} {
		got := d.Features[i]
		if got.Feature != want.Feature || got.Definition != want.Definition || got.Type != want.Type ||
			got.Nullable != want.Nullable || !slices.Equal(got.Windows, want.Windows) || !slices.Equal(got.Outputs, want.Outputs) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if c := d.Sources[0].Columns; c[0].Type != "number" || c[1].Type != "text" {
		t.Errorf("columns %+v", c)
	}
	// What a definition calls nullable is null in the vector of an entity without facts, and no other.
	v := Evaluate(g, nil, "nobody", time.Now(), time.Time{})
	for i, o := range g.Outputs() {
		if null := v.Values[i].Kind == exact.NullResult; null != o.Feature.Nullable() {
			t.Errorf("%s is null: %v, but nullable: %v", o.Name, null, o.Feature.Nullable())
		}
	}
}
