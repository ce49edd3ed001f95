package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
)

// opening is the time in the demo's ids. Its commands have no time, so the server uses the current
// one.
var opening = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

const (
	currency       = "GBP"
	customers      = 24
	reservationTTL = 24 * time.Hour // lifetime of a reservation
)

// writer writes the stories. All random numbers come from the seed, and are drawn in a fixed order.
// So a higher number of orders does not change the first ones.
type writer struct {
	seed uint64
	rand *rand.Rand
	ids  int // number of ids so far
}

// script returns all stories: setup lists products and registers customers, and orders refer to
// them, so setup must be played first.
func script(seed uint64, orderCount int) (setup, orders []story) {
	w := &writer{seed: seed, rand: rand.New(rand.NewPCG(seed, 0))}
	for _, p := range products {
		setup = append(setup, w.list(p))
	}
	var people []person
	for n := range customers {
		p := w.person(n)
		people = append(people, p)
		setup = append(setup, w.register(p))
	}
	for n := range orderCount {
		orders = append(orders, w.order(n, people, n == orderCount-1))
	}
	return setup, orders
}

// key returns the idempotency key of a command, for example "demo:1:price:KIT-0101".
func (w *writer) key(what, of string) string { return fmt.Sprintf("demo:%d:%s:%s", w.seed, what, of) }

// id returns an id that depends on the seed and the name. Ids are a minute apart, so that they sort
// in the order in which the stories use them.
func (w *writer) id(name string) string {
	w.ids++
	return event.NamedID(opening.Add(time.Duration(w.ids)*time.Minute), fmt.Sprintf("demo/%d/%s", w.seed, name)).String()
}

// list returns the story that lists a product, sets its price and receives its stock.
func (w *writer) list(p product) story {
	s := story{
		&catalogv1.ListProductRequest{
			Sku: p.sku, Title: p.title, Description: p.description, Kind: p.kind(), Categories: []string{p.category},
			IdempotencyKey: w.key("list", p.sku),
		},
		&catalogv1.SetPriceRequest{Sku: p.sku, Price: p.price(), IdempotencyKey: w.key("price", p.sku)},
	}
	// Services have no stock.
	if p.kind() == catalogv1.ProductKind_PRODUCT_KIND_GOODS {
		s = append(s, &inventoryv1.ReceiveStockRequest{
			Sku: p.sku, Quantity: 12 * (20 + w.rand.Int64N(40)), Reference: fmt.Sprintf("PO-%d", 7000+w.rand.IntN(1000)),
			IdempotencyKey: w.key("receive", p.sku),
		})
	}
	return s
}

// person is a customer to register. Orders refer to it by id. It is made up before its commands,
// because stories of orders need its id and country.
type person struct {
	id, reference, name, email string
	browser                    string // id of the browser before the customer has signed in
	address                    *customerv1.Address
}

// person makes up the nth customer.
func (w *writer) person(n int) person {
	// As many first names as customers exist, so no two customers share one.
	first, last := firstNames[n%len(firstNames)], lastNames[w.rand.IntN(len(lastNames))]
	town := towns[w.rand.IntN(len(towns))]
	reference := fmt.Sprintf("C-%04d", 1001+n)
	return person{
		id:        w.id("customer/" + reference),
		reference: reference,
		name:      first + " " + last,
		email:     strings.ToLower(fmt.Sprintf("%s.%s.%d@example.com", first, last, 1001+n)),
		browser:   event.NamedID(opening, fmt.Sprintf("demo/%d/browser/%s", w.seed, reference)).String(),
		address: &customerv1.Address{
			Recipient: first + " " + last, Lines: []string{fmt.Sprintf("%d %s", 1+w.rand.IntN(120), town.street)},
			PostalCode: town.postalCode, City: town.city, Country: town.country,
		},
	}
}

// register returns the story that registers a customer, with address, consents and identifiers.
func (w *writer) register(p person) story {
	s := story{
		&customerv1.RegisterCustomerRequest{
			CustomerId: p.id, Reference: p.reference, Name: p.name, Email: p.email, Country: p.address.GetCountry(),
			IdempotencyKey: w.key("register", p.reference),
		},
		&customerv1.ChangeAddressRequest{CustomerId: p.id, Address: p.address, IdempotencyKey: w.key("address", p.reference)},
		&identityv1.LinkIdentifiersRequest{
			CustomerId: p.id, IdempotencyKey: w.key("link", p.reference),
			Identifiers: []*identityv1.IdentifierKey{
				{Kind: identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, Value: p.browser},
				{Kind: identityv1.IdentifierKind_IDENTIFIER_KIND_EMAIL_HASH, Value: hashOf(p.email)},
			},
		},
	}
	// Each customer consents to some of the purposes.
	const last = customerv1.ConsentPurpose_CONSENT_PURPOSE_PERSONALISATION
	for purpose := customerv1.ConsentPurpose_CONSENT_PURPOSE_MARKETING; purpose <= last; purpose++ {
		if w.rand.IntN(3) == 0 {
			s = append(s, &customerv1.SetConsentRequest{
				CustomerId: p.id, Purpose: purpose, Granted: true,
				IdempotencyKey: w.key("consent", fmt.Sprintf("%s/%d", p.reference, purpose)),
			})
		}
	}
	return s
}

// hashOf returns the hash of an e-mail address that identifies its owner.
func hashOf(email string) string {
	sum := sha256.Sum256([]byte(email))
	return hex.EncodeToString(sum[:])
}

// order returns the story of an order. It is placed and its goods are reserved. Then most orders
// are confirmed and their reservations committed, some are cancelled, and some remain open. The
// last one is confirmed. A reservation is named after the order and its line, so that its commit or
// release finds it.
func (w *writer) order(n int, people []person, last bool) story {
	// The id and all keys derive from the reference.
	reference := fmt.Sprintf("S-%d", 10_001+n)
	id := w.id("order/" + reference)
	place := &orderv1.PlaceOrderRequest{
		OrderId: id, Reference: reference, Currency: currency, Country: "GB", IdempotencyKey: w.key("place", reference),
	}
	// One in five orders is a guest's.
	if guest := w.rand.IntN(5) == 0; !guest {
		p := people[w.rand.IntN(len(people))]
		place.CustomerId, place.Country = &p.id, p.address.GetCountry()
	}
	// The minimum of two numbers makes small orders more likely.
	lines := 1 + min(w.rand.IntN(5), w.rand.IntN(6))
	var reservations, commits, releases story // reservations, and their commits and releases
	// The first product is the delivery, which is not drawn.
	for line, at := range w.rand.Perm(len(products) - 1)[:lines] {
		p, quantity := products[at+1], 1+min(w.rand.Int64N(6), w.rand.Int64N(6))
		place.Lines = append(place.Lines, p.line(quantity))
		name := fmt.Sprintf("%s/%d", reference, line+1)
		reservations = append(reservations, &inventoryv1.ReserveStockRequest{
			Sku: p.sku, ReservationId: name, Quantity: quantity, TimeToLive: durationpb.New(reservationTTL),
			IdempotencyKey: w.key("reserve", name),
		})
		commits = append(commits, &inventoryv1.CommitReservationRequest{
			Sku: p.sku, ReservationId: name, IdempotencyKey: w.key("commit", name),
		})
		releases = append(releases, &inventoryv1.ReleaseReservationRequest{
			Sku: p.sku, ReservationId: name, IdempotencyKey: w.key("release", name),
		})
	}
	if lines < 4 { // small orders pay for delivery
		place.Lines = append(place.Lines, delivery.line(1))
	}
	s := append(story{place}, reservations...)
	// 70 % are confirmed, 15 % are cancelled, and the rest remain open.
	switch fate := w.rand.IntN(20); {
	case fate < 14 || last:
		s = append(s, &orderv1.ConfirmOrderRequest{OrderId: id, IdempotencyKey: w.key("confirm", reference)})
		return append(s, commits...)
	case fate < 17:
		why := cancelReasons[w.rand.IntN(len(cancelReasons))]
		s = append(s, &orderv1.CancelOrderRequest{OrderId: id, Reason: why, IdempotencyKey: w.key("cancel", reference)})
		return append(s, releases...)
	}
	return s
}
