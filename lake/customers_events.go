package lake

import (
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
)

// customersEvents keeps every event of a customer's life; personal data is inside the payload.
var customersEvents = eventsTable("customers_events", event.Customer, func() proto.Message { return new(customerv1.CustomerEvent) })
