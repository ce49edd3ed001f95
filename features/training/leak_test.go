package training

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/persons"
	"github.com/millrace/millrace/features/persons/personstest"
)

// The scenario plants every kind of leak around rows whose right answers are written by hand. Each
// planted fact would change a vector if it got in.

const (
	second = time.Second
	minute = time.Minute
)

func leakGroup() *features.Group {
	hour := []features.Window{features.Hour, features.Lifetime}
	return &features.Group{
		Name: "leaks", Version: 1, Entity: "customer_id", Identity: features.Customers, Description: "d", Owner: "o",
		Sources: []features.Source{{Name: "orders", Topic: "orders", Project: project,
			Columns: []features.Column{{Name: "total", Kind: exact.Number}}}},
		Features: []features.Feature{
			{Name: "n", Source: "orders", Aggregate: exact.Count, Windows: hour},
			{Name: "spent", Source: "orders", Aggregate: exact.Sum, Column: "total", Windows: hour},
			{Name: "largest", Source: "orders", Aggregate: exact.Max, Column: "total", Windows: hour},
			{Name: "last", Source: "orders", Aggregate: exact.Last, Column: "total", Windows: hour},
		},
	}
}

// order is a fact of the scenario. Times are relative to base.
type order struct {
	entity, key string
	at, known   time.Duration
	offset      int64
	total       int64
	retracted   bool
}

var leakOrders = []order{
	// A late event: it happened before the row at 0 and became known after it.
	{"late", "1", -30 * minute, -29 * minute, 1, 1, false},
	{"late", "2", -20 * minute, second, 2, 100, false},
	// A correction that came after the row, and one that came before it.
	{"corrected", "1", -10 * minute, -9 * minute, 3, 1, false},
	{"corrected", "1", -10 * minute, second, 4, 100, false},
	{"corrected", "2", -8 * minute, -7 * minute, 5, 1000, false},
	{"corrected", "2", -8 * minute, -6 * minute, 6, 2, false},
	// A correction whose clock was behind: it is the later one on the log, and known from the start.
	{"skewed correction", "1", -10 * minute, -5 * minute, 7, 100, false},
	{"skewed correction", "1", -10 * minute, -6 * minute, 8, 1, false},
	// A microsecond to both sides of both edges of the window, and known at its edge.
	{"edges", "1", -60 * minute, -59 * minute, 9, 1000, false},
	{"edges", "2", -60*minute + time.Microsecond, -59 * minute, 10, 1, false},
	{"edges", "3", 0, 0, 11, 2, false},
	{"edges", "4", time.Microsecond, 0, 12, 100, false},
	{"edges", "5", -minute, time.Microsecond, 13, 500, false},
	// The label's own event: the row's time is that of the event, which is known a moment later.
	{"label", "1", -5 * minute, -5 * minute, 14, 1, false},
	{"label", "2", 0, 3 * time.Millisecond, 15, 100, false},
	// Clock skew: known before it happened.
	{"future", "1", -5 * minute, -10 * minute, 16, 1, false},
	{"future", "2", 5 * minute, -10 * minute, 17, 100, false},
	// Retracted before the row, and after it.
	{"retracted", "1", -10 * minute, -9 * minute, 18, 100, false},
	{"retracted", "1", -10 * minute, -8 * minute, 19, 0, true},
	{"retracted", "2", -10 * minute, -9 * minute, 20, 7, false},
	{"retracted", "2", -10 * minute, minute, 21, 0, true},
	// Two at the same time: the last one is that with the larger key, however they arrived.
	{"ties", "b", -10 * minute, -9 * minute, 22, 2, false},
	{"ties", "a", -10 * minute, -8 * minute, 23, 1, false},
	// Another entity whose name begins alike.
	{"unknown2", "1", -10 * minute, -9 * minute, 24, 100, false},
	// Two who are merged later, and then parted. Their orders have the same key.
	{"merged", "1", -10 * minute, -9 * minute, 25, 1, false},
	{"other", "1", -8 * minute, -7 * minute, 26, 2, false},
}

// leakMerges are the changes of the edge between merged and other, by when they were known.
var leakMerges = []struct {
	known  time.Duration
	joined bool
}{{second, true}, {minute, false}}

type leakRow struct {
	entity string
	at     time.Duration
	hour   string
	ever   string
}

// leakRows are the rows, with what is known at their time, and the vector: n, spent, largest and last
// in an hour, then in the lifetime.
var leakRows = []leakRow{
	{"late", 0, "1 1 1 1", "1 1 1 1"},
	{"late", 2 * second, "2 101 100 100", "2 101 100 100"},
	{"corrected", 0, "2 3 2 2", "2 3 2 2"},
	{"corrected", second, "2 102 100 2", "2 102 100 2"},
	{"corrected", second - time.Microsecond, "2 3 2 2", "2 3 2 2"},
	{"skewed correction", 0, "1 1 1 1", "1 1 1 1"},
	{"edges", 0, "2 3 2 2", "3 1003 1000 2"},
	{"edges", -time.Microsecond, "2 1001 1000 1", "2 1001 1000 1"},
	{"label", 0, "1 1 1 1", "1 1 1 1"},
	{"label", 3 * time.Millisecond, "2 101 100 100", "2 101 100 100"},
	{"future", 0, "1 1 1 1", "1 1 1 1"},
	{"future", 0, "1 1 1 1", "1 1 1 1"}, // the same row again
	{"retracted", 0, "1 7 7 7", "1 7 7 7"},
	{"retracted", minute, "0 0 - -", "0 0 - -"},
	{"ties", 0, "2 3 2 2", "2 3 2 2"},
	{"late", -40 * minute, "0 0 - -", "0 0 - -"}, // before any fact
	{"unknown", 0, "0 0 - -", "0 0 - -"},
	{"merged", second - time.Microsecond, "1 1 1 1", "1 1 1 1"},
	{"merged", second, "2 3 2 2", "2 3 2 2"},
	{"other", second, "2 3 2 2", "2 3 2 2"},
	{"other", minute - time.Microsecond, "2 3 2 2", "2 3 2 2"},
	{"other", minute, "1 2 2 2", "1 2 2 2"},
}

func leakFacts() Slice {
	s := Slice{}
	for _, o := range leakOrders {
		s["orders"] = append(s["orders"], features.Fact{
			Entity: o.entity, Key: o.key, At: base.Add(o.at), Known: base.Add(o.known), Retracted: o.retracted,
			Origin: features.Origin{Offset: o.offset}, Values: []exact.Value{exact.IntValue(exact.FromInt64(o.total))},
		})
	}
	var links personstest.Links
	for i, m := range leakMerges {
		for _, f := range links.Change("customer:merged", "customer:other", m.joined, base.Add(m.known)) {
			f.Origin.Offset = int64(i)
			s[persons.Source.Name] = append(s[persons.Source.Name], f)
		}
	}
	return s
}

// evaluateMerged is the right way to compute a vector of entities that are merged, if known is the time of
// the row.
func evaluateMerged(g *features.Group, facts Slice, entity string, at time.Time, known int64) features.Vector {
	graph, err := personstest.Graph(facts[persons.Source.Name])
	if err != nil {
		panic(err) // unreachable: they are those of leakFacts
	}
	return features.EvaluatePerson(g, facts, entity, graph.Members(g.Identity, entity, known), at, at)
}

// leakVector shows a vector in the form of leakRows.
func leakVector(values []exact.Result) (hour, ever string) {
	show := func(r exact.Result) string {
		if r.Kind == exact.NullResult {
			return "-"
		}
		return fmt.Sprint(r.Int)
	}
	for i, v := range values {
		to := &hour
		if i%2 == 1 {
			to = &ever
		}
		if *to != "" {
			*to += " "
		}
		*to += show(v)
	}
	return hour, ever
}

// TestNoLeaks: none of the planted facts gets into a training set.
func TestNoLeaks(t *testing.T) {
	t.Parallel()
	type spine struct {
		Entity string    `parquet:"customer_id"`
		At     time.Time `parquet:"event_time,timestamp(microsecond)"`
	}
	var rows []spine
	for _, r := range leakRows {
		rows = append(rows, spine{r.entity, base.Add(r.at)})
	}
	c := testConfig(t, writeSpine(t, rows), leakFacts())
	c.Groups = []*features.Group{leakGroup()}
	if _, err := Build(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, got := readSet(t, c.Out)
	for i, r := range leakRows {
		var hour, ever string
		for _, name := range []string{"n", "spent", "largest", "last"} {
			hour += " " + got[i][name+"_1h"].(string)
			ever += " " + got[i][name+"_lifetime"].(string)
		}
		shorten := func(s string) string { return s[1:] }
		for _, c := range []struct{ got, want string }{{shorten(hour), r.hour}, {shorten(ever), r.ever}} {
			if have := nullsAsDashes(c.got); have != c.want {
				t.Errorf("row %d (%s at %s) is %q, want %q", i, r.entity, r.at, have, c.want)
			}
		}
	}
}

func nullsAsDashes(s string) string {
	const null = "null at level 0"
	for i := 0; i+len(null) <= len(s); i++ {
		if s[i:i+len(null)] == null {
			s = s[:i] + "-" + s[i+len(null):]
		}
	}
	return s
}

// mergeMutants are wrong ways to follow merges.
var mergeMutants = map[string]func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector{
	"merges ignored": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at, at)
	},
	"merges that are known now": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return evaluateMerged(g, facts, entity, at, persons.Now)
	},
	"merges known a microsecond later": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return evaluateMerged(g, facts, entity, at, at.UnixMicro()+1)
	},
	"merges known before, not at": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return evaluateMerged(g, facts, entity, at, at.UnixMicro()-1)
	},
	"facts of several entities taken for versions": func(
		g *features.Group, facts Slice, entity string, at time.Time,
	) features.Vector {
		all := slices.Clone(facts["orders"])
		for i := range all {
			all[i].Entity = strings.Replace(all[i].Entity, "other", "merged", 1)
		}
		return features.Evaluate(g, Slice{"orders": all}, strings.Replace(entity, "other", "merged", 1), at, at)
	},
}

// mutants are wrong ways to compute a vector, each of which leaks or loses something.
var mutants = map[string]func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector{
	"everything that is known now": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at, time.Time{})
	},
	"known a microsecond later": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at, at.Add(time.Microsecond))
	},
	"known before, not at": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at, at.Add(-time.Microsecond))
	},
	"upper edge too late": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at.Add(time.Microsecond), at)
	},
	"upper edge excluded": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(g, facts, entity, at.Add(-time.Microsecond), at)
	},
	"lower edge included": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(widened(g, features.Window(time.Microsecond)), facts, entity, at, at)
	},
	"lower edge a microsecond late": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		return features.Evaluate(widened(g, -features.Window(time.Microsecond)), facts, entity, at, at)
	},
	"event times ignored": mutant(func(f features.Fact) features.Fact {
		f.At = f.Known
		return f
	}),
	"known times ignored": mutant(func(f features.Fact) features.Fact {
		f.Known = f.At
		return f
	}),
	"retractions ignored": mutant(func(f features.Fact) features.Fact {
		f.Retracted = false
		return f
	}),
	"versions counted as facts": mutant(func(f features.Fact) features.Fact {
		f.Key += fmt.Sprint("/", f.Origin.Offset)
		return f
	}),
	"first version wins": mutant(func(f features.Fact) features.Fact {
		f.Origin.Offset = -f.Origin.Offset
		return f
	}),
	"versions by known time": mutant(func(f features.Fact) features.Fact {
		f.Origin.Offset = f.Known.UnixMicro()
		return f
	}),
	"ties by arrival": mutant(func(f features.Fact) features.Fact {
		if f.Entity == "ties" {
			f.Key = fmt.Sprint(f.Origin.Offset)
		}
		return f
	}),
	"known to the second": mutant(func(f features.Fact) features.Fact {
		f.Known = f.Known.Truncate(time.Second)
		return f
	}),
	"versions chosen before they are known": func(
		g *features.Group, facts Slice, entity string, at time.Time,
	) features.Vector {
		var kept []features.Fact
		for _, f := range features.Current(slices.DeleteFunc(slices.Clone(facts["orders"]),
			func(f features.Fact) bool { return f.Entity != entity }), time.Time{}) {
			if !f.Known.After(at) {
				kept = append(kept, f)
			}
		}
		return g.Vector(map[string][]features.Fact{"orders": kept}, entity, at)
	},
	"entities by prefix": func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		all := slices.Clone(facts["orders"])
		for i := range all {
			all[i].Entity = all[i].Entity[:min(len(all[i].Entity), len(entity))]
		}
		return features.Evaluate(g, Slice{"orders": all}, entity, at, at)
	},
}

// mutant changes each fact.
func mutant(change func(features.Fact) features.Fact) func(*features.Group, Slice, string, time.Time) features.Vector {
	return func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector {
		all := slices.Clone(facts["orders"])
		for i := range all {
			all[i] = change(all[i])
		}
		return features.Evaluate(g, Slice{"orders": all}, entity, at, at)
	}
}

// widened returns the group with longer windows.
func widened(g *features.Group, by features.Window) *features.Group {
	other := *g
	other.Features = slices.Clone(g.Features)
	for i := range other.Features {
		f := &other.Features[i]
		f.Windows = slices.Clone(f.Windows)
		for j := range f.Windows {
			if f.Windows[j] != features.Lifetime {
				f.Windows[j] += by
			}
		}
	}
	return &other
}

// TestMutants: the scenario finds every wrong way to compute a vector, and not the right one. So a
// join that leaked in one of these ways would fail TestNoLeaks.
func TestMutants(t *testing.T) {
	t.Parallel()
	g, facts := leakGroup(), leakFacts()
	alone := slices.DeleteFunc(slices.Clone(leakRows), func(r leakRow) bool {
		return r.entity == "merged" || r.entity == "other"
	})
	differs := func(rows []leakRow, evaluate func(entity string, at time.Time) features.Vector) string {
		for i, r := range rows {
			hour, ever := leakVector(evaluate(r.entity, base.Add(r.at)).Values)
			if hour != r.hour || ever != r.ever {
				return fmt.Sprintf("row %d (%s at %s): %q and %q, want %q and %q", i, r.entity, r.at, hour, ever, r.hour, r.ever)
			}
		}
		return ""
	}
	if d := differs(leakRows, func(entity string, at time.Time) features.Vector {
		return evaluateMerged(g, facts, entity, at, at.UnixMicro())
	}); d != "" {
		t.Fatalf("the definition itself: %s", d)
	}
	type evaluator = func(g *features.Group, facts Slice, entity string, at time.Time) features.Vector
	of := func(evaluate evaluator) func(string, time.Time) features.Vector {
		return func(entity string, at time.Time) features.Vector { return evaluate(g, facts, entity, at) }
	}
	for name, evaluate := range mutants {
		if differs(alone, of(evaluate)) == "" {
			t.Errorf("%s: the scenario does not notice", name)
		}
	}
	for name, evaluate := range mergeMutants {
		if differs(leakRows, of(evaluate)) == "" {
			t.Errorf("%s: the scenario does not notice", name)
		}
	}
}
