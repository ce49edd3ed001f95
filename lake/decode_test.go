package lake

import (
	"math"
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
)

// newColumns makes the columns of a table without a lake.
func newColumns(t testing.TB, decl Table) *columnar.Columns {
	t.Helper()
	c, err := columnar.New(decl.columns())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// record is an event as it stands on its topic.
func record(e event.Event, partition int32, offset int64) Record {
	topic := ""
	for _, agg := range event.Aggregates() {
		if agg.Name == e.Aggregate {
			topic = agg.Topic
		}
	}
	return Record{Topic: topic, Partition: partition, Offset: offset, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers()}
}

// appendEvent appends an event's rows and gives them, none where it fails. A failed append leaves nothing behind.
func appendEvent(t *testing.T, decl Table, e event.Event) (arrow.RecordBatch, error) {
	t.Helper()
	c := newColumns(t, decl)
	rows, err := decl.Rows(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &fileWriter{columns: c, origin: originOf(c)}
	_, err = w.append(t.Context(), rows, record(e, 1, 2))
	if err != nil && c.Rows() != 0 {
		t.Fatalf("%d rows of a record that failed: %v", c.Rows(), err)
	}
	return c.Record(), err
}

// What can be made of any record as it stands on a topic: nothing, or a row that gives the event back.
func FuzzEventRow(f *testing.F) {
	g := newGenerator(3)
	for agg, events := range g.history(4) {
		for _, e := range events {
			if agg == event.Order {
				f.Add(e.Stream, e.Data, e.CorrelationID, e.Type, e.Version, e.OccurredAt.UnixMicro())
			}
		}
	}
	f.Add("", []byte("\x0a"), "\xff", "", uint64(math.MaxUint64), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, key string, value []byte, correlation, kind string, version uint64, occurred int64) {
		from := g.event(event.Order, "x", "t", &orderv1.OrderEvent{})
		from.Stream, from.CorrelationID, from.Type, from.Version = key, correlation, kind, version
		from.OccurredAt = time.UnixMicro(occurred).UTC()
		e, err := event.FromRecord([]byte(key), value, from.Headers())
		if err != nil {
			return
		}
		rec, err := appendEvent(t, ordersEvents, e)
		defer rec.Release()
		if err != nil {
			return
		}
		rows, err := readEvents(event.Order, rec)
		if err != nil {
			t.Fatal(err)
		}
		for back, err := range rows {
			if err != nil {
				t.Fatal(err)
			}
			if string(digest.AppendEvent(nil, back)) != string(digest.AppendEvent(nil, e)) || back.Position != e.Position {
				t.Fatalf("the row gives back %+v of %+v", back, e)
			}
		}
	})
}

// Any bytes for an order's event: an error, or as many rows as it has lines, which read back as they are.
func FuzzLineRows(f *testing.F) {
	g := newGenerator(4)
	for range 20 {
		for _, e := range g.orderEvents() {
			f.Add(e.Data)
		}
	}
	envelope := g.orderEvents()[0]
	f.Fuzz(func(t *testing.T, value []byte) {
		e := envelope
		e.Data = value
		rec, err := appendEvent(t, orderLines, e)
		defer rec.Release()
		if err != nil {
			return
		}
		var m orderv1.OrderEvent
		if err := proto.Unmarshal(value, &m); err != nil {
			t.Fatal(err)
		}
		if n := len(m.GetPlaced().GetLines()) + len(m.GetLinesAdded().GetLines()); int64(n) != rec.NumRows() {
			t.Fatalf("%d rows of %d lines", rec.NumRows(), n)
		}
		d := &lineDecoder{}
		if err := d.decode(e); err != nil {
			t.Fatal(err)
		}
		rows, err := readLines(rec)
		if err != nil {
			t.Fatal(err)
		}
		i := 0
		for back := range rows {
			if !reflect.DeepEqual(back, d.lines[i]) {
				t.Fatalf("the row gives back %+v of %+v", back, d.lines[i])
			}
			i++
		}
	})
}

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
		} else if got := new(big.Rat).SetFrac(got.BigInt(), big.NewInt(nanosPerUnit)).FloatString(priceScale); got != want {
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

// The lines of two events of an order are told apart by their numbers, and a difference in any field is a difference.
func TestLineContent(t *testing.T) {
	t.Parallel()
	base := line{orderID: "o", number: 1, customerID: "c", sku: "s", description: "d", quantity: 1, currency: "GBP", country: "UK"}
	seen := map[string]int{string(base.content(nil)): -1}
	for i, change := range []func(l *line){
		func(l *line) { l.orderID = "p" }, func(l *line) { l.number = 2 }, func(l *line) { l.customerID = "" },
		func(l *line) { l.sku = "sd"; l.description = "" }, func(l *line) { l.description = "e" }, func(l *line) { l.quantity = -1 },
		func(l *line) { l.unitPrice = decimal128.FromI64(1) }, func(l *line) { l.currency = "EUR" },
		func(l *line) { l.country = "" }, func(l *line) { l.orderedAt = l.orderedAt.AddDate(0, 0, 1) },
		func(l *line) { l.recordedAt = l.recordedAt.AddDate(0, 0, 1) },
	} {
		l := base
		change(&l)
		if other, dup := seen[string(l.content(nil))]; dup {
			t.Errorf("change %d gives the content of %d", i, other)
		}
		seen[string(l.content(nil))] = i
	}
}
