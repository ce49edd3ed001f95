package dependency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/internal/dependency"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var usual = dependency.Settings{FailureRate: 50, OpenFor: time.Second, Concurrency: 4}

// refused is the error of a server that does not run.
var refused = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}

// calls makes calls with a result, and returns how many reached the server.
func calls(t *testing.T, d *dependency.Dependency, n int, result error) (made int) {
	t.Helper()
	for range n {
		err := d.Do(t.Context(), func() error { made++; return result })
		var unavailable *dependency.UnavailableError
		if !errors.Is(err, result) && !errors.As(err, &unavailable) {
			t.Fatalf("the call returned %v", err)
		}
	}
	return made
}

// A server that fails is not called for a moment. Then few calls find out whether it has recovered.
func TestBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := dependency.NewSet(usual)
		d := set.Named("redis")
		state := func() dependency.Breaker { return set.States()[0].Breaker }
		if made := calls(t, d, 10, nil) + calls(t, d, 30, refused); made != 20 || state() != dependency.Open {
			t.Errorf("%d calls were made, want 20: half of them failed; the breaker is %v", made, state())
		}
		err := d.Do(t.Context(), func() error { return nil })
		var temporary net.Error
		if !errors.As(err, &temporary) || temporary.Timeout() || !strings.Contains(err.Error(), "redis: not called") {
			t.Errorf("a refused call returned %v", err)
		}
		time.Sleep(2 * time.Second) // on synctest's clock
		if state() != dependency.HalfOpen {
			t.Errorf("after a pause, the breaker is %v", state())
		}
		if made := calls(t, d, 10, refused); made > 2 || state() != dependency.Open {
			t.Errorf("%d calls were made to a server that still fails, and the breaker is %v", made, state())
		}
		time.Sleep(2 * time.Second)
		if made := calls(t, d, 10, nil); made != 10 || state() != dependency.Closed {
			t.Errorf("%d of 10 calls were made to a server that has recovered, and the breaker is %v", made, state())
		}
		// Calls that are given up say nothing, so they close no breaker …
		calls(t, d, 40, refused)
		time.Sleep(2 * time.Second) // on synctest's clock
		calls(t, d, 10, context.Canceled)
		if state() != dependency.Open {
			t.Errorf("calls that were given up made the breaker %v", state())
		}
		time.Sleep(2 * time.Second)
		calls(t, d, 10, nil)
		// … and open none.
		calls(t, d, 100, context.Canceled)
		if state() != dependency.Closed {
			t.Errorf("calls that were given up made the breaker %v", state())
		}
		s := set.States()[0]
		if s.InFlight != 0 || s.Answered+s.Failed+s.GivenUp+s.Rejected != 61+160 || s.GivenUp < 101 {
			t.Errorf("the counters are %+v, want 221 calls", s)
		}
	})
}

// What is not the server's fault does not open the breaker.
func TestBlames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		takes  time.Duration
		blamed bool
	}{
		"no error":                        {nil, 0, false},
		"an answer that refuses":          {errors.New("WRONGTYPE"), 0, false},
		"the caller has gone":             {context.Canceled, time.Minute, false},
		"an impatient caller":             {context.DeadlineExceeded, time.Millisecond, false},
		"no answer in time":               {context.DeadlineExceeded, 2 * time.Second, true},
		"no connection":                   {fmt.Errorf("get: %w", refused), 0, true},
		"the connection ended":            {io.EOF, 0, true},
		"the connection ended in between": {fmt.Errorf("read: %w", io.ErrUnexpectedEOF), 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				set := dependency.NewSet(usual)
				_ = set.Named("s3").Do(t.Context(), func() error {
					time.Sleep(c.takes) // on synctest's clock
					return c.err
				})
				if blamed := set.States()[0].Failed == 1; blamed != c.blamed {
					t.Errorf("blamed %v, want %v", blamed, c.blamed)
				}
			})
		})
	}
}

// A few failures among many calls, and a server that is hardly called, are not an outage. With a rate of
// 0, nothing is.
func TestBreakerStaysClosed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings dependency.Settings
		good     int
		bad      int
	}{
		"few failures": {usual, 100, 40},
		"few calls":    {usual, 0, 19},
		"switched off": {dependency.Settings{Concurrency: 1}, 0, 1000},
	} {
		set := dependency.NewSet(c.settings)
		d := set.Named("search")
		made := calls(t, d, c.good, nil) + calls(t, d, c.bad, refused)
		if made != c.good+c.bad || set.States()[0].Breaker != dependency.Closed {
			t.Errorf("%s: %d of %d calls were made", name, made, c.good+c.bad)
		}
	}
}

// A server that hangs takes no more than the permitted calls. Others wait, and then fail as unavailable.
func TestBulkhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		set := dependency.NewSet(usual)
		d, hang := set.Named("clickhouse"), make(chan struct{})
		var inside, most atomic.Int64
		var running sync.WaitGroup
		var refusedCalls atomic.Int64
		for range 20 {
			running.Go(func() {
				err := d.Do(t.Context(), func() error {
					most.Store(max(most.Load(), inside.Add(1)))
					defer inside.Add(-1)
					<-hang
					return nil
				})
				if unavailable := (*dependency.UnavailableError)(nil); errors.As(err, &unavailable) {
					refusedCalls.Add(1)
				}
			})
		}
		time.Sleep(time.Minute) // on synctest's clock
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Do(short, func() error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call whose context ended returned %v", err)
		}
		close(hang)
		running.Wait()
		if most.Load() != 4 || refusedCalls.Load() != 16 {
			t.Errorf("%d calls at the same time and %d refused, want 4 and 16", most.Load(), refusedCalls.Load())
		}
	})
}

// A place is given back, also by a caller whose context ends at the moment in which it gets one.
func TestPlacesAreGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := dependency.NewSet(dependency.Settings{Concurrency: 1}).Named("s3")
		for round := range 50 {
			var running sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			leave := make(chan struct{})
			running.Go(func() {
				if err := d.Do(t.Context(), func() error { <-leave; return nil }); err != nil {
					t.Errorf("round %d: no place is left: %v", round, err)
				}
				cancel()
			})
			synctest.Wait()
			running.Go(func() { _ = d.Do(ctx, func() error { return nil }) })
			synctest.Wait()
			close(leave)
			running.Wait()
		}
	})
}

// TestTransport checks which answers of HTTP count, over a real connection.
func TestTransport(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that a client goes away
		if status.Load() == 0 {            // hang up
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if status.Load() == 1 { // hang
			<-r.Context().Done()
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer server.Close()
	for name, c := range map[string]struct {
		status  int64
		endless bool
		failed  uint64
	}{
		"ok": {200, false, 0}, "not found": {404, false, 0}, "its own fault or the request's": {500, false, 0},
		"overloaded": {503, false, 1}, "too many requests": {429, false, 1}, "hangs up": {0, false, 1},
		"too slow": {1, false, 1}, "a slow query": {1, true, 0}, "hangs up on a query": {0, true, 1},
	} {
		status.Store(c.status)
		set := dependency.NewSet(usual)
		transport := &http.Transport{DisableKeepAlives: true}
		client := http.Client{Transport: set.Named("s3").Transport(transport, c.endless)}
		ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := client.Do(req); err == nil {
			_ = res.Body.Close()
		}
		cancel()
		if s := set.States()[0]; s.Failed != c.failed || s.Answered+s.GivenUp != 1-c.failed || s.InFlight != 0 {
			t.Errorf("%s: %+v, want %d failures", name, s, c.failed)
		}
		client.CloseIdleConnections()
	}
}

// BenchmarkDo is what a guard adds to a call.
func BenchmarkDo(b *testing.B) {
	for name, d := range map[string]*dependency.Dependency{
		"guarded": dependency.NewSet(dependency.Settings{FailureRate: 50, OpenFor: time.Second, Concurrency: 256}).Named("redis"),
		"bare":    nil,
	} {
		b.Run(name, func(b *testing.B) {
			ctx := b.Context()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := d.Do(ctx, func() error { return nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
