// Package features computes what models need to know about customers, products and sessions, from
// the events of the log.
//
// A Group is a set of features of one entity. Its Sources turn events into facts, and each Feature
// aggregates the facts of one source over sliding windows. That one definition drives the history
// in ClickHouse (features/history), the online vectors (features/online), training sets
// (features/training) and Evaluate, the plain scan that all of them must equal to the last bit. The
// shop's own groups are in features/shop, a file each.
//
// Invariants:
//
//   - A fact is in the window w of a vector at time t if t−w < fact.At <= t. Both edges are exact to
//     the microsecond. A lifetime window has no lower edge.
//   - A later version of a fact replaces the earlier ones. A vector as known at time k contains, of
//     each fact, the last version that was known at k.
//   - Results do not depend on the order in which facts arrive.
//   - Facts stay with the entity for which they were recorded. A person's vector is computed over the
//     facts of all of the person's entities, so that a merge that was taken back leaves no trace.
package features

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features/exact"
)

// Group is a set of features of one entity, computed and served together.
type Group struct {
	Name    string // "customer_activity"
	Version int    // from 1; another definition needs another version
	Entity  string // what the vectors describe, and the name of the key: "customer_id"
	// Identity says what the entities are in the identity graph. If they are in it, a vector has the facts
	// of all entities that are one person with its own. All groups of an entity have the same Identity.
	Identity    Identity
	Description string
	Owner       string // who answers for the definition
	Sources     []Source
	Features    []Feature
}

// Identity is what entities are in the identity graph; features/persons follows it.
type Identity uint8

// The kinds of entities.
const (
	// NoIdentity entities are not in the graph.
	NoIdentity Identity = iota
	// Customers are ids of customers.
	Customers
	// Visitors are what behaviour is recorded under: ids of customers, and values of their identifiers.
	Visitors
)

// Entity returns the entity that a caller's key names. Facts of customers have their ids in lower case, as
// all that commands write, so a UUID that names a customer counts in any case. Other keys count as they are.
func (i Identity) Entity(key string) string {
	if i == Customers {
		return event.CanonicalID(key)
	}
	return key
}

// Source turns the events of one topic into facts about the group's entities.
type Source struct {
	Name    string // unique in all groups: two sources of this name are the same one
	Topic   string // "millrace.orders"
	Columns []Column
	// Project returns the facts of an event. It is pure. An error means that the event cannot be
	// read, and names the field. Facts of one event have different entities or keys.
	Project func(event.Event) ([]Fact, error)
}

// Column is a value that the facts of a source have.
type Column struct {
	Name        string
	Kind        exact.Kind // exact.Number or exact.Text
	Scale       int        // decimals of a number: 9 for money, 6 for a time in seconds, 0 for a count
	Description string
}

// Fact is what one event says about one entity.
type Fact struct {
	Entity string
	// Key names the fact within the entity and the source: a later fact with the same key is a new
	// version of it. All versions have the same At and are on the same partition.
	Key       string
	At        time.Time     // event time, UTC, whole microseconds
	Retracted bool          // this version says that the fact does not hold: a cancelled order
	Values    []exact.Value // one per column of the source
	// Set by the reader of the log, not by Project.
	Known  time.Time // when the log had it: UTC, whole microseconds
	Origin Origin
}

// Origin is the place of a fact's event on the log. It orders the versions of a fact.
type Origin struct {
	Topic     string
	Partition int32
	Offset    int64
	Index     int32 // among the facts of its event
}

// Feature is an aggregate of a source's facts, once per window. Its columns are named
// Name_<window>: orders_count_7d.
type Feature struct {
	Name        string
	Description string
	Source      string // name of one of the group's sources
	Where       []Condition
	Aggregate   exact.Aggregate
	Column      string  // the aggregated column; empty for Count
	K           int     // exact.Top: how many
	Q           float64 // exact.Quantile: between 0 and 1
	Windows     []Window
	// Over makes the feature the quotient of the feature Name and of this one over the same window.
	// Both are sums or counts. It is null if the divisor is 0.
	Over *Feature
	// Age makes a feature with the aggregate First or Last the seconds from that fact to the time of
	// the vector, instead of its value. Column is empty.
	Age bool
}

// Condition compares a column with a constant. A null value meets no condition.
type Condition struct {
	Column string
	Op     Op
	Value  exact.Value
	Values []exact.Value // of In
}

// Op is a comparison.
type Op string

// The comparisons. Less and More compare numbers.
const (
	Equal    Op = "="
	NotEqual Op = "!="
	Less     Op = "<"
	More     Op = ">"
	In       Op = "in"
)

// Window is the length of a sliding window in whole microseconds. Lifetime is unbounded.
type Window time.Duration

// Lifetime is the window that contains everything up to the time of the vector.
const Lifetime Window = 0

// The windows that the shop's groups use.
const (
	Hour   = Window(time.Hour)
	Day    = 24 * Hour
	Week   = 7 * Day
	Month  = 30 * Day
	Days90 = 90 * Day
)

// String returns the name of a window in columns: "1h", "7d", "lifetime".
func (w Window) String() string {
	switch {
	case w == Lifetime:
		return "lifetime"
	case w%Day == 0:
		return fmt.Sprintf("%dd", w/Day)
	case w%Hour == 0:
		return fmt.Sprintf("%dh", w/Hour)
	case w%Window(time.Minute) == 0:
		return fmt.Sprintf("%dm", w/Window(time.Minute))
	case w%Window(time.Second) == 0:
		return fmt.Sprintf("%ds", w/Window(time.Second))
	}
	return fmt.Sprintf("%dus", time.Duration(w).Microseconds())
}

// Contains reports whether a fact at time at is in the window of a vector at time t. Both are
// microseconds since 1970.
func (w Window) Contains(at, t int64) bool {
	return at <= t && (w == Lifetime || at > t-time.Duration(w).Microseconds())
}

// Output is one column of a group's vectors: a feature over one window.
type Output struct {
	Name    string // "orders_count_7d"
	Feature *Feature
	Window  Window
	Kind    exact.ResultKind // of values that are not null
}

// Outputs returns the columns of the group's vectors, in the order of definition.
func (g *Group) Outputs() []Output {
	var all []Output
	for i := range g.Features {
		f := &g.Features[i]
		for _, w := range f.Windows {
			all = append(all, Output{Name: f.Name + "_" + w.String(), Feature: f, Window: w, Kind: g.kind(f)})
		}
	}
	return all
}

// kind returns the kind of a feature's results.
func (g *Group) kind(f *Feature) exact.ResultKind {
	switch {
	case f.Over != nil, f.Age:
		return exact.FloatResult
	case f.Aggregate == exact.Count, f.Aggregate == exact.Distinct:
		return exact.IntResult
	case f.Aggregate == exact.Top:
		return exact.TextsResult
	case f.Aggregate == exact.Mean, f.Aggregate == exact.StdDev, f.Aggregate == exact.Quantile:
		return exact.FloatResult
	}
	c, _ := g.Column(f.Source, f.Column)
	switch {
	case c.Kind == exact.Text:
		return exact.TextResult
	case c.Scale > 0:
		return exact.FloatResult
	}
	return exact.IntResult
}

// ID returns name and version: "customer_activity/v1".
func (g *Group) ID() string { return fmt.Sprintf("%s/v%d", g.Name, g.Version) }

// Source returns a source of the group, or nil.
func (g *Group) Source(name string) *Source {
	if i := slices.IndexFunc(g.Sources, func(s Source) bool { return s.Name == name }); i >= 0 {
		return &g.Sources[i]
	}
	return nil
}

// Column returns a column of a source of the group.
func (g *Group) Column(source, column string) (Column, bool) {
	if s := g.Source(source); s != nil {
		if i := s.Index(column); i >= 0 {
			return s.Columns[i], true
		}
	}
	return Column{}, false
}

// Index returns the index of a column in Columns and in the values of facts, or -1.
func (s *Source) Index(column string) int {
	return slices.IndexFunc(s.Columns, func(c Column) bool { return c.Name == column })
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Check returns an error that names what is wrong with a definition.
func (g *Group) Check() error {
	fail := func(format string, a ...any) error {
		return fmt.Errorf("feature group %q: "+format, append([]any{g.Name}, a...)...)
	}
	switch {
	case !namePattern.MatchString(g.Name):
		return fail("name: want lower-case letters, digits and _")
	case g.Version < 1:
		return fail("version %d: want at least 1", g.Version)
	case !namePattern.MatchString(g.Entity):
		return fail("entity %q: want lower-case letters, digits and _", g.Entity)
	case g.Identity > Visitors:
		return fail("identity %d: want none, customers or visitors", g.Identity)
	case g.Owner == "" || g.Description == "":
		return fail("owner and description are required")
	}
	seen := map[string]bool{}
	for i := range g.Sources {
		s := &g.Sources[i]
		if !namePattern.MatchString(s.Name) || seen[s.Name] {
			return fail("source %q: want a unique name of lower-case letters, digits and _", s.Name)
		}
		seen[s.Name] = true
		if s.Topic == "" || s.Project == nil {
			return fail("source %q: topic and project are required", s.Name)
		}
		for j, c := range s.Columns {
			if !namePattern.MatchString(c.Name) || s.Index(c.Name) != j {
				return fail("source %q: column %q: want a unique name", s.Name, c.Name)
			}
			if c.Kind != exact.Number && c.Kind != exact.Text || c.Scale < 0 || c.Scale > 18 ||
				c.Kind == exact.Text && c.Scale != 0 {
				return fail("source %q: column %q: want a number with 0 to 18 decimals, or a text", s.Name, c.Name)
			}
		}
	}
	names := map[string]bool{}
	for i := range g.Features {
		f := &g.Features[i]
		if err := g.checkFeature(f); err != nil {
			return fail("feature %q: %w", f.Name, err)
		}
		for _, w := range f.Windows {
			if w < 0 || w%Window(time.Microsecond) != 0 {
				return fail("feature %q: window %s: want whole microseconds", f.Name, time.Duration(w))
			}
			n := f.Name + "_" + w.String()
			if names[n] {
				return fail("feature %q: %s is defined twice", f.Name, n)
			}
			names[n] = true
		}
	}
	if len(names) == 0 {
		return fail("no features")
	}
	return nil
}

// checkFeature checks one feature without its windows.
func (g *Group) checkFeature(f *Feature) error {
	s := g.Source(f.Source)
	switch {
	case !namePattern.MatchString(f.Name):
		return errors.New("name: want lower-case letters, digits and _")
	case s == nil:
		return fmt.Errorf("source %q is not one of the group", f.Source)
	case f.Aggregate < exact.Count || f.Aggregate > exact.Quantile:
		return fmt.Errorf("unknown %s", f.Aggregate)
	}
	column := exact.Null
	if i := s.Index(f.Column); i >= 0 {
		column = s.Columns[i].Kind
	} else if f.Column != "" {
		return fmt.Errorf("column %q is not one of source %q", f.Column, f.Source)
	}
	switch f.Aggregate {
	case exact.Count:
		if f.Column != "" {
			return errors.New("count has no column")
		}
	case exact.First, exact.Last:
		if f.Age != (f.Column == "") {
			return fmt.Errorf("%s needs either a column or Age", f.Aggregate)
		}
	case exact.Distinct:
		if column == exact.Null {
			return errors.New("distinct needs a column")
		}
	case exact.Top:
		if column == exact.Null || f.K < 1 || f.K > 100 {
			return errors.New("top needs a column, and K from 1 to 100")
		}
	case exact.Quantile:
		if column != exact.Number || f.Q < 0 || f.Q > 1 {
			return errors.New("quantile needs a column of numbers, and Q from 0 to 1")
		}
	default:
		if column != exact.Number {
			return fmt.Errorf("%s needs a column of numbers", f.Aggregate)
		}
	}
	if f.Age && f.Aggregate != exact.First && f.Aggregate != exact.Last {
		return errors.New("age is that of the first or the last fact")
	}
	for _, c := range f.Where {
		i := s.Index(c.Column)
		if i < 0 {
			return fmt.Errorf("condition: column %q is not one of source %q", c.Column, f.Source)
		}
		if err := c.check(s.Columns[i].Kind); err != nil {
			return fmt.Errorf("condition on %q: %w", c.Column, err)
		}
	}
	if f.Over == nil {
		return nil
	}
	for _, part := range []*Feature{f, f.Over} {
		if part.Aggregate != exact.Count && part.Aggregate != exact.Sum {
			return errors.New("a quotient is one of counts or sums")
		}
	}
	if f.Over.Over != nil {
		return errors.New("the divisor of a quotient is not a quotient")
	}
	if err := g.checkFeature(f.Over); err != nil {
		return fmt.Errorf("over %q: %w", f.Over.Name, err)
	}
	return nil
}

// check checks the constants of a condition on a column of a kind.
func (c Condition) check(kind exact.Kind) error {
	values := []exact.Value{c.Value}
	switch c.Op {
	case Equal, NotEqual:
	case Less, More:
		if kind != exact.Number {
			return fmt.Errorf("%s compares numbers", c.Op)
		}
	case In:
		values = c.Values
	default:
		return fmt.Errorf("unknown comparison %q", c.Op)
	}
	for _, v := range values {
		if v.Kind != kind {
			return errors.New("the constant is not of the column's kind")
		}
	}
	return nil
}

// Holds reports whether a value meets the condition.
func (c Condition) Holds(v exact.Value) bool {
	if v.Kind == exact.Null {
		return false
	}
	switch c.Op {
	case Equal:
		return v == c.Value
	case NotEqual:
		return v != c.Value
	case Less:
		return v.Int.Compare(c.Value.Int) < 0
	case More:
		return v.Int.Compare(c.Value.Int) > 0
	}
	return slices.Contains(c.Values, v)
}
