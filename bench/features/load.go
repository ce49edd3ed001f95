package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/streams"
)

// maxOpen bounds the requests in progress. A server that is slower than the rate then shows waiting
// times instead of using up all connections.
const maxOpen = 512

// measure sends requests at a rate and prints a row of the table. A latency begins when the request
// was due, so a server that stalls is charged for the requests behind it.
func measure(ctx context.Context, p *process, name, path string, body func(int) string, rate, seconds int) error {
	transport := &http.Transport{MaxIdleConns: maxOpen, MaxIdleConnsPerHost: maxOpen}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	request := func(n int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+path, strings.NewReader(body(n)))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		if path == featuresv1connect.FeatureServiceGetVectorsProcedure {
			req.Header.Set("Content-Type", "application/proto")
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		if err := discard(res); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", path, res.Status)
		}
		return nil
	}
	for n := range 20 { // connections and caches
		if err := request(n); err != nil {
			return err
		}
	}
	total := rate * seconds
	latencies, errs := make([]time.Duration, total), make([]error, total)
	open := make(chan struct{}, maxOpen)
	var all sync.WaitGroup
	before, begun := p.cpu(), time.Now()
	for n := range total {
		due := begun.Add(time.Duration(n) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		open <- struct{}{}
		all.Go(func() {
			errs[n] = request(n)
			latencies[n] = time.Since(due)
			<-open
		})
	}
	all.Wait()
	used := p.cpu() - before
	if err := errors.Join(errs...); err != nil {
		return err
	}
	slices.Sort(latencies)
	at := func(q float64) float64 { return ms(latencies[int(q*float64(total-1))]) }
	fmt.Printf("%-34s %10.2f %10.2f %10.2f %14.0f   at %d/s\n", name, at(0.5), at(0.99), at(0.999),
		float64(used.Microseconds())/float64(total), rate)
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
			v, err := store.Lookup(q, []string{customer}, time.Now(), nil)
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
