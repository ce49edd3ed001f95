// Command features measures lookups of feature vectors, beside their ceiling and Feast's own server.
//
// It makes one group of 50 features, fills a store with customers of ten orders each, and serves it
// from a process of its own. Then it sends requests in two ways, by Feast's API and by
// FeatureService, for 1, 50 and 100 entities: at a fixed rate, whether or not earlier ones have been
// answered, for latencies; and as fast as they are answered, for the number of lookups that two
// cores can do. Both processes share the machine, so the table says what the client takes.
//
// The same is measured of a process whose facts are in a Redis of its own: an empty one, which it fills
// from an embedded broker. The processor time includes that of Redis.
//
// The ceiling is a bare handler of net/http in the same process, which reads the same request and
// answers as many bytes without computing anything. Feast's server is measured in the same way, with
// as many features and its default online store, SQLite, filled with finished values, if `make
// engines` has installed it or -feast names a python that has it. Last, the benchmark measures how
// long a written event takes until its vector has changed.
//
// docs/benchmarks.md has the results.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
	"github.com/millrace/millrace/test/servers/process"
)

// options are the flags.
type options struct {
	serve    string // address; set in the server's process
	redis    string // address of the Redis with the facts; empty: they are in memory
	entities int
	rate     int
	seconds  int
	feast    string // python with Feast; empty: Feast is not measured
	events   int
}

func main() {
	var o options
	flag.StringVar(&o.serve, "serve", "", "serve on this address, for the benchmark's own use")
	flag.StringVar(&o.redis, "redis", "", "keep the facts in the Redis at this address, for the benchmark's own use")
	flag.IntVar(&o.entities, "entities", 100_000, "entities in memory, with ten orders each")
	flag.IntVar(&o.rate, "rate", 1000, "requests per second for one entity; a tenth of it for 50 and 100")
	flag.IntVar(&o.seconds, "seconds", 8, "duration of each measurement")
	flag.StringVar(&o.feast, "feast", installedFeast(), "python that has Feast, to measure its server, too")
	flag.IntVar(&o.events, "events", 500, "events whose time to a changed vector is measured; 0: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "features:", err)
		os.Exit(1)
	}
}

// run runs the server, or the benchmark.
func run(ctx context.Context, o options) error {
	if o.serve != "" {
		return serve(ctx, o)
	}
	server, err := startSelf(ctx, o)
	if err != nil {
		return err
	}
	defer server.stop()
	fmt.Printf("%d entities with %d orders each: %.0f MB of process memory, %.2f GB per million entities\n",
		o.entities, ordersEach, float64(server.memory())/1e6, float64(server.memory())/float64(o.entities)/1e3)
	var loads []load
	for _, batch := range []int{1, 50, 100} {
		loads = append(loads, feastLoad("Feast's API", batch, o.entities), newLoad(
			fmt.Sprintf("FeatureService, %d × 50", batch), featuresv1connect.FeatureServiceGetVectorsProcedure,
			"application/proto", batch, vectorsBody(batch, o.entities)))
	}
	ceilings, err := ceilingLoads(ctx, server, o.entities)
	if err != nil {
		return err
	}
	fmt.Printf("%-36s %8s %9s %9s %9s %12s\n", "at a fixed rate", "rate/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs")
	for _, l := range slices.Concat(ceilings, loads) {
		if err := measure(ctx, server, l, rateOf(l, o.rate), o.seconds); err != nil {
			return err
		}
	}
	if err := measureRedis(ctx, o); err != nil {
		return fmt.Errorf("measure with the facts in Redis: %w", err)
	}
	if o.feast != "" {
		if err := measureFeast(ctx, o); err != nil {
			return fmt.Errorf("measure Feast's own server: %w", err)
		}
	}
	fmt.Printf("%-36s %10s %12s %12s %12s\n", "as fast as answered", "requests/s", "entities/s", "server µs", "client µs")
	for _, l := range slices.Concat(ceilings, loads) {
		if err := saturate(ctx, server, l, o.seconds); err != nil {
			return err
		}
	}
	server.stop()
	if o.events > 0 {
		return measureVisible(ctx, o)
	}
	return nil
}

// ceilingLoads returns requests to the bare handler, for answers of the size that Feast's API gives.
func ceilingLoads(ctx context.Context, server *measured, entities int) (all []load, err error) {
	for _, batch := range []int{1, 50} {
		size, err := answerSize(ctx, server, feastLoad("", batch, entities))
		if err != nil {
			return nil, err
		}
		all = append(all, newLoad(fmt.Sprintf("ceiling: bare handler, %d × 50", batch),
			fmt.Sprintf("%s?%d", ceilingPath, size), "application/json", batch, feastBody(batch, entities)))
	}
	return all, nil
}

// rateOf returns the rate at which a load is sent.
func rateOf(l load, rate int) int {
	if l.entities > 1 {
		return max(1, rate/10)
	}
	return rate
}

// feastLoad returns requests of Feast's client.
func feastLoad(name string, batch, entities int) load {
	return newLoad(fmt.Sprintf("%s, %d × 50", name, batch), "/get-online-features", "application/json", batch,
		feastBody(batch, entities))
}

// installedFeast returns the python that has Feast if it is installed.
func installedFeast() string {
	home, err := process.InstallDir("feast")
	if err != nil {
		return ""
	}
	return filepath.Join(home, "python", "bin", "python")
}

// measureFeast measures Feast's own server at rates that it can serve on a small machine.
func measureFeast(ctx context.Context, o options) error {
	server, err := startFeast(ctx, o)
	if err != nil {
		return err
	}
	defer server.stop()
	for _, l := range []struct{ batch, rate int }{{1, 20}, {50, 8}, {100, 5}} {
		requests := feastLoad("Feast's own server", l.batch, feastEntities)
		if err := measure(ctx, server, requests, l.rate, o.seconds); err != nil {
			return err
		}
	}
	return nil
}

// feastBody returns a function that makes requests of Feast's client for random entities.
func feastBody(batch, entities int) func(n int) string {
	refs := make([]string, featureCount)
	for i, name := range featureNames() {
		refs[i] = "bench:" + name
	}
	list, _ := json.Marshal(refs) // texts can be marshalled
	return func(n int) string {
		return fmt.Sprintf(`{"entities":{"customer_id":[%s]},"features":%s,"full_feature_names":false}`,
			`"`+strings.Join(names(n, batch, entities), `","`)+`"`, list)
	}
}

// vectorsBody returns a function that makes requests of FeatureService, in Protobuf.
func vectorsBody(batch, entities int) func(n int) string {
	return func(n int) string {
		b, _ := proto.Marshal(&featuresv1.GetVectorsRequest{Group: "bench", Entities: names(n, batch, entities)})
		return string(b) // a request can be marshalled
	}
}

// names returns the entities of the n-th request.
func names(n, batch, entities int) []string {
	all := make([]string, batch)
	for i := range all {
		all[i] = entityName((n*7919 + i*104729) % entities)
	}
	return all
}

// ms returns a duration in milliseconds.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
