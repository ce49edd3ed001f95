// Package catalog is the view of products: found by SKU or by words, delisted ones shown but not found.
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

// Project is the document that an event makes of a product's document, as readmodels.Project says. An event that this
// version of the view does not know leaves the document as it was, but for version and time.
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

// withPrice puts a price in its place: one per currency, ordered by currency.
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

// ExpectedDigest is what View.Digest gives once the view has applied the events, which come in order per stream.
func ExpectedDigest(events iter.Seq2[event.Event, error]) (*digest.Digest, error) {
	return readmodels.Expected(events, Project)
}
