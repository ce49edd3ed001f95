package landing

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/lake"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/internal/datafile"
	"github.com/millrace/millrace/lake/maintenance"
	"github.com/millrace/millrace/lake/tables"
)

// Landing a topic, from the brokers to the last commit, compared with its upper limit: converting
// the same records in memory to rows of a single Parquet file.
func BenchmarkLanding(b *testing.B) {
	s := newShop(b)
	s.mustTrade(b, 20_000)
	ends, err := s.producer.Ends(b.Context(), event.Order.Topic)
	if err != nil {
		b.Fatal(err)
	}
	for _, decl := range []declare.Table{tables.OrdersEvents, tables.OrderLines, tables.OrdersCurrent} {
		for place, fresh := range map[string]func(testing.TB) lake.Config{"landing": localLake, "landing on servers": serverLake} {
			b.Run(decl.Name+"/"+place, func(b *testing.B) {
				var rows, commits int64
				cpu := cpuTime(b)
				for b.Loop() {
					rows, commits = landAll(b, s, fresh(b), decl, ends)
				}
				report(b, rows, len(s.events[event.Order]), cpuTime(b)-cpu)
				b.ReportMetric(float64(commits), "commits")
			})
		}
		if decl.Keyed() {
			continue // its rows are not those of a batch from memory
		}
		b.Run(decl.Name+"/ceiling", func(b *testing.B) {
			l := openLake(b, localLake(b))
			have, err := l.Load(b.Context(), decl.Identifier())
			if err != nil {
				b.Fatal(err)
			}
			w, into, err := (&lander{lake: l, table: decl}).writer(b.Context(), have)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = w.Close() }()
			var rows int64
			cpu := cpuTime(b)
			for n := 0; b.Loop(); n++ {
				name := fmt.Sprint(n)
				for i, e := range s.events[event.Order] {
					if _, err := into.put(b.Context(), w, record(e, 0, int64(i))); err != nil {
						b.Fatal(err)
					}
					if err := w.Flush(name, datafile.ChunkRows); err != nil {
						b.Fatal(err)
					}
				}
				f, err := w.Finish(b.Context(), name)
				if err != nil {
					b.Fatal(err)
				}
				rows = f[0].Count()
			}
			report(b, rows, len(s.events[event.Order]), cpuTime(b)-cpu)
		})
	}
}

// report reports speeds by wall-clock time and by CPU time, which is more reliable on a busy
// machine.
func report(b *testing.B, rows int64, events int, cpu time.Duration) {
	seconds := b.Elapsed().Seconds() / float64(b.N)
	b.ReportMetric(float64(rows)/seconds, "rows/s")
	b.ReportMetric(float64(events)/seconds, "events/s")
	b.ReportMetric(cpu.Seconds()*1e6/float64(b.N)/float64(rows), "cpu-µs/row")
}

// cpuTime returns the CPU time of the process so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// landAll lands a table's topic in a new lake.
func landAll(b *testing.B, s *shop, where lake.Config, decl declare.Table, ends map[int32]int64) (rows, commits int64) {
	l := openLake(b, where)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	c := s.runConfig()
	c.CommitInterval, c.CommitBytes = 2*time.Second, 32<<20
	c.hook = func(_ context.Context, _ string, at step) error {
		if at != stepCommitted {
			return nil
		}
		commits++
		state := stateOf(b, l, decl.Name)
		rows = state.Rows
		for p, end := range ends {
			if state.Offsets[p] < end {
				return nil
			}
		}
		cancel()
		return nil
	}
	if err := (&lander{lake: l, table: decl, config: c, log: quiet()}).run(ctx); err != nil {
		b.Fatal(err)
	}
	return rows, commits
}

// Orders that change: the cost of a batch of row changes, with rows in memory and with rows looked
// up in the table.
func BenchmarkUpserts(b *testing.B) {
	for name, forgets := range map[string]bool{"remembered": false, "looked up": true} {
		for _, orders := range []int{1_000, 20_000} {
			b.Run(fmt.Sprintf("%s/of=%d", name, orders), func(b *testing.B) {
				w := newStateWorld(b, tables.OrdersCurrent, 1)
				g := newGenerator(1)
				open := make([]*openOrder, orders)
				for i := range open {
					var e event.Event
					open[i], e = g.placed()
					w.topic[0] = append(w.topic[0], e)
				}
				w.mustLand(0, 0, orders)
				const changes = 500
				cpu := cpuTime(b)
				var rows int64
				for b.Loop() {
					b.StopTimer()
					if forgets {
						w.restart(0)
					}
					for range changes {
						w.topic[0] = append(w.topic[0], g.linesAdded(open[g.rnd.IntN(orders)]))
					}
					b.StartTimer()
					w.mustLand(0, 0, changes)
					rows += changes
				}
				b.ReportMetric((cpuTime(b)-cpu).Seconds()*1e6/float64(rows), "cpu-µs/event")
			})
		}
	}
}

// A commit, and planning a scan, cost the same however many commits there were before. Maintenance
// runs at intervals, as in the role lake, where a commit per second makes 600 between two runs.
// 10,000 commits take some minutes.
func BenchmarkGrowth(b *testing.B) {
	b.Run("local", func(b *testing.B) { benchmarkGrowth(b, localLake(b), 10, 1_000, 10_000) })
	b.Run("on servers", func(b *testing.B) { benchmarkGrowth(b, serverLake(b), 10, 1_000) })
}

// commitsPerUpkeep is the number of commits between two runs of maintenance.
const commitsPerUpkeep = 600

func benchmarkGrowth(b *testing.B, where lake.Config, after ...int64) {
	s := newShop(b)
	l := openLake(b, where)
	landing := &lander{lake: l, table: tables.OrdersEvents, config: s.runConfig(), log: quiet()}
	have, err := l.Load(b.Context(), tables.OrdersEvents.Identifier())
	if err != nil {
		b.Fatal(err)
	}
	w, to, err := landing.writer(b.Context(), have)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	at, e, offset := &positions{next: map[int32]int64{}}, s.gen.orderEvents()[0], int64(0)
	commit := func() {
		next := newBatch(at, time.Time{})
		if _, err := to.put(b.Context(), w, record(e, 0, offset)); err != nil {
			b.Fatal(err)
		}
		offset++
		next.move(0, offset)
		if err := landing.land(b.Context(), next, w); err != nil {
			b.Fatal(err)
		}
		at.put(next.progress.Next, "")
		landing.thin(b.Context())
	}
	for _, before := range after {
		for offset < before {
			commit()
			if offset%commitsPerUpkeep == 0 {
				if _, err := l.Maintain(b.Context(), tables.OrdersEvents.Identifier(),
					maintenance.Config{DutyCycle: 1, KeepAge: time.Minute}, nil); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(fmt.Sprintf("commit/after=%d", before), func(b *testing.B) {
			cpu := cpuTime(b)
			for b.Loop() {
				commit()
			}
			b.ReportMetric((cpuTime(b)-cpu).Seconds()*1e3/float64(b.N), "cpu-ms/commit")
		})
		b.Run(fmt.Sprintf("plan/after=%d", before), func(b *testing.B) {
			cpu, files := cpuTime(b), 0
			for b.Loop() {
				t, err := l.Load(b.Context(), tables.OrdersEvents.Identifier())
				if err != nil {
					b.Fatal(err)
				}
				tasks, err := t.Scan().PlanFiles(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				files = len(tasks)
			}
			b.ReportMetric((cpuTime(b)-cpu).Seconds()*1e3/float64(b.N), "cpu-ms/plan")
			b.ReportMetric(float64(files), "files")
		})
	}
}
