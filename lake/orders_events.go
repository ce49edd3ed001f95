package lake

import (
	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// ordersEvents keeps every event of an order's life.
var ordersEvents = eventsTable("orders_events", event.Order, (*orderv1.OrderEvent)(nil))
