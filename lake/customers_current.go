package lake

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
)

// customersCurrent has every customer as they are now. Personal data is in it as in customers_events: whoever may read the one may
// read the other, and what erasure will make unreadable in the events, it will make unreadable here.
var customersCurrent = state[customerState]{
	name: "customers_current", doc: "Every customer as they are now; with personal data.", of: event.Customer, key: "customer_id", keyDoc: "UUID",
	columns: shape[customerState]{
		{name: "reference", doc: "the shop's own number of the customer", of: func(s *customerState) any { return &s.reference }},
		{name: "name", doc: "personal", of: func(s *customerState) any { return &s.name }},
		{name: "email", doc: "personal", of: func(s *customerState) any { return &s.email }},
		{name: "country", doc: "where the customer lives", repeats: true, of: func(s *customerState) any { return &s.country }},
		{name: "address_recipient", doc: "personal: where parcels go", of: func(s *customerState) any { return &s.recipient }},
		{name: "address_lines", doc: "personal", of: func(s *customerState) any { return &s.lines }},
		{name: "address_postal_code", doc: "personal", of: func(s *customerState) any { return &s.postalCode }},
		{name: "address_city", doc: "personal", of: func(s *customerState) any { return &s.city }},
		{name: "address_country", doc: "of the address", repeats: true, of: func(s *customerState) any { return &s.addressCountry }},
		{name: "consents", doc: "purposes that the customer consents to", of: func(s *customerState) any { return &s.consents }},
		{name: "registered_at", doc: "business time", of: func(s *customerState) any { return &s.registeredAt }},
	},
	change: changeCustomer,
}.table()

type customerState struct {
	reference, name, email, country             string
	recipient, postalCode, city, addressCountry string
	lines                                       []string
	consents                                    []string // sorted
	registeredAt                                time.Time
}

func changeCustomer(e event.Event) (func(*customerState), error) {
	var message customerv1.CustomerEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("payload is no %s: %w", event.Customer.Message, err)
	}
	switch m := message.Event.(type) {
	case *customerv1.CustomerEvent_Registered:
		r := m.Registered
		at, err := optionalTime("registered_at", r.GetRegisteredAt())
		return func(s *customerState) {
			s.reference, s.name, s.email, s.country, s.registeredAt = r.GetReference(), r.GetName(), r.GetEmail(), r.GetCountry(), at
		}, err
	case *customerv1.CustomerEvent_AddressChanged:
		a := m.AddressChanged.GetAddress()
		return func(s *customerState) {
			s.recipient, s.lines, s.postalCode, s.city, s.addressCountry = a.GetRecipient(), a.GetLines(), a.GetPostalCode(), a.GetCity(), a.GetCountry()
		}, nil
	case *customerv1.CustomerEvent_ConsentChanged:
		purpose, granted := m.ConsentChanged.GetPurpose().String(), m.ConsentChanged.GetGranted()
		return func(s *customerState) {
			s.consents = slices.DeleteFunc(slices.Clone(s.consents), func(p string) bool { return p == purpose })
			if granted {
				s.consents = append(s.consents, purpose)
				slices.Sort(s.consents)
			}
		}, nil
	}
	return func(*customerState) {}, nil // newer than this program
}
