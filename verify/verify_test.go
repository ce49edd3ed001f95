package verify_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/verify"
)

type item struct{ stream, content string }

// side returns a side with the given items.
func side(name string, items ...item) verify.Side {
	return verify.Side{Name: name, Digest: func(context.Context) (*digest.Digest, error) {
		d := digest.New()
		for _, i := range items {
			d.Add(i.stream, []byte(i.content))
		}
		return d, nil
	}}
}

// run compares the sides and returns the result.
func run(t interface {
	Context() context.Context
	Fatal(...any)
}, sides ...verify.Side) verify.AggregateResult {
	r, err := verify.Run(t.Context(), []verify.Subject{{
		Aggregate: "order", Comparisons: []verify.Comparison{{Unit: "events", Sides: sides}},
	}}, func(string, int, int) {})
	if err != nil {
		t.Fatal(err)
	}
	if r.Equal != r.Aggregates[0].Equal {
		t.Fatal("Equal differs between the result and its aggregate")
	}
	return r.Aggregates[0]
}

// TestDifference checks that the first difference is described by its stream.
func TestDifference(t *testing.T) {
	t.Parallel()
	a1, a2, b1 := item{"a", "1"}, item{"a", "2"}, item{"b", "1"}
	for _, c := range []struct {
		name        string
		left, right []item
		want        string // part of the difference; empty means equal
	}{
		{"nothing equals nothing", nil, nil, ""},
		{"order does not matter", []item{a1, a2, b1}, []item{b1, a2, a1}, ""},
		{"a lost item", []item{a1, a2, b1}, []item{a1, b1}, `"a": store has 2 events, topic has 1`},
		{"a lost stream", []item{a1, b1}, []item{a1}, `"b": store has 1 events, topic has 0`},
		{"a duplicate item", []item{a1}, []item{a1, a1}, `"a": store has 1 events, topic has 2`},
		{"twice one is not one of each", []item{a1, a2}, []item{a1, a1}, `different content`},
		{"an item of another stream", []item{a1, b1}, []item{b1, {"c", "1"}}, `"a": store has 1`},
		{"the first by id is named", []item{{"z", "1"}, {"m", "1"}}, []item{{"z", "2"}, {"m", "2"}}, `"m"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := run(t, side("store", c.left...), side("topic", c.right...))
			if got.Equal != (c.want == "") || !strings.Contains(got.Difference, c.want) {
				t.Fatalf("equal=%v difference=%q, want %q", got.Equal, got.Difference, c.want)
			}
		})
	}
}

func TestUnreadableSideIsAnError(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk on fire")
	unreadable := verify.Side{
		Name: "topic", Digest: func(context.Context) (*digest.Digest, error) { return nil, broken },
	}
	_, err := verify.Run(t.Context(), []verify.Subject{{
		Aggregate: "order", Comparisons: []verify.Comparison{{
			Unit: "events", Sides: []verify.Side{side("store"), unreadable},
		}},
	}}, func(string, int, int) {})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "topic") {
		t.Fatalf("got %v", err)
	}
}

// TestAnyChangeIsDetected checks that any single change to the content (an item lost, duplicated,
// changed, or moved to another stream) is detected, and that a change of order is not.
func TestAnyChangeIsDetected(t *testing.T) {
	t.Parallel()
	gen := rapid.Custom(func(t *rapid.T) item {
		return item{rapid.StringMatching(`[a-c]`).Draw(t, "stream"), rapid.StringMatching(`[x-z]{1,3}`).Draw(t, "content")}
	})
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(gen, 1, 20).Draw(t, "items")
		if !run(t, side("store", items...), side("topic", rapid.Permutation(items).Draw(t, "order")...)).Equal {
			t.Fatal("the order changed the result")
		}
		at := rapid.IntRange(0, len(items)-1).Draw(t, "at")
		changed := append([]item(nil), items...)
		switch rapid.SampledFrom([]string{"lost", "duplicated", "changed", "moved"}).Draw(t, "change") {
		case "lost":
			changed = append(changed[:at], changed[at+1:]...)
		case "duplicated":
			changed = append(changed, changed[at])
		case "changed":
			changed[at].content += "!"
		case "moved":
			changed[at].stream += "!"
		}
		if r := run(t, side("store", items...), side("topic", changed...)); r.Equal || r.Difference == "" {
			t.Fatal("the change was not detected")
		}
	})
}
