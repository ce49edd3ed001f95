package training

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// productGroup is a group of another entity than everyOutput's.
func productGroup() *features.Group {
	return &features.Group{
		Name: "product", Version: 1, Entity: "sku", Description: "d", Owner: "o",
		Sources: []features.Source{{Name: "sales", Topic: "orders", Project: project,
			Columns: []features.Column{{Name: "quantity", Kind: exact.Number}}}},
		Features: []features.Feature{
			{Name: "sold", Source: "sales", Aggregate: exact.Sum, Column: "quantity",
				Windows: []features.Window{features.Window(20 * time.Microsecond), features.Lifetime}},
			{Name: "last_sold", Source: "sales", Aggregate: exact.Last, Age: true, Windows: []features.Window{features.Lifetime}},
		},
	}
}

// sale is a row of a spine with two keys.
type sale struct {
	Buyer string    `parquet:"buyer"`
	SKU   int64     `parquet:"sku"`
	At    time.Time `parquet:"event_time,timestamp(microsecond)"`
}

// TestTwoEntities: a set with groups of two entities has in each row the vectors of both, each of its
// own key, also from facts that are read in their order, and again from its manifest.
func TestTwoEntities(t *testing.T) {
	t.Parallel()
	facts := randomFacts(2000, 11)
	for i := range 1500 {
		facts["sales"] = append(facts["sales"], features.Fact{
			Entity: fmt.Sprint(i % 7), Key: fmt.Sprint(i), At: tick(i * 7 % 2000), Known: tick(i*7%2000 + i%11),
			Origin: features.Origin{Offset: int64(i)}, Values: []exact.Value{exact.IntValue(exact.FromInt64(int64(i % 5)))},
		})
	}
	rows := make([]sale, 300)
	for i := range rows {
		rows[i] = sale{fmt.Sprint("c", i%12), int64(i % 9), tick(i * 13 % 2100)}
	}
	c := testConfig(t, writeSpine(t, rows), facts)
	customer, product := everyOutput(), productGroup()
	// The groups of an entity need not be neighbours.
	third := productGroup()
	third.Name, third.Features = "third", []features.Feature{{Name: "sales", Source: "sales", Aggregate: exact.Count,
		Windows: []features.Window{features.Lifetime}}}
	c.Groups = []*features.Group{product, customer, third}
	c.Keys = map[string]string{"customer_id": "buyer"} // that of sku has its name
	m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if used := m.Facts.Used; used["sales"] != 1500 || used["orders"] == 0 {
		t.Errorf("facts used: %v", used)
	}
	columns, got := readSet(t, c.Out)
	if want := append([]string{"buyer", "sku", "event_time"}, m.Output.Columns...); !slices.Equal(columns, want) {
		t.Errorf("columns %v, want %v", columns, want)
	}
	for i, r := range rows {
		for _, g := range c.Groups {
			entity := r.Buyer
			if g.Entity == "sku" {
				entity = fmt.Sprint(r.SKU)
			}
			want := features.Evaluate(g, facts, entity, r.At, r.At)
			for n, o := range g.Outputs() {
				name := o.Name
				if o.Kind == exact.TextsResult {
					name += ".list.element"
				}
				if got[i][name] != shown(want.Values[n], o.Kind) {
					t.Fatalf("row %d: %s of %s is %q, want %q", i, name, entity, got[i][name], shown(want.Values[n], o.Kind))
				}
			}
		}
	}
	first, err := os.ReadFile(c.Out)
	if err != nil {
		t.Fatal(err)
	}
	again := testConfig(t, "", inOrder{facts})
	again.Groups, again.Memory = c.Groups, minMemory
	if err := m.Apply(&again); err != nil {
		t.Fatal(err)
	}
	if _, err := Repeat(t.Context(), m, again); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(again.Out); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the repeated set differs: %v", err)
	}
}

// TestCustomersInAnyCase: the UUID of a customer may be written in any case, and stays in the set as it was.
func TestCustomersInAnyCase(t *testing.T) {
	t.Parallel()
	const customer = "0199e9a4-43aa-7c01-b5a1-5c0f5e1d2a3b"
	facts, rows := randomFacts(1000, 17), randomSpine(200, 17)
	for _, all := range facts {
		for i := range all {
			if all[i].Entity == "c3" {
				all[i].Entity = customer
			}
		}
	}
	var sets [2][]map[string]any
	for i, key := range []string{customer, strings.ToUpper(customer)} {
		for n := range rows {
			if rows[n].Entity == "c3" || strings.EqualFold(rows[n].Entity, customer) {
				rows[n].Entity = key
			}
		}
		c := testConfig(t, writeSpine(t, rows), facts)
		c.Groups = []*features.Group{followingGroup()}
		if _, err := Build(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_, sets[i] = readSet(t, c.Out)
	}
	found := 0
	for n, lower := range sets[0] {
		upper := sets[1][n]
		if lower["customer_id"] == customer {
			found++
			if upper["customer_id"] != strings.ToUpper(customer) {
				t.Errorf("row %d: the key has become %q", n, upper["customer_id"])
			}
			upper["customer_id"] = customer
		}
		if !reflect.DeepEqual(lower, upper) {
			t.Fatalf("row %d: %v in upper case, %v in lower case", n, upper, lower)
		}
	}
	if found == 0 {
		t.Error("no row is of the customer")
	}
}

// TestDivided: ranges do not overlap, cover everything, and have about equally many of the sample.
func TestDivided(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sample := rapid.SliceOf(rapid.StringMatching("[a-cé\x00]{0,3}")).Draw(t, "sample")
		n := rapid.IntRange(1, 20).Draw(t, "n")
		d := divided(slices.Clone(sample), n)
		if d.ranges() > n {
			t.Fatalf("%d ranges, want at most %d", d.ranges(), n)
		}
		for _, entity := range append(sample, "", "zz", rapid.String().Draw(t, "other")) {
			for i := range d.ranges() {
				if d.at(i).Contains(entity) != (i == d.of(entity)) {
					t.Fatalf("%q is in range %d of %q, and not in %d", entity, d.of(entity), d, i)
				}
			}
		}
		for i := range d.ranges() {
			if d.of(d.at(i).From) != i {
				t.Fatalf("range %d of %q is found as %d", i, d, d.of(d.at(i).From))
			}
		}
		slices.Sort(sample)
		if unique := slices.Compact(slices.Clone(sample)); len(unique) == len(sample) && len(sample)%n == 0 && len(sample) > 0 {
			for i := range d.ranges() {
				count := 0
				for _, entity := range sample {
					if d.of(entity) == i {
						count++
					}
				}
				if count != len(sample)/n {
					t.Fatalf("range %d of %q has %d of %q", i, d, count, sample)
				}
			}
		}
	})
}
