package tables

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/lake/declare"
)

// customersEvents has every event of a customer. Personal data is in the payload.
var customersEvents = declare.Events("customers_events", event.Customer, (*customerv1.CustomerEvent)(nil))

// customersCurrent has the current state of every customer. Like customers_events, it has personal
// data, so it requires the same access rights.
var customersCurrent = declare.State[customerState]{
	Name: "customers_current", Doc: "Every customer as they are now; with personal data.", Of: event.Customer,
	Key: "customer_id", KeyDoc: "UUID",
	Columns: declare.Schema[customerState]{
		{Name: "reference", Doc: "the shop's own number of the customer", Of: func(s *customerState) any { return &s.reference }},
		{Name: "name", Doc: "personal", Of: func(s *customerState) any { return &s.name }},
		{Name: "email", Doc: "personal", Of: func(s *customerState) any { return &s.email }},
		{Name: "country", Doc: "where the customer lives", Of: func(s *customerState) any { return &s.country }},
		{Name: "address_recipient", Doc: "personal: where parcels go", Of: func(s *customerState) any { return &s.recipient }},
		{Name: "address_lines", Doc: "personal", Of: func(s *customerState) any { return &s.lines }},
		{Name: "address_postal_code", Doc: "personal", Of: func(s *customerState) any { return &s.postalCode }},
		{Name: "address_city", Doc: "personal", Of: func(s *customerState) any { return &s.city }},
		{Name: "address_country", Doc: "of the address", Of: func(s *customerState) any { return &s.addressCountry }},
		{Name: "consents", Doc: "purposes that the customer consents to", Of: func(s *customerState) any { return &s.consents }},
		{Name: "registered_at", Doc: "business time", Of: func(s *customerState) any { return &s.registeredAt }},
	},
	Change: changeCustomer,
}.Table()

// customerState is the row of a customer without key, version and times.
type customerState struct {
	reference, name, email, country             string
	recipient, postalCode, city, addressCountry string
	lines                                       []string
	consents                                    []string // sorted
	registeredAt                                time.Time
}

// changeCustomer implements State.Change for customers.
func changeCustomer(e event.Event) (func(*customerState), error) {
	var message customerv1.CustomerEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Customer.Message, err)
	}
	switch m := message.Event.(type) {
	case *customerv1.CustomerEvent_Registered:
		r := m.Registered
		at, err := optionalTime("registered_at", r.GetRegisteredAt())
		return func(s *customerState) {
			s.reference, s.name, s.email = r.GetReference(), r.GetName(), r.GetEmail()
			s.country, s.registeredAt = r.GetCountry(), at
		}, err
	// The event has the whole address, so it replaces all parts.
	case *customerv1.CustomerEvent_AddressChanged:
		a := m.AddressChanged.GetAddress()
		return func(s *customerState) {
			s.recipient, s.lines = a.GetRecipient(), a.GetLines()
			s.postalCode, s.city, s.addressCountry = a.GetPostalCode(), a.GetCity(), a.GetCountry()
		}, nil
	// A purpose is in the list while the customer consents to it.
	case *customerv1.CustomerEvent_ConsentChanged:
		// The purpose is the name of its enum value in the contract.
		purpose, granted := m.ConsentChanged.GetPurpose().String(), m.ConsentChanged.GetGranted()
		return func(s *customerState) {
			// Clone first: the previous state is also that of a remembered row.
			s.consents = slices.DeleteFunc(slices.Clone(s.consents), func(p string) bool { return p == purpose })
			if granted {
				// Sorted, because digests compare lists element by element.
				s.consents = append(s.consents, purpose)
				slices.Sort(s.consents)
			}
		}, nil
	}
	// The row still gets the version of the event, although nothing else changes.
	return func(*customerState) {}, nil // a newer event type
}
