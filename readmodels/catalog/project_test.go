package catalog_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
)

var recorded = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func TestProject(t *testing.T) {
	t.Parallel()
	base := &catalogv1.Product{
		Sku: "A-1", Title: "lamp", Description: "of glass", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS,
		Categories: []string{"home"},
		Version:    1, RecordedAt: timestamppb.New(recorded),
	}
	after := func(doc *catalogv1.Product, change func(*catalogv1.Product)) *catalogv1.Product {
		next := proto.CloneOf(doc)
		next.Version++
		change(next)
		return next
	}
	same := func(*catalogv1.Product) {}
	priced := after(base, func(p *catalogv1.Product) {
		p.Prices = []*money.Money{indextest.Price("EUR", 1), indextest.Price("GBP", 2)}
	})
	gone := after(base, func(p *catalogv1.Product) { p.Delisted = true })
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("ProductTeleported"))
	for name, c := range map[string]struct {
		doc        *catalogv1.Product
		data       []byte
		want       *catalogv1.Product
		unreadable bool
	}{
		"listed": {nil, indextest.Marshal(t, indextest.Listed("lamp", "home")), base, false},
		"revised": {base, indextest.Marshal(t, indextest.Revised("light", "x", "y")), after(base, func(p *catalogv1.Product) {
			p.Title, p.Description, p.Categories = "light", "of brass", []string{"x", "y"}
		}), false},
		"first price": {base, indextest.Marshal(t, indextest.PriceSet("GBP", 2)), after(base, func(p *catalogv1.Product) { p.Prices = []*money.Money{indextest.Price("GBP", 2)} }), false},
		"price in a first currency": {priced, indextest.Marshal(t, indextest.PriceSet("CHF", 3)), after(priced, func(p *catalogv1.Product) {
			p.Prices = []*money.Money{indextest.Price("CHF", 3), indextest.Price("EUR", 1), indextest.Price("GBP", 2)}
		}), false},
		"price in a last currency": {priced, indextest.Marshal(t, indextest.PriceSet("USD", 3)), after(priced, func(p *catalogv1.Product) { p.Prices = append(p.Prices, indextest.Price("USD", 3)) }), false},
		"price again":              {priced, indextest.Marshal(t, indextest.PriceSet("GBP", 3)), after(priced, func(p *catalogv1.Product) { p.Prices[1] = indextest.Price("GBP", 3) }), false},
		"delisted":                 {base, indextest.Marshal(t, indextest.Delisted()), gone, false},
		"listed again":             {gone, indextest.Marshal(t, indextest.Listed("lamp", "garden")), after(gone, func(p *catalogv1.Product) { p.Delisted, p.Categories = false, []string{"garden"} }), false},
		"not known":                {base, unknown, after(base, same), false},
		"rubbish":                  {base, []byte{0xff}, nil, true},
		"rubbish at first":         {nil, []byte{0xff}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var before *catalogv1.Product
			if c.doc != nil {
				before = proto.CloneOf(c.doc)
			}
			got, err := catalog.Project(c.doc, event.Event{Stream: "A-1", Version: c.doc.GetVersion() + 1, Data: c.data,
				RecordedAt: recorded})
			if (err != nil) != c.unreadable {
				t.Errorf("error %v", err)
			}
			if !proto.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			if !proto.Equal(before, c.doc) {
				t.Errorf("the document that was passed in is now %v", c.doc)
			}
		})
	}
}

// TestProjectionNumber fails if the projection makes other documents of the same events than the last
// time, so that a change raises Projection.
func TestProjectionNumber(t *testing.T) {
	t.Parallel()
	digests := map[int]string{1: "d30b28ab7f0b02b60b3fcc24ce888718"} // by projection
	d, err := catalog.ExpectedDigest(func(yield func(event.Event, error) bool) {
		for stream, history := range map[string][]*catalogv1.ProductEvent{
			"A-1": {indextest.Listed("lamp", "home"), indextest.PriceSet("GBP", 2), indextest.PriceSet("EUR", 3)},
			"A-2": {indextest.Listed("light"), indextest.Revised("lights", "x", "y"), indextest.Delisted()},
		} {
			for i, m := range history {
				e := event.Event{Aggregate: event.Product.Name, Stream: stream, Version: uint64(i + 1),
					RecordedAt: recorded, Data: indextest.Marshal(t, m)}
				if !yield(e, nil) {
					return
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Total().Hash(), digests[catalog.Projection]; got != want {
		t.Errorf("the documents have the digest %s, and projection %d had %s: raise Projection, and add the digest here",
			got, catalog.Projection, want)
	}
}
