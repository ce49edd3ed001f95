// Package event says what an event is while it is stored and while it travels: its envelope, its position, the
// aggregate it belongs to, and money. It does no I/O and knows no clock.
package event

import (
	"time"

	"github.com/google/uuid"
)

// Event is one recorded fact of one aggregate, with everything every hop needs to know of it.
type Event struct {
	ID        uuid.UUID // UUIDv7
	Aggregate string    // Aggregate.Name: "order"
	Stream    string    // the aggregate's id; the Kafka key
	Version   uint64    // within the stream, from 1, without gaps
	Type      string    // full name of the message in the oneof: "millrace.order.v1.OrderPlaced"
	Data      []byte    // the aggregate's events message (OrderEvent), protobuf wire format

	OccurredAt time.Time // business time, UTC, whole microseconds
	RecordedAt time.Time // when the store took it, UTC, whole microseconds

	CorrelationID string // names the conversation; may be empty
	CausationID   string // names the command or event that led to this one; may be empty
	TraceParent   string // W3C trace context; may be empty

	Position Position // where it stands in its store
}

// Time brings t to the precision that every hop keeps: UTC, whole microseconds.
func Time(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// Aggregate is a kind of stream. One service owns it, one store keeps it and one topic carries it.
type Aggregate struct {
	Name    string // "order"
	Service string // "order"; also the name of its store
	Topic   string // "millrace.orders"
	Message string // full name of its events message: "millrace.order.v1.OrderEvent"
}

// The aggregates of the platform.
var (
	Order    = Aggregate{Name: "order", Service: "order", Topic: "millrace.orders", Message: "millrace.order.v1.OrderEvent"}
	Product  = Aggregate{Name: "product", Service: "catalog", Topic: "millrace.products", Message: "millrace.catalog.v1.ProductEvent"}
	Customer = Aggregate{Name: "customer", Service: "customer", Topic: "millrace.customers", Message: "millrace.customer.v1.CustomerEvent"}
	Stock    = Aggregate{Name: "stock", Service: "inventory", Topic: "millrace.stock", Message: "millrace.inventory.v1.StockEvent"}
)

// CanonicalStream is a stream's name as every store has it. The stock and the products are named by their SKUs, which
// people write in both cases; orders and customers are named by UUIDs.
func CanonicalStream(service, stream string) string {
	if service == Order.Service || service == Customer.Service {
		return CanonicalID(stream)
	}
	return stream
}

// Aggregates lists them all, in the order in which people are shown them.
func Aggregates() []Aggregate { return []Aggregate{Customer, Product, Stock, Order} }

var aggregates = Aggregates()
