package flags

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// shares draws shares of the given variants that sum to 100 percent.
func shares(t *rapid.T, names []string) []Share {
	cuts := []int{0, Buckets}
	for range len(names) - 1 {
		cuts = append(cuts, rapid.IntRange(0, Buckets).Draw(t, "cut"))
	}
	slices.Sort(cuts)
	out := make([]Share, len(names))
	for i, name := range names {
		out[i] = Share{name, json.RawMessage(fmt.Sprint(i)), cuts[i+1] - cuts[i]}
	}
	return out
}

// TestKeysKeepTheirVariant changes shares many times. A key whose variant has at least the share that it
// had keeps it, the shares are exact, and no more buckets move than have to.
func TestKeysKeepTheirVariant(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := []string{"a", "b", "c", "d", "e"}
		f := Flag{Name: "checkout", Type: Int}
		for step := range rapid.IntRange(2, 12).Draw(t, "steps") {
			names := rapid.SampledFrom([][]string{all, all[:2], all[1:4], all[2:], {"c", "a"}}).Draw(t, "variants")
			want := shares(t, names)
			next, err := allocate(f.Rollout, want)
			if err != nil {
				t.Fatal(err)
			}
			after := f
			after.Rollout = next
			if err := after.Validate(); err != nil {
				t.Fatal(err)
			}
			share, had := map[string]int{}, map[string]int{}
			for i, v := range next {
				if v.Share() != want[i].Share || v.Name != want[i].Variant {
					t.Fatalf("variant %s has %d of 10000, want %+v", v.Name, v.Share(), want[i])
				}
				share[v.Name] = v.Share()
			}
			lost := 0
			for _, v := range f.Rollout {
				had[v.Name] = v.Share()
				lost += max(0, v.Share()-share[v.Name])
			}
			before, now := owners(f.Rollout), owners(next)
			moved := 0
			for bucket, name := range before {
				if now[bucket] == name {
					continue
				}
				if moved++; share[name] >= had[name] {
					t.Fatalf("step %d: bucket %d left %s, whose share went from %d to %d", step, bucket, name, had[name], share[name])
				}
			}
			if f.Rollout != nil && moved != lost {
				t.Fatalf("%d buckets moved, want %d", moved, lost)
			}
			f = after
		}
	})
}

// owners returns the variant of each bucket.
func owners(rollout []Variant) map[int]string {
	out := map[int]string{}
	for _, v := range rollout {
		for _, r := range v.Ranges {
			for b := r.From; b < r.To; b++ {
				out[b] = v.Name
			}
		}
	}
	return out
}

// TestLoweringAndRaisingReturnsTheSameKeys rolls out, takes part of it back, and rolls out again.
func TestLoweringAndRaisingReturnsTheSameKeys(t *testing.T) {
	t.Parallel()
	rollout := []Variant(nil)
	seen := map[int][]Variant{}
	for _, percent := range []int{10, 50, 10, 50} {
		next, err := allocate(rollout, []Share{{"on", json.RawMessage("true"), percent * 100},
			{"off", json.RawMessage("false"), Buckets - percent*100}})
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[percent]; ok && !slices.Equal(before[0].Ranges, next[0].Ranges) {
			t.Errorf("at %d %%, on has %v, and it had %v", percent, next[0].Ranges, before[0].Ranges)
		}
		rollout, seen[percent] = next, next
	}
}

// TestBucket compares with buckets that Python's hashlib has computed.
func TestBucket(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flag, key string
		want      int
	}{
		{"checkout", "customer-1", 2083}, {"checkout", "customer-2", 1304}, {"search", "customer-1", 5931},
		{"checkout", "Ünïcode", 9422},
	} {
		if got := Bucket(c.flag, c.key); got != c.want {
			t.Errorf("Bucket(%q, %q) = %d, want %d", c.flag, c.key, got, c.want)
		}
	}
}

// TestSharesOfKeys counts the keys of a rollout. Their number is within five standard deviations.
func TestSharesOfKeys(t *testing.T) {
	t.Parallel()
	rollout, err := allocate(nil, []Share{{"on", json.RawMessage("true"), 2000}, {"off", json.RawMessage("false"), 8000}})
	if err != nil {
		t.Fatal(err)
	}
	f, on := Flag{Name: "checkout", Type: Bool, Rollout: rollout}, 0
	const keys = 100_000
	for i := range keys {
		if f.VariantOf(fmt.Sprint("key-", i)).Name == "on" {
			on++
		}
	}
	if on < keys/5-632 || on > keys/5+632 {
		t.Errorf("%d of %d keys are in a variant of 20 %%", on, keys)
	}
}

func TestSharesAreRefused(t *testing.T) {
	t.Parallel()
	one := json.RawMessage("1")
	many := make([]Share, maxVariants+1)
	for name, shares := range map[string][]Share{
		"less than 100 percent": {{"a", one, 5000}, {"b", one, 4999}},
		"more than 100 percent": {{"a", one, 5000}, {"b", one, 5001}},
		"negative":              {{"a", one, -1}, {"b", one, 10_001}},
		"the same name":         {{"a", one, 5000}, {"a", one, 5000}},
		"too many":              many,
		"none":                  {},
	} {
		if _, err := allocate(nil, shares); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
