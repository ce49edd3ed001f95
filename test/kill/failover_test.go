package kill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	orderv1 "github.com/millrace/millrace/gen/millrace/order/v1"
	"github.com/millrace/millrace/gen/millrace/order/v1/orderv1connect"
	"github.com/millrace/millrace/test/servers/process"
)

// TestFailover runs two processes of each role under load, and kills them one after the other. Nothing
// is lost or doubled, and the other process of the role continues. It measures how long what users and
// sinks see pauses. With -kill.write, it writes docs/failover.md.
func TestFailover(t *testing.T) {
	process.DependOnSource(t, root)
	if !*full && !strings.Contains(runPattern(), "Failover") {
		t.Skip("it takes many minutes: run it with -run TestFailover")
	}
	s, err := startProcesses(t.Context(), t.TempDir(), 2)
	if errors.Is(err, process.ErrMissing) && os.Getenv("MILLRACE_REQUIRE_SERVERS") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			for _, r := range s.roles {
				t.Logf("log of %s:\n%s", r.name, r.logTail())
			}
		}
		if err := s.end(); err != nil {
			t.Error(err)
		}
	}()
	s.ledger.begin()
	traffic, visits := startLoadEvery(failoverInterval, s.recorder.addr), s.startVisits(t.Context())
	rows, err := s.killEach(t)
	err = errors.Join(err, traffic.end(), visits.end(), s.failed())
	if err == nil {
		err = s.verify(t.Context())
	}
	found, auditErr := s.audit(t.Context())
	if err := errors.Join(err, auditErr, found.err()); err != nil {
		t.Fatal(err)
	}
	page := failoverPage(rows, found)
	t.Log(page)
	if *write {
		if err := os.WriteFile(root+"/docs/failover.md", []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// failoverInterval is the interval of commands: all processes share the processors with the servers.
const failoverInterval = 20 * time.Millisecond

// pauses are the longest pauses after one kill, by what paused.
type pauses struct {
	killed string // empty: nothing was killed
	of     map[string]time.Duration
}

// What can pause.
const (
	commandsPause = "commands"
	queriesPause  = "queries"
	visiblePause  = "new orders"
)

// killEach measures without a kill first, and then kills one process after the other.
func (s *system) killEach(t *testing.T) ([]pauses, error) {
	ctx := t.Context()
	if err := s.awaitCommands(ctx, 200); err != nil {
		return nil, err
	}
	w := s.watch(ctx)
	defer w.stop()
	if err := w.pastNow(ctx); err != nil {
		return nil, err
	}
	w.restart()
	for range 3 { // some seconds of the normal work
		if err := w.pastNow(ctx); err != nil {
			return nil, err
		}
	}
	rows := []pauses{{of: w.longest()}}
	for _, name := range realRoles {
		for n := range 2 {
			r := s.roles[nth(name, n)]
			i, starts, err := r.now()
			if err != nil {
				return nil, err
			}
			w.restart()
			if err := i.Signal(syscall.SIGKILL); err != nil {
				return nil, fmt.Errorf("kill %s: %w", r.name, err)
			}
			// The other process has to do all of the work first, and then both share it.
			if err := w.pastNow(ctx); err != nil {
				return nil, fmt.Errorf("without %s: %w", r.name, err)
			}
			if err := r.backSince(ctx, starts); err != nil {
				return nil, err
			}
			if err := w.pastNow(ctx); err != nil {
				return nil, fmt.Errorf("with %s again: %w", r.name, err)
			}
			rows = append(rows, pauses{r.name, w.longest()})
			t.Logf("%s was killed: %v", r.name, rows[len(rows)-1].of)
		}
	}
	return rows, nil
}

// watch observes a system under load.
type watch struct {
	system *system
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu    sync.Mutex
	last  map[string]time.Time     // when it was done the last time
	worst map[string]time.Duration // longest pause since restart
}

// watchEvery is how often it is looked at.
const watchEvery = 50 * time.Millisecond

// watch begins to observe the system, until stop is called.
func (s *system) watch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{system: s, cancel: cancel, last: map[string]time.Time{}, worst: map[string]time.Duration{}}
	acknowledged := s.ledger.acknowledged()
	w.every(ctx, watchEvery, func() {
		if now := s.ledger.acknowledged(); now > acknowledged {
			acknowledged = now
			w.seen(commandsPause, time.Now())
		}
	})
	w.every(ctx, watchEvery, func() {
		if s.askFor(ctx, &orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_Reference{Reference: "K-1"}}) == nil {
			w.seen(queriesPause, time.Now())
		}
	})
	w.every(ctx, watchEvery, func() {
		// A recent order with the token of its receipt: the relay and the view have to have it.
		if e, ok := s.ledger.recent(); ok && s.askFor(ctx, &orderv1.GetOrderRequest{
			Key: &orderv1.GetOrderRequest_OrderId{OrderId: e.token.Stream}, Token: e.opaque}) == nil {
			w.seen(visiblePause, time.Now())
		}
	})
	return w
}

// every calls look at an interval until ctx ends.
func (w *watch) every(ctx context.Context, interval time.Duration, look func()) {
	w.group.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				look()
			case <-ctx.Done():
				return
			}
		}
	})
}

func (w *watch) stop() {
	w.cancel()
	w.group.Wait()
}

// seen records that something was done.
func (w *watch) seen(what string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if before, known := w.last[what]; known {
		w.worst[what] = max(w.worst[what], at.Sub(before))
	}
	w.last[what] = at
}

// restart begins a new measurement.
func (w *watch) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.worst)
}

// longest returns the longest pauses since restart.
func (w *watch) longest() map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.worst)
}

// pastNow waits until everything was done again, several times.
func (w *watch) pastNow(ctx context.Context) error {
	for range 5 {
		from := time.Now()
		err := await(ctx, "commands, queries and new orders", recoveryTimeout, func() (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, what := range failoverColumns {
				if !w.last[what].After(from) {
					return false, w.system.failed()
				}
			}
			return true, w.system.failed()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// probeTimeout bounds one look. A process that is frozen or restarts must not hide the other one.
const probeTimeout = 5 * time.Second

// askFor asks the processes with the role query for an order, a random one of them first. That there is
// no such order is an answer, too.
func (s *system) askFor(ctx context.Context, req *orderv1.GetOrderRequest) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	first := rand.IntN(2)
	for n := range 2 {
		i, _, nowErr := s.roles[nth("query", (first+n)%2)].now()
		if nowErr != nil {
			return nowErr
		}
		_, err = orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+i.addr).
			GetOrder(ctx, connect.NewRequest(req))
		if err == nil || req.GetToken() == "" && connect.CodeOf(err) == connect.CodeNotFound {
			return nil
		}
	}
	return err
}

// failoverColumns are what paused, in the order of the page.
var failoverColumns = []string{commandsPause, queriesPause, visiblePause}

// failoverPage returns the page of the measurements.
func failoverPage(rows []pauses, found *findings) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Two processes of each role, and one killed

Written by %[1]sgo test ./test/kill -run TestFailover -kill.write -timeout 60m%[1]s: do not edit.

Two processes of each role run on PostgreSQL, three nodes of Apache Kafka, Redis, Elasticsearch, S3 and
ClickHouse, under load. One process after the other is killed with SIGKILL, and started again at once.
All %[2]d commands and events that were acknowledged are in the store, on the topics, in the tables
and the views, exactly once, and %[1]smillrace verify%[1]s finds all sides equal.

The columns have the longest pause in seconds: between two acknowledged commands, between two answered
queries, and between two orders of the last seconds that were visible by their tokens, which needs
a relay and the views. A caller asks one process, and the other one if that fails. All %[3]d processes,
the servers and the load share %[4]d processors (%[5]s), so look at the difference to the first row.

`, "`", found.acknowledged, 2*len(realRoles), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly))
	b.WriteString("| killed | " + strings.Join(failoverColumns, " | ") + " |\n|---|" +
		strings.Repeat("---:|", len(failoverColumns)) + "\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s |", cmp.Or(row.killed, "none"))
		for _, what := range failoverColumns {
			fmt.Fprintf(&b, " %.1f |", row.of[what].Seconds())
		}
		b.WriteByte('\n')
	}
	return b.String()
}
