package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// numbers is a table with one number per row.
func numbers(name string) clickhouse.Table {
	return clickhouse.Table{
		Database: clickhouse.Features, Name: name, OrderBy: []string{"n"},
		Columns: []clickhouse.Column{{Name: "n", Type: "UInt64"}, {Name: "twice", Type: "UInt64", Default: "MATERIALIZED n * 2"}},
	}
}

func create(t *testing.T, s *clickhouse.Store, table clickhouse.Table) clickhouse.Table {
	t.Helper()
	if err := s.CreateTable(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	return table
}

// batchOf returns a batch with the numbers from first on.
func batchOf(t *testing.T, s *clickhouse.Store, table clickhouse.Table, token string, first, count uint64) *clickhouse.Batch {
	t.Helper()
	b, err := s.Batch(table, token)
	if err != nil {
		t.Fatal(err)
	}
	for n := first; n < first+count; n++ {
		if err := b.Append(n); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func insert(t *testing.T, s *clickhouse.Store, table clickhouse.Table, token string, first, count uint64) {
	t.Helper()
	if err := batchOf(t, s, table, token, first, count).Send(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// scanOne runs a query with one row and scans it.
func scanOne(ctx context.Context, s *clickhouse.Store, sql string, dest ...any) error {
	rows, err := s.Query(ctx, sql)
	if err != nil {
		return err
	}
	if !rows.Next() {
		return errors.Join(errors.New("no row"), rows.Err(), rows.Close())
	}
	return errors.Join(rows.Scan(dest...), rows.Close())
}

// content returns the number of rows and of different rows, and the sum.
func content(t *testing.T, s *clickhouse.Store, table clickhouse.Table) (count, distinct, sum uint64) {
	t.Helper()
	err := scanOne(t.Context(), s, "SELECT count(), uniqExact(n), sum(n) FROM "+table.FullName(), &count, &distinct, &sum)
	if err != nil {
		t.Fatal(err)
	}
	return count, distinct, sum
}

func wantRows(t *testing.T, s *clickhouse.Store, table clickhouse.Table, want uint64) {
	t.Helper()
	if count, distinct, _ := content(t, s, table); count != want || distinct != want {
		t.Errorf("%s has %d rows, %d of them different; want %d", table.Name, count, distinct, want)
	}
}

// types has a column of each type that the tables of this system use.
var types = clickhouse.Table{
	Database: clickhouse.Features, Name: "types", OrderBy: []string{"u64"},
	Columns: []clickhouse.Column{
		{Name: "u8", Type: "UInt8"}, {Name: "u16", Type: "UInt16"}, {Name: "u32", Type: "UInt32"}, {Name: "u64", Type: "UInt64"},
		{Name: "i64", Type: "Int64"}, {Name: "d", Type: "Decimal(38, 9)"}, {Name: "at", Type: "DateTime64(6, 'UTC')"},
		{Name: "s", Type: "String"}, {Name: "low", Type: "LowCardinality(String)"}, {Name: "list", Type: "Array(Nullable(String))"},
		{Name: "m", Type: "Map(String, Int64)"}, {Name: "maybe", Type: "Nullable(Float64)"}, {Name: "id", Type: "UUID"},
		{Name: "f", Type: "Float64"}, {Name: "b", Type: "Bool"}, {Name: "day", Type: "Date"}, {Name: "total", Type: "SimpleAggregateFunction(sum, Int64)"},
	},
}

// row is a row of types.
type row struct {
	U8    uint8
	U16   uint16
	U32   uint32
	U64   uint64
	I64   int64
	D     decimal.Decimal
	At    time.Time
	S     string
	Low   string
	List  []*string
	M     map[string]int64
	Maybe *float64
	ID    uuid.UUID
	F     float64
	B     bool
	Day   time.Time
	Total int64
}

func (r *row) pointers() []any {
	v := reflect.ValueOf(r).Elem()
	out := make([]any, v.NumField())
	for i := range out {
		out[i] = v.Field(i).Addr().Interface()
	}
	return out
}

func (r *row) values() []any {
	out := r.pointers()
	for i := range out {
		out[i] = reflect.ValueOf(out[i]).Elem().Interface()
	}
	return out
}

// equal compares two rows to the last bit. NaN equals itself.
func (r *row) equal(other *row) bool {
	a, b := *r, *other
	same := a.D.Equal(b.D) && a.At.Equal(b.At) && a.Day.Equal(b.Day) && math.Float64bits(a.F) == math.Float64bits(b.F)
	a.D, a.At, a.Day, a.F = b.D, b.At, b.Day, b.F
	return same && reflect.DeepEqual(a, b)
}

// drawRow draws a row, with extreme values.
func drawRow(t *rapid.T) *row {
	text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	r := &row{
		U8: rapid.Uint8().Draw(t, "u8"), U16: rapid.Uint16().Draw(t, "u16"), U32: rapid.Uint32().Draw(t, "u32"), U64: rapid.Uint64().Draw(t, "u64"),
		I64: rapid.Int64().Draw(t, "i64"), S: text.Draw(t, "s"), Low: text.Draw(t, "low"),
		List: rapid.SliceOfN(rapid.Ptr(text, true), 0, 5).Draw(t, "list"), M: rapid.MapOfN(text, rapid.Int64(), 0, 5).Draw(t, "m"),
		Maybe: rapid.Ptr(rapid.Float64(), true).Draw(t, "maybe"), F: rapid.Float64().Draw(t, "f"), B: rapid.Bool().Draw(t, "b"), Total: rapid.Int64().Draw(t, "total"),
	}
	// 29 digits before the point and 9 behind it.
	digits := new(big.Int).Mul(big.NewInt(rapid.Int64().Draw(t, "high")), big.NewInt(rapid.Int64().Draw(t, "low")))
	limit := new(big.Int).Exp(big.NewInt(10), big.NewInt(38), nil)
	r.D = decimal.NewFromBigInt(digits.Rem(digits, limit), -9)
	r.At = time.UnixMicro(rapid.Int64Range(-2208988800e6, 9223372036e6).Draw(t, "at")).UTC() // 1900 to 2262
	r.Day = time.Unix(rapid.Int64Range(0, math.MaxUint16).Draw(t, "day")*86400, 0).UTC()
	copy(r.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	return r
}

// What is inserted is read again, to the last digit.
func TestTypesRoundTrip(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	create(t, s, types)
	rapid.Check(t, func(rt *rapid.T) {
		want := drawRow(rt)
		b, err := s.Batch(types, "")
		if err != nil {
			rt.Fatal(err)
		}
		if err := b.Append(want.values()...); err != nil {
			rt.Fatal(err)
		}
		if err := errors.Join(s.Exec(t.Context(), "TRUNCATE TABLE "+types.FullName()), b.Send(t.Context())); err != nil {
			rt.Fatal(err)
		}
		got := new(row)
		if err := scanOne(t.Context(), s, "SELECT * FROM "+types.FullName(), got.pointers()...); err != nil {
			rt.Fatal(err)
		}
		if !got.equal(want) {
			rt.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

// Columns can be filled independently. A batch with columns of different lengths is refused.
func TestBatchByColumn(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	table := create(t, s, clickhouse.Table{
		Database: clickhouse.Features, Name: "by_column", Columns: []clickhouse.Column{{Name: "n", Type: "UInt64"}, {Name: "s", Type: "String"}, {Name: "x", Type: "Int8", Default: "DEFAULT 7"}},
	})
	b, err := s.Batch(table, "", "n", "s")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(b.Column(0).Append([]uint64{1, 2}), b.Column(0).AppendRow(uint64(3)), b.Column(1).Append([]string{"a", "b"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Send(t.Context()); err == nil {
		t.Error("a batch with columns of 3 and 2 values was sent")
	}
	if err := b.Column(1).AppendRow("c"); err != nil {
		t.Fatal(err)
	}
	if err := b.Column(0).AppendRow("text"); err == nil || !strings.Contains(err.Error(), "column n") {
		t.Errorf("a text in column n: error %v", err)
	}
	if err := b.Send(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Append(uint64(4), "d"); err == nil {
		t.Error("a row was appended to a batch that has been sent")
	}
	b.Reset("")
	if err := errors.Join(b.Append(uint64(4), "d"), b.Send(t.Context())); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := scanOne(t.Context(), s, "SELECT toString(groupArray((n, s, x))) FROM (SELECT * FROM "+table.FullName()+" ORDER BY n)", &got); err != nil {
		t.Fatal(err)
	}
	if want := "[(1,'a',7),(2,'b',7),(3,'c',7),(4,'d',7)]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Batches for a server elsewhere are compressed. A batch of many frames is still one block.
func TestCompressedBatch(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	s.SetRemote()
	table := create(t, s, numbers("compressed"))
	for range 2 { // the second one is a duplicate
		insert(t, s, table, "a", 0, 500_000)
	}
	wantRows(t, s, table, 500_000)
	var parts uint64
	if err := scanOne(t.Context(), s, "SELECT count() FROM system.parts WHERE table = 'compressed'", &parts); err != nil || parts != 1 {
		t.Errorf("%d parts, %v", parts, err)
	}
}

// Times that the driver would change are refused.
func TestTimesBeyondRange(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	b, err := s.Batch(clickhouse.Table{Database: clickhouse.Features, Name: "times", Columns: []clickhouse.Column{{Name: "at", Type: "DateTime64(6, 'UTC')"}}}, "")
	if err != nil {
		t.Fatal(err)
	}
	late := time.Date(2299, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, err := range []error{b.Append(late), b.Append(&late), b.Column(0).AppendRow(late), b.Column(0).Append([]time.Time{late})} {
		if err == nil || !strings.Contains(err.Error(), "column at: time 2299-01-01") {
			t.Errorf("error %v", err)
		}
	}
	if b.Rows() != 0 {
		t.Errorf("%d rows were appended", b.Rows())
	}
}

// A token is inserted once. Batches without a token are all inserted, even if they are equal.
func TestTokens(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	table := numbers("tokens")
	table.PartitionBy = "n % 3" // each partition is a part of its own
	create(t, s, table)
	for range 3 {
		insert(t, s, table, "a", 0, 10)
		insert(t, s, table, "b", 10, 10)
	}
	wantRows(t, s, table, 20)
	if err := s.Exec(t.Context(), "OPTIMIZE TABLE "+table.FullName()+" FINAL"); err != nil {
		t.Fatal(err)
	}
	insert(t, s, table, "a", 0, 10)
	wantRows(t, s, table, 20)
	insert(t, s, table, "", 30, 5)
	insert(t, s, table, "", 30, 5)
	if count, _, _ := content(t, s, table); count != 30 {
		t.Errorf("%d rows after two equal batches without a token, want 30", count)
	}
}

// A token that is older than the window is forgotten.
func TestWindow(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	table := numbers("tokens_window")
	table.Window = 3
	create(t, s, table)
	for n := range uint64(5) {
		insert(t, s, table, fmt.Sprint(n), n, 1)
	}
	insert(t, s, table, "4", 4, 1) // in the window
	wantRows(t, s, table, 5)
	insert(t, s, table, "0", 0, 1) // no longer
	if count, _, _ := content(t, s, table); count != 6 {
		t.Errorf("%d rows, want 6", count)
	}
}

// Of concurrent batches with one token, one is inserted, and each sender sees it afterwards.
func TestConcurrentToken(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	table := create(t, s, numbers("concurrent"))
	var senders sync.WaitGroup
	for n := range uint64(16) {
		b := batchOf(t, s, table, "one", n*1000, 1000)
		senders.Go(func() {
			err := b.Send(t.Context())
			var count uint64
			if err = errors.Join(err, scanOne(t.Context(), s, "SELECT count() FROM "+table.FullName(), &count)); err != nil || count != 1000 {
				t.Errorf("a sender saw %d rows, %v", count, err)
			}
		})
	}
	senders.Wait()
	count, distinct, sum := content(t, s, table)
	first := (sum - 999*1000/2) / 1000 // the sum of a batch is 1000 times its first number, and 0+1+…+999
	if count != 1000 || distinct != 1000 || first%1000 != 0 {
		t.Errorf("%d rows, %d of them different, from %d: not exactly one batch", count, distinct, first)
	}
}

// Errors say whether a retry may help, and whether the tables are the reason.
func TestStoreErrors(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	table := create(t, s, numbers("errors"))
	missing := numbers("missing")
	other := table
	other.Columns = []clickhouse.Column{{Name: "n", Type: "UInt64"}, {Name: "more", Type: "String"}}
	changed := table
	changed.Columns = []clickhouse.Column{{Name: "n", Type: "Int32"}}
	unfit := func(t clickhouse.Table, values ...any) error {
		b, err := s.Batch(t, "")
		return errors.Join(err, b.Append(values...), b.Send(context.Background()))
	}
	ended, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for name, c := range map[string]struct {
		err               error
		schema, retryable bool
	}{
		"insert into a missing table":       {err: unfit(missing, uint64(1)), schema: true},
		"insert of a missing column":        {err: unfit(other, uint64(1), "x"), schema: true},
		"query of a missing table":          {err: s.Exec(t.Context(), "SELECT * FROM "+missing.FullName()), schema: true},
		"query of a missing column":         {err: s.Exec(t.Context(), "SELECT more FROM "+table.FullName()), schema: true},
		"table with another column":         {err: s.CreateTable(t.Context(), other), schema: true},
		"table with another type":           {err: s.CreateTable(t.Context(), changed), schema: true},
		"syntax":                            {err: s.Exec(t.Context(), "SELECT (")},
		"error in the middle of the answer": {err: s.Exec(t.Context(), "SELECT throwIf(number = 3000000) FROM numbers(10000000)")},
		"beyond the writer's rights":        {err: s.Exec(t.Context(), "CREATE DATABASE more")},
		"the deadline":                      {err: s.Exec(ended, endless), retryable: true},
	} {
		if c.err == nil || clickhouse.IsSchema(c.err) != c.schema || clickhouse.Retryable(c.err) != c.retryable {
			t.Errorf("%s: error %v, schema %v, retryable %v", name, c.err, clickhouse.IsSchema(c.err), clickhouse.Retryable(c.err))
		}
	}
	err := s.Exec(t.Context(), "SELECT throwIf(number = 3000000) FROM numbers(10000000)")
	if e := (*clickhouse.Error)(nil); !errors.As(err, &e) || e.Code != 395 || e.Name == "" || strings.Contains(e.Message, "__exception__") {
		t.Errorf("error in the middle of an answer: %v", err)
	}
}

// An answer may be closed before its end, and then costs nothing more.
func TestCloseRows(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	for range 2 * 16 { // more than the Store has connections
		rows, err := s.Query(t.Context(), "SELECT number FROM numbers(1000000000000)")
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Error(rows.Err())
		}
		if err := errors.Join(rows.Close(), rows.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Arguments are quoted.
func TestArguments(t *testing.T) {
	t.Parallel()
	s := clickhousetest.OpenStore(t)
	rapid.Check(t, func(rt *rapid.T) {
		want := rapid.String().Draw(rt, "text")
		rows, err := s.Query(t.Context(), "SELECT ?, 1", want)
		if err != nil {
			rt.Fatal(err)
		}
		var got string
		var one uint8
		if !rows.Next() {
			rt.Fatal(rows.Err())
		}
		if err := errors.Join(rows.Scan(&got, &one), rows.Close()); err != nil || got != want || one != 1 {
			rt.Fatalf("%q, %d, %v", got, one, err)
		}
	})
}
