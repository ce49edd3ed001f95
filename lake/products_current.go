package lake

import (
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

// productsCurrent has every product as it is now, also those that are off sale.
var productsCurrent = state[productState]{
	name: "products_current", doc: "Every product as it is now, also those off sale.", of: event.Product, key: "sku", keyDoc: "names the product",
	columns: shape[productState]{
		{name: "title", doc: "what it is called", of: func(s *productState) any { return &s.title }},
		{name: "description", doc: "what is said of it", of: func(s *productState) any { return &s.description }},
		{name: "kind", doc: "whether stock is kept of it, in the contract's words", repeats: true, of: func(s *productState) any { return &s.kind }},
		{name: "categories", doc: "where it is found", of: func(s *productState) any { return &s.categories }},
		{name: "status", doc: "listed or delisted", repeats: true, of: func(s *productState) any { return &s.status }},
		{name: "prices", doc: "by currency, ISO 4217", of: func(s *productState) any { return &s.prices }},
		{name: "listed_at", doc: "business time; the last time", of: func(s *productState) any { return &s.listedAt }},
		{name: "revised_at", doc: "business time; null until then", of: func(s *productState) any { return &s.revisedAt }},
		{name: "delisted_at", doc: "business time; null while it is on sale", of: func(s *productState) any { return &s.delistedAt }},
	},
	change: changeProduct,
}.table()

type productState struct {
	title, description, kind, status string
	categories                       []string
	prices                           map[string]amount
	listedAt, revisedAt, delistedAt  time.Time
}

func changeProduct(e event.Event) (func(*productState), error) {
	var message catalogv1.ProductEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("payload is no %s: %w", event.Product.Message, err)
	}
	switch m := message.Event.(type) {
	case *catalogv1.ProductEvent_Listed:
		l := m.Listed
		at, err := optionalTime("listed_at", l.GetListedAt())
		return func(s *productState) {
			s.title, s.description, s.kind, s.categories = l.GetTitle(), l.GetDescription(), l.GetKind().String(), l.GetCategories()
			s.status, s.listedAt, s.delistedAt = "listed", at, time.Time{}
		}, err
	case *catalogv1.ProductEvent_Revised:
		r := m.Revised
		at, err := optionalTime("revised_at", r.GetRevisedAt())
		return func(s *productState) {
			s.title, s.description, s.categories, s.revisedAt = r.GetTitle(), r.GetDescription(), r.GetCategories(), at
		}, err
	case *catalogv1.ProductEvent_PriceSet:
		currency := m.PriceSet.GetPrice().GetCurrencyCode()
		price, err := priceOf(m.PriceSet.GetPrice(), currency)
		if err != nil {
			return nil, fmt.Errorf("price: %w", err)
		}
		return func(s *productState) {
			prices := maps.Clone(s.prices)
			if prices == nil {
				prices = map[string]amount{}
			}
			prices[currency] = amount{price, true}
			s.prices = prices
		}, nil
	case *catalogv1.ProductEvent_Delisted:
		at, err := optionalTime("delisted_at", m.Delisted.GetDelistedAt())
		return func(s *productState) { s.status, s.delistedAt = "delisted", at }, err
	}
	return func(*productState) {}, nil // newer than this program
}
