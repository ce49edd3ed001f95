package lake

import (
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// productsEvents keeps every event of a product's life.
var productsEvents = eventsTable("products_events", event.Product, (*catalogv1.ProductEvent)(nil))
