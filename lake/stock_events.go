package lake

import (
	"github.com/millrace/millrace/event"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
)

// stockEvents keeps every movement of stock.
var stockEvents = eventsTable("stock_events", event.Stock, (*inventoryv1.StockEvent)(nil))
