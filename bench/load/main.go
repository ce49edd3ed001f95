// Command load overloads a running system, and reports the results: how many requests of each class
// were accepted and how fast, how many were rejected, and the memory of the process before, during
// and after.
//
//	bin/millrace up --no-demo &
//	go run ./bench/load -clients 2000 -for 60s
//
// Half of the clients send commands, three eighths send queries, and one eighth SQL. Each client
// sends one request at a time. After a rejection, it waits for Retry-After.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
)

// main runs the benchmark until it ends or is interrupted.
func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench load:", err)
		cancel()
		os.Exit(1)
	}
}

// class is a kind of request, and the share of clients that send it. Under load, the system refuses
// SQL first, then queries, and commands last, so the classes are counted separately.
type class struct {
	name, path, contentType string
	share                   int // in eighths
	body                    func() string

	mu       sync.Mutex      // protects the fields below
	accepted []time.Duration // duration of each accepted request
	rejected int             // requests that were answered with 429
	failed   map[string]int  // by error or status
}

// classes returns the classes of requests. Their shares add up to eight eighths.
func classes() []*class {
	return []*class{
		{
			name: "commands", path: "/millrace.order.v1.OrderService/PlaceOrder",
			contentType: "application/json", share: 4, body: order,
		},
		{
			name: "queries", path: "/millrace.catalog.v1.CatalogQueryService/SearchProducts",
			contentType: "application/json", share: 3, body: func() string { return `{"query":"mug"}` },
		},
		{
			name: "SQL", path: "/v1/sql",
			contentType: "application/sql", share: 1, body: func() string { return "SELECT count() FROM orders_events" },
		},
	}
}

// order returns a command that places a new order. Its id is new, so no command conflicts with
// another one or repeats it.
func order() string {
	return `{"orderId":"` + uuid.Must(uuid.NewV7()).String() + `","currency":"GBP","country":"GB",` +
		`"lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`
}

// requestTimeout bounds one request. A request that takes longer counts as failed.
const requestTimeout = time.Minute

// run measures the memory before, during and after the load, and prints the results.
func run(ctx context.Context) error {
	addr := flag.String("addr", "127.0.0.1:7400", "address for commands, queries and SQL")
	admin := flag.String("admin-addr", "127.0.0.1:7401", "address for metrics")
	clients := flag.Int("clients", 2000, "number of concurrent clients")
	duration := flag.Duration("for", time.Minute, "duration of the load")
	idle := flag.Duration("calm", 20*time.Second, "wait after the load, before the memory is measured again")
	flag.Parse()
	if flag.NArg() > 0 || *clients < 8 {
		return errors.New("want no arguments and at least eight clients: see -help")
	}
	// The system must be running. Its memory before the load is the baseline.
	before, err := resident(ctx, *admin)
	if err != nil {
		return err
	}
	all := classes()
	peak := runClients(ctx, *addr, *admin, *clients, *duration, all)
	// Give the system time to release memory.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(*idle):
	}
	after, err := resident(ctx, *admin)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "class\tclients\taccepted\tper second\tp50 ms\tp99 ms\trejected\tfailed")
	for _, c := range all {
		slices.Sort(c.accepted)
		fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\t%.1f\t%.1f\t%d\t%v\n",
			c.name, *clients*c.share/8, len(c.accepted), float64(len(c.accepted))/duration.Seconds(),
			milliseconds(c.accepted, 50), milliseconds(c.accepted, 99), c.rejected, c.failed)
	}
	fmt.Fprintf(w, "memory, MB: before %.0f, peak %.0f, %v after %.0f\n", before, peak, *idle, after)
	return w.Flush()
}

// runClients runs the clients, and returns the highest memory during that time, in MB.
func runClients(
	ctx context.Context, addr, admin string, clients int, duration time.Duration, all []*class,
) (peak float64) {
	// Cancel the context instead of giving it a deadline, which http.Client would treat as its own
	// timeout.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(duration, cancel).Stop()
	// Each client keeps its connection, so that the load does not consist of handshakes.
	client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		MaxIdleConnsPerHost: clients, MaxIdleConns: clients,
	}}
	defer client.CloseIdleConnections()
	var running sync.WaitGroup
	// Each class has its share of the clients, and each client is one goroutine.
	for _, c := range all {
		c.failed = map[string]int{}
		for range clients * c.share / 8 {
			running.Go(func() {
				for ctx.Err() == nil {
					c.send(ctx, client, addr)
				}
			})
		}
	}
	// Sample the memory meanwhile.
	running.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				// The next sample makes up for a failed one.
				if rss, err := resident(ctx, admin); err == nil {
					peak = max(peak, rss)
				}
			}
		}
	})
	running.Wait()
	return peak
}

// send sends one request and counts its result. After a rejection, it waits for Retry-After.
// Requests that the end of the load interrupts do not count.
func (c *class) send(ctx context.Context, client *http.Client, addr string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+c.path, strings.NewReader(c.body()))
	if err != nil {
		c.update(func() { c.failed[err.Error()]++ })
		return
	}
	req.Header.Set("Content-Type", c.contentType)
	start := time.Now()
	res, err := client.Do(req)
	if err == nil { // the request lasts until its response is read
		_, err = io.Copy(io.Discard, res.Body)
		err = errors.Join(err, res.Body.Close())
	}
	took := time.Since(start)
	switch {
	case ctx.Err() != nil: // the load has ended
	case err != nil:
		c.update(func() { c.failed[err.Error()]++ })
	case res.StatusCode == http.StatusOK:
		c.update(func() { c.accepted = append(c.accepted, took) })
	case res.StatusCode == http.StatusTooManyRequests:
		c.update(func() { c.rejected++ })
		// A rejected client waits as long as it is told, like a well-behaved one.
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // zero if absent
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds) * time.Second):
		}
	default:
		c.update(func() { c.failed[res.Status]++ })
	}
}

// update calls change with the lock held. The clients of a class share it.
func (c *class) update(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// milliseconds returns a percentile of sorted durations, in milliseconds. It is 0 if there are
// none.
func milliseconds(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[(len(sorted)-1)*percent/100].Microseconds()) / 1000
}

// residentBytes matches the metric with the memory of the process.
var residentBytes = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`)

// resident returns the system's memory in MB, as its metrics report it. So the system may run on
// another machine.
func resident(ctx context.Context, admin string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return 0, err
	}
	// The format is that of Prometheus: name, space, number.
	m := residentBytes.FindSubmatch(body)
	if m == nil {
		return 0, errors.New("/metrics has no process_resident_memory_bytes")
	}
	bytes, err := strconv.ParseFloat(string(m[1]), 64)
	return bytes / (1 << 20), err
}
