package onlineretail

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	inventoryv1 "github.com/millrace/millrace/gen/millrace/inventory/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

var guest = math.NaN()

// plan plans rows in windows of every rows.
func plan(rows []row, every int) window {
	p := newPlanner()
	p.completeAfter = 7
	var all window
	for i, r := range rows {
		r.number = int64(i + 1)
		p.add(r)
		if eof := i+1 == len(rows); eof || (i+1)%every == 0 {
			w := p.end(r.number, eof)
			all.prerequisites = append(all.prerequisites, w.prerequisites...)
			all.orders = append(all.orders, w.orders...)
			all.rejects = append(all.rejects, w.rejects...)
		}
	}
	return all
}

func names(commands []command) []string {
	var n []string
	for _, c := range commands {
		n = append(n, client.Name(c.request))
	}
	return n
}

func minute(n int) time.Time {
	return time.Date(2010, 12, 1, 8, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Minute)
}

func aSale() row {
	return row{
		invoice: "536365", code: "85123A", description: "WHITE HOLDER", quantity: 6, at: minute(0),
		price: 2.55, customer: 17850, country: "United Kingdom",
	}
}

func with(change func(*row)) row {
	r := aSale()
	change(&r)
	return r
}

// TestRow checks the commands, or the reason of the rejection, that a single row results in.
func TestRow(t *testing.T) {
	t.Parallel()
	bought := []string{"RegisterCustomer", "ListProduct", "SetPrice", "ReceiveStock", "PlaceOrder"}
	for name, test := range map[string]struct {
		row    row
		want   []string
		reject string
	}{
		"sale":                  {aSale(), bought, ""},
		"sale to a guest":       {with(func(r *row) { r.customer = guest }), []string{"ListProduct", "SetPrice", "ReceiveStock", "PlaceOrder"}, ""},
		"service":               {with(func(r *row) { r.code = "POST" }), []string{"RegisterCustomer", "ListProduct", "SetPrice", "PlaceOrder"}, ""},
		"voucher":               {with(func(r *row) { r.code, r.customer = "gift_0001_20", guest }), []string{"ListProduct", "SetPrice", "PlaceOrder"}, ""},
		"goods without digits":  {with(func(r *row) { r.code = "DCGSSBOY" }), bought, ""},
		"bad debt with a price": {with(func(r *row) { r.invoice, r.code, r.customer, r.price = "A563185", "B", guest, 11062.06 }), []string{"ListProduct", "SetPrice", "PlaceOrder"}, ""},
		"price below a penny":   {with(func(r *row) { r.price = 0.001 }), bought, ""},
		"write-off":             {with(func(r *row) { r.quantity, r.price, r.customer = -3, 0, guest }), []string{"ListProduct", "ReceiveStock", "AdjustStock"}, ""},
		"found":                 {with(func(r *row) { r.price, r.customer = 0, guest }), []string{"ListProduct", "AdjustStock"}, ""},

		"cancellation":        {with(func(r *row) { r.invoice, r.quantity = "C536379", -1 }), []string{"RegisterCustomer"}, reasonCancelled},
		"bad debt":            {with(func(r *row) { r.invoice, r.price, r.customer = "A563186", -11062.06, guest }), nil, reasonNegative},
		"gift":                {with(func(r *row) { r.price = 0 }), []string{"RegisterCustomer"}, reasonGift},
		"correct a service":   {with(func(r *row) { r.code, r.price, r.customer = "POST", 0, guest }), nil, reasonService},
		"nothing sold":        {with(func(r *row) { r.quantity, r.customer = 0, guest }), nil, reasonQuantity},
		"negative sale":       {with(func(r *row) { r.quantity, r.customer = -1, guest }), nil, reasonQuantity},
		"customer's loss":     {with(func(r *row) { r.quantity, r.price = -1, 0 }), []string{"RegisterCustomer"}, reasonQuantity},
		"price too fine":      {with(func(r *row) { r.price, r.customer = 1e-10, guest }), nil, reasonPrice},
		"price too large":     {with(func(r *row) { r.price, r.customer = 1e300, guest }), nil, reasonPrice},
		"no price":            {with(func(r *row) { r.price = math.NaN() }), nil, reasonPrice},
		"no invoice":          {with(func(r *row) { r.invoice = "" }), nil, "invoice number is missing, too long or not UTF-8"},
		"no code":             {with(func(r *row) { r.code = "" }), nil, "stock code is missing or not a SKU"},
		"code with a slash":   {with(func(r *row) { r.code = "a/b" }), nil, "stock code is missing or not a SKU"},
		"a space behind":      {with(func(r *row) { r.invoice += " " }), nil, "invoice number or stock code contains superfluous spaces or invisible characters"},
		"two spaces":          {with(func(r *row) { r.code = "BANK  CHARGES" }), nil, "invoice number or stock code contains superfluous spaces or invisible characters"},
		"no country":          {with(func(r *row) { r.country = "" }), nil, "country is missing, too short, too long or not UTF-8"},
		"no date":             {with(func(r *row) { r.at = time.Time{} }), nil, "invoice date is missing or out of range"},
		"half a customer":     {with(func(r *row) { r.customer = 0.5 }), nil, "customer number is not a positive integer"},
		"broken text":         {with(func(r *row) { r.description = "\xff" }), nil, "description is too long or not UTF-8"},
		"more than can exist": {with(func(r *row) { r.quantity = math.MaxInt64 }), nil, "quantity is out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := plan([]row{test.row}, 1)
			if n := names(append(got.prerequisites, got.orders...)); !slices.Equal(n, test.want) {
				t.Errorf("planned %v, want %v", n, test.want)
			}
			reason := ""
			if len(got.rejects) > 0 {
				reason = got.rejects[0].reason
			}
			if reason != test.reject {
				t.Errorf("rejected as %q, want %q", reason, test.reject)
			}
		})
	}
}

// An invoice becomes one order, with the time of its first line. A line that is repeated in the
// file is a line of its own.
func TestOrder(t *testing.T) {
	t.Parallel()
	first := with(func(r *row) { r.price = 0.19 })
	second := with(func(r *row) { r.at, r.code, r.description = minute(1), "71053", "WHITE METAL LANTERN" })
	got := plan([]row{first, second, second}, 10)
	if len(got.orders) != 1 || len(got.orders[0].lines) != 3 {
		t.Fatalf("planned %v, want one order of three lines: a repeated line is a line", got.orders)
	}
	place, ok := got.orders[0].request.(*orderv1.PlaceOrderRequest)
	if !ok {
		t.Fatalf("planned a %T", got.orders[0].request)
	}
	customer := event.NamedID(minute(0), "online-retail/customer/17850").String()
	want := &orderv1.PlaceOrderRequest{
		OrderId: event.NamedID(minute(0), "online-retail/order/536365").String(), CustomerId: &customer, Reference: "536365",
		Currency: "GBP", Country: "United Kingdom", OrderedAt: place.GetOrderedAt(), Lines: place.GetLines(),
		IdempotencyKey: "online-retail:order:536365",
	}
	if !proto.Equal(place, want) || !place.GetOrderedAt().AsTime().Equal(minute(0)) {
		t.Errorf("planned %v, want %v at the time of its first line", place, want)
	}
	if price := place.GetLines()[0].GetUnitPrice(); price.GetUnits() != 0 || price.GetNanos() != 190_000_000 {
		t.Errorf("0.19 became %v", price)
	}
}

// A line that comes after its invoice seemed complete is added to the order.
func TestLateLinesAreAdded(t *testing.T) {
	t.Parallel()
	rows := []row{aSale(), aSale()}
	for range 20 {
		rows = append(rows, with(func(r *row) { r.invoice = "536366" }))
	}
	rows = append(rows, with(func(r *row) { r.at = minute(9) }))
	got := plan(rows, 5)
	add, ok := got.orders[len(got.orders)-1].request.(*orderv1.AddLinesRequest)
	if !ok || add.GetAfterLine() != 2 || len(add.GetLines()) != 1 ||
		add.GetIdempotencyKey() != "online-retail:order:536365:from:3" ||
		!add.GetAddedAt().AsTime().Equal(minute(9)) {
		t.Errorf("planned %v for the last line, want it added after line 2", got.orders[len(got.orders)-1].request)
	}
}

// An invoice with more lines than a command may have becomes several commands.
func TestLargeInvoiceIsSplit(t *testing.T) {
	t.Parallel()
	got := plan(slices.Repeat([]row{aSale()}, maxLines+1), 500_000)
	if n := names(got.orders); !slices.Equal(n, []string{"PlaceOrder", "AddLines"}) {
		t.Fatalf("planned %v", n)
	}
	if n := len(got.orders[0].lines); n != maxLines {
		t.Errorf("first part has %d lines, want %d", n, maxLines)
	}
}

// A line with another customer than its invoice's is rejected.
func TestOtherCustomersLineIsRejected(t *testing.T) {
	t.Parallel()
	got := plan([]row{aSale(), with(func(r *row) { r.customer = 12345 })}, 10)
	if len(got.rejects) != 1 || got.rejects[0].reason != reasonCustomer {
		t.Errorf("rejects are %v", got.rejects)
	}
}

// A price changes only after several consecutive sales at the new one.
func TestPriceChangesAfterConsecutiveSales(t *testing.T) {
	t.Parallel()
	var rows []row
	for _, price := range []float64{2, 3, 2, 3, 3, 2, 3, 4, 3, 3, 3, 3} {
		rows = append(rows, with(func(r *row) { r.price = price }))
	}
	var got []int64
	var keys []string
	for _, c := range plan(rows, 5).prerequisites {
		if set, ok := c.request.(*catalogv1.SetPriceRequest); ok {
			got, keys = append(got, set.GetPrice().GetUnits()), append(keys, set.GetIdempotencyKey())
		}
	}
	wantKeys := []string{"online-retail:price:85123A:1", "online-retail:price:85123A:11"}
	if !slices.Equal(got, []int64{2, 3}) || !slices.Equal(keys, wantKeys) {
		t.Errorf("prices %v were set under %v", got, keys)
	}
}

// A delivery is planned a minute before a sale for which the stock is too low, and is large enough
// for it.
func TestStockArrivesBeforeSale(t *testing.T) {
	t.Parallel()
	rows := slices.Repeat([]row{aSale()}, 17) // six pieces each; the smallest lot is enough for sixteen rows
	rows = append(rows, with(func(r *row) { r.quantity = 1090 }))
	var got []string
	for _, c := range plan(rows, 5).prerequisites {
		if r, ok := c.request.(*inventoryv1.ReceiveStockRequest); ok {
			early := r.GetReceivedAt().AsTime().Equal(minute(-1))
			got = append(got, fmt.Sprint(r.GetIdempotencyKey(), " ", r.GetQuantity(), " ", early))
		}
	}
	want := []string{
		"online-retail:receipt:1 96 true", "online-retail:receipt:17 96 true", "online-retail:receipt:18 8000 true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("received %v, want %v", got, want)
	}
}

// A product that is first seen in a correction gets its title with the first sale.
func TestTitleIsSetByFirstSale(t *testing.T) {
	t.Parallel()
	lost := with(func(r *row) { r.description, r.quantity, r.price, r.customer = "damaged", -1, 0, guest })
	var titles []string
	for _, c := range plan([]row{lost, lost, aSale(), aSale()}, 10).prerequisites {
		switch r := c.request.(type) {
		case *catalogv1.ListProductRequest:
			titles = append(titles, r.GetTitle())
		case *catalogv1.ReviseProductRequest:
			titles = append(titles, r.GetTitle())
		}
	}
	if !slices.Equal(titles, []string{"85123A", "WHITE HOLDER"}) {
		t.Errorf("titles were %v", titles)
	}
}

// anyRows generates files with all kinds of faults. They have few invoices, codes and customers, so
// that these occur together.
func anyRows() *rapid.Generator[[]row] {
	codes := []string{"10001", "10002", "22222a", "POST", "gift_0001_10", "", "a/b"}
	descriptions := []string{"", "LANTERN", "damaged", "?", "\xff", strings.Repeat("é", 150)}
	quantities := []int64{0, 1, 6, 80_995, maxQuantity, -1, -50, -9000, math.MinInt64}
	one := rapid.Custom(func(t *rapid.T) row {
		r := row{
			invoice:     rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "C6", "A7", ""}).Draw(t, "invoice"),
			code:        rapid.SampledFrom(codes).Draw(t, "code"),
			description: rapid.SampledFrom(descriptions).Draw(t, "description"),
			country:     rapid.SampledFrom([]string{"EIRE", "EIRE", "USA", "é"}).Draw(t, "country"),
			customer:    rapid.SampledFrom([]float64{guest, guest, 1, 2, 2.5}).Draw(t, "customer"),
			price:       rapid.SampledFrom([]float64{0, 0, 1.25, 1.25, 2.1, 0.001, -1, 1e-12, 1e30}).Draw(t, "price"),
			quantity:    rapid.SampledFrom(quantities).Draw(t, "quantity"),
			at:          minute(rapid.IntRange(0, 500_000).Draw(t, "minute")),
		}
		if rapid.IntRange(0, 30).Draw(t, "no date") == 0 {
			r.at = time.Time{}
		}
		return r
	})
	return rapid.SliceOfN(one, 1, 120)
}

// key returns the idempotency key of a command.
func key(c command) string {
	return c.request.(interface{ GetIdempotencyKey() string }).GetIdempotencyKey()
}

// Each row is in exactly one command or reject.
func TestEveryRowIsAcceptedOrRejectedOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rows := anyRows().Draw(t, "rows")
		got := plan(rows, rapid.IntRange(1, 50).Draw(t, "window"))
		seen := map[int64]int{}
		for _, c := range append(got.prerequisites, got.orders...) {
			for _, l := range c.lines {
				seen[l.row]++
			}
		}
		for _, r := range got.rejects {
			seen[r.row]++
		}
		for i := range rows {
			if n := seen[int64(i+1)]; n != 1 {
				t.Fatalf("row %d is in %d commands and rejects: %+v", i+1, n, rows[i])
			}
		}
	})
}

// Every command passes the services' validation and has a key of its own.
func TestEveryCommandIsValid(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		got := plan(anyRows().Draw(t, "rows"), 10)
		keys := map[string]bool{}
		for _, c := range append(got.prerequisites, got.orders...) {
			if err := protovalidate.Validate(c.request); err != nil {
				t.Fatalf("%v: %v", c.request, err)
			}
			if keys[key(c)] {
				t.Fatalf("key %s is used twice", key(c))
			}
			keys[key(c)] = true
		}
	})
}

// The plan for the beginning of a file does not depend on the rest. Only the last command of an
// invoice that the end cuts off has fewer lines.
func TestPlanOfPrefix(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rows := anyRows().Draw(t, "rows")
		every := rapid.IntRange(1, 50).Draw(t, "window")
		n := rapid.IntRange(1, len(rows)).Draw(t, "limit")
		part, whole := plan(rows[:n], every), plan(rows, every)

		streams := map[string][]command{}
		for _, c := range append(whole.prerequisites, whole.orders...) {
			streams[c.stream] = append(streams[c.stream], c)
		}
		for _, c := range append(part.prerequisites, part.orders...) {
			if len(streams[c.stream]) == 0 {
				t.Fatalf("the whole plan does not have the command %v", c.request)
			}
			want := streams[c.stream][0]
			streams[c.stream] = streams[c.stream][1:]
			if key(c) != key(want) {
				t.Fatalf("the whole plan has %s where the prefix has %s", key(want), key(c))
			}
			if len(c.lines) < len(want.lines) {
				switch r := want.request.(type) {
				case *orderv1.PlaceOrderRequest:
					r.Lines = r.GetLines()[:len(c.lines)]
				case *orderv1.AddLinesRequest:
					r.Lines = r.GetLines()[:len(c.lines)]
				}
			}
			if !proto.Equal(c.request, want.request) {
				t.Fatalf("the whole plan has %v where the prefix has %v", want.request, c.request)
			}
		}
		if len(part.rejects) > len(whole.rejects) || !slices.Equal(part.rejects, whole.rejects[:len(part.rejects)]) {
			t.Fatalf("the whole plan rejects %v and the prefix %v", whole.rejects, part.rejects)
		}
	})
}

// The inventory service knows only receipts and adjustments, not sales. So it has at least the
// stock that the plan assumes, and never refuses an adjustment.
func TestStockNeverRunsOut(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rows := anyRows().Draw(t, "rows")
		onHand := map[string]int64{}
		p := newPlanner()
		for i, r := range rows {
			r.number = int64(i + 1)
			p.add(r)
			for _, c := range p.window.prerequisites {
				switch r := c.request.(type) {
				case *inventoryv1.ReceiveStockRequest:
					onHand[r.GetSku()] += r.GetQuantity()
				case *inventoryv1.AdjustStockRequest:
					onHand[r.GetSku()] += r.GetDelta()
					if onHand[r.GetSku()] < 0 {
						t.Fatalf("row %d takes %d of %s below zero", i+1, r.GetDelta(), r.GetSku())
					}
				}
			}
			p.window.prerequisites = nil
			for code, item := range p.products {
				if item.onHand < 0 || item.onHand > onHand[code] {
					t.Fatalf("row %d: the plan assumes %d of %s in stock, but there are %d", i+1, item.onHand, code, onHand[code])
				}
			}
		}
	})
}

// A customer is registered once, with the country of the first row.
func TestCustomerIsRegisteredOnce(t *testing.T) {
	t.Parallel()
	abroad := with(func(r *row) { r.invoice, r.country, r.at = "536366", "France", minute(5) })
	got := plan([]row{aSale(), abroad}, 10)
	var registered []*customerv1.RegisterCustomerRequest
	for _, c := range got.prerequisites {
		if r, ok := c.request.(*customerv1.RegisterCustomerRequest); ok {
			registered = append(registered, r)
		}
	}
	if len(registered) != 1 || registered[0].GetCountry() != "United Kingdom" || registered[0].GetReference() != "17850" ||
		!registered[0].GetRegisteredAt().AsTime().Equal(minute(0)) {
		t.Errorf("registered %v, want 17850 of the first country, once", registered)
	}
}
