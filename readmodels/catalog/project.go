// Package catalog is the view of products: a product by SKU, and full-text search. Delisted
// products are shown by SKU, but search does not find them.
//
// Project folds an event into a product's document. View stores the documents in an Index and is a
// streams.Sink. Queries answers CatalogQueryService from it. Index hides the search engine: package
// bleve embeds one, package elasticsearch uses a cluster, and both pass the suite in indextest.
// Package analysis decides for both which texts match.
package catalog

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/readmodels"
)

// Projection is the number of Project. Raise it with every change that changes a document, so that
// versions which were built before it are reported.
const Projection = 1

// Project implements readmodels.Project for products. An event of an unknown type changes only the
// document's version and time, so that older processes can read newer events.
func Project(doc *catalogv1.Product, e event.Event) (*catalogv1.Product, error) {
	next := &catalogv1.Product{Sku: e.Stream}
	if doc != nil {
		next = proto.CloneOf(doc)
	}
	next.Version, next.RecordedAt = e.Version, timestamppb.New(e.RecordedAt)

	var message catalogv1.ProductEvent
	if err := proto.Unmarshal(e.Data, &message); err != nil {
		return nil, fmt.Errorf("read %s of product %s, version %d: %w", e.Type, e.Stream, e.Version, err)
	}
	switch m := message.Event.(type) {
	case *catalogv1.ProductEvent_Listed:
		next.Title = m.Listed.Title
		next.Description = m.Listed.Description
		next.Kind = m.Listed.Kind
		next.Categories = m.Listed.Categories
		// A product can be listed again after it was delisted.
		next.Delisted = false
	case *catalogv1.ProductEvent_Revised:
		next.Title = m.Revised.Title
		next.Description = m.Revised.Description
		next.Categories = m.Revised.Categories
	case *catalogv1.ProductEvent_PriceSet:
		next.Prices = withPrice(next.Prices, m.PriceSet.Price)
	case *catalogv1.ProductEvent_Delisted:
		next.Delisted = true
	}
	return next, nil
}

// withPrice inserts or replaces a price: one per currency, ordered by currency.
func withPrice(prices []*money.Money, price *money.Money) []*money.Money {
	i, found := slices.BinarySearchFunc(prices, price, func(a, b *money.Money) int {
		return strings.Compare(a.GetCurrencyCode(), b.GetCurrencyCode())
	})
	if found {
		prices[i] = price
		return prices
	}
	return slices.Insert(prices, i, price)
}

// ExpectedDigest returns the digest of a view that has applied the events, which come in order per
// stream.
func ExpectedDigest(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	return readmodels.Expected(events, Project)
}
