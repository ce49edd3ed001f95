package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// connections is how many requests may be in progress. If the server is slower than the rate, the
// requests wait for a connection, and the waiting time counts.
const connections = 64

// load is requests that are sent to a server.
type load struct {
	name     string
	requests [][]byte // whole HTTP requests, which are sent in turn
	entities int      // of one request
}

// maxRequests is how many different requests a load has. They are made before the measurement.
const maxRequests = 2000

// newLoad returns requests to a path. The bodies are those of body.
func newLoad(name, path, contentType string, entities int, body func(n int) string) load {
	l := load{name: name, entities: entities}
	for n := range max(1, maxRequests/entities) {
		text := body(n)
		l.requests = append(l.requests, fmt.Appendf(nil,
			"POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			path, contentType, len(text), text))
	}
	return l
}

// connection sends one request after the other. It costs less than net/http's client, whose work
// would take the processor from the server that is measured.
type connection struct {
	net.Conn
	in *bufio.Reader
}

// dial opens connections to a server.
func dial(ctx context.Context, p *measured, n int) (all []*connection, err error) {
	for range n {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			return all, err
		}
		all = append(all, &connection{c, bufio.NewReaderSize(c, 64<<10)})
	}
	return all, nil
}

// do sends a request, reads the answer to its end, and returns its size.
func (c *connection) do(request []byte) (size int64, err error) {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return 0, err
	}
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }() // it was read to its end
	if size, err = io.Copy(io.Discard, res.Body); err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return size, err
}

// warm opens the connections of a load and fills the caches of the server.
func warm(ctx context.Context, p *measured, l load, n int) ([]*connection, error) {
	all, err := dial(ctx, p, n)
	for i, c := range all {
		_, failed := c.do(l.requests[i%len(l.requests)])
		err = errors.Join(err, failed)
	}
	return all, err
}

func closeAll(all []*connection) {
	for _, c := range all {
		_ = c.Close() // all answers were read
	}
}

// answerSize returns the size of an answer.
func answerSize(ctx context.Context, p *measured, l load) (int64, error) {
	open, err := dial(ctx, p, 1)
	defer closeAll(open)
	if err != nil {
		return 0, err
	}
	return open[0].do(l.requests[0])
}

// measure sends requests at a rate and prints a row of the table. A latency begins when the request
// was due, so a server that stalls is charged for the requests behind it.
func measure(ctx context.Context, p *measured, l load, rate, seconds int) error {
	open, err := warm(ctx, p, l, min(connections, max(1, rate/10)))
	defer closeAll(open)
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	free := make(chan *connection, len(open))
	for _, c := range open {
		free <- c
	}
	total := rate * seconds
	latencies, errs := make([]time.Duration, total), make([]error, total)
	var all sync.WaitGroup
	before, begun := p.cpu(), time.Now()
	for n := range total {
		due := begun.Add(time.Duration(n) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		c := <-free
		all.Go(func() {
			_, errs[n] = c.do(l.requests[n%len(l.requests)])
			latencies[n] = time.Since(due)
			free <- c
		})
	}
	all.Wait()
	used := p.cpu() - before
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	slices.Sort(latencies)
	at := func(q float64) float64 { return ms(latencies[int(q*float64(total-1))]) }
	fmt.Printf("%-36s %8d %9.2f %9.2f %9.2f %12.0f\n", l.name, rate, at(0.5), at(0.99), at(0.999),
		float64(used.Microseconds())/float64(total))
	return nil
}

// busy is how many connections are used without a pause between requests.
const busy = 16

// saturate sends requests as fast as they are answered and prints a row of the table.
func saturate(ctx context.Context, p *measured, l load, seconds int) error {
	open, err := warm(ctx, p, l, busy)
	defer closeAll(open)
	if err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	var answered atomic.Int64
	errs := make([]error, len(open))
	var all sync.WaitGroup
	server, client, begun := p.cpu(), ownCPU(), time.Now()
	for i, c := range open {
		all.Go(func() {
			for n := i; errs[i] == nil && time.Since(begun) < time.Duration(seconds)*time.Second; n += len(open) {
				if _, errs[i] = c.do(l.requests[n%len(l.requests)]); errs[i] == nil {
					answered.Add(1)
				}
			}
		})
	}
	all.Wait()
	server, client = p.cpu()-server, ownCPU()-client
	took := time.Since(begun)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	n := float64(answered.Load())
	fmt.Printf("%-36s %10.0f %12.0f %12.1f %12.1f\n", l.name, n/took.Seconds(), n*float64(l.entities)/took.Seconds(),
		float64(server.Microseconds())/n, float64(client.Microseconds())/n)
	return nil
}

// measureVisible measures the time from before an event is written to the log until a lookup shows
// it, with an embedded broker.
func measureVisible(ctx context.Context, o options) (failed error) {
	dir, err := os.MkdirTemp("", "millrace-bench-")
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, os.RemoveAll(dir)) }()
	log := slog.New(slog.DiscardHandler)
	broker, err := embeddedkafka.Start(ctx, embeddedkafka.Config{DataDir: dir, Logger: log})
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, broker.Close()) }()
	cfg := kafka.Config{Brokers: broker.Addr(), ClientID: "bench", Logger: log}
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.EnsureTopics(ctx, kafka.Topic{Name: topic, Partitions: 4}); err != nil {
		return err
	}
	producer, err := kafka.NewProducer(cfg)
	if err != nil {
		return err
	}
	defer producer.Close()
	store, err := online.New([]*features.Group{group()}, online.Options{})
	if err != nil {
		return err
	}
	runner := online.NewRunner(store, online.Config{Brokers: []string{broker.Addr()}, Logger: log,
		WriteDeadLetters: func(context.Context, ...streams.DeadLetter) error { return errors.New("a dead letter") }})
	running, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { _ = runner.Run(running) }) // it ends without an error
	defer done.Wait()
	defer stop()
	q, err := store.Compile("bench", "orders_lifetime")
	if err != nil {
		return err
	}
	latencies := make([]time.Duration, o.events)
	for n := range latencies {
		customer := entityName(n)
		now := event.Time(time.Now())
		e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "bench", Stream: customer, Version: 1, Type: "bench.Order",
			Data: []byte(uuid.NewString()), OccurredAt: now, RecordedAt: now, Position: event.Position{Sequence: uint64(n + 1)}}
		begun := time.Now()
		if err := producer.ProduceAll(ctx, []kafka.Record{{Topic: topic, Partition: kafka.AnyPartition,
			Key: []byte(customer), Value: e.Data, Headers: e.Headers()}}); err != nil {
			return err
		}
		for {
			v, err := store.Lookup(ctx, q, []string{customer}, time.Now(), nil)
			if err != nil {
				return err
			}
			if v[0].Values[0].Int == 1 {
				break
			}
			if time.Since(begun) > time.Minute {
				return errors.New("an event was not visible within a minute")
			}
			time.Sleep(100 * time.Microsecond) // between two polls
		}
		latencies[n] = time.Since(begun)
	}
	slices.Sort(latencies)
	fmt.Printf("event written to vector changed: p50 %.1f ms, p99 %.1f ms\n", ms(latencies[len(latencies)/2]),
		ms(latencies[len(latencies)*99/100]))
	return nil
}
