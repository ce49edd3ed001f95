package feast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/features/training"
	"github.com/millrace/millrace/internal/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is the time of which all other times are told.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// groups are groups of two entities. Two of them have a feature of the same name.
func groups() []*features.Group {
	project := func(event.Event) ([]features.Fact, error) { return nil, nil }
	orders := features.Source{Name: "orders", Topic: event.Order.Topic, Project: project, Columns: []features.Column{
		{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text}}}
	week, hour := []features.Window{features.Week}, []features.Window{features.Hour}
	return []*features.Group{
		{
			Name: "activity", Version: 2, Entity: "customer_id", Description: "What customers do", Owner: "o",
			Sources: []features.Source{orders},
			Features: []features.Feature{
				{Name: "orders", Source: "orders", Aggregate: exact.Count, Windows: []features.Window{features.Week, features.Hour}},
				{Name: "mean", Source: "orders", Aggregate: exact.Mean, Column: "total", Windows: hour},
				{Name: "country", Source: "orders", Aggregate: exact.Last, Column: "country", Windows: []features.Window{features.Lifetime}},
				{Name: "countries", Source: "orders", Aggregate: exact.Top, Column: "country", K: 2, Windows: week},
			},
		},
		{
			Name: "value", Version: 1, Entity: "customer_id", Description: "What customers spend", Owner: "o",
			Sources:  []features.Source{orders},
			Features: []features.Feature{{Name: "orders", Source: "orders", Aggregate: exact.Sum, Column: "total", Windows: week}},
		},
		{
			Name: "stock", Version: 1, Entity: "sku", Description: "What is sold", Owner: "o",
			Sources: []features.Source{{Name: "changes", Topic: event.Stock.Topic, Project: project,
				Columns: []features.Column{{Name: "quantity", Kind: exact.Number}}}},
			Features: []features.Feature{
				{Name: "sold", Source: "changes", Aggregate: exact.Sum, Column: "quantity", Windows: week}},
		},
	}
}

// facts are facts of customers c0 to c4 and products 0 to 4: some are known late, corrected or
// retracted later.
func facts() training.Slice {
	s := training.Slice{}
	for i := range 200 {
		at := noon.Add(-time.Duration(i*i%173) * time.Hour)
		f := features.Fact{Entity: fmt.Sprintf("c%d", i%5), Key: fmt.Sprint(i % 90), At: at, Known: at.Add(time.Second),
			Origin: features.Origin{Topic: event.Order.Topic, Offset: int64(i)},
			Values: []exact.Value{exact.IntValue(exact.FromMoney(int64(i), 250_000_000)), exact.TextValue(fmt.Sprint("T", i%3))}}
		if i >= 90 { // the next version of the same fact
			f.Entity, f.At = s["orders"][i%90].Entity, s["orders"][i%90].At
			f.Known, f.Retracted = f.At.Add(time.Duration(i)*time.Hour), i%7 == 0
		}
		s["orders"] = append(s["orders"], f)
		s["changes"] = append(s["changes"], features.Fact{Entity: fmt.Sprint(i % 5), Key: fmt.Sprint(i), At: at, Known: at,
			Origin: features.Origin{Topic: event.Stock.Topic, Offset: int64(i)},
			Values: []exact.Value{exact.IntValue(exact.FromInt64(int64(-i)))}})
	}
	return s
}

// refusing is a customer who refuses that features are used.
const refusing = "c3"

// config is the configuration of the tests' server.
func config(t testing.TB) Config {
	return Config{
		Groups: groups(), TempDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
		Facts: func(ctx context.Context, sources []*features.Source) (training.Facts, training.Positions, error) {
			s := facts()
			p, err := s.Positions(ctx, sources)
			return s, p, err
		},
		Refuses: func(entity string, ids ...string) bool {
			return entity == "customer_id" && slices.Contains(ids, refusing)
		},
		Admit: func(context.Context, string) (func(), error) { return func() {}, nil },
	}
}

// serve serves an offline store.
func serve(t *testing.T, c Config) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NewServeMux())
	s.Config.Handler.(*http.ServeMux).Handle(Handler(c))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// client serves an offline store and returns a client of it.
func client(t *testing.T, c Config) flight.Client {
	t.Helper()
	s := serve(t, c)
	f, err := flight.NewClientWithMiddleware(s.Listener.Addr().String(), nil, nil,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// row is a row of a table of entities.
type row struct {
	customer, sku string
	at            time.Time
	known         time.Time // zero: none
}

// table returns rows as pandas sends them, in batches of some rows.
func table(rows []row, batch int) []arrow.RecordBatch {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "label", Type: arrow.PrimitiveTypes.Float64}, {Name: "customer_id", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "sku", Type: arrow.PrimitiveTypes.Int64}, {Name: "event_timestamp", Type: arrow.FixedWidthTypes.Timestamp_ns},
		{Name: "as_known_at", Type: &arrow.TimestampType{Unit: arrow.Microsecond}, Nullable: true},
		{Name: "__index_level_0__", Type: arrow.PrimitiveTypes.Int64},
	}, nil)
	var all []arrow.RecordBatch
	for from := 0; from == 0 || from < len(rows); from += batch {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for i, r := range rows[from:min(from+batch, len(rows))] {
			b.Field(0).(*array.Float64Builder).Append(float64(from + i))
			b.Field(1).(*array.StringBuilder).Append(r.customer)
			b.Field(2).(*array.Int64Builder).Append(int64(r.sku[0] - '0'))
			b.Field(3).(*array.TimestampBuilder).Append(arrow.Timestamp(r.at.UnixNano()))
			if r.known.IsZero() {
				b.Field(4).AppendNull()
			} else {
				b.Field(4).(*array.TimestampBuilder).Append(arrow.Timestamp(r.known.UnixMicro()))
			}
			b.Field(5).(*array.Int64Builder).Append(int64(i))
		}
		all = append(all, b.NewRecordBatch())
	}
	return all
}

// ask is a command of get_historical_features.
func ask(full bool, features ...string) map[string]any {
	return map[string]any{"command_id": "1", "api": "get_historical_features", "project": "p", "feature_refs": features,
		"feature_view_names": []string{"activity", "value", "stock"}, "name_aliases": []any{nil, "worth", nil},
		"full_feature_names": full}
}

// exchange sends a command and a table, and returns the answer.
func exchange(t *testing.T, f flight.Client, command any, table []arrow.RecordBatch) ([]arrow.RecordBatch, error) {
	t.Helper()
	both, err := f.DoExchange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	w := flight.NewRecordWriter(both, ipc.WithSchema(table[0].Schema()))
	w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: cmd})
	for _, batch := range table {
		if err := w.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), both.CloseSend()); err != nil {
		t.Fatal(err)
	}
	r, err := flight.NewRecordReader(both)
	if err != nil {
		return nil, err
	}
	defer r.Release()
	answer := []arrow.RecordBatch{array.NewRecordBatch(r.Schema(), emptyColumns(r.Schema()), 0)}
	for r.Next() {
		batch := r.RecordBatch()
		batch.Retain()
		answer = append(answer, batch)
	}
	return answer, r.Err()
}

func emptyColumns(s *arrow.Schema) (all []arrow.Array) {
	for _, f := range s.Fields() {
		all = append(all, array.MakeArrayOfNull(memory.DefaultAllocator, f.Type, 0))
	}
	return all
}

// values returns the answer's rows by column, as texts, and the names of the columns.
func values(answer []arrow.RecordBatch) (names []string, rows []map[string]string) {
	for _, f := range answer[0].Schema().Fields() {
		names = append(names, f.Name)
	}
	for _, batch := range answer {
		for i := range int(batch.NumRows()) {
			r := map[string]string{}
			for c, name := range names {
				r[name] = batch.Column(c).ValueStr(i)
			}
			rows = append(rows, r)
		}
	}
	return names, rows
}

// shown is how values shows a result.
func shown(r exact.Result) string {
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{
		{Name: "f", Type: arrow.PrimitiveTypes.Float64}, {Name: "l", Type: arrow.ListOf(arrow.BinaryTypes.String)}}, nil))
	switch r.Kind {
	case exact.IntResult:
		return fmt.Sprint(r.Int)
	case exact.FloatResult:
		b.Field(0).(*array.Float64Builder).Append(r.Float)
		return b.Field(0).NewArray().ValueStr(0)
	case exact.TextResult:
		return r.Text
	case exact.TextsResult:
		list := b.Field(1).(*array.ListBuilder)
		list.Append(true)
		for _, text := range r.Texts {
			list.ValueBuilder().(*array.StringBuilder).Append(text)
		}
		return list.NewArray().ValueStr(0)
	}
	return array.NullValueStr
}

// TestHistoricalFeatures: every value is that of features.Evaluate, in the order of the rows, whatever
// batches they come in, and the columns of the table are as they were. Rows of a customer who refuses
// are those of one without facts.
func TestHistoricalFeatures(t *testing.T) {
	t.Parallel()
	var rows []row
	for i := range 2*pieceRows + 100 {
		r := row{customer: fmt.Sprintf("c%d", i%6), sku: fmt.Sprint(i % 7),
			at: noon.Add(-time.Duration(i%997) * 13 * time.Minute).Add(time.Duration(i % 999))}
		if i%3 == 0 {
			r.known = r.at.Add(time.Duration(i%50) * 10 * time.Hour)
		}
		rows = append(rows, r)
	}
	f := client(t, config(t))
	answer, err := exchange(t, f, ask(true, "stock:sold_7d", "activity:mean_1h", "worth:orders_7d", "activity:orders_7d",
		"activity:country_lifetime", "activity:countries_7d"), table(rows, 5001))
	if err != nil {
		t.Fatal(err)
	}
	names, got := values(answer)
	want := "label customer_id sku event_timestamp as_known_at stock__sold_7d activity__mean_1h worth__orders_7d " +
		"activity__orders_7d activity__country_lifetime activity__countries_7d"
	if strings.Join(names, " ") != want {
		t.Errorf("columns %v, want %s", names, want)
	}
	if len(got) != len(rows) {
		t.Fatalf("%d rows, want %d", len(got), len(rows))
	}
	all, wrong := facts(), 0
	for i, r := range rows {
		at := r.at.Truncate(time.Microsecond)
		known := r.known
		if known.IsZero() {
			known = at
		}
		want := map[string]string{"label": fmt.Sprint(i), "customer_id": r.customer, "sku": r.sku}
		for _, g := range groups() {
			entity, view := r.customer, g.Name
			switch g.Name {
			case "stock":
				entity = r.sku
			case "value":
				view = "worth"
			}
			if g.Entity == "customer_id" && entity == refusing {
				entity = "nobody"
			}
			v := features.Evaluate(g, all, entity, at, known)
			for j, o := range g.Outputs() {
				want[view+"__"+o.Name] = shown(v.Values[j])
			}
		}
		for _, name := range names {
			if w, ok := want[name]; ok && got[i][name] != w {
				if wrong++; wrong < 10 {
					t.Errorf("row %d (%+v): %s is %s, want %s", i, r, name, got[i][name], w)
				}
			}
		}
	}
}

// TestNoRows: a table without rows has an answer without rows, with all columns.
func TestNoRows(t *testing.T) {
	t.Parallel()
	answer, err := exchange(t, client(t, config(t)), ask(false, "activity:orders_7d"), table(nil, 1))
	if err != nil {
		t.Fatal(err)
	}
	names, rows := values(answer)
	if len(rows) != 0 || names[len(names)-1] != "orders_7d" {
		t.Errorf("%d rows of %v", len(rows), names)
	}
}

// renamed returns a table with another name, or without a column if the name is empty.
func renamed(from []arrow.RecordBatch, names map[string]string) (to []arrow.RecordBatch) {
	for _, batch := range from {
		var fields []arrow.Field
		var columns []arrow.Array
		for i, f := range batch.Schema().Fields() {
			if name, ok := names[f.Name]; ok {
				f.Name = name
			}
			if f.Name != "" {
				fields, columns = append(fields, f), append(columns, batch.Column(i))
			}
		}
		to = append(to, array.NewRecordBatch(arrow.NewSchema(fields, nil), columns, batch.NumRows()))
	}
	return to
}

// TestOtherColumns: the only column of timestamps is that of the event times, and without as_known_at
// a row knows what was known at its time.
func TestOtherColumns(t *testing.T) {
	t.Parallel()
	rows := []row{{customer: "c1", sku: "1", at: noon}, {customer: "nobody", sku: "1", at: noon.Add(-50 * time.Hour)}}
	answer, err := exchange(t, client(t, config(t)), ask(false, "activity:orders_7d"),
		renamed(table(rows, 9), map[string]string{"event_timestamp": "ordered_at", "as_known_at": ""}))
	if err != nil {
		t.Fatal(err)
	}
	_, got := values(answer)
	for i, r := range rows {
		want := shown(features.Evaluate(groups()[0], facts(), r.customer, r.at, r.at).Values[0])
		if got[i]["orders_7d"] != want {
			t.Errorf("row %d: %v, want %s", i, got[i], want)
		}
	}
}

// TestErrors: mistakes have the form that Feast's client turns into its own errors.
func TestErrors(t *testing.T) {
	t.Parallel()
	good := table([]row{{customer: "c1", sku: "1", at: noon}}, 1)
	command := func(change map[string]any) map[string]any {
		c := ask(false, "activity:orders_7d")
		for k, v := range change {
			c[k] = v
		}
		return c
	}
	for name, c := range map[string]struct {
		command any
		table   []arrow.RecordBatch
		code    codes.Code
		class   string
		message string
	}{
		"another api":      {command(map[string]any{"api": "pull_latest_from_table_or_query"}), good, codes.Unimplemented, classAny, "is not served"},
		"a query":          {command(map[string]any{"entity_df_sql": "SELECT 1"}), good, codes.InvalidArgument, classAny, "DataFrame"},
		"no features":      {command(map[string]any{"feature_refs": nil}), good, codes.InvalidArgument, classAny, "features: want"},
		"no command":       {[]int{1}, good, codes.InvalidArgument, classAny, "not one of Feast's client"},
		"too many aliases": {command(map[string]any{"name_aliases": make([]*string, 9)}), good, codes.InvalidArgument, classAny, "name_aliases"},
		"no colon":         {ask(false, "orders_7d"), good, codes.InvalidArgument, classAny, "VIEW:FEATURE"},
		"no such view":     {ask(false, "nothing:orders_7d"), good, codes.NotFound, classView, "Feature view nothing does not exist"},
		"no such feature":  {ask(false, "activity:orders_8d"), good, codes.NotFound, classNotFound, "orders_8d"},
		"the same twice":   {ask(false, "activity:orders_7d", "worth:orders_7d"), good, codes.InvalidArgument, classCollision, "full_feature_names"},
		"no entities":      {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"label": "", "customer_id": "key", "sku": "", "event_timestamp": "", "as_known_at": ""}), codes.InvalidArgument, classAny, "entity_df is missing"},
		"no key":           {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"customer_id": "c"}), codes.InvalidArgument, classAny, "no column customer_id"},
		"no time":          {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"event_timestamp": ""}), codes.InvalidArgument, classAny, "no column event_timestamp"},
		"several times":    {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"event_timestamp": "a", "as_known_at": "b"}), codes.InvalidArgument, classAny, "a, b"},
		"a time of texts":  {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"event_timestamp": "at", "customer_id": "event_timestamp"}), codes.InvalidArgument, classAny, "pandas.to_datetime"},
		"a key of numbers": {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"customer_id": "c", "label": "customer_id"}), codes.InvalidArgument, classAny, "customer_id: keys have the type float64"},
		"a long key":       {ask(false, "activity:orders_7d"), table([]row{{customer: "c1", sku: "1", at: noon}, {customer: strings.Repeat("c", 257), sku: "1", at: noon}}, 2), codes.InvalidArgument, classAny, "customer_id: a key has 257 bytes"},
		"a feature's name": {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"label": "orders_7d"}), codes.InvalidArgument, classAny, "also the name of a feature"},
		"columns twice":    {ask(false, "activity:orders_7d"), renamed(good, map[string]string{"label": "sku"}), codes.InvalidArgument, classAny, "two columns sku"},
		"a time too early": {ask(false, "activity:orders_7d"), table([]row{{customer: "c1", sku: "1", at: noon}, {customer: "c1", sku: "1", at: noon, known: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)}}, 1), codes.InvalidArgument, classAny, "entity_df: row 1: column as_known_at"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := exchange(t, client(t, config(t)), c.command, c.table)
			checkError(t, err, c.code, c.class, c.message)
		})
	}
}

// TestSharedKeys: rows that share a long text cost no more than the text.
func TestSharedKeys(t *testing.T) {
	const rows, size = pieceRows, 1 << 20
	names := array.NewStringBuilder(memory.DefaultAllocator)
	names.Append(strings.Repeat("c", size))
	texts := names.NewStringArray()
	indices := array.NewInt8Builder(memory.DefaultAllocator)
	stamps := array.NewTimestampBuilder(memory.DefaultAllocator, &arrow.TimestampType{Unit: arrow.Microsecond})
	for range rows {
		indices.Append(0)
		stamps.Append(arrow.Timestamp(noon.UnixMicro()))
	}
	kind := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	schema := arrow.NewSchema([]arrow.Field{{Name: "customer_id", Type: kind}, {Name: "event_timestamp", Type: stamps.Type()}}, nil)
	batch := array.NewRecordBatch(schema, []arrow.Array{
		array.NewDictionaryArray(kind, indices.NewArray(), texts), stamps.NewArray()}, rows)
	var before, after runtime.MemStats
	c := client(t, config(t))
	runtime.ReadMemStats(&before)
	_, err := exchange(t, c, ask(false, "activity:orders_7d"), []arrow.RecordBatch{batch})
	runtime.ReadMemStats(&after)
	checkError(t, err, codes.InvalidArgument, classAny, "customer_id: a key has 1048576 bytes")
	if n := after.TotalAlloc - before.TotalAlloc; n > 100*size {
		t.Errorf("%d rows with one text of %d bytes took %d bytes", rows, size, n)
	}
}

// checkError checks an error as Feast's client reads it.
func checkError(t *testing.T, err error, code codes.Code, class, message string) {
	t.Helper()
	s, _ := status.FromError(err)
	detail, ok := strings.CutPrefix(s.Message(), "Flight error: ")
	var told struct{ Module, Class, Message string }
	if failed := json.Unmarshal([]byte(detail), &told); !ok || failed != nil || told.Module != "feast.errors" {
		t.Fatalf("error %v (%v) has not the form of Feast", err, failed)
	}
	if s.Code() != code || told.Class != class || !strings.Contains(told.Message, message) {
		t.Errorf("error %v: %+v, want %v %s with %q", s.Code(), told, code, class, message)
	}
}

// TestServerErrors: faults of the server are told apart, and nothing internal is told.
func TestServerErrors(t *testing.T) {
	t.Parallel()
	good := table([]row{{customer: "c1", sku: "1", at: noon}}, 1)
	for name, c := range map[string]struct {
		facts, admit error
		code         codes.Code
		message      string
	}{
		"load":     {nil, server.ErrOverloaded, codes.ResourceExhausted, "overloaded"},
		"behind":   {fmt.Errorf("secret: %w", ErrBehind), nil, codes.Unavailable, "the facts have not caught up with the log; try again later"},
		"internal": {io.ErrShortBuffer, nil, codes.Internal, "internal error; the server's log has the reason"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with := config(t)
			if c.facts != nil {
				with.Facts = func(context.Context, []*features.Source) (training.Facts, training.Positions, error) {
					return nil, nil, c.facts
				}
			}
			if c.admit != nil {
				with.Admit = func(context.Context, string) (func(), error) { return nil, c.admit }
			}
			_, err := exchange(t, client(t, with), ask(false, "activity:orders_7d"), good)
			checkError(t, err, c.code, classAny, c.message)
		})
	}
}

// TestOtherMethods: what is not served is told in the same form.
func TestOtherMethods(t *testing.T) {
	t.Parallel()
	f := client(t, config(t))
	_, err := f.GetFlightInfo(t.Context(), &flight.FlightDescriptor{Type: flight.DescriptorCMD, Cmd: []byte("{}")})
	checkError(t, err, codes.Unimplemented, classAny, "GetFlightInfo is not served")
	put, err := f.DoPut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put.Send(&flight.FlightData{}), put.CloseSend()); err != nil {
		t.Fatal(err)
	}
	_, err = put.Recv()
	checkError(t, err, codes.Unimplemented, classAny, "writing is not served")
}
