package relay_test

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/ingest/relay"
	embedded "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
)

// benchmarkEvents is the number of events in each run of a throughput benchmark.
const benchmarkEvents = 100_000

func benchmarkStore(b *testing.B) (*sqlite.Store, []event.Event) {
	b.Helper()
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "order.db"), event.Order)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	w := newWriter(s)
	w.streams, w.size = 5000, 250
	for range benchmarkEvents / 1000 {
		w.append(b, 1000)
	}
	events, err := s.Read(b.Context(), event.Position{}, benchmarkEvents)
	if err != nil {
		b.Fatal(err)
	}
	return s, events
}

func benchmarkBroker(b *testing.B, sync bool) broker {
	b.Helper()
	k, err := embedded.Start(b.Context(), embedded.Config{DataDir: b.TempDir(), SyncWrites: sync, Logger: quiet})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = k.Close() })
	cfg := kafka.Config{Brokers: k.Addr(), Logger: quiet}
	topics := relay.Topics([]event.Aggregate{event.Order}, partitions)
	if err := kafka.EnsureTopics(b.Context(), cfg, topics...); err != nil {
		b.Fatal(err)
	}
	return broker{cfg, event.Order}
}

// cpu returns the CPU time of this process, including the broker.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRelay publishes events from SQLite to the embedded broker. BenchmarkCeiling publishes
// the same records from memory, in transactions of the same size.
func BenchmarkRelay(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%t", sync), func(b *testing.B) {
			s, _ := benchmarkStore(b)
			var spent time.Duration
			for b.Loop() {
				b.StopTimer()
				on := benchmarkBroker(b, sync)
				before := cpu(b)
				b.StartTimer()
				x := run(b, on.newRelay(b, s))
				x.await(b, s)
				b.StopTimer()
				spent += cpu(b) - before
				_ = x.stop()
				b.StartTimer()
			}
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/benchmarkEvents, "cpu-µs/event")
			b.ReportMetric(float64(b.N)*benchmarkEvents/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkCeiling is the upper limit of BenchmarkRelay.
func BenchmarkCeiling(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%t", sync), func(b *testing.B) {
			_, events := benchmarkStore(b)
			var spent time.Duration
			for b.Loop() {
				b.StopTimer()
				on := benchmarkBroker(b, sync)
				p, err := kafka.NewTransactionalProducer(on.Config, "ceiling")
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Init(b.Context()); err != nil {
					b.Fatal(err)
				}
				before := cpu(b)
				b.StartTimer()
				for i := 0; i < len(events); i += 5000 {
					if err := p.Begin(); err != nil {
						b.Fatal(err)
					}
					for _, e := range events[i:min(i+5000, len(events))] {
						err := p.Produce(b.Context(), kafka.Record{
							Topic: event.Order.Topic, Partition: kafka.AnyPartition,
							Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers(),
						})
						if err != nil {
							b.Fatal(err)
						}
					}
					if err := p.Commit(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				spent += cpu(b) - before
				p.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/benchmarkEvents, "cpu-µs/event")
			b.ReportMetric(float64(b.N)*benchmarkEvents/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkLatency measures the time from the return of an append until its event is readable with
// read_committed.
func BenchmarkLatency(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%t", sync), func(b *testing.B) {
			s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "order.db"), event.Order)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			on := benchmarkBroker(b, sync)
			r := on.newRelay(b, s)
			committed := make(chan time.Time, 1)
			r.OnStep(func(at string) error {
				if at == "after commit" {
					committed <- time.Now()
				}
				return nil
			})
			w := newWriter(s)
			w.append(b, 1)
			x := run(b, r)
			<-committed
			var sum time.Duration
			for b.Loop() {
				if err := w.batch(context.Background(), 1); err != nil {
					b.Fatal(err)
				}
				from := time.Now()
				sum += (<-committed).Sub(from)
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(b.N)/1000, "ms/event")
			_ = x.stop()
		})
	}
}
