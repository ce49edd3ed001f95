package online_test

import (
	"testing"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/online"
)

// FuzzStoredFact: whatever is in Redis, a fact is read or refused. What Apply writes is read.
func FuzzStoredFact(f *testing.F) {
	groups := []*features.Group{lasting(), passing()}
	wide := exact.IntValue(exact.FromMoney(1<<40, 5))
	for _, key := range []string{"k1", "00000000-0000-7000-8000-000000000001/1"} {
		field, value, err := online.StoredFact(groups, features.Fact{Entity: "c", Key: key, At: start,
			Values: []exact.Value{wide, exact.TextValue("GB"), exact.IntValue(exact.FromInt64(-3)), {}, exact.TextValue("")}})
		if err != nil {
			f.Fatal(err)
		}
		if read, err := online.ParseStoredFact(groups, field, value); err != nil || read != key {
			f.Errorf("the fact %q is read as %q, %v", key, read, err)
		}
		f.Add(field, value)
	}
	f.Fuzz(func(_ *testing.T, field, value string) {
		_, _ = online.ParseStoredFact(groups, field, value)
	})
}
