package history

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/commands/eventstore/postgres"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/commands/inventory"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/polltest"
	"github.com/millrace/millrace/test/servers/process"
)

// TestInventory runs clients on the inventory of the binary while it is killed and restarted, and
// checks the history. It covers the whole system on SQLite, and two command services that share a
// PostgreSQL.
func TestInventory(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		data := t.TempDir()
		checkInventory(t, 1, service{args: []string{"up", "--no-demo", "--data", data}},
			func(ctx context.Context) (eventstore.Store, error) {
				return sqlite.Open(ctx, filepath.Join(data, "store", event.Stock.Service+".db"), event.Stock)
			})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		conn := cluster.ConnString(t)
		two := service{args: []string{"serve", "--role", "commands"}, env: []string{"MILLRACE_STORE_POSTGRES=" + conn}}
		checkInventory(t, 2, two, func(ctx context.Context) (eventstore.Store, error) {
			return postgres.Open(ctx, conn, event.Stock)
		})
	})
}

const (
	shoppers      = 8
	enoughAnswers = 300         // and two kills; a shorter history proves little, so a slow machine continues
	patience      = time.Minute // for up to this long
)

func checkInventory(t *testing.T, instances int, s service, open func(context.Context) (eventstore.Store, error)) {
	fleet := newFleet()
	running := make([]*process.Process, instances)
	for i := range running {
		running[i] = s.start(t, i, fleet)
	}
	clients := &stockClients{number: shoppers}
	ctx, cancel := context.WithTimeout(t.Context(), duration(5*time.Second)+patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- clients.run(ctx, fleet) }()

	end, kills := time.Now().Add(duration(5*time.Second)), 0
	for time.Now().Before(end) || ((kills < 2 || clients.answers() < enoughAnswers) && ctx.Err() == nil) {
		select {
		case err := <-ended:
			t.Fatalf("the clients stopped early: %v", err)
		case <-time.After(time.Duration(200+rand.IntN(1200)) * time.Millisecond): // time for the next kill
		}
		i := rand.IntN(instances)
		fleet.serves(i, "")
		if err := running[i].Kill(); err != nil {
			t.Fatal(err)
		}
		kills++
		running[i] = s.start(t, i, fleet)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	h := &stockHistory{operations: readEach(t, clients, fleet)}
	for _, p := range running {
		if err := p.Stop(time.Minute); err != nil {
			t.Error(err)
		}
	}
	store, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.readStore(t.Context(), store), store.Close()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for _, finding := range h.check(true) {
		t.Error(finding)
	}
	h.logSummary(t, kills, time.Since(begun))
}

// readEach gets the stock of every SKU once more, and returns all operations.
func readEach(t *testing.T, clients *stockClients, fleet *fleet) []stockOp {
	t.Helper()
	skus := map[string]bool{}
	for _, op := range clients.operations {
		skus[op.Asked.SKU] = true
	}
	transport := &http.Transport{DialContext: fleet.dial}
	defer transport.CloseIdleConnections()
	last := newStockClient(clients, clients.number, transport)
	for sku := range skus {
		if a, err := last.send(stockCall{Kind: getNow, SKU: sku}); err != nil || a.Outcome == lost {
			t.Errorf("read %s at the end: %v %v", sku, a, err)
		}
	}
	return clients.operations
}

func (h *stockHistory) logSummary(t *testing.T, kills int, took time.Duration) {
	t.Helper()
	counts := map[string]int{}
	for _, op := range h.operations {
		switch op.Answer.Outcome {
		case lost:
			counts["unknown"]++
		case refused:
			counts[op.Answer.Rule]++
		default:
			counts[string(op.Answer.Outcome)]++
		}
	}
	t.Logf("%d operations (%v), %d events, %d kills, checked in %v", len(h.operations), counts, len(h.all), kills,
		took.Round(time.Millisecond))
	if counts["stored"] < enoughAnswers/4 || counts["stock_insufficient"] == 0 || counts["unknown"] == 0 || kills == 0 {
		t.Errorf("too few operations for a meaningful history: %d kills, %v", kills, counts)
	}
}

// service is the command line and environment of a process that takes commands.
type service struct{ args, env []string }

// served finds the address in the output of the binary once it takes commands.
var served = regexp.MustCompile(`(?m)^serving (?:on http://|.*api on )([0-9.:]+)`)

func (s service) start(t *testing.T, i int, f *fleet) *process.Process {
	t.Helper()
	dir := t.TempDir()
	addr := ""
	p, err := process.Start(t.Context(), process.Command{
		Name: "millrace", Path: binary(t), Args: s.args, Dir: dir, StartTimeout: 3 * time.Minute, // two seconds on an idle machine
		Env: append([]string{"MILLRACE_ADDR=127.0.0.1:0", "MILLRACE_ADMIN_ADDR=127.0.0.1:0", "MILLRACE_TRACKING_ADDR=127.0.0.1:0",
			"MILLRACE_CLICKHOUSE_LIBRARY=" + library(t)}, s.env...),
		Ready: func(context.Context) error {
			log, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				return err
			}
			found := served.FindSubmatch(log)
			if found == nil {
				return errors.New("no address in the output yet")
			}
			addr = string(found[1])
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		if t.Failed() {
			t.Logf("process %d: %s", i, p.LogTail())
		}
	})
	f.serves(i, addr)
	return p
}

// root is the root of the repository, relative to this package.
const root = "../.."

func library(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(root + "/.tools/npm/node_modules/@chdb/lib-linux-x64-gnu/libchdb.so")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(built, "millrace")
	return path, process.Build(context.Background(), root, "./cmd/millrace", path)
})

func binary(t *testing.T) string {
	t.Helper()
	process.DependOnSource(t, root)
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBrokenInventory runs two command services on a store that checks versions and appends later.
// They oversell, and the model must detect it. With an intact store, it must find nothing.
func TestBrokenInventory(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]*broken{"intact": {}, "checks, then appends": {append: checksThenAppends}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "events.db"), event.Stock)
			if err != nil {
				t.Fatal(err)
			}
			b.Store = store
			fleet := newFleet()
			var servers []*httptest.Server
			for i := range 2 {
				mux := http.NewServeMux()
				mux.Handle(inventory.NewHandler(b))
				server := httptest.NewServer(mux)
				servers = append(servers, server)
				fleet.serves(i, server.Listener.Addr().String())
			}
			clients := &stockClients{number: shoppers}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- clients.run(ctx, fleet) }()
			polltest.Until(t, "the history is long enough",
				func() bool { return clients.answers() >= enoughAnswers || ctx.Err() != nil })
			cancel()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for _, s := range servers {
				s.Close()
			}
			h := &stockHistory{operations: clients.operations}
			if err := errors.Join(h.readStore(t.Context(), store), store.Close()); err != nil {
				t.Fatal(err)
			}
			findings := strings.Join(h.check(name == "intact"), "\n")
			switch {
			case name == "intact" && findings != "":
				t.Errorf("findings in a store without faults:\n%s", findings)
			case name != "intact" && !strings.Contains(findings, "no order"):
				t.Errorf("the fault is not detected in %d operations:\n%s", len(h.operations), findings)
			}
		})
	}
}
