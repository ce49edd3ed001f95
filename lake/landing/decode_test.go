package landing

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/lake/columnar"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/tables"
)

// newColumns returns the columns of a table without a lake.
func newColumns(t testing.TB, decl declare.Table) *columnar.Columns {
	t.Helper()
	c, err := columnar.New(decl.AllColumns())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// record returns the record of an event on its topic.
func record(e event.Event, partition int32, offset int64) declare.Record {
	topic := ""
	for _, agg := range event.Aggregates() {
		if agg.Name == e.Aggregate {
			topic = agg.Topic
		}
	}
	return declare.Record{Topic: topic, Partition: partition, Offset: offset, Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers()}
}

// appendEvent appends an event and returns its rows, or none if it fails. A failed append leaves
// nothing behind.
func appendEvent(t *testing.T, decl declare.Table, e event.Event) (arrow.RecordBatch, error) {
	t.Helper()
	c := newColumns(t, decl)
	rows, err := decl.Rows(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	mark := c.Mark()
	r := record(e, 1, 2)
	appended, err := rows.Append(t.Context(), r)
	for range appended.Rows {
		n := len(c.Fields())
		c.Column(n - 3).(*columnar.Bytes).AppendString(r.Topic)
		c.Column(n - 2).(*columnar.Int32s).Append(r.Partition)
		c.Column(n - 1).(*columnar.Int64s).Append(r.Offset)
	}
	if err == nil {
		err = c.Err()
	}
	if err != nil {
		c.Rollback(mark)
	}
	if err != nil && c.Rows() != 0 {
		t.Fatalf("%d rows of a record that failed: %v", c.Rows(), err)
	}
	return c.Record(), err
}

// Any record on a topic becomes nothing, or a row from which the event can be restored.
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
		rec, err := appendEvent(t, tables.OrdersEvents, e)
		defer rec.Release()
		if err != nil {
			return
		}
		rows, err := declare.ReadEvents(event.Order, rec)
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

// Any bytes as an order's event: an error, or as many rows as it has lines, which read back
// unchanged.
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
		rec, err := appendEvent(t, tables.OrderLines, e)
		defer rec.Release()
		if err != nil {
			return
		}
		var m orderv1.OrderEvent
		if err := proto.Unmarshal(value, &m); err != nil {
			t.Fatal(err)
		}
		lines := append(m.GetPlaced().GetLines(), m.GetLinesAdded().GetLines()...)
		if n := len(lines); int64(n) != rec.NumRows() {
			t.Fatalf("%d rows of %d lines", rec.NumRows(), n)
		}
		for i, l := range lines {
			if got, want := lineOf(t, rec, i), wantLine(l, &m, e); got != want {
				t.Fatalf("row %d is %s, want %s", i, got, want)
			}
		}
		have := digest.New()
		if err := tables.OrderLines.Sums.Add(have, rec); err != nil {
			t.Fatal(err)
		}
		want, err := tables.OrderLines.Sums.Expect(func(yield func(event.Event, error) bool) { yield(e, nil) })
		if err != nil {
			t.Fatal(err)
		}
		if have.Total() != want.Total() {
			t.Fatalf("the rows have %v, and the event has %v", have.Total(), want.Total())
		}
	})
}

// lineOf returns the columns of a row of order_lines as text.
func lineOf(t *testing.T, rec arrow.RecordBatch, i int) string {
	t.Helper()
	texts := make([]string, 0, 11)
	for _, name := range []string{"order_id", "line", "customer_id", "sku", "description", "quantity", "currency", "country"} {
		at := rec.Schema().FieldIndices(name)
		if len(at) != 1 {
			t.Fatalf("no column %s", name)
		}
		texts = append(texts, rec.Column(at[0]).ValueStr(i))
	}
	price, err := declare.ColumnOf[*array.Decimal128](rec, "unit_price")
	if err != nil {
		t.Fatal(err)
	}
	texts = append(texts, price.Value(i).BigInt().String())
	for _, name := range []string{"ordered_at", "recorded_at"} {
		c, err := declare.ColumnOf[*array.Timestamp](rec, name)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, strconv.FormatInt(int64(c.Value(i)), 10))
	}
	return fmt.Sprintf("%q", texts)
}

// wantLine returns what lineOf should return for a line of an event, computed without the decoder.
func wantLine(l *orderv1.OrderLine, m *orderv1.OrderEvent, e event.Event) string {
	var of interface {
		GetOrderId() string
		GetCustomerId() string
		GetCurrency() string
		GetCountry() string
		GetOrderedAt() *timestamppb.Timestamp
	} = m.GetPlaced()
	if m.GetPlaced() == nil {
		of = m.GetLinesAdded()
	}
	customer := of.GetCustomerId()
	if customer == "" {
		customer = array.NullValueStr
	}
	price := new(big.Int).Mul(big.NewInt(l.GetUnitPrice().GetUnits()), big.NewInt(1_000_000_000))
	price.Add(price, big.NewInt(int64(l.GetUnitPrice().GetNanos())))
	return fmt.Sprintf("%q", []string{
		of.GetOrderId(), strconv.Itoa(int(l.GetNumber())), customer, l.GetSku(), l.GetDescription(),
		strconv.FormatInt(l.GetQuantity(), 10), of.GetCurrency(), of.GetCountry(), price.String(),
		strconv.FormatInt(of.GetOrderedAt().AsTime().UnixMicro(), 10), strconv.FormatInt(e.RecordedAt.UnixMicro(), 10),
	})
}
