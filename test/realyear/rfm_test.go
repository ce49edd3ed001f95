// Package realyear compares features of a real shop's year with computations that share no code with
// Millrace.
package realyear

import (
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/commands/order"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/shop"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/ingest/onlineretail"
)

const realData = "../../../shared/data/online-retail.parquet"

// TestRFMOfTheRealYear: recency, frequency and monetary value of every customer, at the end of the
// year and in the middle of it, equal those that are computed from the file itself.
func TestRFMOfTheRealYear(t *testing.T) {
	if _, err := os.Stat(realData); err != nil {
		t.Skipf("the real data is missing: %v", err)
	}
	g := valueGroup(t)
	facts, ids := factsOfImport(t, g)
	invoices := invoicesOfFile(t)
	if len(invoices) != 4338 || len(facts) != len(invoices) {
		t.Fatalf("%d customers in the file, %d with facts; want 4338", len(invoices), len(facts))
	}
	outputs := g.Outputs()
	compared := 0
	for _, at := range []time.Time{
		time.Date(2011, 12, 10, 0, 0, 0, 0, time.UTC),
		time.Date(2011, 3, 31, 23, 59, 59, 999_999_000, time.UTC),
		time.Date(2011, 9, 5, 12, 47, 0, 0, time.UTC),
	} {
		for customer, of := range invoices {
			v := g.Vector(facts[ids[customer]], ids[customer], at)
			for i, o := range outputs {
				want, ok := naive(of, o, at)
				if !ok {
					continue
				}
				compared++
				if !v.Values[i].Equal(want) {
					t.Errorf("customer %s at %v: %s is %+v, want %+v", customer, at, o.Name, v.Values[i], want)
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	if compared < 3*4338*20 {
		t.Errorf("only %d values were compared", compared)
	}
}

func valueGroup(t *testing.T) *features.Group {
	t.Helper()
	for _, g := range shop.Groups(shop.Options{Currency: "GBP"}) {
		if g.Name == "customer_value" {
			return g
		}
	}
	t.Fatal("there is no group customer_value")
	return nil
}

// factsOfImport runs the import's commands through the domain, and returns the facts of the events
// by customer and source, and the customers' ids by number.
func factsOfImport(t *testing.T, g *features.Group) (map[string]map[string][]features.Fact, map[string]string) {
	t.Helper()
	versions, ids := map[string]map[string][]features.Fact{}, map[string]string{}
	orders, offset := map[string]order.State{}, int64(0)
	err := onlineretail.Commands(t.Context(), realData, func(request proto.Message) error {
		var id string
		var command order.Command
		switch r := request.(type) {
		case *customerv1.RegisterCustomerRequest:
			ids[r.GetReference()] = r.GetCustomerId()
			return nil
		case *orderv1.PlaceOrderRequest:
			id = r.GetOrderId()
			command = order.Place{
				OrderID: id, CustomerID: r.CustomerId, Reference: r.GetReference(), Currency: r.GetCurrency(),
				Country: r.GetCountry(), Lines: r.GetLines(), At: r.GetOrderedAt().AsTime(),
			}
		case *orderv1.AddLinesRequest:
			id = r.GetOrderId()
			command = order.AddLines{OrderID: id, AfterLine: r.GetAfterLine(), Lines: r.GetLines(), At: r.GetAddedAt().AsTime()}
		default:
			return nil
		}
		events, err := order.Decide(orders[id], command)
		if err != nil {
			return err
		}
		for _, m := range events {
			orders[id] = order.Evolve(orders[id], m)
			data, err := proto.Marshal(m)
			if err != nil {
				return err
			}
			offset++
			for _, s := range g.Sources {
				fresh, err := s.Project(event.Event{Aggregate: event.Order.Name, Stream: id, Data: data})
				if err != nil {
					return err
				}
				for i, f := range fresh {
					f.Origin = features.Origin{Topic: s.Topic, Offset: offset, Index: int32(i)}
					if versions[f.Entity] == nil {
						versions[f.Entity] = map[string][]features.Fact{}
					}
					versions[f.Entity][s.Name] = append(versions[f.Entity][s.Name], f)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range versions {
		for name, all := range of {
			of[name] = features.Current(all, time.Time{})
		}
	}
	return versions, ids
}

// invoice is a sale of the file.
type invoice struct {
	number string
	at     time.Time // of its first line
	total  *big.Rat
	pieces int64
}

// invoicesOfFile reads the sales to known customers, by number of the customer: the lines that are
// not cancellations (their invoice begins with C) and have a quantity, a price and a customer.
func invoicesOfFile(t *testing.T) map[string][]*invoice {
	t.Helper()
	reader, err := file.OpenParquetFile(realData, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}()
	parquet, err := pqarrow.NewFileReader(reader, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	table, err := parquet.ReadTable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer table.Release()
	column := func(name string) arrow.Array {
		i := table.Schema().FieldIndices(name)
		if len(i) != 1 {
			t.Fatalf("column %s: %v", name, i)
		}
		all, err := array.Concatenate(table.Column(i[0]).Data().Chunks(), memory.DefaultAllocator)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	numbers, quantities := column("InvoiceNo").(array.StringLike), column("Quantity").(*array.Int64)
	prices, customers := column("UnitPrice").(*array.Float64), column("CustomerID").(*array.Float64)
	dates := column("InvoiceDate").(*array.Timestamp)
	unit := dates.DataType().(*arrow.TimestampType).Unit

	byNumber, byCustomer := map[string]*invoice{}, map[string][]*invoice{}
	price := map[float64]*big.Rat{}
	for i := range numbers.Len() {
		number := numbers.Value(i)
		if strings.HasPrefix(number, "C") || quantities.Value(i) <= 0 || prices.Value(i) <= 0 || customers.IsNull(i) ||
			customers.Value(i) != customers.Value(i) {
			continue
		}
		of := byNumber[number]
		if of == nil {
			of = &invoice{number: number, at: dates.Value(i).ToTime(unit), total: new(big.Rat)}
			byNumber[number] = of
			customer := strconv.FormatFloat(customers.Value(i), 'f', -1, 64)
			byCustomer[customer] = append(byCustomer[customer], of)
		}
		written := price[prices.Value(i)] // the decimal that the shop wrote
		if written == nil {
			written, _ = new(big.Rat).SetString(strconv.FormatFloat(prices.Value(i), 'f', -1, 64))
			price[prices.Value(i)] = written
		}
		of.total.Add(of.total, new(big.Rat).Mul(written, new(big.Rat).SetInt64(quantities.Value(i))))
		of.pieces += quantities.Value(i)
	}
	return byCustomer
}

// naive computes an output from a customer's invoices. ok is false for outputs that are not
// recency, frequency or monetary value.
func naive(invoices []*invoice, o features.Output, at time.Time) (want exact.Result, ok bool) {
	var totals []*big.Rat
	var first, last time.Time
	var pieces int64
	sum := new(big.Rat)
	for _, of := range invoices {
		if of.at.After(at) || o.Window != features.Lifetime && !of.at.After(at.Add(-time.Duration(o.Window))) {
			continue
		}
		totals = append(totals, of.total)
		sum.Add(sum, of.total)
		pieces += of.pieces
		if first.IsZero() || of.at.Before(first) {
			first = of.at
		}
		if of.at.After(last) {
			last = of.at
		}
	}
	float := func(r *big.Rat) (exact.Result, bool) {
		f, _ := r.Float64()
		return exact.Result{Kind: exact.FloatResult, Float: f}, true
	}
	seconds := func(since time.Time) (exact.Result, bool) {
		return float(big.NewRat(at.Sub(since).Microseconds(), 1e6))
	}
	n := int64(len(totals))
	switch o.Feature.Name {
	case "frequency":
		return exact.Result{Kind: exact.IntResult, Int: n}, true
	case "monetary_sum":
		return float(sum)
	case "first_total", "last_total", "monetary_median", "monetary_p90":
		return exact.Result{}, false
	}
	if n == 0 {
		return exact.Result{}, true
	}
	switch o.Feature.Name {
	case "recency_seconds":
		return seconds(last)
	case "tenure_seconds":
		return seconds(first)
	case "monetary_mean":
		return float(sum.Quo(sum, big.NewRat(n, 1)))
	case "monetary_min":
		return float(slices.MinFunc(totals, (*big.Rat).Cmp))
	case "monetary_max":
		return float(slices.MaxFunc(totals, (*big.Rat).Cmp))
	case "monetary_stddev":
		mean, variance := sum.Quo(sum, big.NewRat(n, 1)), new(big.Rat)
		for _, total := range totals {
			d := new(big.Rat).Sub(total, mean)
			variance.Add(variance, d.Mul(d, d))
		}
		root := new(big.Float).SetPrec(400).SetRat(variance.Quo(variance, big.NewRat(n, 1)))
		if variance.Sign() > 0 {
			root.Sqrt(root)
		}
		f, _ := root.Float64()
		return exact.Result{Kind: exact.FloatResult, Float: f}, true
	case "amount_per_item":
		return float(sum.Quo(sum, big.NewRat(pieces, 1)))
	}
	panic(fmt.Sprintf("%s is not compared", o.Name))
}
