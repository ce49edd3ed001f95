package features

import (
	"cmp"
	"slices"
	"time"

	"github.com/millrace/millrace/features/exact"
)

// Vector is the values of a group's outputs for one entity at one time.
type Vector struct {
	Entity string
	At     time.Time
	// Found reports whether the entity has any fact up to At, in any of the group's sources.
	Found  bool
	Values []exact.Result // one per output
}

// Evaluate computes a vector by a scan of facts, which are those of all sources by name, in any
// order, of any entities, and with all their versions. It is the definition of a vector: every
// other way to compute one must return the same bits. A zero known means that all versions are
// known.
func Evaluate(g *Group, facts map[string][]Fact, entity string, at, known time.Time) Vector {
	return EvaluatePerson(g, facts, entity, nil, at, known)
}

// EvaluatePerson is Evaluate for an entity that is one person with others: members are all of the
// person's entities, or none if the entity is alone.
func EvaluatePerson(g *Group, facts map[string][]Fact, entity string, members []string, at, known time.Time) Vector {
	if len(members) == 0 {
		members = []string{entity}
	}
	current := map[string][]Fact{}
	for name, all := range facts {
		if g.Source(name) == nil {
			continue
		}
		versions := map[string][]Fact{}
		for _, f := range all {
			if slices.Contains(members, f.Entity) {
				versions[f.Entity] = append(versions[f.Entity], f)
			}
		}
		current[name] = CurrentOf(versions, members, known)
	}
	return g.Vector(current, entity, at)
}

// CurrentOf is Current for the facts of all members of a person, by member. The facts of several
// members are different ones, also if they have the same key.
func CurrentOf(versions map[string][]Fact, members []string, known time.Time) []Fact {
	var all []Fact
	for _, m := range members {
		mine := Current(versions[m], known)
		if len(members) > 1 {
			for i := range mine {
				mine[i].Key = MemberKey(mine[i].Key, m)
			}
		}
		all = append(all, mine...)
	}
	return all
}

// MemberKey returns the key that a fact of one of several members has among those of the person. It
// orders facts with the same time and key by their members.
func MemberKey(key, member string) string { return key + "\x00" + member }

// Vector computes a vector from the current facts of one entity, by source.
func (g *Group) Vector(current map[string][]Fact, entity string, at time.Time) Vector {
	t := at.UnixMicro()
	v := Vector{Entity: entity, At: at}
	for _, facts := range current {
		if slices.ContainsFunc(facts, func(f Fact) bool { return !f.At.After(at) }) {
			v.Found = true
		}
	}
	for _, o := range g.Outputs() {
		states := g.States(o)
		for i := range states {
			f := Part(o.Feature, i)
			source := g.Source(f.Source)
			column := source.Index(f.Column)
			for _, fact := range current[f.Source] {
				if o.Window.Contains(fact.At.UnixMicro(), t) && f.Matches(source, fact.Values) {
					f.Add(&states[i], column, fact)
				}
			}
		}
		v.Values = append(v.Values, g.Result(o, states, at))
	}
	return v
}

// Current returns, of each fact of one entity and source, the last version that was known at a
// time, without those that are retracted. A zero time means that all versions are known.
func Current(versions []Fact, known time.Time) []Fact {
	last := map[string]Fact{}
	for _, f := range versions {
		if !known.IsZero() && f.Known.After(known) {
			continue
		}
		if have, ok := last[f.Key]; !ok || have.Origin.Before(f.Origin) {
			last[f.Key] = f
		}
	}
	current := make([]Fact, 0, len(last))
	for _, f := range last {
		if !f.Retracted {
			current = append(current, f)
		}
	}
	slices.SortFunc(current, func(a, b Fact) int { return a.Stamp().Compare(b.Stamp()) })
	return current
}

// Before reports whether o is before p on their partition.
func (o Origin) Before(p Origin) bool {
	return cmp.Or(cmp.Compare(o.Offset, p.Offset), cmp.Compare(o.Index, p.Index)) < 0
}

// Stamp returns what orders the fact among those of its entity and source.
func (f Fact) Stamp() exact.Stamp { return exact.Stamp{At: f.At.UnixMicro(), Key: f.Key} }

// States returns the empty states of an output: one, or two for a quotient.
func (g *Group) States(o Output) []exact.State {
	states := []exact.State{{Aggregate: o.Feature.Aggregate}}
	if o.Feature.Over != nil {
		states = append(states, exact.State{Aggregate: o.Feature.Over.Aggregate})
	}
	return states
}

// Part returns the feature of an output's i-th state: itself, or its divisor.
func Part(f *Feature, i int) *Feature {
	if i == 1 {
		return f.Over
	}
	return f
}

// Matches reports whether the values of a fact meet all conditions of the feature.
func (f *Feature) Matches(s *Source, values []exact.Value) bool {
	for _, c := range f.Where {
		if !c.Holds(values[s.Index(c.Column)]) {
			return false
		}
	}
	return true
}

// Add adds a fact to a state. column is the index of the feature's column.
func (f *Feature) Add(s *exact.State, column int, fact Fact) {
	var v exact.Value
	switch {
	case f.Age: // the value is the time of the fact
		v = exact.IntValue(exact.FromInt64(fact.At.UnixMicro()))
	case column >= 0:
		v = fact.Values[column]
	}
	s.Add(fact.Stamp(), v)
}

// Result returns the value of an output whose states are complete.
func (g *Group) Result(o Output, states []exact.State, at time.Time) exact.Result {
	f := o.Feature
	if f.Age {
		if states[0].Count == 0 {
			return exact.Result{}
		}
		age := exact.FromInt64(at.UnixMicro() - states[0].Pick.Stamp.At)
		return exact.Result{Kind: exact.FloatResult, Float: exact.Quotient(age, exact.Pow10(6))}
	}
	if f.Over != nil {
		n, d := g.total(f, states[0]), g.total(f.Over, states[1])
		if d.number.Sign() == 0 {
			return exact.Result{}
		}
		// n / 10^a over d / 10^b is n × 10^b over d × 10^a.
		return exact.Result{Kind: exact.FloatResult, Float: exact.Quotient(
			n.number.Mul(exact.Pow10(d.scale)), d.number.Mul(exact.Pow10(n.scale)))}
	}
	c, _ := g.Column(f.Source, f.Column)
	return states[0].Result(exact.Finish{Scale: c.Scale, K: f.K, Q: f.Q})
}

// total is a count or a sum with its decimals.
type total struct {
	number exact.Int
	scale  int
}

func (g *Group) total(f *Feature, s exact.State) total {
	if f.Aggregate == exact.Count {
		return total{number: exact.FromInt64(s.Count)}
	}
	c, _ := g.Column(f.Source, f.Column)
	return total{s.Sum, c.Scale}
}
