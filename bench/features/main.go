// Command features measures lookups of feature vectors, beside Feast's own feature server.
//
// It makes one group of 50 features, fills a store with customers of ten orders each, and serves it
// from a process of its own. Then it sends requests at a fixed rate, whether or not earlier ones
// have been answered, and reports latencies and the server's CPU per request: for 1 and for 100
// entities, by Feast's API and by FeatureService. With -feast PYTHON, it measures Feast's server in
// the same way, with the same number of features and its default online store, SQLite, filled with
// finished values. Last, it measures how long a written event takes until its vector has changed.
//
// docs/benchmarks.md says how to run it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// options are the flags.
type options struct {
	serve    string // address; set in the server's process
	entities int
	rate     int
	seconds  int
	feast    string // python with Feast; empty: Feast is not measured
	events   int
}

func main() {
	var o options
	flag.StringVar(&o.serve, "serve", "", "serve on this address, for the benchmark's own use")
	flag.IntVar(&o.entities, "entities", 100_000, "entities in memory, with ten orders each")
	flag.IntVar(&o.rate, "rate", 1000, "requests per second for one entity; a tenth of it for 100")
	flag.IntVar(&o.seconds, "seconds", 10, "duration of each measurement")
	flag.StringVar(&o.feast, "feast", "", "python that has Feast, to measure its server, too")
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
	fmt.Printf("%-34s %10s %10s %10s %14s\n", "request", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs/request")
	for _, batch := range []int{1, 100} {
		rate := o.rate
		if batch > 1 {
			rate = max(1, o.rate/10)
		}
		if err := measure(ctx, server, fmt.Sprintf("Feast's API, %d × 50", batch), "/get-online-features",
			feastBody("bench", batch, o.entities), rate, o.seconds); err != nil {
			return err
		}
		if err := measure(ctx, server, fmt.Sprintf("FeatureService, %d × 50", batch),
			featuresv1connect.FeatureServiceGetVectorsProcedure, vectorsBody(batch, o.entities), rate, o.seconds); err != nil {
			return err
		}
	}
	server.stop()
	if o.feast != "" {
		if err := measureFeast(ctx, o); err != nil {
			return fmt.Errorf("measure Feast's own server: %w", err)
		}
	}
	if o.events > 0 {
		return measureVisible(ctx, o)
	}
	return nil
}

// measureFeast measures Feast's own server at rates that it can serve on a small machine.
func measureFeast(ctx context.Context, o options) error {
	server, err := startFeast(ctx, o)
	if err != nil {
		return err
	}
	defer server.stop()
	for batch, rate := range map[int]int{1: 20, 100: 5} {
		if err := measure(ctx, server, fmt.Sprintf("Feast's own server, %d × 50", batch), "/get-online-features",
			feastBody("bench", batch, feastEntities), rate, o.seconds); err != nil {
			return err
		}
	}
	return nil
}

// feastBody returns a function that makes requests of Feast's client for random entities.
func feastBody(view string, batch, entities int) func(n int) string {
	refs := make([]string, featureCount)
	for i, name := range featureNames() {
		refs[i] = view + ":" + name
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
