package eventstoretest

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
)

// Benchmark measures appends as services make them (one event for a new stream, and its answer),
// with one caller and with 64 concurrent ones. It also measures reading.
//
// One caller shows the latency of a transaction. Many callers show what a group commit gains,
// because their batches can share a transaction. Each caller sends its next append when the
// previous one has been acknowledged.
func Benchmark(b *testing.B, open func(b *testing.B) eventstore.Store) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("append/callers=%d", callers), func(b *testing.B) {
			s := open(b)
			// The callers share b.N appends.
			var next atomic.Int64
			done := make(chan error, callers)
			b.ResetTimer()
			for range callers {
				go func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						batch := one(fmt.Sprintf("0199c1d2-7b1c-7000-8000-%012d", i), 0, 1)
						batch.Streams[0].Events[0].Data = make([]byte, 155)
						batch.Answer = eventstore.Answer{
							Key: fmt.Sprintf("import-%d", i), Fingerprint: make([]byte, 32), Response: make([]byte, 60),
						}
						if _, err := s.Append(b.Context(), batch); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range callers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
	// Read all events page by page, again and again.
	b.Run("read", func(b *testing.B) {
		s := open(b)
		const present, limit = 20_000, 1000
		for i := range present / limit {
			if _, err := s.Append(b.Context(), one(fmt.Sprint("stream ", i), 0, limit)); err != nil {
				b.Fatal(err)
			}
		}
		// After the last event, start again from the beginning.
		read, after := 0, event.Position{}
		for b.Loop() {
			events, err := s.Read(b.Context(), after, limit)
			if err != nil {
				b.Fatal(err)
			}
			read += len(events)
			if after = (event.Position{}); len(events) > 0 {
				after = events[len(events)-1].Position
			}
		}
		b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "events/s")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	})
}
