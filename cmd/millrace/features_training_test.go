package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with the flags is named before anything is asked from a system.
func TestTrainingSetFlags(t *testing.T) {
	out := filepath.Join(t.TempDir(), "set.parquet")
	for _, c := range []struct{ flags, want string }{
		{"", "out"},
		{"--out " + out, "spine manifest"},
		{"--out " + out + " --spine s.parquet --key k --at t", "--group is missing: name one or more of customer_activity"},
		{"--out " + out + " --spine s.parquet --key k --at t --group nope", `unknown feature group "nope"`},
		{"--out " + out + " --spine s.parquet --key k --at t --group customer_value,product_popularity", "say of which it is the key: customer_id=k"},
		{"--out " + out + " --spine s.parquet --key sku= --at t --group product_popularity", `--key "sku=": want a column`},
		{"--out " + out + " --spine s.parquet --key sku=a,sku=b --at t --group product_popularity", "sku has two columns, a and b"},
		{"--out " + out + " --manifest m.json --known latest", "none of the others can be"},
		{"--out set.csv --spine s.parquet --at t --group customer_value", "--out set.csv: the file would be Parquet, and not .csv: want a name that ends in .parquet, or iceberg:NAMESPACE.TABLE"},
		{"--out set.JSON --manifest m.json", "--out set.JSON: the file would be Parquet"},
		{"--out set.2026-01 --manifest nowhere.json", "nowhere.json"}, // no other format
		{"--out " + out + " --manifest nowhere.json", "nowhere.json"},
		{"--out " + out + " --spine s.parquet --key k --at t --group customer_value --from tape", `from "tape": want clickhouse or log`},
		{"--out " + out + " --spine s.parquet --key k --at t --group customer_value --from clickhouse --data " + out, "clickhouse.url is empty, and no system"},
	} {
		_, err := run(t, append([]string{"features", "training-set"}, strings.Fields(c.flags)...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", c.flags, err, c.want)
		}
	}
	for spine, want := range map[string]bool{"SELECT 1": true, " with x AS (SELECT 1) SELECT *": true, "select.parquet": false, "a b.parquet": false} {
		if isQuery(spine) != want {
			t.Errorf("%q is a query: %v", spine, !want)
		}
	}
}
