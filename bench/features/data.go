package main

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/online"
)

const (
	ordersEach   = 10
	featureCount = 50
	topic        = "bench.orders"
)

// entityName returns the name of the i-th customer, as long as the shop's ids.
func entityName(i int) string { return fmt.Sprintf("0198c8f2-0000-7000-8000-%012x", i) }

// group has ten features over five windows.
func group() *features.Group {
	windows := []features.Window{features.Day, features.Week, features.Month, features.Days90, features.Lifetime}
	g := &features.Group{
		Name: "bench", Version: 1, Entity: "customer_id", Description: "Fifty features of orders", Owner: "bench",
		Sources: []features.Source{{
			Name: "orders", Topic: topic,
			Columns: []features.Column{
				{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "items", Kind: exact.Number},
				{Name: "country", Kind: exact.Text}, {Name: "channel", Kind: exact.Text},
			},
			Project: func(e event.Event) ([]features.Fact, error) {
				return []features.Fact{order(e.Stream, string(e.Data), e.OccurredAt, 1)}, nil
			},
		}},
	}
	web := []features.Condition{{Column: "channel", Op: features.Equal, Value: exact.TextValue("web")}}
	for _, f := range []features.Feature{
		{Name: "orders", Aggregate: exact.Count},
		{Name: "web_orders", Aggregate: exact.Count, Where: web},
		{Name: "spent", Aggregate: exact.Sum, Column: "total"},
		{Name: "mean_total", Aggregate: exact.Mean, Column: "total"},
		{Name: "max_total", Aggregate: exact.Max, Column: "total"},
		{Name: "items", Aggregate: exact.Sum, Column: "items"},
		{Name: "countries", Aggregate: exact.Distinct, Column: "country"},
		{Name: "last_country", Aggregate: exact.Last, Column: "country"},
		{Name: "recency", Aggregate: exact.Last, Age: true},
		{Name: "web_share", Aggregate: exact.Count, Where: web,
			Over: &features.Feature{Name: "all", Source: "orders", Aggregate: exact.Count}},
	} {
		f.Source, f.Windows = "orders", windows
		if f.Over != nil {
			f.Over.Source = "orders"
		}
		g.Features = append(g.Features, f)
	}
	return g
}

// featureNames returns the names of the group's outputs.
func featureNames() (names []string) {
	for _, o := range group().Outputs() {
		names = append(names, o.Name)
	}
	return names
}

// order returns a fact about an order.
func order(customer, id string, at time.Time, n int) features.Fact {
	return features.Fact{Entity: customer, Key: id, At: event.Time(at), Values: []exact.Value{
		exact.IntValue(exact.FromMoney(int64(10+n%90), int32(n%100)*10_000_000)),
		exact.IntValue(exact.FromInt64(int64(1 + n%7))),
		exact.TextValue([]string{"GB", "DE", "FR", "IE"}[n%4]), exact.TextValue([]string{"web", "app", "shop"}[n%3]),
	}}
}

// age returns how old an order of a customer is.
func age(customer, order int) time.Duration {
	return time.Duration(ordersEach-order) * 36 * 24 * time.Hour / (1 + time.Duration(customer%12))
}

// fill adds the orders of all customers, spread over a year.
func fill(s *online.Store, entities int, now time.Time) error {
	const batch = 1000
	offset := int64(0)
	for first := 0; first < entities; first += batch {
		for o := range ordersEach {
			var facts []features.Fact
			for i := first; i < min(first+batch, entities); i++ {
				id := fmt.Sprintf("0198c8f2-0000-7000-9000-%012x", i*ordersEach+o)
				facts = append(facts, order(entityName(i), id, now.Add(-age(i, o)), i+o))
			}
			for i := range facts {
				facts[i].Origin.Offset = offset
			}
			if err := s.Apply(online.Batch{Topic: topic, First: offset, After: feed.Position{Next: offset + 1, AsOf: now},
				Facts: map[string][]features.Fact{"orders": facts}}); err != nil {
				return err
			}
			offset++
		}
	}
	return nil
}
