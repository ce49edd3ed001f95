package server_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/internal/server"
)

// Below capacity no request is refused. Above it, a request waits no longer than is needed to know
// that there is overload.
func TestLimiterShedsByQueueTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const most, work, clients = 10, 50 * time.Millisecond, 200
		limiter := server.NewLimiter(most)
		var done, shed atomic.Int64
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				for ctx.Err() == nil {
					release, err := limiter.Acquire(ctx, server.Command)
					if err != nil {
						if ctx.Err() == nil && !errors.Is(err, server.ErrOverloaded) {
							t.Errorf("%v", err)
						}
						shed.Add(1)
						time.Sleep(time.Second) // Retry-After
						continue
					}
					time.Sleep(work)
					release()
					done.Add(1)
				}
			})
		}
		all.Wait()
		if shed.Load() == 0 || done.Load() < 1500 {
			t.Errorf("%d done, %d turned away; 2000 can be done", done.Load(), shed.Load())
		}
		// After the overload, all classes are admitted again.
		release, err := limiter.Acquire(t.Context(), server.SQL)
		if err != nil {
			t.Fatalf("after the load: %v", err)
		}
		release()
	})
}

// While commands fill the limiter, SQL is refused first, and queries before commands.
func TestLimiterShedsLowestClassFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limiter := server.NewLimiter(4)
		var releases []func()
		for range 4 {
			release, err := limiter.Acquire(t.Context(), server.Command)
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		took := map[server.Class]time.Duration{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, c := range []server.Class{server.Command, server.Query, server.SQL} {
			all.Go(func() {
				start := time.Now()
				if _, err := limiter.Acquire(t.Context(), c); !errors.Is(err, server.ErrOverloaded) {
					t.Errorf("%v: %v", c, err)
				}
				mu.Lock()
				defer mu.Unlock()
				took[c] = time.Since(start)
			})
		}
		all.Wait()
		if took[server.SQL] >= took[server.Query] || took[server.Query] >= took[server.Command] {
			t.Errorf("turned away after %v", took)
		}
		for _, release := range releases {
			release()
		}
		time.Sleep(time.Second) // until then lower classes than commands are refused
		// A free place goes to the highest class, regardless of the order of arrival.
		releases = nil
		for range 4 {
			release, _ := limiter.Acquire(t.Context(), server.Command)
			releases = append(releases, release)
		}
		order := make(chan server.Class, 2)
		for _, c := range []server.Class{server.Query, server.Command} {
			all.Go(func() {
				release, err := limiter.Acquire(t.Context(), c)
				if err != nil {
					t.Errorf("%v: %v", c, err)
					return
				}
				order <- c
				release()
			})
			synctest.Wait()
		}
		for _, release := range releases {
			release()
			synctest.Wait()
		}
		all.Wait()
		if first := <-order; first != server.Command {
			t.Errorf("first came %v", first)
		}
	})
}

// A request that would be refused is refused before its body is read.
func TestLimiterShedsBeforeTheBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limiter := server.NewLimiter(1)
		release, err := limiter.Acquire(t.Context(), server.Command)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 8 { // as many as may queue
			all.Go(func() {
				if release, err := limiter.Acquire(t.Context(), server.Command); err == nil {
					release()
				}
			})
		}
		synctest.Wait()
		var why error
		refuse := func(_ http.ResponseWriter, _ *http.Request, err error) { why = err }
		h := limiter.Admit(server.As(server.Command), refuse, nil)
		h.ServeHTTP(nil, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", unread{t}))
		if !errors.Is(why, server.ErrOverloaded) || limiter.Shed(server.Command) != 1 {
			t.Errorf("%v, %d turned away", why, limiter.Shed(server.Command))
		}
		release()
		all.Wait()
	})
}

type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}

// While queries are refused, SQL does not queue, although its own queue is empty. One second later
// it does.
func TestLimiterShedsInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limiter := server.NewLimiter(1)
		release, err := limiter.Acquire(t.Context(), server.Command)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 9 { // one more than may queue
			all.Go(func() {
				if release, err := limiter.Acquire(t.Context(), server.Query); err == nil {
					release()
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, err := limiter.Acquire(t.Context(), server.SQL); !errors.Is(err, server.ErrOverloaded) ||
			time.Since(start) != 0 {
			t.Errorf("SQL: %v after %v", err, time.Since(start))
		}
		if limiter.Shed(server.Query) != 1 || limiter.Shed(server.SQL) != 1 || limiter.Shed(server.Command) != 0 {
			t.Errorf("%d queries, %d of SQL, %d commands", limiter.Shed(server.Query), limiter.Shed(server.SQL),
				limiter.Shed(server.Command))
		}
		release()
		all.Wait()
		if _, err := limiter.Acquire(t.Context(), server.SQL); !errors.Is(err, server.ErrOverloaded) ||
			limiter.Admits(server.SQL) {
			t.Errorf("SQL in a moment without a queue: %v", err)
		}
		release, err = limiter.Acquire(t.Context(), server.Command)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		sql := make(chan error, 1)
		go func() {
			release, err := limiter.Acquire(t.Context(), server.SQL)
			if err == nil {
				release()
			}
			sql <- err
		}()
		synctest.Wait()
		release()
		if err := <-sql; err != nil {
			t.Errorf("SQL afterwards: %v", err)
		}
	})
}

// When the rate of free places is known, a request that would be too late is refused at once.
func TestLimiterEstimatesTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limiter := server.NewLimiter(1)
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		var all sync.WaitGroup
		for range 3 { // each takes longer than queries may wait in a standing queue
			all.Go(func() {
				for ctx.Err() == nil {
					if release, err := limiter.Acquire(ctx, server.Command); err == nil {
						time.Sleep(80 * time.Millisecond)
						release()
					}
				}
			})
		}
		time.Sleep(10 * time.Second)
		start := time.Now()
		if _, err := limiter.Acquire(t.Context(), server.Query); !errors.Is(err, server.ErrOverloaded) {
			t.Errorf("%v", err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("it waited %v to hear what was known", waited)
		}
		stop()
		all.Wait()
	})
}

// Never more than the maximum are in progress, and every admitted request frees its place.
func TestLimiterKeepsItsLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 8).Draw(t, "most")
		limiter := server.NewLimiter(most)
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		var in []func()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "leave") && len(in) > 0 {
				in[0]()
				in = in[1:]
				continue
			}
			c := server.Class(rapid.IntRange(0, 2).Draw(t, "class"))
			if release, err := limiter.Acquire(ended, c); err == nil {
				in = append(in, release)
			}
			if len(in) > most {
				t.Fatalf("%d under way, %d may be", len(in), most)
			}
		}
		for _, release := range in {
			release()
			release() // a second call does nothing
		}
		for i := range most {
			if _, err := limiter.Acquire(context.Background(), server.Command); err != nil {
				t.Fatalf("place %d is lost: %v", i, err)
			}
		}
	})
}

// Forty queries of one caller do not block another caller.
func TestSlotsAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slots := server.NewSlots(8, 64, 10*time.Second)
		var all sync.WaitGroup
		for range 40 {
			all.Go(func() {
				give, err := slots.Acquire(t.Context(), "greedy")
				if err != nil {
					t.Errorf("greedy: %v", err)
					return
				}
				time.Sleep(time.Second)
				give()
			})
		}
		synctest.Wait()
		start := time.Now()
		for range 4 {
			give, err := slots.Acquire(t.Context(), "other")
			if err != nil {
				t.Fatal(err)
			}
			defer give()
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the other caller waited %v", waited)
		}
		all.Wait()
	})
}

func TestSlotsLimitQueues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slots := server.NewSlots(1, 1, time.Second)
		give, err := slots.Acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		late := make(chan error, 1)
		go func() { _, err := slots.Acquire(t.Context(), "a"); late <- err }()
		synctest.Wait()
		if _, err := slots.Acquire(t.Context(), "a"); !errors.Is(err, server.ErrOverloaded) {
			t.Errorf("beyond those who may wait: %v", err)
		}
		if err := <-late; !errors.Is(err, server.ErrOverloaded) {
			t.Errorf("who waited too long: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := slots.Acquire(ctx, "b"); !errors.Is(err, context.Canceled) {
			t.Errorf("who has gone: %v", err)
		}
		give()
		if give, err = slots.Acquire(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		give()
	})
}
