package indextest

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"testing"

	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// Price returns an amount of money.
func Price(currency string, units int64) *money.Money {
	return &money.Money{CurrencyCode: currency, Units: units}
}

// Listed returns an event that lists a product, or lists it again.
func Listed(title string, categories ...string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Listed{Listed: &catalogv1.ProductListed{
		Title: title, Description: "of glass", Kind: catalogv1.ProductKind_PRODUCT_KIND_GOODS, Categories: categories,
	}}}
}

// Revised returns an event that changes a product's title.
func Revised(title string, categories ...string) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Revised{Revised: &catalogv1.ProductRevised{
		Title: title, Description: "of brass", Categories: categories,
	}}}
}

// PriceSet returns an event that sets a price.
func PriceSet(currency string, units int64) *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_PriceSet{PriceSet: &catalogv1.PriceSet{Price: Price(currency, units)}}}
}

// Delisted returns an event that delists a product.
func Delisted() *catalogv1.ProductEvent {
	return &catalogv1.ProductEvent{Event: &catalogv1.ProductEvent_Delisted{Delisted: &catalogv1.ProductDelisted{}}}
}

// Marshal encodes the data of an event.
func Marshal(t testing.TB, m *catalogv1.ProductEvent) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	colours = []string{"white", "red", "blue", "green", "pink", "retro", "vintage"}
	things  = []string{"lamp", "candle holder", "mug", "doormat", "lunch bag", "cake stand", "T-light", "drawer knob"}
)

// randomData returns random event data that may follow a version of a product. Version 0 means that
// the product does not exist yet.
func randomData(t testing.TB, version uint64) []byte {
	title := fmt.Sprintf("%s %s %d", colours[rand.IntN(len(colours))], things[rand.IntN(len(things))], rand.IntN(50))
	if version == 0 {
		return Marshal(t, Listed(title, colours[rand.IntN(len(colours))]))
	}
	// Mostly prices, as in a real shop. Listing again also lists a delisted product.
	switch rand.IntN(10) {
	case 0:
		return Marshal(t, Delisted())
	case 1:
		return Marshal(t, Listed(title, "again"))
	case 2:
		return Marshal(t, Revised(title, "revised"))
	default:
		return Marshal(t, PriceSet([]string{"GBP", "EUR", "USD"}[rand.IntN(3)], rand.Int64N(100)))
	}
}

// Events returns n random events of the given number of products. They are numbered by l, which
// thereby knows the expected content.
func Events(t testing.TB, l *streamstest.Log, products, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		sku := fmt.Sprintf("SKU-%d", rand.IntN(products))
		events[i] = l.Next(event.Product.Name, sku, randomData(t, l.Versions[sku]))
	}
	return events
}

// Records wraps events as the records that a view applies, for tests that call Apply without a log.
func Records(events []event.Event) []streams.Record {
	rs := make([]streams.Record, len(events))
	for i, e := range events {
		rs[i] = streams.Record{Event: e, Topic: event.Product.Topic, Offset: int64(i)}
	}
	return rs
}

// Holds fails the test unless the view's content is now that of the events. Tests that have to wait
// for the view use Completed.
func Holds(t testing.TB, v *catalog.View, l *streamstest.Log) {
	t.Helper()
	got, err := v.Digest(t.Context(), event.Product)
	if err != nil {
		t.Fatal(err)
	}
	// Compare per document, to report how many differ.
	want, err := catalog.ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.Streams, want.Streams) {
		different := 0
		for stream, sum := range want.Streams {
			if got.Streams[stream] != sum {
				different++
			}
		}
		t.Fatalf("the view has %d documents, want %d, of which %d are missing or different", len(got.Streams),
			len(want.Streams), different)
	}
}

// Repaired waits until the view's content is that of the events and no fault is reported. Content
// alone is not enough: the fault must end with the repair.
func Repaired(t *testing.T, v *catalog.View, l *streamstest.Log) {
	t.Helper()
	want, err := catalog.ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the view is whole and has no faults", func() bool {
		got, err := v.Digest(t.Context(), event.Product)
		return err == nil && maps.Equal(got.Streams, want.Streams) && !v.Faults().Any()
	})
}

// Completed waits until the view's content is that of the events.
func Completed(t testing.TB, v *catalog.View, l *streamstest.Log) {
	t.Helper()
	want, err := catalog.ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	polltest.Until(t, "the view is complete", func() bool {
		got, err := v.Digest(t.Context(), event.Product)
		return err == nil && maps.Equal(got.Streams, want.Streams)
	})
	Holds(t, v, l)
}

// Feed runs a view on an index until stop is called. It reads the log at cfg, and logs nothing.
func Feed(t *testing.T, x catalog.Index, cfg kafka.Config) (v *catalog.View, r *streams.Runtime, stop func()) {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	v = catalog.New(x, quiet)
	r = v.Runtime(cfg, nil, quiet)
	return v, r, streamstest.Start(t, r)
}
