package maintenance

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"pgregory.net/rapid"
)

// Keys sort like their values.
func TestKeyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		ints := rapid.SliceOfN(rapid.Int64(), 2, 20).Draw(rt, "ints")
		slices.SortFunc(ints, func(a, b int64) int { return bytes.Compare(appendInt(nil, a), appendInt(nil, b)) })
		if !slices.IsSorted(ints) {
			rt.Errorf("ints: %v", ints)
		}
		texts := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 5), 2, 20).Draw(rt, "texts")
		slices.SortFunc(texts, func(a, b []byte) int {
			return bytes.Compare(appendText(nil, append(a, 0)), appendText(nil, append(b, 0)))
		})
		if !slices.IsSortedFunc(texts, func(a, b []byte) int { return bytes.Compare(append(slices.Clone(a), 0), append(slices.Clone(b), 0)) }) {
			rt.Errorf("texts: %v", texts)
		}
	})
	floats := []float64{math.Inf(-1), -math.MaxFloat64, -1, -math.SmallestNonzeroFloat64, math.Copysign(0, -1), 0, 1e-300, 1, math.Inf(1), math.NaN()}
	for i := 1; i < len(floats); i++ {
		if bytes.Compare(appendFloat(nil, floats[i-1]), appendFloat(nil, floats[i])) >= 0 {
			t.Errorf("%v is not before %v", floats[i-1], floats[i])
		}
	}
}

// With any amount of memory, all rows come out in order.
func TestSortSpills(t *testing.T) {
	t.Parallel()
	schema := arrow.NewSchema([]arrow.Field{{Name: "k", Type: arrow.PrimitiveTypes.Int64, Nullable: true}, {Name: "s", Type: arrow.BinaryTypes.String}}, nil)
	keys := []keyField{{path: []int{0}, identity: true, nullsLast: true}, {path: []int{1}, identity: true, descending: true}}
	for _, budget := range []int64{1, 4 << 10, 64 << 10, 1 << 30} {
		t.Run(fmt.Sprint(budget), func(t *testing.T) {
			t.Parallel()
			spilled := 0
			s := newSorter(t.Context(), keys, schema, t.TempDir(), budget, func() error { spilled++; return nil })
			defer s.close()
			random := rand.New(rand.NewPCG(3, 4))
			var want []string
			for range 200 {
				b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
				for range 50 {
					k, text := random.Int64N(500)-250, fmt.Sprint(random.IntN(1000))
					if k%10 == 0 {
						b.Field(0).AppendNull()
						want = append(want, "null "+text)
					} else {
						b.Field(0).(*array.Int64Builder).Append(k)
						want = append(want, fmt.Sprint(k, " ", text))
					}
					b.Field(1).(*array.StringBuilder).Append(text)
				}
				rec := b.NewRecordBatch()
				if err := s.add(rec); err != nil {
					t.Fatal(err)
				}
				rec.Release()
				b.Release()
			}
			var have []string
			last := []byte{}
			err := s.sorted(func(rec arrow.RecordBatch) error {
				k := must(keysOf(keys, rec))
				for i := range k.len() {
					if bytes.Compare(last, k.at(i)) > 0 {
						t.Fatalf("row %d is out of order", len(have))
					}
					last = bytes.Clone(k.at(i))
					first := "null"
					if c := rec.Column(0).(*array.Int64); c.IsValid(i) {
						first = fmt.Sprint(c.Value(i))
					} else if len(have) < 7000 {
						t.Fatal("null sorts before other values")
					}
					have = append(have, first+" "+rec.Column(1).(*array.String).Value(i))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(have)
			slices.Sort(want)
			if !slices.Equal(have, want) {
				t.Errorf("%d rows came out of %d, or others", len(have), len(want))
			}
			if (spilled > 1) != (budget < 1<<20) {
				t.Errorf("%d files", spilled)
			}
		})
	}
}

// Columns of every type are preserved by a rewrite, also in files from before a column was added.
// Tables can be sorted by a nested column, through any transform.
func TestAnyColumns(t *testing.T) {
	t.Parallel()
	for name, transform := range map[string]iceberg.Transform{
		"identity": iceberg.IdentityTransform{}, "bucket": iceberg.BucketTransform{NumBuckets: 4}, "truncate": iceberg.TruncateTransform{Width: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := iceberg.NewSchema(0,
				iceberg.NestedField{ID: 1, Name: "id", Type: iceberg.PrimitiveTypes.Int32, Required: true},
				iceberg.NestedField{ID: 2, Name: "s", Type: &iceberg.StructType{FieldList: []iceberg.NestedField{
					{ID: 3, Name: "name", Type: iceberg.PrimitiveTypes.String},
					{ID: 4, Name: "price", Type: iceberg.DecimalTypeOf(38, 9)},
				}}},
				iceberg.NestedField{ID: 5, Name: "tags", Type: &iceberg.ListType{ElementID: 6, Element: iceberg.PrimitiveTypes.String}},
				iceberg.NestedField{ID: 7, Name: "m", Type: &iceberg.MapType{KeyID: 8, KeyType: iceberg.PrimitiveTypes.String, ValueID: 9, ValueType: iceberg.PrimitiveTypes.Int64}},
				iceberg.NestedField{ID: 10, Name: "b", Type: iceberg.PrimitiveTypes.Binary},
				iceberg.NestedField{ID: 11, Name: "f", Type: iceberg.FixedTypeOf(4)},
				iceberg.NestedField{ID: 12, Name: "d", Type: iceberg.PrimitiveTypes.Date},
				iceberg.NestedField{ID: 13, Name: "x", Type: iceberg.PrimitiveTypes.Float64},
				iceberg.NestedField{ID: 14, Name: "ok", Type: iceberg.PrimitiveTypes.Bool},
				iceberg.NestedField{ID: 15, Name: "u", Type: iceberg.PrimitiveTypes.UUID},
				iceberg.NestedField{ID: 16, Name: "all", Required: true, Type: &iceberg.MapType{ // nothing in it is null
					KeyID: 17, KeyType: iceberg.PrimitiveTypes.String, ValueID: 18, ValueRequired: true,
					ValueType: &iceberg.ListType{ElementID: 19, Element: iceberg.PrimitiveTypes.Int64, ElementRequired: true},
				}},
			)
			order := must(table.NewSortOrder(1, []table.SortField{{SourceIDs: []int{1}, Transform: iceberg.IdentityTransform{}, Direction: table.SortDESC, NullOrder: table.NullsLast}}))
			dir := t.TempDir()
			w := openWorld(t, dir, iceberg.Properties{"warehouse": "file://" + dir})
			ctx := context.Background()
			if err := w.cat.CreateNamespace(ctx, table.Identifier{"db"}, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := w.cat.CreateTable(ctx, w.ident, schema, catalog.WithSortOrder(order), catalog.WithProperties(iceberg.Properties{"format-version": "2"})); err != nil {
				t.Fatal(err)
			}
			land := func(id int) {
				tbl := w.table()
				arrowSchema := must(table.SchemaToArrowSchema(tbl.Schema(), nil, true, false))
				added := ""
				if _, ok := tbl.Schema().FindFieldByName("added"); ok {
					added = `,"added":"since then"`
				}
				s := fmt.Sprintf(`{"name":"name %d","price":"%d.5"}`, id%5, id)
				if id%4 == 0 {
					s = "null"
				}
				text := fmt.Sprintf(`[{"id":%d,"s":%s,"tags":["a","b%d"],"m":[{"key":"k","value":%d}],"b":"AAEC","f":"AAECAw==","d":"2026-01-02","x":1.5,"ok":true,"u":"00000000-0000-0000-0000-%012d","all":[{"key":"k","value":[1,%d]}]%s},{"id":%d,"all":[]}]`,
					id, s, id, id, id, id, added, id+100)
				rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, arrowSchema, strings.NewReader(text))
				if err != nil {
					t.Fatal(err)
				}
				tx := tbl.NewTransaction()
				var files []iceberg.DataFile
				for f, err := range table.WriteRecords(ctx, tbl, arrowSchema, func(yield func(arrow.RecordBatch, error) bool) { yield(rec, nil) }) {
					if err != nil {
						t.Fatal(err)
					}
					files = append(files, f)
				}
				if err := tx.AddDataFiles(ctx, files, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Commit(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for id := range 5 {
				land(id)
			}
			tx := w.table().NewTransaction()
			update := tx.UpdateSchema(true, false)
			update.AddColumn([]string{"added"}, iceberg.PrimitiveTypes.String, "", false, nil)
			if err := update.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := tx.ReplaceSortOrder(must(table.NewSortOrder(2, []table.SortField{{SourceIDs: []int{3}, Transform: transform, Direction: table.SortASC, NullOrder: table.NullsLast}}))); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			before := w.json()
			c := w.config()
			c.SmallFiles, c.sortBytes = 5, 1<<10
			report := w.mustRun(c)
			if report.Compacted.FilesAfter != 1 || len(report.Skipped) != 0 {
				t.Errorf("%+v", report)
			}
			if after := w.json(); !slices.Equal(before, after) {
				t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if n := len(before); n != 10 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

// json returns the rows of any table, sorted.
func (w *world) json() (rows []string) {
	w.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, records, err := w.table().Scan().ToArrowRecords(ctx)
	if err != nil {
		w.tb.Fatal(err)
	}
	for rec, err := range records {
		if err != nil {
			w.tb.Fatal(err)
		}
		for i := range rec.NumRows() {
			one := rec.NewSlice(i, i+1)
			rows = append(rows, string(must(one.MarshalJSON())))
			one.Release()
		}
		rec.Release()
	}
	slices.Sort(rows)
	return rows
}

// wide returns rows that do not compress well.
func wide(from, to int64, random *rand.Rand) []row {
	rows := make([]row, 0, to-from)
	for k := from; k < to; k++ {
		var b strings.Builder
		for range 32 {
			fmt.Fprintf(&b, "%016x", random.Uint64())
		}
		rows = append(rows, row{key: random.Int64(), value: b.String()})
	}
	return rows
}

// A compaction's memory is bounded independent of the table's size. The test is not parallel,
// because it measures the process.
func TestMemoryIsBounded(t *testing.T) { //nolint:paralleltest // see above
	w := newWorld(t, catalog.WithSortOrder(byKey))
	random := rand.New(rand.NewPCG(5, 6))
	const files, rows = 14, 16000 // 120 MB
	for i := range int64(files) {
		w.append(wide(i*rows, (i+1)*rows, random))
	}
	c := w.config()
	c.TargetBytes, c.Memory = 256<<20, minMemory
	// Garbage made during a collection counts until the next one. Small steps keep it small.
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	live := func() int64 {
		runtime.GC()
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before := live()
	var peak atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				peak.Store(max(peak.Load(), live()-before))
			}
		}
	}()
	did, err := Compact(t.Context(), w.load, c, nil)
	close(stop)
	<-stopped
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v; %d MB held at most", did, peak.Load()>>20)
	if did.Rows != files*rows || did.FilesAfter != 1 {
		t.Errorf("%v", did)
	}
	if held, allowed := peak.Load(), c.Memory*3/2; held > allowed || held < c.Memory/8 {
		t.Errorf("%d bytes are held of %d allowed", held, allowed)
	}
}

func BenchmarkCompact(b *testing.B) {
	for name, opts := range map[string][]catalog.CreateTableOpt{"sorted": {catalog.WithSortOrder(byKey)}, "unsorted": nil} {
		b.Run(name, func(b *testing.B) {
			var rows, before, after int64
			var took, cpu time.Duration
			for range b.N {
				b.StopTimer()
				w := newWorld(b, opts...)
				var chunks [][]row
				random := rand.New(rand.NewPCG(7, 8))
				for i := range int64(100) {
					chunk := sequenceOf(i*10000, (i+1)*10000)
					random.Shuffle(len(chunk), func(i, j int) { chunk[i], chunk[j] = chunk[j], chunk[i] })
					chunks = append(chunks, chunk)
				}
				w.append(chunks...)
				c := w.config()
				c.TargetBytes, c.Memory = 128<<20, 64<<20
				b.StartTimer()
				used := cpuTime()
				did, err := Compact(context.Background(), w.load, c, nil)
				if err != nil {
					b.Fatal(err)
				}
				cpu += cpuTime() - used
				rows, before, after, took = rows+did.Rows, before+did.BytesBefore, after+did.BytesAfter, took+did.Took
			}
			b.ReportMetric(float64(rows)/took.Seconds(), "rows/s")
			b.ReportMetric(float64(before)/took.Seconds()/1e6, "MB/s")
			b.ReportMetric(float64(cpu.Microseconds())/float64(rows), "cpu-us/row")
			b.ReportMetric(float64(after)/float64(before), "bytes-after/before")
		})
	}
}

// cpuTime returns the CPU time of this process.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
