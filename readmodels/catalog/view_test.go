package catalog_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/polltest"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/readmodels/catalog"
	"github.com/millrace/millrace/readmodels/catalog/indextest"
	"github.com/millrace/millrace/streams/streamstest"
)

// childOf is an environment variable that makes this binary feed a view until it is killed:
// "<brokers> <group instance> <place>".
const childOf = "MILLRACE_TEST_CATALOG_CHILD"

func openView(t testing.TB, open func() catalog.Index) (*catalog.View, func()) {
	t.Helper()
	x := open()
	closeOnce := sync.OnceFunc(func() { indextest.Close(t, x) })
	t.Cleanup(closeOnce)
	return catalog.New(x, quiet), closeOnce
}

// TestRedeliveryAndConcurrentFeedersChangeNothing checks that the view's content is that of the
// events, whatever is delivered twice and however many writers there are.
func TestRedeliveryAndConcurrentFeedersChangeNothing(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		v, _ := openView(t, open)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		all := indextest.Records(indextest.Events(t, l, 60, 1500))
		var g sync.WaitGroup
		for range 3 {
			g.Go(func() {
				for done := 0; done < len(all); {
					from := max(0, done-rand.IntN(200))
					to := min(len(all), done+1+rand.IntN(200))
					if err := v.Apply(context.Background(), all[from:to]); err != nil {
						t.Error(err)
						return
					}
					done = to
				}
			})
		}
		g.Wait()
		indextest.Holds(t, v, l)
	})
}

func TestResumesAfterStop(t *testing.T) {
	conform(t, func(t *testing.T, open func() catalog.Index) {
		cfg := streamstest.NewBroker(t)
		l := streamstest.NewLog(t, cfg, event.Product.Topic)
		for range 3 {
			l.Write(t, indextest.Events(t, l, 300, 1500)...)
			v, closeView := openView(t, open)
			r := v.Runtime(cfg, nil, quiet)
			stop := streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			indextest.Holds(t, v, l)
			status, err := v.Status(t.Context())
			if err != nil || status.Documents != uint64(len(l.Versions)) || status.Lag != 0 || !status.Known {
				t.Errorf("status %+v, %v", status, err)
			}
			stop()
			closeView()
		}
	})
}

const kills = 8

// TestKilledUnderLoad kills the process that feeds the view repeatedly while events arrive.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	for name, newPlace := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := streamstest.NewBroker(t)
			l := streamstest.NewLog(t, cfg, event.Product.Topic)
			p := newPlace(t)
			l.Write(t, indextest.Events(t, l, 1000, 4000)...)
			for range kills {
				more := indextest.Events(t, l, 1000, 1000)
				var writing sync.WaitGroup
				writing.Go(func() { l.Write(t, more...) })
				c := startChild(t, cfg.Brokers, "the-one", p)
				for range 1 + rand.IntN(10) {
					c.lag(t)
				}
				c.kill(t)
				writing.Wait()
			}
			v, _ := openView(t, func() catalog.Index { return openAt(t, p) })
			positions, err := v.Positions(t.Context(), event.Product.Topic)
			if err != nil || len(positions) != streamstest.Partitions {
				t.Fatalf("the children have saved the positions %v, %v", positions, err)
			}
			cfg.Extra = instance("the-one")
			r := v.Runtime(cfg, nil, quiet)
			streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			indextest.Holds(t, v, l)
		})
	}
}

// TestElasticsearchFedByConcurrentProcesses runs two processes of one group, which share the
// partitions, and a late third writer outside the group, which writes everything again.
func TestElasticsearchFedByConcurrentProcesses(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Product.Topic)
	p := inElasticsearch(t)
	events := indextest.Events(t, l, 500, 6000)
	l.Write(t, events[:2000]...)
	children := []*childProcess{startChild(t, cfg.Brokers, "one", p), startChild(t, cfg.Brokers, "two", p)}
	children[0].lag(t)
	children[1].lag(t)
	var writing sync.WaitGroup
	writing.Go(func() { l.Write(t, events[2000:]...) })
	v, _ := openView(t, func() catalog.Index { return openAt(t, p) })
	all := indextest.Records(events)
	for done := 0; done < len(all); done += 500 {
		if err := v.Apply(t.Context(), all[done:done+500]); err != nil {
			t.Fatal(err)
		}
	}
	writing.Wait()
	for _, c := range children {
		go func() { // read their output, or they block
			for c.lines.Scan() {
			}
		}()
	}
	ends := map[int32]bool{}
	polltest.Until(t, "the positions stand at the end", func() bool {
		positions, err := v.Positions(t.Context(), event.Product.Topic)
		if err != nil {
			return false
		}
		latest := uint64(0)
		for id, at := range positions {
			ends[id] = true
			latest = max(latest, at.Watermark.Sequence)
		}
		return latest == uint64(len(events)) && len(ends) == streamstest.Partitions
	})
	for _, c := range children {
		c.kill(t)
	}
	indextest.Holds(t, v, l)
}

// instance is the setting with which the group accepts a new process for a killed one of the same
// name, without waiting for its session to end.
func instance(name string) map[string]string { return map[string]string{"group.instance.id": name} }

func child(of string) int {
	brokers, rest, _ := strings.Cut(of, " ")
	name, at, _ := strings.Cut(rest, " ")
	x, err := place(at).open(context.Background())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	v := catalog.New(x, quiet)
	go func() {
		err := v.Runtime(kafka.Config{Brokers: brokers, Logger: slog.Default(), Extra: instance(name)}, nil,
			slog.Default()).Run(context.Background())
		fmt.Println(err)
		os.Exit(1)
	}()
	for range time.Tick(20 * time.Millisecond) {
		if status, err := v.Status(context.Background()); err == nil && status.Known {
			fmt.Println("lag", status.Lag)
		}
	}
	return 0
}

// childProcess is a process that feeds a view until it is killed.
type childProcess struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	output []string
}

func startChild(t *testing.T, brokers, name string, p place) *childProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+brokers+" "+name+" "+string(p))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test has failed
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return &childProcess{cmd: cmd, lines: bufio.NewScanner(out)}
}

// lag returns the lag in the child's next report.
func (c *childProcess) lag(t *testing.T) int {
	t.Helper()
	for c.lines.Scan() {
		c.output = append(c.output, c.lines.Text())
		if lag, ok := strings.CutPrefix(c.lines.Text(), "lag "); ok {
			if n, err := strconv.Atoi(lag); err == nil {
				return n
			}
		}
	}
	t.Fatalf("the child ended by itself: %v: %q", c.cmd.Wait(), c.output)
	return 0
}

func (c *childProcess) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait() // ended by the signal
}

// onEach runs a benchmark on each adapter.
func onEach(b *testing.B, benchmark func(b *testing.B, newIndex func() catalog.Index)) {
	for name, newPlace := range adapters {
		b.Run(name, func(b *testing.B) {
			benchmark(b, func() catalog.Index { return openAt(b, newPlace(b)) })
		})
	}
}

func BenchmarkApply(b *testing.B) {
	onEach(b, func(b *testing.B, newIndex func() catalog.Index) {
		v, _ := openView(b, newIndex)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		const size = 2000
		n := 0
		for b.Loop() {
			b.StopTimer()
			batch := indextest.Records(indextest.Events(b, l, 4000, size))
			b.StartTimer()
			if err := v.Apply(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
			n += size
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkSave saves new products in batches of different sizes.
func BenchmarkSave(b *testing.B) {
	onEach(b, func(b *testing.B, newIndex func() catalog.Index) {
		x := newIndex()
		defer indextest.Close(b, x)
		made := 0
		for _, size := range []int{1, 100, 2000} {
			b.Run(strconv.Itoa(size), func(b *testing.B) {
				n := 0
				for b.Loop() {
					batch := make([]*catalogv1.Product, size)
					for i := range batch {
						made++
						batch[i] = indextest.Product(fmt.Sprintf("SKU-%d", made),
							fmt.Sprintf("%s lamp", []string{"white", "red", "blue"}[made%3]), "of glass", "home")
					}
					if err := x.Save(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
					n += size
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "docs/s")
			})
		}
	})
}

// BenchmarkFromLog builds the view from a log. The upper limit is the same runtime with a sink that
// does nothing.
func BenchmarkFromLog(b *testing.B) {
	cfg := streamstest.NewBroker(b)
	l := streamstest.NewLog(b, cfg, event.Product.Topic)
	const n = 50_000
	l.Write(b, indextest.Events(b, l, 4000, n)...)
	onEach(b, func(b *testing.B, newIndex func() catalog.Index) {
		for b.Loop() {
			v, closeView := openView(b, newIndex)
			streamstest.RunUntilCaughtUp(b, v.Runtime(cfg, nil, quiet))
			closeView()
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("ceiling", func(b *testing.B) {
		for b.Loop() {
			streamstest.RunUntilCaughtUp(b, streamstest.NoopRuntime(cfg, l.Topic))
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

func BenchmarkSearch(b *testing.B) {
	onEach(b, func(b *testing.B, newIndex func() catalog.Index) {
		x := newIndex()
		defer indextest.Close(b, x)
		v := catalog.New(x, quiet)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		if err := v.Apply(b.Context(), indextest.Records(indextest.Events(b, l, 4000, 20_000))); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := x.Search(b.Context(), catalog.Query{Text: "red candle ho", Limit: 20}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
