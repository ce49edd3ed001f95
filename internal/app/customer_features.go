// This file gives the view of customers its facts and features. It connects the two read sides: views
// do not import features.

package app

import (
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	factfeed "github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/shop"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/readmodels/customer360"
)

// CustomerEntity is the entity whose features profiles have, and whose consent counts.
const CustomerEntity = "customer_id"

// customerFacts finds the facts of orders that features of customers aggregate. It is the same under
// every configuration, so that a change of features.groups does not change the view.
var customerFacts = factsAbout(shop.Groups(shop.Options{}))

// factsAbout returns the facts of the sources of customers' groups that read orders.
func factsAbout(groups []*features.Group) customer360.Facts {
	var sources []*features.Source
	for _, g := range groups {
		for i := range g.Sources {
			s := &g.Sources[i]
			known := slices.ContainsFunc(sources, func(t *features.Source) bool { return t.Name == s.Name })
			if g.Entity == CustomerEntity && s.Topic == event.Order.Topic && !known {
				sources = append(sources, s)
			}
		}
	}
	return func(e event.Event) []customer360.FactChange {
		var all []customer360.FactChange
		for _, s := range sources {
			facts, err := factfeed.Project(s, e, features.Origin{})
			if err != nil {
				continue // the readers of features make it a dead letter, so no vector has it
			}
			for _, f := range facts {
				key, ok := strings.CutPrefix(f.Key, e.Stream)
				if !ok {
					continue // of a source whose facts are not of one order
				}
				change := customer360.FactChange{Source: s.Name, Retracted: f.Retracted,
					Fact: &customer360v1.Fact{Key: key, AtMicros: f.At.UnixMicro()}}
				for _, v := range f.Values {
					change.Fact.Values = append(change.Fact.Values, storedValue(v))
				}
				all = append(all, change)
			}
		}
		return all
	}
}

// storedValue returns the form of a value in fragments.
func storedValue(v exact.Value) *customer360v1.FactValue {
	switch v.Kind {
	case exact.Text:
		return &customer360v1.FactValue{Kind: &customer360v1.FactValue_Text{Text: v.Text}}
	case exact.Number:
		if n, ok := v.Int.Int64(); ok {
			return &customer360v1.FactValue{Kind: &customer360v1.FactValue_Number{Number: n}}
		}
		// Decimal digits: such numbers are too rare for their size to matter.
		return &customer360v1.FactValue{Kind: &customer360v1.FactValue_Wide{Wide: v.Int.String()}}
	case exact.Null:
	}
	return &customer360v1.FactValue{}
}

// valueOf is the inverse of storedValue. A damaged number is null; fragments have checksums.
func valueOf(v *customer360v1.FactValue) exact.Value {
	switch k := v.GetKind().(type) {
	case *customer360v1.FactValue_Text:
		return exact.TextValue(k.Text)
	case *customer360v1.FactValue_Number:
		return exact.IntValue(exact.FromInt64(k.Number))
	case *customer360v1.FactValue_Wide:
		if b, ok := new(big.Int).SetString(k.Wide, 10); ok {
			if n, err := exact.FromBig(b); err == nil {
				return exact.IntValue(n)
			}
		}
	}
	return exact.Value{}
}

// customerFeatures computes features of customers from the facts in fragments.
type customerFeatures struct {
	list    []customer360.Feature
	outputs []customerOutput // parallel to list
}

// customerOutput is a feature over a window, and its group.
type customerOutput struct {
	group  *features.Group
	output features.Output
}

// newCustomerFeatures returns the features of the groups of customers.
func newCustomerFeatures(groups []*features.Group) *customerFeatures {
	c := &customerFeatures{}
	mine := slices.DeleteFunc(slices.Clone(groups), func(g *features.Group) bool { return g.Entity != CustomerEntity })
	slices.SortFunc(mine, func(a, b *features.Group) int { return strings.Compare(a.Name, b.Name) })
	kinds := map[exact.ResultKind]customer360.FeatureKind{
		exact.IntResult: customer360.Integer, exact.FloatResult: customer360.Number,
		exact.TextResult: customer360.Text, exact.TextsResult: customer360.Texts,
	}
	for _, g := range mine {
		for _, o := range g.Outputs() {
			c.list = append(c.list, customer360.Feature{Group: g.Name, Version: g.Version, Name: o.Name, Kind: kinds[o.Kind]})
			c.outputs = append(c.outputs, customerOutput{g, o})
		}
	}
	return c
}

// List implements customer360.Features.
func (c *customerFeatures) List() []customer360.Feature { return c.list }

// Of implements customer360.Features. The facts of a source are decoded when a feature needs them.
func (c *customerFeatures) Of(
	stored map[string][]*customer360v1.Fact,
) func(i int, at time.Time) (*featuresv1.Value, time.Time) {
	decoded := map[string][]features.Fact{}
	facts := func(s *features.Source) []features.Fact {
		if known, ok := decoded[s.Name]; ok {
			return known
		}
		all := make([]features.Fact, 0, len(stored[s.Name]))
		for _, f := range stored[s.Name] {
			values := make([]exact.Value, len(s.Columns))
			for i, v := range f.GetValues()[:min(len(f.GetValues()), len(values))] {
				values[i] = valueOf(v)
			}
			all = append(all, features.Fact{Key: f.GetKey(), At: time.UnixMicro(f.GetAtMicros()).UTC(), Values: values})
		}
		decoded[s.Name] = all
		return all
	}
	return func(i int, at time.Time) (*featuresv1.Value, time.Time) {
		return c.outputs[i].value(facts, at)
	}
}

// value computes a feature, as features.Group.Vector does for all of a group, and when it changes.
func (o customerOutput) value(facts func(*features.Source) []features.Fact, at time.Time) (
	*featuresv1.Value, time.Time,
) {
	t, g, f := at.UnixMicro(), o.group, o.output.Feature
	var due time.Time
	next := func(at time.Time) {
		if due.IsZero() || at.Before(due) {
			due = at
		}
	}
	states := g.States(o.output)
	for i := range states {
		part := features.Part(f, i)
		source := g.Source(part.Source)
		column := source.Index(part.Column)
		for _, fact := range facts(source) {
			switch {
			case !part.Matches(source, fact.Values):
			case o.output.Window.Contains(fact.At.UnixMicro(), t):
				part.Add(&states[i], column, fact)
				if o.output.Window != features.Lifetime {
					next(fact.At.Add(time.Duration(o.output.Window))) // it leaves the window
				}
			case fact.At.After(at):
				next(fact.At) // it enters
			}
		}
	}
	found := slices.ContainsFunc(g.Sources, func(s features.Source) bool {
		return slices.ContainsFunc(facts(&s), func(fact features.Fact) bool { return !fact.At.After(at) })
	})
	result := g.Result(o.output, states, at)
	if f.Age && result.Kind != exact.NullResult {
		next(at) // it changes all the time
	}
	return valueOfResult(result, found, states[0].Count == 0), due
}

// valueOfResult returns a result as the API has it.
func valueOfResult(r exact.Result, found, empty bool) *featuresv1.Value {
	v := &featuresv1.Value{Status: featuresv1.ValueStatus_VALUE_STATUS_PRESENT}
	switch {
	case !found:
		v.Status = featuresv1.ValueStatus_VALUE_STATUS_NOT_FOUND
	case r.Kind == exact.NullResult:
		v.Status = featuresv1.ValueStatus_VALUE_STATUS_NULL
	case empty:
		v.Status = featuresv1.ValueStatus_VALUE_STATUS_DEFAULT
	}
	switch r.Kind {
	case exact.IntResult:
		v.Kind = &featuresv1.Value_Integer{Integer: r.Int}
	case exact.FloatResult:
		v.Kind = &featuresv1.Value_Number{Number: r.Float}
	case exact.TextResult:
		v.Kind = &featuresv1.Value_Text{Text: r.Text}
	case exact.TextsResult:
		v.Kind = &featuresv1.Value_Texts{Texts: &featuresv1.Texts{Items: r.Texts}}
	case exact.NullResult:
	}
	return v
}
