// Package tables declares the shop's own tables, with a file for each service: the events of each
// aggregate, the facts that they bring, and the current state of its streams. Nothing in the
// packages beside it knows them; All goes into the configuration of a lake.
package tables

import (
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake/declare"
)

// All are Millrace's own. They are not partitioned: at a commit every second or so a partition by time would only
// cut small files smaller, a year's import would write a file per month and commit, and the bounds in the manifests
// already prune by time.
func All() []declare.Table {
	return []declare.Table{
		customersEvents, productsEvents, stockEvents, OrdersEvents,
		OrderLines, stockMovements,
		customersCurrent, productsCurrent, OrdersCurrent,
	}
}

// Of returns the tables that an aggregate's topic feeds: its events, and those derived from them.
func Of(a event.Aggregate) []declare.Table {
	return slices.DeleteFunc(All(), func(t declare.Table) bool { return t.Topic != a.Topic })
}
