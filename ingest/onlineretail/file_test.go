package onlineretail

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"google.golang.org/genproto/googleapis/type/money"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/client"
)

// realFile returns the published data set, which is not part of the repository.
func realFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join("..", "..", "..", "shared", "data", "online-retail.parquet")
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the Online Retail data set is not here: %v", err)
	}
	return path
}

// planReal plans the real file and passes each window to each.
func planReal(t testing.TB, each func(window)) (rows int64) {
	t.Helper()
	src, err := open(t.Context(), realFile(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := src.close(); err != nil {
			t.Error(err)
		}
	}()
	p := newPlanner()
	for r, err := range src.all() {
		if err != nil {
			t.Fatal(err)
		}
		p.add(r)
		if r.number%windowRows == 0 || r.number == src.rows {
			each(p.end(r.number, r.number == src.rows))
		}
		rows = r.number
	}
	return rows
}

func TestRealFileFigures(t *testing.T) {
	t.Parallel()
	commands, reasons := map[string]int{}, map[string]int{}
	var lines, customerLines, customerOrders, items int
	var accepted, rejected int64
	revenue := &money.Money{CurrencyCode: currency}
	rows := planReal(t, func(w window) {
		for _, r := range w.rejects {
			reasons[r.reason]++
			rejected++
		}
		for _, c := range append(w.prerequisites, w.orders...) {
			commands[client.Name(c.request)]++
			accepted += int64(len(c.lines))
			place, ok := c.request.(*orderv1.PlaceOrderRequest)
			if !ok {
				continue
			}
			lines += len(place.GetLines())
			if place.CustomerId == nil {
				continue
			}
			customerOrders++
			customerLines += len(place.GetLines())
			for _, l := range place.GetLines() {
				items += int(l.GetQuantity())
				amount, err := event.MulMoney(l.GetUnitPrice(), l.GetQuantity())
				if err != nil {
					t.Fatal(err)
				}
				if revenue, err = event.AddMoney(revenue, amount); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	t.Logf("commands: %v", commands)
	t.Logf("rejected: %v", reasons)
	for _, figure := range []struct {
		name      string
		got, want any
	}{
		{"rows", rows, int64(541_909)},
		{"accepted + rejected", accepted + rejected, rows},
		{"order lines", lines, 530_104},
		{"orders", commands["PlaceOrder"], 19_960},
		{"orders in more than one command", commands["AddLines"], 0},
		{"lines with a customer", customerLines, 397_884},
		{"orders with a customer", customerOrders, 18_532},
		{"items with a customer", items, 5_167_812},
		{"revenue with a customer", event.MoneyString(revenue), "8911407.904"},
		{"customers", commands["RegisterCustomer"], 4_372},
		{"cancelled lines", reasons[reasonCancelled], 9_288},
		{"gifts", reasons[reasonGift], 40},
		{"accounting entries", reasons[reasonNegative], 2},
	} {
		if figure.got != figure.want {
			t.Errorf("%s: %v, want %v", figure.name, figure.got, figure.want)
		}
	}
}

func BenchmarkPlanRealFile(b *testing.B) {
	var rows int64
	for b.Loop() {
		rows += planReal(b, func(window) {})
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// writeFile writes a Parquet file of the schema's columns.
func writeFile(t *testing.T, schema *arrow.Schema, fill func(*array.RecordBuilder)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.parquet")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	fill(b)
	batch := b.NewRecordBatch()
	defer batch.Release()
	w, err := pqarrow.NewFileWriter(schema, f, parquet.NewWriterProperties(), pqarrow.DefaultWriterProps())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func fields(change func(map[string]arrow.DataType)) *arrow.Schema {
	types := map[string]arrow.DataType{
		"InvoiceNo": arrow.BinaryTypes.String, "StockCode": arrow.BinaryTypes.String, "Description": arrow.BinaryTypes.String,
		"Quantity": arrow.PrimitiveTypes.Int64, "InvoiceDate": &arrow.TimestampType{Unit: arrow.Millisecond},
		"UnitPrice": arrow.PrimitiveTypes.Float64, "CustomerID": arrow.PrimitiveTypes.Float64,
		"Country": arrow.BinaryTypes.String,
	}
	change(types)
	var list []arrow.Field
	for _, c := range columns {
		if typ, ok := types[c.name]; ok {
			list = append(list, arrow.Field{Name: c.name, Type: typ, Nullable: true})
		}
	}
	return arrow.NewSchema(list, nil)
}

func TestOpenRejectsOtherColumns(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(map[string]arrow.DataType){
		"column UnitPrice is missing":                         func(m map[string]arrow.DataType) { delete(m, "UnitPrice") },
		"column Quantity is of type utf8, not int64":          func(m map[string]arrow.DataType) { m["Quantity"] = arrow.BinaryTypes.String },
		"column InvoiceDate is of type date32, not timestamp": func(m map[string]arrow.DataType) { m["InvoiceDate"] = arrow.FixedWidthTypes.Date32 },
		"column CustomerID is of type int64, not float64":     func(m map[string]arrow.DataType) { m["CustomerID"] = arrow.PrimitiveTypes.Int64 },
	} {
		path := writeFile(t, fields(change), func(*array.RecordBuilder) {})
		_, err := open(context.Background(), path)
		if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want ErrFile: %s", err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, []byte("InvoiceNo,StockCode"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(context.Background(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("opening a text file returned %v", err)
	}
}

func TestMissingValues(t *testing.T) {
	t.Parallel()
	at := time.Date(2010, 12, 1, 8, 26, 0, 0, time.UTC)
	path := writeFile(t, fields(func(map[string]arrow.DataType) {}), func(b *array.RecordBuilder) {
		for i, c := range columns {
			switch f := b.Field(i).(type) {
			case *array.StringBuilder:
				f.AppendNull()
				f.Append(map[string]string{
					"Description": " nan", "InvoiceNo": "536365", "StockCode": "85123A ", "Country": "EIRE",
				}[c.name])
			case *array.Int64Builder:
				f.AppendValues([]int64{0, 6}, []bool{false, true})
			case *array.Float64Builder:
				f.AppendValues([]float64{0, 2.55}, []bool{false, true})
			case *array.TimestampBuilder:
				f.AppendValues([]arrow.Timestamp{0, arrow.Timestamp(at.UnixMilli())}, []bool{false, true})
			}
		}
	})
	src, err := open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := src.close(); err != nil {
			t.Error(err)
		}
	}()
	var got []row
	for r, err := range src.all() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if len(got) != 2 || src.rows != 2 {
		t.Fatalf("read %v", got)
	}
	r := got[0]
	if r.invoice != "" || r.description != "" || r.quantity != 0 || !r.at.IsZero() ||
		!math.IsNaN(r.price) || !math.IsNaN(r.customer) {
		t.Errorf("a row of nulls is %+v", r)
	}
	want := row{
		number: 2, invoice: "536365", code: "85123A", country: "EIRE", quantity: 6, price: 2.55, customer: 2.55, at: at,
	}
	if got[1] != want {
		t.Errorf("got %+v, want %+v", got[1], want)
	}
}
