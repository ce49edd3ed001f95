// Package event defines events, as they are stored and as they travel on the log.
//
// Event is the envelope: id, stream, version, type, times and position, with the payload as
// protobuf bytes. Aggregate names the streams of one kind, their store and their topic. Headers and
// FromRecord convert an event to a Kafka record and back without loss. Position orders the events
// of one store, and Token is the position that a client passes to a query to read its own writes.
//
// Aggregate.Check is the one definition of an event that all readers share. A record can also be a
// forgery or a copy: Seal and Sequence detect these.
//
// Money is exact. Functions on it return an error instead of rounding.
//
// The package has no I/O, no clock and no randomness. Every hop keeps times in UTC with
// microseconds.
package event

import (
	"time"

	"github.com/google/uuid"
)

// Event is one recorded fact of one aggregate.
type Event struct {
	ID        uuid.UUID // UUIDv7
	Aggregate string    // Aggregate.Name: "order"
	Stream    string    // the aggregate's id; the Kafka key
	Version   uint64    // within the stream, from 1, without gaps
	Type      string    // full name of the message in the oneof: "millrace.order.v1.OrderPlaced"
	Data      []byte    // the aggregate's events message (OrderEvent), protobuf wire format

	OccurredAt time.Time // business time, UTC, whole microseconds
	RecordedAt time.Time // when the store accepted it, UTC, whole microseconds

	CorrelationID string // identifies the conversation; may be empty
	CausationID   string // id of the command or event that caused this one; may be empty
	TraceParent   string // W3C trace context; may be empty

	Position Position // in its store
}

// Time converts t to the precision that every hop keeps: UTC, whole microseconds.
func Time(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// Aggregate is a kind of stream. It has one service, one store and one topic.
type Aggregate struct {
	Name    string // "order"
	Service string // "order"; also the name of its store
	Topic   string // "millrace.orders"
	Message string // full name of its events message: "millrace.order.v1.OrderEvent"
	UUIDs   bool   // its streams are named by UUIDs; otherwise by chosen names, such as SKUs
}

// The aggregates of the platform.
var (
	Order = Aggregate{
		Name: "order", Service: "order", Topic: "millrace.orders",
		Message: "millrace.order.v1.OrderEvent", UUIDs: true,
	}
	Product = Aggregate{
		Name: "product", Service: "catalog", Topic: "millrace.products",
		Message: "millrace.catalog.v1.ProductEvent",
	}
	Customer = Aggregate{
		Name: "customer", Service: "customer", Topic: "millrace.customers",
		Message: "millrace.customer.v1.CustomerEvent", UUIDs: true,
	}
	Stock = Aggregate{
		Name: "stock", Service: "inventory", Topic: "millrace.stock",
		Message: "millrace.inventory.v1.StockEvent",
	}
	// Identity is a node of the identity graph: a customer or an identifier; see event/identity.
	Identity = Aggregate{
		Name: "identity", Service: "identity", Topic: "millrace.identities",
		Message: "millrace.identity.v1.IdentityEvent",
	}
)

// CanonicalStream returns the form of a stream's name that every store uses. UUIDs are not
// case-sensitive and are converted to lower case. Other names, such as SKUs, are case-sensitive and
// returned unchanged.
func CanonicalStream(service, stream string) string {
	for _, a := range aggregates {
		if a.Service == service && a.UUIDs {
			return CanonicalID(stream)
		}
	}
	return stream
}

// Aggregates returns all aggregates, in display order.
func Aggregates() []Aggregate { return []Aggregate{Customer, Product, Stock, Order, Identity} }

// aggregates is the list for lookups, because Aggregates allocates a new one on each call.
var aggregates = Aggregates()
