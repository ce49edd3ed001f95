package kill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/gen/millrace/admin/v1/adminv1connect"
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
	dir, err := os.MkdirTemp(scratch, "failover-")
	if err != nil {
		t.Fatal(err)
	}
	s, err := startProcesses(t.Context(), dir, 2)
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
const failoverInterval = 40 * time.Millisecond

// pauses are the longest pauses after one kill, by what paused.
type pauses struct {
	killed string // empty: nothing was killed
	of     map[string]time.Duration
}

// What can pause, besides the sinks.
const (
	commandsPause = "commands"
	queriesPause  = "queries"
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
	last  map[string]time.Time     // until when something was done, or the newest event of a sink
	worst map[string]time.Duration // longest pause since restart
	// unseen is why the sinks could not be looked at the last time.
	unseen error
}

// watchEvery is how often the state is looked at.
const watchEvery = 50 * time.Millisecond

// watch begins to observe the system, until stop is called.
func (s *system) watch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{system: s, cancel: cancel, last: map[string]time.Time{}, worst: map[string]time.Duration{}}
	acknowledged := s.ledger.acknowledged()
	w.every(ctx, func() {
		if now := s.ledger.acknowledged(); now > acknowledged {
			acknowledged = now
			w.seen(commandsPause, time.Now())
		}
	})
	asked := 0
	w.every(ctx, func() {
		if asked++; s.askOrder(ctx, asked) == nil {
			w.seen(queriesPause, time.Now())
		}
	})
	w.every(ctx, func() {
		sinks, err := s.sinks(ctx)
		w.mu.Lock()
		w.unseen = err
		w.mu.Unlock()
		for _, sink := range sinks {
			if at := sink.GetAsOf(); at != nil {
				w.seen(sink.GetSink(), at.AsTime())
			}
		}
	})
	return w
}

// every calls look again and again until ctx ends.
func (w *watch) every(ctx context.Context, look func()) {
	w.group.Go(func() {
		tick := time.NewTicker(watchEvery)
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

// seen records until when something was done. What was done later than before ends a pause.
func (w *watch) seen(what string, until time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.last[what]
	if !known || until.After(before) {
		w.last[what] = until
	}
	if known {
		w.worst[what] = max(w.worst[what], time.Since(before))
	}
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

// quiet are sinks to which the load does not write all the time.
var quiet = []string{"identities", "segments", "quality", "flags", "features"}

// leastSeen is how much there is to observe: commands, queries, and more sinks than this.
const leastSeen = 10

// pastNow waits until everything that the load writes to has something that is newer than now.
func (w *watch) pastNow(ctx context.Context) error {
	from := time.Now()
	var behind []string
	var unseen error
	err := await(ctx, "every sink has new events", recoveryTimeout, func() (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		behind, unseen = behind[:0], w.unseen
		if len(w.last) < leastSeen {
			return false, w.system.failed()
		}
		for what, at := range w.last {
			if !at.After(from) && !slices.ContainsFunc(quiet, func(s string) bool { return strings.Contains(what, s) }) {
				behind = append(behind, what)
			}
		}
		return len(behind) == 0, w.system.failed()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%w: %s have not", err, strings.Join(behind, ", ")), unseen)
	}
	return nil
}

// probeTimeout bounds one look. A process that is frozen or restarts must not hide the other one.
const probeTimeout = 5 * time.Second

// askOrder asks the processes with the role query for an order, first one of them and then the other.
func (s *system) askOrder(ctx context.Context, turn int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for n := range 2 {
		i, _, nowErr := s.roles[nth("query", (turn+n)%2)].now()
		if nowErr != nil {
			return nowErr
		}
		_, err = orderv1connect.NewOrderQueryServiceClient(http.DefaultClient, "http://"+i.addr).GetOrder(ctx,
			connect.NewRequest(&orderv1.GetOrderRequest{Key: &orderv1.GetOrderRequest_Reference{Reference: "K-1"}}))
		if err == nil || connect.CodeOf(err) == connect.CodeNotFound {
			return nil
		}
	}
	return err
}

// sinks returns the state of all sinks, as one of the processes with the role admin sees it.
func (s *system) sinks(ctx context.Context) (_ []*adminv1.SinkStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for n := range 2 {
		i, _, nowErr := s.roles[nth("admin", n)].now()
		if nowErr != nil {
			return nil, nowErr
		}
		var res *connect.Response[adminv1.StatusResponse]
		res, err = adminv1connect.NewAdminServiceClient(http.DefaultClient, "http://"+i.admin).
			Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
		if err == nil {
			return res.Msg.GetSinks(), nil
		}
	}
	return nil, err
}

// failoverColumns are the columns of the page: what paused, by the beginning of its name.
var failoverColumns = []struct{ title, prefix string }{
	{"commands", commandsPause}, {"queries", queriesPause}, {"topics", "topic "}, {"views", "view "}, {"tables", "table "},
}

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
queries, and between an event that is recorded and a newer one in the topic, view or table that is
the slowest. All %[3]d processes, the servers and the load share %[4]d processors (%[5]s), so look
at the difference to the first row. A table has a commit per second.

`, "`", found.acknowledged, 2*len(realRoles), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly))
	b.WriteString("| killed |")
	for _, c := range failoverColumns {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(failoverColumns)) + "\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s |", cmp.Or(row.killed, "none"))
		for _, c := range failoverColumns {
			var worst time.Duration
			for what, pause := range row.of {
				if strings.HasPrefix(what, c.prefix) && !slices.ContainsFunc(quiet, func(s string) bool { return strings.Contains(what, s) }) {
					worst = max(worst, pause)
				}
			}
			fmt.Fprintf(&b, " %.1f |", worst.Seconds())
		}
		b.WriteByte('\n')
	}
	return b.String()
}
