package orderstatus_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/event"
	embedded "github.com/millrace/millrace/internal/embedded/redis"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/readmodels/orderstatus"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/streams/streamstest"
	server "github.com/millrace/millrace/test/servers/redis"
)

// childOf is an environment variable that makes this binary feed a view until it is killed:
// "<brokers> <redis>".
const childOf = "MILLRACE_TEST_ORDERSTATUS_CHILD"

func TestMain(m *testing.M) {
	if servers := os.Getenv(childOf); servers != "" {
		os.Exit(child(servers))
	}
	goleak.VerifyTestMain(m, bufferPools)
}

// kinds returns the servers to test the view on; nil is the embedded one.
func kinds() map[string]*server.Servers {
	return map[string]*server.Servers{
		"embedded": nil, "redis": {}, "redis cluster": {Nodes: 3}, "redis with TLS and a password": {Secure: true},
	}
}

// onEvery runs a test on every kind of server. Each test has its own servers, because a server has
// only one such view.
func onEvery(t *testing.T, test func(t *testing.T, cfg redis.Config)) {
	for name, s := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t, s))
		})
	}
}

// start runs servers until the test ends.
func start(t testing.TB, s *server.Servers) redis.Config {
	t.Helper()
	if s == nil {
		e, err := embedded.Start(t.Context(), embedded.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		return redis.Config{Addr: e.Addr()}
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s.Config(t)
}

// newRedis starts an embedded Redis, for tests of other things.
func newRedis(t testing.TB) *redis.Client {
	t.Helper()
	return openRedis(t, start(t, nil))
}

func openRedis(t testing.TB, cfg redis.Config) *redis.Client {
	t.Helper()
	c, err := redis.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// randomEvents returns n random events of orders.
func randomEvents(t testing.TB, l *streamstest.Log, orders, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		id := fmt.Sprintf("00000000-0000-7000-8000-%012d", rand.IntN(orders))
		events[i] = l.Next(event.Order.Name, id, randomData(t, l.Versions[id], referenceOf(id)))
	}
	return events
}

// referenceOf returns the shop's reference of an order. Several orders share one.
func referenceOf(id string) string { return "ref-" + id[len(id)-3:] }

func records(events []event.Event) []streams.Record {
	rs := make([]streams.Record, len(events))
	for i, e := range events {
		rs[i] = streams.Record{Event: e, Topic: event.Order.Topic, Offset: int64(i)}
	}
	return rs
}

// asExpected fails the test unless the view's content is that of the events.
func asExpected(t testing.TB, v *orderstatus.View, l *streamstest.Log) {
	t.Helper()
	got, err := v.Digest(t.Context(), event.Order)
	if err != nil {
		t.Fatal(err)
	}
	want, err := orderstatus.ExpectedDigest(l.All())
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
		t.Fatalf("the view has %d documents, want %d, of which %d are missing or different", len(got.Streams),
			len(want.Streams), different)
	}
}

// TestRedeliveryAndConcurrentFeedersChangeNothing checks that the view's content is that of the
// events, whatever is delivered twice and however many writers there are.
func TestRedeliveryAndConcurrentFeedersChangeNothing(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, cfg redis.Config) {
		client := openRedis(t, cfg)
		v := orderstatus.New(client, streamstest.Quiet)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		all := records(randomEvents(t, l, 60, 1500))
		var g sync.WaitGroup
		for range 3 { // such as a zombie beside the new owner
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

// TestUnreadableEventIsReportedAndTakesNoVersion checks that an unreadable record does not take the
// version that it claims: the store's own event of that version is applied when it arrives.
func TestUnreadableEventIsReportedAndTakesNoVersion(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, cfg redis.Config) {
		client := openRedis(t, cfg)
		v := orderstatus.New(client, streamstest.Quiet)
		l := &streamstest.Log{Versions: map[string]uint64{}}
		events := randomEvents(t, l, 1, 3)
		bad := l.Next(event.Order.Name, events[0].Stream, []byte{0xff})
		l.Versions[events[0].Stream]--
		l.Events = l.Events[:len(l.Events)-1]
		after := randomEvents(t, l, 1, 2)
		batch := records(slices.Concat(events, []event.Event{bad}, after))
		for range 2 {
			err := v.Apply(t.Context(), batch)
			unreadable, ok := err.(*streams.UnreadableError) //nolint:errorlint // that it is bare says that nothing else went wrong
			if !ok || len(unreadable.Records) != 1 || unreadable.Records[0].Event.ID != bad.ID {
				t.Fatalf("got %v", err)
			}
			asExpected(t, v, l)
		}
	})
}

func TestPositionsAreSavedWithTheView(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, cfg redis.Config) {
		client := openRedis(t, cfg)
		v := orderstatus.New(client, streamstest.Quiet)
		at := func(n int64) streams.Applied {
			return streams.Applied{Next: n, Watermark: event.Position{Transaction: 3, Sequence: uint64(n)},
				AsOf: time.UnixMicro(n).UTC()}
		}
		for _, m := range []struct {
			move streams.Move
			lost bool
		}{
			{streams.Move{Partition: 1, First: true}, false},
			{streams.Move{Partition: 1, First: true, To: at(4)}, true},
			{streams.Move{Partition: 1, To: at(5)}, false},
			{streams.Move{Partition: 1, From: at(4), To: at(6)}, true},
			{streams.Move{Partition: 1, From: at(5), To: at(7)}, false},
			{streams.Move{Partition: 2, From: at(5), To: at(7)}, true},
		} {
			err := v.SavePositions(t.Context(), "a", []streams.Move{m.move})
			if lost := err != nil; lost != m.lost {
				t.Errorf("%+v: %v", m.move, err)
			}
		}
		got, err := v.Positions(t.Context(), "a")
		if want := map[int32]streams.Applied{1: at(7)}; err != nil || !maps.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
		if got, err := v.Positions(t.Context(), "ab"); err != nil || len(got) != 0 {
			t.Errorf("of another topic: %v, %v", got, err)
		}
	})
}

// TestLostViewIsRebuilt uses an embedded Redis without a folder, which loses everything
// when the system stops.
func TestLostViewIsRebuilt(t *testing.T) {
	t.Parallel()
	cfg := streamstest.NewBroker(t)
	l := streamstest.NewLog(t, cfg, event.Order.Topic)
	l.Write(t, randomEvents(t, l, 300, 3000)...)
	for range 2 {
		v := orderstatus.New(newRedis(t), streamstest.Quiet)
		r := v.Runtime(cfg, nil, streamstest.Quiet)
		stop := streamstest.Start(t, r)
		streamstest.CatchUp(t, r)
		asExpected(t, v, l)
		l.Write(t, randomEvents(t, l, 300, 300)...)
		streamstest.CatchUp(t, r)
		asExpected(t, v, l)
		status, err := v.Status(t.Context())
		if err != nil || status.Documents != uint64(len(l.Versions)) || status.Lag != 0 || !status.Known ||
			!status.AsOf.Equal(newest(l)) {
			t.Errorf("status %+v, %v", status, err)
		}
		stop()
	}
}

func newest(l *streamstest.Log) time.Time {
	return slices.MaxFunc(l.Events, func(a, b event.Event) int { return a.RecordedAt.Compare(b.RecordedAt) }).RecordedAt
}

const kills = 8

// TestKilledUnderLoad kills the process that feeds the view repeatedly while events arrive.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"embedded", "redis cluster"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			killedUnderLoad(t, start(t, kinds()[kind]))
		})
	}
}

func killedUnderLoad(t *testing.T, server redis.Config) {
	cfg := streamstest.NewBroker(t)
	client := openRedis(t, server)
	l := streamstest.NewLog(t, cfg, event.Order.Topic)
	l.Write(t, randomEvents(t, l, 2000, 4000)...)
	for range kills {
		more := randomEvents(t, l, 2000, 1000)
		var writing sync.WaitGroup
		writing.Go(func() { l.Write(t, more...) })
		killChild(t, cfg.Brokers+" "+server.Addr, 1+rand.IntN(10))
		writing.Wait()
	}
	v := orderstatus.New(client, streamstest.Quiet)
	positions, err := v.Positions(t.Context(), event.Order.Topic)
	if err != nil || len(positions) != streamstest.Partitions {
		t.Fatalf("the children have saved the positions %v, %v", positions, err)
	}
	cfg.Extra = childExtra
	r := v.Runtime(cfg, nil, streamstest.Quiet)
	streamstest.Start(t, r)
	streamstest.CatchUp(t, r)
	asExpected(t, v, l)
}

// childExtra is the setting with which the group accepts a new process for the killed one, without
// waiting for its session to end.
var childExtra = map[string]string{"group.instance.id": "the-one"}

func child(servers string) int {
	brokers, addr, _ := strings.Cut(servers, " ")
	client, err := redis.Open(context.Background(), redis.Config{Addr: addr})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	v := orderstatus.New(client, streamstest.Quiet)
	go func() {
		err := v.Runtime(kafka.Config{Brokers: brokers, Logger: slog.Default(), Extra: childExtra}, nil,
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

// killChild runs a child and kills it after this number of reports.
func killChild(t *testing.T, servers string, reports int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+servers)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var output []string
	lines := bufio.NewScanner(out)
	for reports > 0 && lines.Scan() {
		output = append(output, lines.Text())
		if lag, ok := strings.CutPrefix(lines.Text(), "lag "); ok {
			if _, err := strconv.Atoi(lag); err == nil {
				reports--
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); reports > 0 {
		t.Fatalf("the child ended by itself: %v: %q", err, output)
	}
}

func BenchmarkApply(b *testing.B) {
	client := newRedis(b)
	v := orderstatus.New(client, streamstest.Quiet)
	const size = 500
	n := 0
	for b.Loop() {
		b.StopTimer()
		l := &streamstest.Log{Versions: map[string]uint64{}}
		events := randomEvents(b, l, size/3, size)
		for i := range events {
			events[i].Stream += strconv.Itoa(n)
		}
		batch := records(events)
		b.StartTimer()
		if err := v.Apply(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		n += size
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkFromLog builds the view from a log. The upper limit is the same runtime with a sink that
// does nothing.
func BenchmarkFromLog(b *testing.B) {
	cfg := streamstest.NewBroker(b)
	l := streamstest.NewLog(b, cfg, event.Order.Topic)
	const n = 50_000
	l.Write(b, randomEvents(b, l, n/3, n)...)
	b.Run("view", func(b *testing.B) {
		for b.Loop() {
			client := newRedis(b)
			streamstest.RunUntilCaughtUp(b, orderstatus.New(client, streamstest.Quiet).Runtime(cfg, nil,
				streamstest.Quiet))
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

// bufferPools is a goroutine of LevelDB in the embedded Redis, which ends a second after the
// database is closed.
var bufferPools = goleak.IgnoreTopFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")
