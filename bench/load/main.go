// Command load overloads a running system, and reports the result: how many requests of each class
// were accepted and how fast, how many were shed, and the memory of the process before, during and
// after.
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

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench load:", err)
		cancel()
		os.Exit(1)
	}
}

// class is a kind of request, and the share of clients that send it.
type class struct {
	name, path, contentType string
	share                   int // in eighths
	body                    func() string

	mu       sync.Mutex
	accepted []time.Duration
	shed     int
	failed   map[string]int // by answer
}

func classes() []*class {
	return []*class{
		{name: "commands", path: "/millrace.order.v1.OrderService/PlaceOrder", contentType: "application/json", share: 4, body: order},
		{name: "queries", path: "/millrace.catalog.v1.CatalogQueryService/SearchProducts", contentType: "application/json", share: 3, body: func() string { return `{"query":"mug"}` }},
		{name: "SQL", path: "/v1/sql", contentType: "application/sql", share: 1, body: func() string { return "SELECT count() FROM orders_events" }},
	}
}

func order() string {
	return `{"orderId":"` + uuid.Must(uuid.NewV7()).String() + `","currency":"GBP","country":"GB","lines":[{"sku":"MUG","quantity":1,"unitPrice":{"currencyCode":"GBP","units":9}}]}`
}

const patience = time.Minute // for one answer

func run(ctx context.Context) error {
	addr := flag.String("addr", "127.0.0.1:7400", "of commands, queries and SQL")
	admin := flag.String("admin-addr", "127.0.0.1:7401", "of metrics")
	clients := flag.Int("clients", 2000, "how many ask at a time")
	lasting := flag.Duration("for", time.Minute, "how long")
	calm := flag.Duration("calm", 20*time.Second, "how long to wait afterwards before the memory is read again")
	flag.Parse()
	if flag.NArg() > 0 || *clients < 8 {
		return errors.New("it takes flags alone, and at least eight clients: see -help")
	}
	before, err := resident(ctx, *admin)
	if err != nil {
		return err
	}
	all := classes()
	peak := crowd(ctx, *addr, *admin, *clients, *lasting, all)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(*calm):
	}
	after, err := resident(ctx, *admin)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "class\tclients\taccepted\tper second\tp50 ms\tp99 ms\tturned away\tfailed")
	for _, c := range all {
		slices.Sort(c.accepted)
		fmt.Fprintf(w, "%s\t%d\t%d\t%.0f\t%.1f\t%.1f\t%d\t%v\n", c.name, *clients*c.share/8, len(c.accepted), float64(len(c.accepted))/lasting.Seconds(),
			milliseconds(c.accepted, 50), milliseconds(c.accepted, 99), c.shed, c.failed)
	}
	fmt.Fprintf(w, "memory, MB: before %.0f, peak %.0f, %v after %.0f\n", before, peak, *calm, after)
	return w.Flush()
}

// crowd runs the clients, and returns the highest memory during that time, in MB.
func crowd(ctx context.Context, addr, admin string, clients int, lasting time.Duration, all []*class) (peak float64) {
	// It has no deadline, because http.Client would treat that as its own timeout.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(lasting, cancel).Stop()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: clients, MaxIdleConns: clients}}
	defer client.CloseIdleConnections()
	var running sync.WaitGroup
	for _, c := range all {
		c.failed = map[string]int{}
		for range clients * c.share / 8 {
			running.Go(func() {
				for ctx.Err() == nil {
					c.ask(ctx, client, addr)
				}
			})
		}
	}
	running.Go(func() {
		look := time.NewTicker(time.Second)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				if held, err := resident(ctx, admin); err == nil { // the next sample makes up for a failed one
					peak = max(peak, held)
				}
			}
		}
	})
	running.Wait()
	return peak
}

func (c *class) ask(ctx context.Context, client *http.Client, addr string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+c.path, strings.NewReader(c.body()))
	if err != nil {
		c.tell(func() { c.failed[err.Error()]++ })
		return
	}
	req.Header.Set("Content-Type", c.contentType)
	start := time.Now()
	res, err := client.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
		err = errors.Join(err, res.Body.Close())
	}
	took := time.Since(start)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.tell(func() { c.failed[err.Error()]++ })
	case res.StatusCode == http.StatusOK:
		c.tell(func() { c.accepted = append(c.accepted, took) })
	case res.StatusCode == http.StatusTooManyRequests:
		c.tell(func() { c.shed++ })
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // zero if absent
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds) * time.Second):
		}
	default:
		c.tell(func() { c.failed[res.Status]++ })
	}
}

func (c *class) tell(what func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what()
}

func milliseconds(sorted []time.Duration, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[(len(sorted)-1)*percent/100].Microseconds()) / 1000
}

var residentBytes = regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`)

// resident returns the system's memory in MB, as its metrics report it.
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
	m := residentBytes.FindSubmatch(body)
	if m == nil {
		return 0, errors.New("the metrics do not tell the process's memory")
	}
	bytes, err := strconv.ParseFloat(string(m[1]), 64)
	return bytes / (1 << 20), err
}
