package catalog

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
)

// childOf tells this binary to feed a view until it is killed: "<brokers> <group instance> <place>".
const childOf = "MILLRACE_TEST_CATALOG_CHILD"

func openView(t testing.TB, open func() Index) (*View, func()) {
	t.Helper()
	x := open()
	closeOnce := sync.OnceFunc(func() { closed(t, x) })
	t.Cleanup(closeOnce)
	return New(x, quiet), closeOnce
}

// happenings makes n events of products.
func happenings(t testing.TB, l *streamstest.Log, products, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		sku := fmt.Sprintf("SKU-%d", rand.IntN(products))
		events[i] = l.Next(event.Product.Name, sku, happening(t, l.Versions[sku]))
	}
	return events
}

func records(events []event.Event) []streams.Record {
	rs := make([]streams.Record, len(events))
	for i, e := range events {
		rs[i] = streams.Record{Event: e, Topic: event.Product.Topic, Offset: int64(i)}
	}
	return rs
}

// asExpected fails unless the view holds what its events make.
func asExpected(t testing.TB, v *View, l *streamstest.Log) {
	t.Helper()
	got, err := v.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := ExpectedDigest(l.All())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.Streams, want.Streams) {
		different := 0
		for stream, sum := range want.Streams {
			if got.Streams[stream] != sum {
				different++
			}
		}
		t.Fatalf("the view holds %d documents, %d are expected, of which %d are missing or different", len(got.Streams), len(want.Streams), different)
	}
}

// Whatever is delivered twice, by however many writers at once, the view holds what the events make.
func TestRedeliveryAndRivalsAreNoOps(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		v, _ := openView(t, open)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		all := records(happenings(t, l, 60, 1500))
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
		asExpected(t, v, l)
	})
}

func TestStopsAndGoesOn(t *testing.T) {
	conform(t, func(t *testing.T, open func() Index) {
		cfg := streamstest.NewBroker(t)
		l := streamstest.NewLog(t, cfg, event.Product.Topic)
		for range 3 {
			l.Write(t, happenings(t, l, 300, 1500)...)
			v, closeView := openView(t, open)
			r := v.Runtime(cfg, nil, quiet)
			stop := streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			asExpected(t, v, l)
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

// The process that feeds the view is killed again and again while events come.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	for name, newPlace := range adapters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := streamstest.NewBroker(t)
			l := streamstest.NewLog(t, cfg, event.Product.Topic)
			p := newPlace(t)
			l.Write(t, happenings(t, l, 1000, 4000)...)
			for range kills {
				more := happenings(t, l, 1000, 1000)
				var writing sync.WaitGroup
				writing.Go(func() { l.Write(t, more...) })
				c := startChild(t, cfg.Brokers, "the-one", p)
				for range 1 + rand.IntN(10) {
					c.lag(t)
				}
				c.kill(t)
				writing.Wait()
			}
			v, _ := openView(t, func() Index { return openAt(t, p) })
			positions, err := v.Positions(t.Context(), event.Product.Topic)
			if err != nil || len(positions) != streamstest.Partitions {
				t.Fatalf("the children have saved the positions %v, %v", positions, err)
			}
			cfg.Extra = instance("the-one")
			r := v.Runtime(cfg, nil, quiet)
			streamstest.Start(t, r)
			streamstest.CatchUp(t, r)
			asExpected(t, v, l)
		})
	}
}

// instance makes the group take a new process for the killed one of that name, instead of waiting for its session to
// end.
func instance(name string) map[string]string { return map[string]string{"group.instance.id": name} }

func child(of string) int {
	brokers, rest, _ := strings.Cut(of, " ")
	name, at, _ := strings.Cut(rest, " ")
	x, err := place(at).open(context.Background())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	v := New(x, quiet)
	go func() {
		err := v.Runtime(kafka.Config{Brokers: brokers, Logger: slog.Default(), Extra: instance(name)}, nil, slog.Default()).Run(context.Background())
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

// childProcess feeds a view until it is killed.
type childProcess struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	said  []string
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

// lag waits for the child's next report.
func (c *childProcess) lag(t *testing.T) int {
	t.Helper()
	for c.lines.Scan() {
		c.said = append(c.said, c.lines.Text())
		if lag, ok := strings.CutPrefix(c.lines.Text(), "lag "); ok {
			if n, err := strconv.Atoi(lag); err == nil {
				return n
			}
		}
	}
	t.Fatalf("the child ended by itself: %v: %q", c.cmd.Wait(), c.said)
	return 0
}

func (c *childProcess) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait() // killed
}

// onEach runs a benchmark on each adapter.
func onEach(b *testing.B, benchmark func(b *testing.B, newView func() (*View, func()))) {
	for name, newPlace := range adapters {
		b.Run(name, func(b *testing.B) {
			benchmark(b, func() (*View, func()) {
				p := newPlace(b)
				return openView(b, func() Index { return openAt(b, p) })
			})
		})
	}
}

func BenchmarkApply(b *testing.B) {
	onEach(b, func(b *testing.B, newView func() (*View, func())) {
		v, _ := newView()
		l := &streamstest.Log{Versions: map[string]uint64{}}
		const size = 2000
		n := 0
		for b.Loop() {
			b.StopTimer()
			batch := records(happenings(b, l, 4000, size))
			b.StartTimer()
			if err := v.Apply(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
			n += size
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkSave writes new products in batches of different sizes.
func BenchmarkSave(b *testing.B) {
	onEach(b, func(b *testing.B, newView func() (*View, func())) {
		v, _ := newView()
		made := 0
		for _, size := range []int{1, 100, 2000} {
			b.Run(strconv.Itoa(size), func(b *testing.B) {
				n := 0
				for b.Loop() {
					batch := make([]*catalogv1.Product, size)
					for i := range batch {
						made++
						batch[i] = product(fmt.Sprintf("SKU-%d", made), colours[made%len(colours)]+" "+things[made%len(things)], "of glass", "home")
					}
					if err := v.index.Save(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
					n += size
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "docs/s")
			})
		}
	})
}

// BenchmarkFromLog builds the view from a log; the ceiling is the same runtime with a sink that does nothing.
func BenchmarkFromLog(b *testing.B) {
	cfg := streamstest.NewBroker(b)
	l := streamstest.NewLog(b, cfg, event.Product.Topic)
	const n = 50_000
	l.Write(b, happenings(b, l, 4000, n)...)
	onEach(b, func(b *testing.B, newView func() (*View, func())) {
		for b.Loop() {
			v, closeView := newView()
			streamstest.FromBeginning(b, v.Runtime(cfg, nil, quiet))
			closeView()
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("ceiling", func(b *testing.B) {
		for b.Loop() {
			streamstest.FromBeginning(b, streamstest.Nothing(cfg, l.Topic))
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

func BenchmarkSearch(b *testing.B) {
	onEach(b, func(b *testing.B, newView func() (*View, func())) {
		v, _ := newView()
		l := &streamstest.Log{Versions: map[string]uint64{}}
		if err := v.Apply(b.Context(), records(happenings(b, l, 4000, 20_000))); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := v.index.Search(b.Context(), Query{Text: "red candle ho", Limit: 20}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
