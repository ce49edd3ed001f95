package lake

import (
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// productsEvents keeps every event of a product's life.
var productsEvents = eventsTable("products_events", event.Product, func() proto.Message { return new(catalogv1.ProductEvent) })
