package catalog_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/commandstest"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
)

const sku = "85123A"

var monday = time.Date(2010, 12, 6, 8, 26, 0, 0, time.UTC)

func gbp(units int64, nanos int32) *money.Money {
	return &money.Money{CurrencyCode: "GBP", Units: units, Nanos: nanos}
}

func list(title string) catalog.List {
	return catalog.List{
		SKU: sku, Title: title, Description: "white", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS,
		Categories: []string{"lights"}, At: monday,
	}
}

func listed(title string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
		Sku: sku, Title: title, Description: "white", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: []string{"lights"},
		ListedAt: timestamppb.New(monday),
	}}}
}

func revise(title string, categories ...string) catalog.Revise {
	return catalog.Revise{SKU: sku, Title: title, Description: "white", Categories: categories, At: monday}
}

func revised(title string, categories ...string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Revised{Revised: &catalogv1.ProductRevised{
		Sku: sku, Title: title, Description: "white", Categories: categories, RevisedAt: timestamppb.New(monday),
	}}}
}

func setPrice(m *money.Money) catalog.SetPrice {
	return catalog.SetPrice{SKU: sku, Price: m, At: monday}
}

func priceSet(m *money.Money) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{
		Sku: sku, Price: m, ValidFrom: timestamppb.New(monday),
	}}}
}

var delist = catalog.Delist{SKU: sku, At: monday}

func delisted() *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Delisted{Delisted: &catalogv1.ProductDelisted{
		Sku: sku, DelistedAt: timestamppb.New(monday),
	}}}
}

// Each spec is a history, a command, and the events or the rejection that follow.
func TestProductLifecycle(t *testing.T) {
	t.Parallel()
	type events = []*catalogv1.ProductEvent
	var (
		lamp    = listed("LAMP")
		off     = events{lamp, delisted()}
		euros   = &money.Money{CurrencyCode: "EUR", Units: 3}
		unknown = &commands.RejectedError{Code: commands.NotFound, Rule: "product_unknown", Field: "sku"}
		offSale = &commands.RejectedError{Code: commands.Refused, Rule: "product_delisted", Field: "sku"}
	)
	commandstest.Check(t, catalog.Decider(), map[string]commandstest.Spec[catalog.Command, *catalogv1.ProductEvent]{
		"a product is listed":                        {When: list("LAMP"), Then: events{lamp}},
		"a product is revised":                       {Given: events{lamp}, When: revise("BIG LAMP", "lights"), Then: events{revised("BIG LAMP", "lights")}},
		"other categories are a revision":            {Given: events{lamp}, When: revise("LAMP", "lights", "gifts"), Then: events{revised("LAMP", "lights", "gifts")}},
		"a revision that says the same is nothing":   {Given: events{lamp}, When: revise("LAMP", "lights")},
		"a price is set":                             {Given: events{lamp}, When: setPrice(gbp(2, 550_000_000)), Then: events{priceSet(gbp(2, 550_000_000))}},
		"a price may be 0":                           {Given: events{lamp}, When: setPrice(gbp(0, 0)), Then: events{priceSet(gbp(0, 0))}},
		"another price replaces it":                  {Given: events{lamp, priceSet(gbp(2, 0))}, When: setPrice(gbp(3, 0)), Then: events{priceSet(gbp(3, 0))}},
		"the same price is nothing":                  {Given: events{lamp, priceSet(gbp(2, 0))}, When: setPrice(gbp(2, 0))},
		"each currency has its price":                {Given: events{lamp, priceSet(gbp(3, 0))}, When: setPrice(euros), Then: events{priceSet(euros)}},
		"a price in one currency leaves the others":  {Given: events{lamp, priceSet(gbp(3, 0)), priceSet(euros)}, When: setPrice(gbp(3, 0))},
		"a product is delisted":                      {Given: events{lamp}, When: delist, Then: events{delisted()}},
		"to delist what is delisted is nothing":      {Given: off, When: delist},
		"a delisted product is listed again":         {Given: off, When: list("OLD LAMP"), Then: events{listed("OLD LAMP")}},
		"a product listed again still has its price": {Given: events{lamp, priceSet(gbp(2, 0)), delisted(), lamp}, When: setPrice(gbp(2, 0))},
		"no second listing":                          {Given: events{lamp}, When: list("LAMP"), Refused: &commands.RejectedError{Code: commands.AlreadyExists, Rule: "product_already_listed", Field: "sku"}},
		"no revision of an unknown product":          {When: revise("LAMP"), Refused: unknown},
		"no revision off sale":                       {Given: off, When: revise("LAMP"), Refused: offSale},
		"no price of an unknown product":             {When: setPrice(gbp(1, 0)), Refused: unknown},
		"no price off sale":                          {Given: off, When: setPrice(gbp(1, 0)), Refused: offSale},
		"no price below 0":                           {Given: events{lamp}, When: setPrice(gbp(0, -1)), Refused: &commands.RejectedError{Code: commands.Invalid, Rule: "price_negative", Field: "price"}},
		"no price that is malformed":                 {Given: events{lamp}, When: setPrice(gbp(-1, 1)), Refused: &commands.RejectedError{Code: commands.Invalid, Rule: "money_malformed", Field: "price"}},
		"no delisting of an unknown product":         {When: delist, Refused: unknown},
	})
}

// The state survives its encoding in a snapshot.
func TestProductSnapshots(t *testing.T) {
	t.Parallel()
	commandstest.Snapshots(t, catalog.Decider(), func(t *rapid.T, _ catalog.State) catalog.Command {
		title := rapid.SampledFrom([]string{"LAMP", "BIG LAMP"}).Draw(t, "title")
		currency := rapid.SampledFrom([]string{"GBP", "EUR"}).Draw(t, "currency")
		price := &money.Money{CurrencyCode: currency, Units: rapid.Int64Range(0, 3).Draw(t, "price")}
		return rapid.SampledFrom([]catalog.Command{list(title), revise(title, title), setPrice(price), delist}).Draw(t, "command")
	})
}
