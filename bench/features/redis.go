package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/features/serving"
	embeddedkafka "github.com/millrace/millrace/internal/embedded/kafka"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/test/servers/process"
	servers "github.com/millrace/millrace/test/servers/redis"
)

// redisEntities is the number of entities in Redis, with as many orders as in memory. They are written
// to a log, and read from there, so there are fewer; a lookup reads the same.
const redisEntities = 10_000

// measureRedis measures a process whose facts are in a Redis of its own. What Redis takes counts as the
// server's.
func measureRedis(ctx context.Context, o options) (failed error) {
	var own servers.Servers
	addr, err := own.Start()
	defer func() { failed = errors.Join(failed, own.Stop()) }()
	if errors.Is(err, process.ErrMissing) {
		fmt.Println("without the facts in Redis:", err)
		return nil
	}
	if err != nil {
		return err
	}
	shared := o
	shared.redis, shared.entities = addr, redisEntities
	server, err := startSelf(ctx, shared)
	if err != nil {
		return err
	}
	defer server.stop()
	server.others = func() (time.Duration, error) { return redisCPU(ctx, &own) }
	for _, batch := range []int{1, 50, 100} {
		l := feastLoad("Feast's API, Redis", batch, redisEntities)
		if err := measure(ctx, server, l, rateOf(l, o.rate), o.seconds); err != nil {
			return err
		}
	}
	return nil
}

var cpuOfRedis = regexp.MustCompile(`(?m)^used_cpu_(?:sys|user):([0-9.]+)`)

// redisCPU returns the CPU time that a Redis has used.
func redisCPU(ctx context.Context, s *servers.Servers) (total time.Duration, err error) {
	info, err := s.Do(ctx, 0, "INFO", "cpu")
	if err != nil {
		return 0, err
	}
	for _, used := range cpuOfRedis.FindAllStringSubmatch(info, -1) {
		seconds, err := strconv.ParseFloat(used[1], 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(seconds * float64(time.Second))
	}
	return total, nil
}

// sharedHandler writes the orders of all customers to an embedded broker, and returns both APIs with their
// facts in Redis, once all are there. done ends it.
func sharedHandler(ctx context.Context, o options, log *slog.Logger) (h http.Handler, done func() error, err error) {
	dir, err := os.MkdirTemp("", "millrace-bench-")
	if err != nil {
		return nil, nil, err
	}
	broker, err := embeddedkafka.Start(ctx, embeddedkafka.Config{DataDir: dir, Logger: log})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	client, err := redis.Open(ctx, redis.Config{Addr: o.redis})
	if err != nil {
		return nil, nil, errors.Join(err, broker.Close(), os.RemoveAll(dir))
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	end := func() error {
		stop()
		return errors.Join(<-ended, client.Close(), broker.Close(), os.RemoveAll(dir))
	}
	runner, err := runShared(running, broker.Addr(), client, o.entities, log, ended)
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return handler(runner, log), end, nil
}

// runShared writes the orders and feeds Redis until ctx ends. It returns once all of them are there.
func runShared(ctx context.Context, brokers string, client *redis.Client, entities int, log *slog.Logger,
	ended chan<- error,
) (serving.Backend, error) {
	store, err := online.NewShared(client, []*features.Group{group()}, online.Options{})
	if err == nil {
		err = writeOrders(ctx, brokers, entities, log)
	}
	if err != nil {
		ended <- nil
		return nil, err
	}
	runner := online.NewSharedRunner(store, online.Config{Brokers: []string{brokers}, Logger: log,
		WriteDeadLetters: func(context.Context, ...streams.DeadLetter) error { return errors.New("a dead letter") }})
	go func() { ended <- runner.Run(ctx) }()
	for runner.Ready() != nil { // until what is on the log is in Redis
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return runner, nil
}

// writeOrders writes the orders of all customers, spread over a year.
func writeOrders(ctx context.Context, brokers string, entities int, log *slog.Logger) error {
	cfg := kafka.Config{Brokers: brokers, ClientID: "bench", Logger: log}
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
	const batch = 1000
	var records []kafka.Record
	for n := range entities * ordersEach {
		i, number := n/ordersEach, n%ordersEach
		now := event.Time(time.Now())
		e := event.Event{ID: uuid.Must(uuid.NewV7()), Aggregate: "bench", Stream: entityName(i), Version: uint64(number + 1),
			Type: "bench.Order", Data: fmt.Appendf(nil, "0198c8f2-0000-7000-9000-%012x", n), RecordedAt: now,
			OccurredAt: now.Add(-age(i, number)), Position: event.Position{Sequence: uint64(n + 1)}}
		records = append(records, kafka.Record{Topic: topic, Partition: kafka.AnyPartition, Key: []byte(e.Stream),
			Value: e.Data, Headers: e.Headers()})
		if len(records) == batch || n == entities*ordersEach-1 {
			if err := producer.ProduceAll(ctx, records); err != nil {
				return err
			}
			records = records[:0]
		}
	}
	return nil
}
