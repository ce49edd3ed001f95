package tables

import (
	"math"
	"math/big"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"google.golang.org/genproto/googleapis/type/money"
)

func TestPriceOf(t *testing.T) {
	t.Parallel()
	for want, m := range map[string]*money.Money{
		"0.000000000":                    {CurrencyCode: "GBP"},
		"0.001000000":                    {CurrencyCode: "GBP", Nanos: 1_000_000},
		"2.550000000":                    {CurrencyCode: "GBP", Units: 2, Nanos: 550_000_000},
		"-3.500000000":                   {CurrencyCode: "GBP", Units: -3, Nanos: -500_000_000},
		"9223372036854775807.999999999":  {CurrencyCode: "GBP", Units: math.MaxInt64, Nanos: 999_999_999},
		"-9223372036854775808.000000010": {CurrencyCode: "GBP", Units: math.MinInt64, Nanos: -10},
		"9223372035.999999999":           {CurrencyCode: "GBP", Units: 9223372035, Nanos: 999_999_999},
		"9223372036.854775808":           {CurrencyCode: "GBP", Units: 9223372036, Nanos: 854_775_808},
	} {
		got, err := priceOf(m, "GBP")
		if err != nil {
			t.Errorf("%s: %v", want, err)
		} else if got := new(big.Rat).SetFrac(got.BigInt(), big.NewInt(nanosPerUnit)).FloatString(9); got != want {
			t.Errorf("%s is %s", want, got)
		}
	}
	for name, m := range map[string]*money.Money{
		"none":             nil,
		"other currency":   {CurrencyCode: "EUR", Units: 1},
		"signs differ":     {CurrencyCode: "GBP", Units: 1, Nanos: -1},
		"signs differ too": {CurrencyCode: "GBP", Units: -1, Nanos: 1},
		"too many nanos":   {CurrencyCode: "GBP", Nanos: 1_000_000_000},
	} {
		if got, err := priceOf(m, "GBP"); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Lines of two events of an order are distinguished by their numbers, and a difference in any field
// changes the digest.
func TestLineContent(t *testing.T) {
	t.Parallel()
	base := line{orderID: "o", number: 1, customerID: "c", sku: "s", description: "d", quantity: 1, currency: "GBP", country: "UK"}
	seen := map[string]int{string(lineColumns.Content(nil, &base)): -1}
	for i, change := range []func(l *line){
		func(l *line) { l.orderID = "p" }, func(l *line) { l.number = 2 }, func(l *line) { l.customerID = "" },
		func(l *line) { l.sku = "sd"; l.description = "" }, func(l *line) { l.description = "e" }, func(l *line) { l.quantity = -1 },
		func(l *line) { l.unitPrice = decimal128.FromI64(1) }, func(l *line) { l.currency = "EUR" },
		func(l *line) { l.country = "" }, func(l *line) { l.orderedAt = l.orderedAt.AddDate(0, 0, 1) },
		func(l *line) { l.recordedAt = l.recordedAt.AddDate(0, 0, 1) },
	} {
		l := base
		change(&l)
		if other, dup := seen[string(lineColumns.Content(nil, &l))]; dup {
			t.Errorf("change %d gives the content of %d", i, other)
		}
		seen[string(lineColumns.Content(nil, &l))] = i
	}
}
