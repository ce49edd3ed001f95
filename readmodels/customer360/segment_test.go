package customer360_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	"github.com/millrace/millrace/readmodels/customer360"
	"github.com/millrace/millrace/streams/streamstest"
)

// TestWrongSegmentsAreNamed checks that the error of a wrong segment names it, and the position.
func TestWrongSegmentsAreNamed(t *testing.T) {
	t.Parallel()
	good := `orders.count > 3u`
	condition := func(expression string) customer360.Segment {
		return customer360.Segment{Name: "a", Expression: expression, Purpose: marketing}
	}
	for name, c := range map[string]struct {
		segment customer360.Segment
		want    []string
	}{
		"an unknown variable": {condition("orders.count > 1u &&\n order.count > 1u"),
			[]string{`segment "a"`, ":2:2", "order"}},
		"an unknown field":  {condition("orders.sum > 1u"), []string{`segment "a"`, ":1:7", "sum"}},
		"the wrong types":   {condition(`contact.country > 3`), []string{":1:17"}},
		"not a condition":   {condition("orders.count"), []string{"uint", "want bool"}},
		"no syntax":         {condition("orders.count >"), []string{":1:15"}},
		"a wrong period":    {condition(`orders_within("30 days") > 1`), []string{":1:15", "30d"}},
		"no period":         {condition(`orders_within("") > 1`), []string{":1:15", "30d"}},
		"two units":         {condition(`orders_within("1d12h") > 1`), []string{":1:15", "30d"}},
		"no time":           {condition(`orders_within("0d") > 1`), []string{":1:15", "30d"}},
		"centuries":         {condition(`orders_within("20000w") > 1`), []string{":1:15", "30d"}},
		"a computed period": {condition(`orders_within(customer_id) > 1`), []string{"literal"}},
		"the clock":         {condition(`@moment == @moment`), []string{`segment "a"`}},
		"no expression":     {condition(""), []string{`segment "a"`}},
		"no purpose":        {customer360.Segment{Name: "a", Expression: good}, []string{`segment "a"`, "purpose"}},
		"no name":           {customer360.Segment{Expression: good, Purpose: marketing}, []string{"name"}},
		"a name with a bar": {customer360.Segment{Name: "a|b", Expression: good, Purpose: marketing},
			[]string{`"a|b"`, "name"}},
	} {
		view := customer360.New(newRedis(t), streamstest.Quiet)
		err := view.SetSegments([]customer360.Segment{c.segment}, customer360.Limits{})
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", name, err, want)
			}
		}
	}
}

// TestSegmentsOverTime evaluates conditions at different times: the results, and when they are due.
func TestSegmentsOverTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register(1)                 // hour 1
	w.consent(1, marketing, true) // 2
	w.place(1, 1, gbp(100))       // 3
	w.now = monday.AddDate(0, 0, 10)
	w.place(2, 1, gbp(300)) // 10 d 1 h
	w.place(3, 1, gbp(900))
	w.cancel(3)
	w.visit(customerID(1), "a", "Added")
	parts := w.parts(t, 1)
	at := func(days int) time.Time { return monday.AddDate(0, 0, days) }
	first, second := monday.Add(3*time.Hour), at(10).Add(time.Hour)
	for _, c := range []struct {
		expression string
		now        time.Time
		member     bool
		due        time.Time // zero: never
	}{
		{`orders.count == 2u && orders.cancelled == 1u`, at(11), true, time.Time{}},
		{`contact.country == "GB" && contact.email.endsWith("@example.com")`, at(11), true, time.Time{}},
		{`"Added" in behavior.counts && behavior.counts["Added"] >= 1u`, at(11), true, time.Time{}},
		{`behavior.counts["Removed"] >= 1u`, at(11), false, time.Time{}}, // an error is not a member
		{`spent("GBP") > 400.0 && spent("EUR") == 0.0`, at(11), true, time.Time{}},
		{`spent("GBP", "30d") > 400.0`, at(11), true, first.Add(30 * 24 * time.Hour)},
		{`spent("GBP", "30d") > 400.0`, at(31), false, second.Add(30 * 24 * time.Hour)},
		{`spent("GBP", "30d") > 400.0`, at(50), false, time.Time{}},
		{`spent("GBP", "90d") > 400.0 && orders_within("4w") == 0`, at(20), false, first.Add(28 * 24 * time.Hour)},
		{`spent("GBP", "90d") > 400.0 && orders_within("4w") == 0`, at(39), true, first.Add(90 * 24 * time.Hour)},
		{`within(orders.last_at, "30d")`, at(11), true, second.Add(30 * 24 * time.Hour)},
		{`!within(orders.last_at, "30d")`, second.Add(30*24*time.Hour - 1), false, second.Add(30 * 24 * time.Hour)},
		{`!within(orders.last_at, "30d")`, second.Add(30 * 24 * time.Hour), true, time.Time{}},
		{`within(registered_at, "1h") || orders.count > 100u`, monday.Add(90 * time.Minute), true, monday.Add(2 * time.Hour)},
	} {
		s := customer360.Segment{Name: "a", Expression: c.expression, Purpose: marketing}
		member, due, err := customer360.EvaluateOne(s, parts, c.now)
		if err != nil || member != c.member || !due.Equal(c.due) {
			t.Errorf("%s at %v: %v, due %v, %v; want %v, due %v", c.expression, c.now, member, due, err, c.member, c.due)
		}
	}
	// The sum of large amounts is exact, too.
	large := parts
	large.Orders = map[string]*customer360.Fragment{}
	for _, id := range []string{"a", "b", "c"} {
		order := &customer360v1.OrderFragment{Total: gbp(1 << 62)}
		large.Orders[id] = &customer360.Fragment{Content: &customer360v1.Fragment_Order{Order: order}}
	}
	sum := customer360.Segment{Name: "a", Expression: `spent("GBP") == 13835058055282163712.0`, Purpose: marketing}
	if member, _, err := customer360.EvaluateOne(sum, large, at(11)); err != nil || !member {
		t.Errorf("three times 2^62: %v, %v", member, err)
	}
	// Consent to another purpose, or none, is not enough.
	everybody := customer360.Segment{Name: "a", Expression: "true", Purpose: analytics}
	if member, _, err := customer360.EvaluateOne(everybody, parts, at(11)); err != nil || member {
		t.Errorf("without consent: %v, %v", member, err)
	}
}

// TestNothingChangesBeforeItIsDue checks that the result of an expression does not change before
// the due time that was computed with it, for random orders, expressions and times.
func TestNothingChangesBeforeItIsDue(t *testing.T) {
	t.Parallel()
	expressions := []string{
		`within(orders.last_at, "3h")`, `orders_within("5h") == 2`, `spent("GBP", "4h") > 50.0`,
		`spent("GBP", "7h") > 50.0 && orders_within("2h") == 0`,
		`orders_within("6h") > 1 ? within(orders.first_at, "9h") : orders_within("3h") == 1`,
		`!(within(orders.last_at, "4h") || orders_within("8h") >= 3)`,
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.register(1)
		w.consent(1, marketing, true)
		for n := range rapid.IntRange(0, 5).Draw(rt, "orders") {
			w.now = monday.Add(time.Duration(rapid.IntRange(0, 600).Draw(rt, "minute")) * time.Minute)
			w.place(1+n, 1, gbp(int64(rapid.IntRange(1, 60).Draw(rt, "total"))))
		}
		parts := w.parts(t, 1)
		expression := rapid.SampledFrom(expressions).Draw(rt, "expression")
		s := customer360.Segment{Name: "a", Expression: expression, Purpose: marketing}
		now := monday.Add(time.Duration(rapid.IntRange(0, 1200).Draw(rt, "now")) * time.Minute)
		member, due, err := customer360.EvaluateOne(s, parts, now)
		if err != nil {
			rt.Fatal(err)
		}
		until := monday.Add(40 * time.Hour)
		if !due.IsZero() {
			if !due.After(now) {
				rt.Fatalf("due at %v, which is not after %v", due, now)
			}
			until = due.Add(-time.Microsecond)
		}
		for range 10 {
			later := now.Add(time.Duration(rapid.Int64Range(0, int64(until.Sub(now))).Draw(rt, "later")))
			if again, _, err := customer360.EvaluateOne(s, parts, later); err != nil || again != member {
				rt.Fatalf("%s is %v at %v and %v at %v, but due at %v (%v)", s.Expression, member, now, again, later, due, err)
			}
		}
	})
}

// parts returns the fragments of one customer, without a view.
func (w *world) parts(t testing.TB, n int) customer360.Parts {
	t.Helper()
	v := customer360.New(newRedis(t), streamstest.Quiet)
	if err := v.Apply(t.Context(), w.everything()); err != nil {
		t.Fatal(err)
	}
	p, err := v.PartsOf(t.Context(), customerID(n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
