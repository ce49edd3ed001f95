package training

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/exact"
	"github.com/millrace/millrace/internal/clickhouse"
	"github.com/millrace/millrace/internal/clickhouse/clickhousetest"
)

// benchFacts is the number of facts of the benchmark, of which there is a row of the spine for every
// twentieth. MILLRACE_TRAINING_FACTS replaces it; docs/training-sets.md has the figures.
func benchFacts(b *testing.B) int {
	text := os.Getenv("MILLRACE_TRAINING_FACTS")
	if text == "" {
		return 200_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1000 {
		b.Fatalf("MILLRACE_TRAINING_FACTS is %q, want a number of at least 1000", text)
	}
	return n
}

// benchGroup is a group of the benchmark's source.
func benchGroup(features_ ...features.Feature) *features.Group {
	return &features.Group{Name: "bench", Version: 1, Entity: "customer_id", Description: "d", Owner: "o", Features: features_,
		Sources: []features.Source{{Name: "bench", Topic: "bench", Project: project, Columns: []features.Column{
			{Name: "total", Kind: exact.Number, Scale: 9}, {Name: "country", Kind: exact.Text}}}}}
}

// BenchmarkBuild: training sets next to a bare ASOF JOIN of the same tables on the same engine, whose
// result nobody reads. The join returns one column and knows neither corrections nor known times.
func BenchmarkBuild(b *testing.B) {
	facts := benchFacts(b)
	rows := facts / 20
	s := clickhousetest.OpenStore(b)
	l := testLayout{suffix: fmt.Sprint("_bench", facts)}
	last := features.Feature{Name: "last", Source: "bench", Aggregate: exact.Last, Column: "total",
		Windows: []features.Window{features.Lifetime}}
	windows := []features.Window{features.Day, features.Month, features.Lifetime}
	var twelve []features.Feature
	for _, a := range []exact.Aggregate{exact.Sum, exact.Mean, exact.Max} {
		twelve = append(twelve, features.Feature{Name: a.String(), Source: "bench", Aggregate: a, Column: "total", Windows: windows})
	}
	twelve = append(twelve, features.Feature{Name: "n", Source: "bench", Aggregate: exact.Count, Windows: windows,
		Where: []features.Condition{{Column: "country", Op: features.Equal, Value: exact.TextValue("GB")}}})
	source := benchGroup(last).Sources[0]
	prepare(b, s, l.table(&source), facts, rows)

	b.Run("asof join", func(b *testing.B) {
		client := clickhousetest.Shared(b).Client()
		query := fmt.Sprintf("SELECT s.customer_id, s.event_time, f.total FROM %s AS s ASOF LEFT JOIN %s AS f "+
			"ON s.customer_id = f.entity AND s.event_time >= f.at", clickhouse.Features+".spine"+l.suffix, l.table(&source).FullName())
		used := cpuTime(b)
		for b.Loop() {
			if err := client.Exec(b.Context(), query, nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((cpuTime(b)-used).Seconds()/float64(b.N), "cpu-s/op")
	})
	spine := benchSpine(b, rows)
	for name, group := range map[string]*features.Group{"1 feature": benchGroup(last), "12 features": benchGroup(twelve...)} {
		b.Run(name, func(b *testing.B) {
			l.facts = Slice{"bench": []features.Fact{{Origin: features.Origin{Offset: int64(2 * facts)}}}}
			c := testConfig(b, spine, &ClickHouse{Store: s, Layout: l})
			c.Groups, c.Workers, c.Memory = []*features.Group{group}, 0, 0
			used := cpuTime(b)
			for b.Loop() {
				m, err := Build(b.Context(), c)
				if err != nil {
					b.Fatal(err)
				}
				if used := m.Facts.Used["bench"]; used < int64(facts)*9/10 {
					b.Fatalf("%d of %d facts were used", used, facts)
				}
			}
			b.ReportMetric((cpuTime(b)-used).Seconds()/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(facts)*float64(b.N)/b.Elapsed().Seconds(), "facts/s")
		})
	}
}

// cpuTime returns the CPU time that this process and the engine's have used: unlike the elapsed time, it
// does not depend much on what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", clickhousetest.Shared(b).PID()))
	if err != nil {
		b.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte(") ")) // the name may have spaces
	fields := bytes.Fields(text)
	ticks := int64(0) // of 10 ms
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(own.Utime.Nano()+own.Stime.Nano()) + time.Duration(ticks)*10*time.Millisecond
}

// prepare creates the tables of the benchmark: facts of a tenth as many entities as the spine has
// rows, a hundredth of them corrected, and the spine.
func prepare(b *testing.B, s *clickhouse.Store, table clickhouse.Table, facts, rows int) {
	b.Helper()
	if err := s.CreateTable(b.Context(), table); err != nil {
		b.Fatal(err)
	}
	const at = "toDateTime64('2025-01-01 00:00:00', 6, 'UTC') + toIntervalMicrosecond(cityHash64(number, 2) % 31536000000000)"
	insert := func(offset int, where string) string {
		return fmt.Sprintf("INSERT INTO %s SELECT concat('customer-', toString(cityHash64(number) %% %d)), "+
			"lower(hex(sipHash128(number))), %s AS t, t + toIntervalMillisecond(%d + number %% 900), 0, 0, number + %d, 0, "+
			"toInt256(cityHash64(number, 3) %% 100000) * 10000000, if(number %% 3 = 0, 'FR', 'GB') FROM numbers(%d) WHERE %s",
			table.FullName(), max(rows/2, 1), at, offset/facts*86_400_000, offset, facts, where)
	}
	spine := clickhouse.Features + ".spine" + table.Name[len("facts_bench"):]
	for _, sql := range []string{
		insert(0, "1"), insert(facts, "number % 100 = 7"),
		"CREATE TABLE " + spine + " (customer_id String, event_time DateTime64(6, 'UTC')) ENGINE = MergeTree ORDER BY customer_id",
		fmt.Sprintf("INSERT INTO %s SELECT concat('customer-', toString(number %% %d)), %s FROM numbers(%d)", spine, max(rows/2, 1), at, rows),
		// Merges in the background would count as the time of what runs first.
		"OPTIMIZE TABLE " + table.FullName() + " FINAL", "OPTIMIZE TABLE " + spine + " FINAL",
	} {
		if err := s.Exec(b.Context(), sql); err != nil {
			b.Fatalf("%s: %v", sql, err)
		}
	}
}

// benchSpine writes the same spine to a file.
func benchSpine(b *testing.B, rows int) string {
	b.Helper()
	type spine struct {
		Customer string    `parquet:"customer_id"`
		At       time.Time `parquet:"event_time,timestamp(microsecond)"`
	}
	begin := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	path := b.TempDir() + "/spine.parquet"
	all := make([]spine, rows)
	for i := range all {
		all[i] = spine{fmt.Sprint("customer-", i%max(rows/2, 1)), begin.Add(time.Duration(i*7919%31_536_000) * time.Second)}
	}
	if err := parquet.WriteFile(path, all); err != nil {
		b.Fatal(err)
	}
	return path
}
