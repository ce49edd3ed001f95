package feast

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
	"github.com/millrace/millrace/features/training"
)

// mergedGroups are groups whose customers follow the identity graph.
func mergedGroups() []*features.Group {
	all := groups()
	for _, g := range all {
		if g.Entity == "customer_id" {
			g.Identity = features.Customers
		}
	}
	return all
}

// TestMergedCustomers: of customers who were merged, the offline store has the vectors that the online
// store answers now, those of the person. Rows of an earlier time have what was known then.
func TestMergedCustomers(t *testing.T) {
	t.Parallel()
	all, merged := facts(), noon.Add(-time.Hour)
	var links personstest.Links
	for i, f := range links.Change("customer:c1", "customer:c2", true, merged) {
		f.Origin = features.Origin{Topic: persons.Source.Topic, Index: int32(i)}
		all[persons.Source.Name] = append(all[persons.Source.Name], f)
	}
	c := config(t)
	c.Groups = mergedGroups()
	c.Facts = func(ctx context.Context, sources []*features.Source) (training.Facts, training.Positions, error) {
		p, err := all.Positions(ctx, sources)
		return all, p, err
	}
	outputs := []string{"activity:orders_7d", "activity:mean_1h", "activity:country_lifetime", "activity:countries_7d", "value:orders_7d"}
	customers := []string{"c0", "c1", "c2"}
	var rows []row
	for _, customer := range customers {
		rows = append(rows, row{customer: customer, sku: "1", at: noon, known: noon.AddDate(1, 0, 0)},
			row{customer: customer, sku: "1", at: merged.Add(-time.Microsecond)})
	}
	command := ask(true, outputs...)
	command["feature_view_names"], command["name_aliases"] = []string{"activity", "value"}, []any{nil, nil}
	answer, err := exchange(t, client(t, c), command, table(rows, len(rows)))
	if err != nil {
		t.Fatal(err)
	}
	_, got := values(answer)
	if len(got) != len(rows) {
		t.Fatalf("%d rows, want %d", len(got), len(rows))
	}
	for i, r := range rows {
		if i%2 == 0 {
			continue
		}
		for _, g := range c.Groups[:2] {
			want := features.Evaluate(g, all, r.customer, r.at, r.at)
			for j, o := range g.Outputs() {
				if value, asked := got[i][g.Name+"__"+o.Name]; asked && value != shown(want.Values[j]) {
					t.Errorf("before the merge, %s of %s is %s, want %s", o.Name, r.customer, value, shown(want.Values[j]))
				}
			}
		}
	}

	now := onlineAnswer(t, c.Groups, all, outputs, customers)
	later := answer[len(answer)-1]
	for _, name := range outputs {
		name = strings.ReplaceAll(name, ":", "__")
		column := later.Column(later.Schema().FieldIndices(name)[0])
		for i, customer := range customers {
			if offline := asJSON(t, column.GetOneForMarshal(2*i)); !reflect.DeepEqual(offline, now[name][i]) {
				t.Errorf("%s of %s: the offline store has %v, the online store %v", name, customer, offline, now[name][i])
			}
		}
		if name == "activity__orders_7d" && (now[name][1] != now[name][2] || now[name][1] == now[name][0]) {
			t.Errorf("%s of %v are %v: c1 and c2 are one person, and c0 is another", name, customers, now[name])
		}
	}
}

// asJSON returns a value as a reader of its JSON has it.
func asJSON(t *testing.T, value any) (read any) {
	t.Helper()
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, &read)
	}
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// onlineAnswer returns the answer of the online store at noon to what Feast's client asks, by output.
func onlineAnswer(t *testing.T, groups []*features.Group, facts training.Slice, outputs, customers []string) map[string][]any {
	t.Helper()
	body, err := json.Marshal(map[string]any{"features": outputs, "entities": map[string]any{"customer_id": customers},
		"full_feature_names": true})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(onlineStore(t, groups, facts)+"/get-online-features", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Metadata struct {
			Names []string `json:"feature_names"`
		} `json:"metadata"`
		Results []struct {
			Values []any `json:"values"`
		} `json:"results"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.Results) != len(answer.Metadata.Names) {
		t.Fatalf("%v: %s", err, text)
	}
	all := map[string][]any{}
	for i, name := range answer.Metadata.Names {
		all[name] = answer.Results[i].Values
	}
	return all
}
