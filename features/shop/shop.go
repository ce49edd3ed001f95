// Package shop defines the shop's feature groups: what models know about its customers, products and
// visitors.
//
// Groups returns them. Each group is a file: customer_activity.go, customer_value.go,
// product_popularity.go, basket_affinity.go and session_behaviour.go. A group is a list of features;
// read one of these files to see how to define another. The sources that turn events into facts are
// in orders.go, lines.go, stock.go and behavior.go, because groups share them: two sources of one
// name are the same source.
//
// Invariants of the sources:
//
//   - A fact's key and time do not change. LinesAdded replaces the facts of its order, and
//     OrderCancelled retracts them. Cancellations written before they repeated the order retract
//     nothing.
//   - Orders of guests give no facts about customers.
//   - Amounts have nine decimals. Features that add them up select one currency.
//   - An event that cannot be read is an error that names the field.
package shop

import (
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
)

// DefaultCurrency is the currency of features of money if none is configured.
const DefaultCurrency = "GBP"

// Options are what groups depend on.
type Options struct {
	// Currency selects the orders whose amounts are added up: ISO 4217. Empty means DefaultCurrency.
	// With another currency, groups with amounts have other values under the same version, so their
	// history must be computed again. Package history refuses to mix the two.
	Currency string
}

// Groups returns the shop's groups, in display order.
func Groups(o Options) []*features.Group {
	if o.Currency == "" {
		o.Currency = DefaultCurrency
	}
	return []*features.Group{
		customerActivity(), customerValue(o.Currency), productPopularity(o.Currency), basketAffinity(), sessionBehaviour(),
	}
}

// owner answers for the shop's definitions.
const owner = "shop-analytics"

// is returns the condition that a column has a text.
func is(column, text string) []features.Condition {
	return []features.Condition{{Column: column, Op: features.Equal, Value: exact.TextValue(text)}}
}

// windows is shorter than the type's name, which every feature would repeat.
type windows = []features.Window

// count returns a number without decimals.
func count(n int64) exact.Value { return exact.IntValue(exact.FromInt64(n)) }

// text returns a text, or null if it is empty.
func text(s string) exact.Value {
	if s == "" {
		return exact.Value{}
	}
	return exact.TextValue(s)
}

// The topics of the sources.
var (
	orderTopic    = event.Order.Topic
	stockTopic    = event.Stock.Topic
	behaviorTopic = event.Behavior.Topic
)
