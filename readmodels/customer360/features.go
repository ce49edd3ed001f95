package customer360

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
)

// How features are computed: a fragment of an order contains the facts that the sources of features
// find in its events. The features of a person are aggregates over the facts of all of the person's
// orders, computed when they are read, at that time. So they follow merges and their reversal as the
// rest of the profile does, and nothing is rewritten.

// Facts returns what an event of an order says about its customer: the new versions of facts, by
// source, and the keys of those that do not hold any more. It is pure. An event that it cannot read
// has no facts.
type Facts func(event.Event) []FactChange

// FactChange is a new version of a fact, or its retraction.
type FactChange struct {
	Source    string
	Fact      *customer360v1.Fact // its key is what follows the id of the order in the fact's key
	Retracted bool                // only the key of Fact counts
}

// FeatureKind is the type of a feature's values that are not null.
type FeatureKind int

// The kinds of features.
const (
	Integer FeatureKind = iota
	Number
	Text
	Texts
)

// Feature is a feature over one window.
type Feature struct {
	Group   string // "customer_value"
	Version int
	Name    string // "monetary_sum_90d"
	Kind    FeatureKind
}

// variable returns the name of a feature in expressions.
func (f Feature) variable() string { return "features." + f.Group + "." + f.Name }

// celType returns the type of a feature in expressions. A value may be null.
func (f Feature) celType() *cel.Type {
	switch f.Kind {
	case Integer:
		return cel.NullableType(cel.IntType)
	case Number:
		return cel.NullableType(cel.DoubleType)
	case Texts:
		return cel.ListType(cel.StringType)
	case Text:
	}
	return cel.NullableType(cel.StringType)
}

// Features computes the features of customers. It is implemented beside the definitions of features,
// which views do not import.
type Features interface {
	// List returns all features, sorted by group.
	List() []Feature
	// Of returns a function that computes features from facts, by source. It takes the index of a
	// feature in List. due is the next instant at which the value may change by time alone: zero if
	// never, and the time itself for a value that changes all the time.
	Of(facts map[string][]*customer360v1.Fact) func(i int, at time.Time) (v *featuresv1.Value, due time.Time)
}

// noFeatures is used by a view without features.
type noFeatures struct{}

func (noFeatures) List() []Feature { return nil }

func (noFeatures) Of(map[string][]*customer360v1.Fact) func(int, time.Time) (*featuresv1.Value, time.Time) {
	return nil
}

// applyFacts changes the facts of an order.
func applyFacts(o *customer360v1.OrderFragment, changes []FactChange) {
	for _, c := range changes {
		at, found := slices.BinarySearchFunc(o.Facts, c.Source,
			func(s *customer360v1.SourceFacts, name string) int { return cmp.Compare(s.GetSource(), name) })
		if !found {
			if c.Retracted {
				continue
			}
			o.Facts = slices.Insert(o.Facts, at, &customer360v1.SourceFacts{Source: c.Source})
		}
		s := o.Facts[at]
		i, known := slices.BinarySearchFunc(s.Facts, c.Fact.GetKey(),
			func(f *customer360v1.Fact, key string) int { return cmp.Compare(f.GetKey(), key) })
		switch {
		case c.Retracted && known:
			s.Facts = slices.Delete(s.Facts, i, i+1)
		case c.Retracted:
		case known:
			s.Facts[i] = c.Fact
		default:
			s.Facts = slices.Insert(s.Facts, i, c.Fact)
		}
		if len(s.Facts) == 0 {
			o.Facts = slices.Delete(o.Facts, at, at+1)
		}
	}
}

// factsOf returns the facts of all orders of a person, by source, with their full keys.
func factsOf(orders map[string]*Fragment) map[string][]*customer360v1.Fact {
	all := map[string][]*customer360v1.Fact{}
	for id, f := range orders {
		for _, s := range f.GetOrder().GetFacts() {
			for _, fact := range s.GetFacts() {
				all[s.GetSource()] = append(all[s.GetSource()], &customer360v1.Fact{Key: id + fact.GetKey(),
					AtMicros: fact.GetAtMicros(), Values: fact.GetValues()})
			}
		}
	}
	return all
}

// addFeatures adds the features of a person at a time to their profile, unless the person refuses
// analytics.
func addFeatures(profile *customer360v1.Profile, p Parts, features Features, at time.Time) {
	list := features.List()
	if len(list) == 0 || refuses(profile, customerv1.ConsentPurpose_CONSENT_PURPOSE_ANALYTICS) {
		return
	}
	at = event.Time(at)
	profile.FeaturesAt = timestamppb.New(at)
	value := features.Of(factsOf(p.Orders))
	for i, f := range list {
		id := fmt.Sprintf("%s/v%d", f.Group, f.Version)
		if n := len(profile.Features); n == 0 || profile.Features[n-1].GetGroup() != id {
			profile.Features = append(profile.Features, &customer360v1.FeatureVector{Group: id})
		}
		v, _ := value(i, at)
		vector := profile.Features[len(profile.Features)-1]
		vector.Features = append(vector.Features, &customer360v1.Feature{Name: f.Name, Value: v})
	}
}

// refuses reports whether a person was asked for a purpose and does not grant it.
func refuses(p *customer360v1.Profile, purpose customerv1.ConsentPurpose) bool {
	return slices.ContainsFunc(p.GetConsents(), func(c *customer360v1.Consent) bool {
		return c.GetPurpose() == purpose && !c.GetGranted()
	})
}

// celValue returns the value of a feature in expressions.
func celValue(v *featuresv1.Value) any {
	switch k := v.GetKind().(type) {
	case *featuresv1.Value_Integer:
		return types.Int(k.Integer)
	case *featuresv1.Value_Number:
		return types.Double(k.Number)
	case *featuresv1.Value_Text:
		return types.String(k.Text)
	case *featuresv1.Value_Texts:
		return k.Texts.GetItems()
	}
	return ref.Val(types.NullValue)
}

// bindFeatures adds the features that segments use to the variables of their expressions. Each is
// computed when an expression asks for it, and then its due time counts.
func bindFeatures(variables map[string]any, segments []*segment, features Features, p Parts, m *moment) {
	var value func(int, time.Time) (*featuresv1.Value, time.Time)
	for _, s := range segments {
		for name, i := range s.features {
			variables[name] = func() any {
				if value == nil {
					value = features.Of(factsOf(p.Orders))
				}
				v, due := value(i, m.now)
				m.changes(due)
				return celValue(v)
			}
		}
	}
}
