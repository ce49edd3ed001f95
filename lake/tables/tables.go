// Package tables declares the shop's own tables, in one file per service.
//
// There are three kinds, see package declare: the events of each aggregate (orders_events), facts
// derived from events (order_lines, stock_movements), and the current state of streams
// (orders_current). All returns the complete list of them. BehaviorEvents is the table of a topic
// that has no aggregate. No other package below lake depends on them.
//
// Decoders ignore types of events that they do not know: a newer program may already write them.
package tables

import (
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/declare"
)

// All returns the tables of the aggregates. They are not partitioned. With a commit about every second,
// partitions by time would only make small files smaller, and an import of a year would write a
// file per month and commit. The column bounds in manifests already prune by time.
func All() []declare.Table {
	return []declare.Table{
		// Events, facts, states.
		customersEvents, productsEvents, stockEvents, OrdersEvents, identitiesEvents,
		OrderLines, stockMovements,
		customersCurrent, productsCurrent, OrdersCurrent,
	}
}

// Of returns the tables of an aggregate's topic: its events, and the tables derived from them.
func Of(a event.Aggregate) []declare.Table {
	return slices.DeleteFunc(All(), func(t declare.Table) bool { return t.Topic != a.Topic })
}
