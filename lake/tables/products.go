package tables

import (
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/lake/declare"
)

// productsEvents has every event of a product.
var productsEvents = declare.Events("products_events", event.Product, (*catalogv1.ProductEvent)(nil))

// productsCurrent has the current state of every product, including delisted ones.
var productsCurrent = declare.State[productState]{
	Name: "products_current", Doc: "Every product as it is now, also those off sale.", Of: event.Product, Key: "sku",
	KeyDoc: "names the product",
	Columns: declare.Schema[productState]{
		{Name: "title", Doc: "what it is called", Of: func(s *productState) any { return &s.title }},
		{Name: "description", Doc: "what is said of it", Of: func(s *productState) any { return &s.description }},
		{Name: "kind", Doc: "whether stock is kept of it, in the contract's words", Of: func(s *productState) any { return &s.kind }},
		{Name: "categories", Doc: "where it is found", Of: func(s *productState) any { return &s.categories }},
		{Name: "status", Doc: "listed or delisted", Of: func(s *productState) any { return &s.status }},
		{Name: "prices", Doc: "by currency, ISO 4217", Of: func(s *productState) any { return &s.prices }},
		{Name: "listed_at", Doc: "business time; the last time", Of: func(s *productState) any { return &s.listedAt }},
		{Name: "revised_at", Doc: "business time; null until then", Of: func(s *productState) any { return &s.revisedAt }},
		{Name: "delisted_at", Doc: "business time; null while it is on sale", Of: func(s *productState) any { return &s.delistedAt }},
	},
	Change: changeProduct,
}.Table()

// productState is the row of a product without key, version and times.
type productState struct {
	title, description, kind, status string
	categories                       []string
	prices                           map[string]declare.Amount
	listedAt, revisedAt, delistedAt  time.Time
}

// changeProduct implements State.Change for products.
func changeProduct(e event.Event) (func(*productState), error) {
	var message catalogv1.ProductEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("decode payload as %s: %w", event.Product.Message, err)
	}
	switch m := message.Event.(type) {
	// A product can be listed again after it was delisted.
	case *catalogv1.ProductEvent_Listed:
		// The prices are kept: other events set them.
		l := m.Listed
		at, err := optionalTime("listed_at", l.GetListedAt())
		return func(s *productState) {
			s.title, s.description, s.categories = l.GetTitle(), l.GetDescription(), l.GetCategories()
			s.kind = l.GetKind().String()
			s.status, s.listedAt, s.delistedAt = "listed", at, time.Time{}
		}, err
	// A revision replaces the texts and categories, and leaves kind, status and prices unchanged.
	case *catalogv1.ProductEvent_Revised:
		r := m.Revised
		at, err := optionalTime("revised_at", r.GetRevisedAt())
		return func(s *productState) {
			s.title, s.description, s.categories, s.revisedAt = r.GetTitle(), r.GetDescription(), r.GetCategories(), at
		}, err
	case *catalogv1.ProductEvent_PriceSet:
		currency := m.PriceSet.GetPrice().GetCurrencyCode()
		// The price defines its own currency, so only the amount is checked.
		price, err := priceOf(m.PriceSet.GetPrice(), currency)
		if err != nil {
			return nil, fmt.Errorf("price: %w", err)
		}
		return func(s *productState) {
			// Clone first: the previous state is also that of a remembered row.
			prices := maps.Clone(s.prices)
			if prices == nil {
				prices = map[string]declare.Amount{}
			}
			// A price replaces the previous one in its currency.
			prices[currency] = declare.Amount{Value: price, Known: true}
			s.prices = prices
		}, nil
	// The other columns keep their values, so the row still describes the product.
	case *catalogv1.ProductEvent_Delisted:
		at, err := optionalTime("delisted_at", m.Delisted.GetDelistedAt())
		return func(s *productState) { s.status, s.delistedAt = "delisted", at }, err
	}
	return func(*productState) {}, nil // a newer event type
}
