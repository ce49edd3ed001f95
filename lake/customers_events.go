package lake

import (
	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
)

// customersEvents keeps every event of a customer's life; personal data is inside the payload.
var customersEvents = eventsTable("customers_events", event.Customer, (*customerv1.CustomerEvent)(nil))
