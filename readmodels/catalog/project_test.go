package catalog

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

var recorded = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func price(currency string, units int64) *money.Money {
	return &money.Money{CurrencyCode: currency, Units: units}
}

func listed(title string, categories ...string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
		Title: title, Description: "of glass", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: categories,
	}}}
}

func revised(title string, categories ...string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Revised{Revised: &catalogv1.ProductRevised{
		Title: title, Description: "of brass", Categories: categories,
	}}}
}

func priceSet(currency string, units int64) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{Price: price(currency, units)}}}
}

func delisted() *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Delisted{Delisted: &catalogv1.ProductDelisted{}}}
}

func marshal(t testing.TB, m *catalogv1.ProductEvent) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProject(t *testing.T) {
	t.Parallel()
	base := &catalogv1.Product{
		Sku: "A-1", Title: "lamp", Description: "of glass", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: []string{"home"},
		Version: 1, RecordedAt: timestamppb.New(recorded),
	}
	after := func(doc *catalogv1.Product, change func(*catalogv1.Product)) *catalogv1.Product {
		next := proto.CloneOf(doc)
		next.Version++
		change(next)
		return next
	}
	same := func(*catalogv1.Product) {}
	priced := after(base, func(p *catalogv1.Product) { p.Prices = []*money.Money{price("EUR", 1), price("GBP", 2)} })
	gone := after(base, func(p *catalogv1.Product) { p.Delisted = true })
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("ProductTeleported"))
	for name, c := range map[string]struct {
		doc        *catalogv1.Product
		data       []byte
		want       *catalogv1.Product
		unreadable bool
	}{
		"listed": {nil, marshal(t, listed("lamp", "home")), base, false},
		"revised": {base, marshal(t, revised("light", "x", "y")), after(base, func(p *catalogv1.Product) {
			p.Title, p.Description, p.Categories = "light", "of brass", []string{"x", "y"}
		}), false},
		"first price": {base, marshal(t, priceSet("GBP", 2)), after(base, func(p *catalogv1.Product) { p.Prices = []*money.Money{price("GBP", 2)} }), false},
		"price in a first currency": {priced, marshal(t, priceSet("CHF", 3)), after(priced, func(p *catalogv1.Product) {
			p.Prices = []*money.Money{price("CHF", 3), price("EUR", 1), price("GBP", 2)}
		}), false},
		"price in a last currency": {priced, marshal(t, priceSet("USD", 3)), after(priced, func(p *catalogv1.Product) { p.Prices = append(p.Prices, price("USD", 3)) }), false},
		"price again":              {priced, marshal(t, priceSet("GBP", 3)), after(priced, func(p *catalogv1.Product) { p.Prices[1] = price("GBP", 3) }), false},
		"delisted":                 {base, marshal(t, delisted()), gone, false},
		"listed again":             {gone, marshal(t, listed("lamp", "garden")), after(gone, func(p *catalogv1.Product) { p.Delisted, p.Categories = false, []string{"garden"} }), false},
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
			got, err := Project(c.doc, event.Event{Stream: "A-1", Version: c.doc.GetVersion() + 1, Data: c.data, RecordedAt: recorded})
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

var (
	colours = []string{"white", "red", "blue", "green", "pink", "retro", "vintage"}
	things  = []string{"lamp", "candle holder", "mug", "doormat", "lunch bag", "cake stand", "T-light", "drawer knob"}
)

// happening makes the data of an event that may follow a version of a product.
func happening(t testing.TB, version uint64) []byte {
	title := fmt.Sprintf("%s %s %d", colours[rand.IntN(len(colours))], things[rand.IntN(len(things))], rand.IntN(50))
	if version == 0 {
		return marshal(t, listed(title, colours[rand.IntN(len(colours))]))
	}
	switch rand.IntN(10) {
	case 0:
		return marshal(t, delisted())
	case 1:
		return marshal(t, listed(title, "again"))
	case 2:
		return marshal(t, revised(title, "revised"))
	default:
		return marshal(t, priceSet([]string{"GBP", "EUR", "USD"}[rand.IntN(3)], rand.Int64N(100)))
	}
}
