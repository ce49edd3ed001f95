package landing

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/iceberg-go"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
	"github.com/millrace/millrace/test/servers/process"
)

// outsideTable is a table as an external reader sees it.
type outsideTable struct {
	Reader, Table, Metadata string
	Columns                 []string
	Rows                    [][]*string
	Error                   string
}

// PyIceberg and DuckDB find exactly what was put into the topics, without any of our code.
// PyIceberg reads State tables after their deletes have been compacted.
func TestOutsideReaders(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	onEach(t, func(t *testing.T, fresh func(testing.TB) lake.Config) {
		s := newShop(t)
		config := fresh(t)
		l := openLake(t, config)
		stop := start(t, l, s.runConfig())
		s.mustTrade(t, 600)
		s.landed(t, l)
		for name, field := range map[string]string{"orders_current": "status", "products_current": "title"} { // customers_current stays as it is
			spreadBy(t, l, name, field)
		}
		s.mustTrade(t, 400)
		s.landed(t, l)
		mustStop(t, stop)
		s.check(t, l)

		read := func(when string, names ...string) {
			seen := 0
			for _, have := range readOutside(t, interpreter, config, names) {
				seen++
				t.Run(when+"/"+have.Reader+"/"+have.Table, func(t *testing.T) {
					state := stateOf(t, l, have.Table)
					if have.Metadata != state.MetadataLocation {
						t.Errorf("it read %s, and the catalog has %s", have.Metadata, state.MetadataLocation)
					}
					deletes := when == "landed" && strings.HasSuffix(have.Table, "_current")
					if refused := have.Error != ""; refused != (deletes && have.Reader == "pyiceberg") || refused && !strings.Contains(have.Error, "equality deletes") {
						t.Fatalf("it says %q", have.Error)
					}
					switch {
					case have.Error != "":
					case have.Table == tables.OrderLines.Name:
						compareLines(t, s, have)
					case strings.HasSuffix(have.Table, "_events"):
						compareEvents(t, s, have)
					default:
						compareWithOurs(t, l, have)
					}
				})
			}
			if seen != 2*len(names) {
				t.Errorf("%d tables were read", seen)
			}
		}
		var all, states []string
		for _, decl := range tables.All() {
			all = append(all, decl.Name)
			if decl.Keyed() {
				states = append(states, decl.Name)
				if have, err := l.Load(t.Context(), decl.Identifier()); err != nil || len(deleteFiles(t, have)) == 0 {
					t.Errorf("%s has no deletes, %v", decl.Name, err)
				}
			}
		}
		read("landed", all...)
		for _, name := range states {
			if _, err := l.Maintain(t.Context(), declare.Identifier(name), maintenance.Config{DutyCycle: 1, DeleteShare: 1e-9}, nil); err != nil {
				t.Fatal(err)
			}
		}
		read("maintained", states...)
	})
}

// spreadBy partitions a table by a column whose values change, as a client would.
func spreadBy(t *testing.T, l *lake.Lake, name, column string) {
	t.Helper()
	eventually(t, func() error { // the lander commits, too
		have, err := l.Load(t.Context(), declare.Identifier(name))
		if err != nil {
			return err
		}
		tx := have.NewTransaction()
		if err := tx.UpdateSpec(true).AddField(column, iceberg.TruncateTransform{Width: 3}, "part").Commit(); err != nil {
			return err
		}
		_, err = tx.Commit(t.Context())
		return err
	})
}

// readOutside reads tables with PyIceberg and DuckDB.
func readOutside(t *testing.T, interpreter string, config lake.Config, names []string) (tables []outsideTable) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), interpreter, append([]string{"testdata/read_tables.py", alchemy(t, config.Catalog)}, names...)...)
	cmd.Env = os.Environ()
	if config.S3.Endpoint != "" {
		cmd.Env = append(cmd.Env, "S3_ENDPOINT="+config.S3.Endpoint, "S3_REGION="+config.S3.Region,
			"S3_ACCESS_KEY="+config.S3.AccessKey, "S3_SECRET_KEY="+config.S3.SecretKey)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, len(out)+1)
	for lines.Scan() {
		var have outsideTable
		if err := json.Unmarshal(lines.Bytes(), &have); err != nil {
			t.Fatalf("%v: %.200s", err, lines.Bytes())
		}
		tables = append(tables, have)
	}
	return tables
}

// compareWithOurs compares with our own reads, which the digests have compared with the events.
func compareWithOurs(t *testing.T, l *lake.Lake, o outsideTable) {
	o.checkColumns(t)
	place := func(row map[string]string) string { return row["partition"] + "/" + row["offset"] }
	have, want := map[string]map[string]string{}, map[string]map[string]string{}
	for _, row := range o.Rows {
		h := map[string]string{}
		for column, v := range o.named(row) {
			if v != nil {
				h[column] = *v
			}
		}
		have[place(h)] = h
	}
	if len(have) != len(o.Rows) {
		t.Errorf("%d rows from %d places", len(o.Rows), len(have))
	}
	err := l.Scan(t.Context(), declare.Identifier(o.Table), func(rec arrow.RecordBatch) error {
		for i := range int(rec.NumRows()) {
			w := map[string]string{}
			for at, field := range rec.Schema().Fields() {
				if c := rec.Column(at); !c.IsNull(i) {
					w[field.Name] = cellText(t, c, i)
				}
			}
			want[place(w)] = w
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	compareRows(t, have, want)
}

// cellText formats a value like read_tables.py.
func cellText(t *testing.T, c arrow.Array, i int) string {
	t.Helper()
	switch c := c.(type) {
	case *array.Timestamp:
		return strconv.FormatInt(int64(c.Value(i)), 10)
	case *array.Decimal128:
		return new(big.Rat).SetFrac(c.Value(i).BigInt(), big.NewInt(1_000_000_000)).FloatString(9)
	case *array.Map:
		pairs := [][]string{}
		from, to := c.ValueOffsets(i)
		for at := from; at < to; at++ {
			pairs = append(pairs, []string{cellText(t, c.Keys(), int(at)), cellText(t, c.Items(), int(at))})
		}
		return asJSON(t, pairs)
	case *array.List:
		elements := []string{}
		from, to := c.ValueOffsets(i)
		for at := from; at < to; at++ {
			elements = append(elements, cellText(t, c.ListValues(), int(at)))
		}
		return asJSON(t, elements)
	}
	return c.ValueStr(i)
}

// alchemy returns the catalog's address in the form of Python's SQLAlchemy.
func alchemy(t *testing.T, catalog string) string {
	t.Helper()
	if !strings.HasPrefix(catalog, "postgres://") {
		return "sqlite:///" + catalog
	}
	u, err := url.Parse(catalog)
	if err != nil {
		t.Fatal(err)
	}
	params := u.Query()
	user, database := params.Get("user"), params.Get("dbname")
	params.Set("options", "-csearch_path="+params.Get("search_path"))
	for _, of := range []string{"user", "dbname", "search_path"} {
		params.Del(of)
	}
	return "postgresql+psycopg2://" + user + "@/" + database + "?" + params.Encode()
}

// named returns a row's values by column; nil for null.
func (o outsideTable) named(row []*string) map[string]*string {
	m := map[string]*string{}
	for i, c := range o.Columns {
		m[c] = row[i]
	}
	return m
}

func (o outsideTable) checkColumns(t *testing.T) declare.Table {
	t.Helper()
	at := slices.IndexFunc(tables.All(), func(t declare.Table) bool { return t.Name == o.Table })
	if at < 0 {
		t.Fatalf("table %s does not exist", o.Table)
	}
	decl := tables.All()[at]
	var want []string
	for _, c := range decl.AllColumns() {
		want = append(want, c.Name)
	}
	if !slices.Equal(o.Columns, want) {
		t.Fatalf("columns %v, want %v", o.Columns, want)
	}
	return decl
}

func micros(e interface{ UnixMicro() int64 }) string { return strconv.FormatInt(e.UnixMicro(), 10) }

// compareRows compares rows by their keys, and reports the first that differ.
func compareRows(t *testing.T, have, want map[string]map[string]string) {
	t.Helper()
	if len(have) != len(want) {
		t.Errorf("%d rows, want %d", len(have), len(want))
	}
	for key, w := range want {
		if h := have[key]; !maps.Equal(h, w) {
			t.Fatalf("row %s\nhas  %q\nwant %q", key, h, w)
		}
	}
}

func compareEvents(t *testing.T, s *shop, o outsideTable) {
	decl := o.checkColumns(t)
	want := map[string]map[string]string{}
	for _, e := range s.events[decl.Events] {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(decl.Events.Message))
		if err != nil {
			t.Fatal(err)
		}
		m := kind.New().Interface()
		if err := proto.Unmarshal(e.Data, m); err != nil {
			t.Fatal(err)
		}
		w := map[string]string{
			"event_id": e.ID.String(), "aggregate_id": e.Stream, "version": fmt.Sprint(e.Version), "type": e.Type,
			"occurred_at": micros(e.OccurredAt), "recorded_at": micros(e.RecordedAt), "store_position": e.Position.String(),
			"payload": hex.EncodeToString(e.Data), "topic": decl.Topic, "partition": fmt.Sprint(partitionOf(e.Stream)),
		}
		for column, v := range map[string]string{"correlation_id": e.CorrelationID, "causation_id": e.CausationID, "trace_parent": e.TraceParent} {
			if v != "" {
				w[column] = v
			}
		}
		for column, v := range nested(m.ProtoReflect()) {
			if v != nil {
				w[column] = asJSON(t, v)
			}
		}
		want[e.ID.String()] = w
	}
	have := map[string]map[string]string{}
	places := map[string]bool{}
	for _, row := range o.Rows {
		h := map[string]string{}
		for column, v := range o.named(row) {
			if v != nil {
				h[column] = *v
			}
		}
		id := h["event_id"]
		places[h["partition"]+"/"+h["offset"]] = true
		delete(h, "offset")
		have[id] = h
	}
	if len(places) != len(o.Rows) {
		t.Errorf("%d rows from %d places", len(o.Rows), len(places))
	}
	compareRows(t, have, want)
}

// nested returns a message like its columns: numbers and times as text, absent values as nil.
func nested(m protoreflect.Message) map[string]any {
	fields := map[string]any{}
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		name := string(fd.Name())
		switch {
		case fd.IsList():
			all := []any{}
			for n := range m.Get(fd).List().Len() {
				all = append(all, value(fd, m.Get(fd).List().Get(n)))
			}
			fields[name] = all
		case fd.HasPresence() && !m.Has(fd):
			fields[name] = nil
		default:
			fields[name] = value(fd, m.Get(fd))
		}
		if fd.Message() != nil && fd.Message().FullName() == "google.type.Money" {
			fields[name+"_currency"] = nil
			if m.Has(fd) {
				fields[name+"_currency"] = m.Get(fd).Message().Interface().(*money.Money).GetCurrencyCode()
			}
		}
	}
	return fields
}

func value(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	if fd.Enum() != nil {
		return string(fd.Enum().Values().ByNumber(v.Enum()).Name())
	}
	if fd.Message() == nil {
		return v.String()
	}
	switch m := v.Message().Interface().(type) {
	case *timestamppb.Timestamp:
		return micros(m.AsTime())
	case *money.Money:
		return new(big.Rat).SetFrac(new(big.Int).Add(new(big.Int).Mul(big.NewInt(m.GetUnits()), big.NewInt(1_000_000_000)),
			big.NewInt(int64(m.GetNanos()))), big.NewInt(1_000_000_000)).FloatString(9)
	}
	return nested(v.Message())
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

func compareLines(t *testing.T, s *shop, o outsideTable) {
	o.checkColumns(t)
	want := map[string]map[string]string{}
	wantTotal, haveTotal := new(big.Rat), new(big.Rat)
	for _, e := range s.events[event.Order] {
		var m orderv1.OrderEvent
		if err := proto.Unmarshal(e.Data, &m); err != nil {
			t.Fatal(err)
		}
		var lines []*orderv1.OrderLine
		var customer *string
		shared := map[string]string{"recorded_at": micros(e.RecordedAt), "topic": event.Order.Topic, "partition": fmt.Sprint(partitionOf(e.Stream)), "order_id": e.Stream}
		switch {
		case m.GetPlaced() != nil:
			p := m.GetPlaced()
			lines, customer = p.GetLines(), p.CustomerId
			shared["currency"], shared["country"], shared["ordered_at"] = p.GetCurrency(), p.GetCountry(), micros(p.GetOrderedAt().AsTime())
		case m.GetLinesAdded() != nil:
			p := m.GetLinesAdded()
			lines, customer = p.GetLines(), p.CustomerId
			shared["currency"], shared["country"], shared["ordered_at"] = p.GetCurrency(), p.GetCountry(), micros(p.GetOrderedAt().AsTime())
		}
		if customer != nil {
			shared["customer_id"] = *customer
		}
		for _, l := range lines {
			w := maps.Clone(shared)
			w["line"], w["sku"], w["description"] = fmt.Sprint(l.GetNumber()), l.GetSku(), l.GetDescription()
			w["quantity"], w["unit_price"] = fmt.Sprint(l.GetQuantity()), moneyText(l.GetUnitPrice())
			want[w["order_id"]+"#"+w["line"]] = w
			addTo(t, wantTotal, w)
		}
	}
	have := map[string]map[string]string{}
	for _, row := range o.Rows {
		h := map[string]string{}
		for column, v := range o.named(row) {
			if v != nil && column != "offset" {
				h[column] = *v
			}
		}
		have[h["order_id"]+"#"+h["line"]] = h
		addTo(t, haveTotal, h)
	}
	if len(have) != len(o.Rows) {
		t.Errorf("%d rows of %d lines", len(o.Rows), len(have))
	}
	if haveTotal.Cmp(wantTotal) != 0 {
		t.Errorf("lines worth %s, want %s", haveTotal.FloatString(9), wantTotal.FloatString(9))
	}
	compareRows(t, have, want)
}

// moneyText formats money with nine decimal places.
func moneyText(m *money.Money) string {
	r := new(big.Rat).SetFrac(big.NewInt(int64(m.GetNanos())), big.NewInt(1e9))
	return r.Add(r, new(big.Rat).SetInt64(m.GetUnits())).FloatString(9)
}

// addTo adds the value of a line.
func addTo(t *testing.T, total *big.Rat, row map[string]string) {
	t.Helper()
	quantity, ok1 := new(big.Rat).SetString(row["quantity"])
	price, ok2 := new(big.Rat).SetString(row["unit_price"])
	if !ok1 || !ok2 {
		t.Fatal(errors.New("not numbers: " + strings.Join([]string{row["quantity"], row["unit_price"]}, ", ")))
	}
	total.Add(total, quantity.Mul(quantity, price))
}
