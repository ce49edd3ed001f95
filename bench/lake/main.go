// Command lake compares ways to land a Kafka topic in an Iceberg table: Iceberg's own sink for
// Kafka Connect, and this repository's lander. The ceiling beside them is the same bytes from
// memory to a closed Parquet file. The contenders read from the same Apache Kafka, one after the
// other. They write tables of the same 13 columns, which are then compared with the generated
// events, row by row.
//
// Then events arrive at half of the rate that a lander achieved. The benchmark measures how long
// each event waits until it can be queried, with maintenance and without.
//
// contender.go defines what a contender does. millrace.go, sink.go and ceiling.go are the
// contenders, and freshness.go is the second part. event.go generates the events, topics.go fills
// the topics, and table.go creates and checks the tables.
//
// It prints tables, and one line of JSON at the end:
// {"millrace":{"rows_per_second":…,"rows_per_cpu_second":…,"peak_mb":…,"runs":{…}},
// "iceberg_sink":{…},"ceiling":{…},"freshness":{…}}. For each kind, it contains the run with the
// least CPU time. Progress goes to stderr.
//
//	go run ./bench/lake -rows 10000000
//	go run ./bench/lake -rows 2000000 -contenders millrace,ceiling -live 0
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// main runs the benchmark until it ends or is interrupted.
func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench lake:", err)
		cancel()
		os.Exit(1)
	}
}

// The fraction of the rows for warming up is 1/warmFraction, but at most maxWarmRows. Java has
// compiled hot code after some hundred thousand rows.
const (
	warmFraction = 5
	maxWarmRows  = 1_000_000
)

// run lands the topics with each contender, measures freshness, and prints the results. It prints
// nothing to stdout if anything fails, so a script never reads the figures of an incomplete run.
func run(ctx context.Context) (err error) {
	b := &bench{}
	rows := flag.Int64("rows", 10_000_000, "number of events to land")
	wanted := flag.String("contenders", "",
		"contenders to measure, as comma-separated prefixes of their names; empty means all")
	keep := flag.Bool("keep", false, "keep the tables, and print their location")
	flag.IntVar(&b.partitions, "partitions", 2, "partitions of each topic")
	flag.DurationVar(&b.commit, "commit", 10*time.Second, "commit interval of the contenders")
	flag.IntVar(&b.heapMB, "heap", 2048, "heap of contenders in Java, in MB")
	live := flag.Duration("live", 30*time.Second, "duration of the freshness measurement; 0 skips it")
	rate := flag.Int64("rate", 0, "events per second of the freshness measurement; 0 means half of the rate of one lander")
	flag.Parse()
	if flag.NArg() > 0 || *rows < 1 || b.partitions < 1 {
		return errors.New("want no arguments, at least one row and at least one partition: see -help")
	}
	// Only contenders in Java use the warm-up topics, but each encoding has one.
	b.warmRows = max(1, min(*rows/warmFraction, maxWarmRows))

	contenders, err := selectContenders(b, *wanted)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "millrace-bench-lake-"); err != nil {
		return err
	}
	if *keep {
		defer fmt.Fprintln(os.Stderr, "the tables are in", b.dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	}
	progress("starting Apache Kafka")
	brokers, err := b.cluster.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cluster.Stop()) }()
	b.kafka = kafka.Config{Brokers: brokers, Replicas: 1} // the cluster has one node

	// A topic is filled when the first contender needs its encoding.
	results := map[string]result{}
	filled := map[encoding]bool{}
	for _, c := range contenders {
		as := c.Reads()
		if !filled[as] {
			filled[as] = true
			err := fill(ctx, b.kafka, warmTopicOf(as), as, int32(b.partitions), b.warmRows)
			if err == nil {
				err = fill(ctx, b.kafka, topicOf(as), as, int32(b.partitions), *rows)
			}
			if err != nil {
				return err
			}
		}
		r, err := c.Land(ctx, topicOf(as), *rows)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name(), err)
		}
		results[c.Name()] = r
		progress("%s: %.0f rows/s, %.0f rows per CPU-second, %d MB",
			c.Name(), r.RowsPerSecond, r.RowsPerCPUSecond, r.PeakMB)
	}
	// Freshness is measured at a rate that a lander can sustain.
	fresh := map[string]distribution{}
	if *rate == 0 {
		*rate = int64(results[millrace{bench: b, landers: 1}.Name()].RowsPerSecond / 2)
	}
	if *live > 0 && *rate > 0 {
		for _, f := range []freshness{b.freshness(false), b.freshness(true)} {
			if fresh[f.variant()], err = f.measure(ctx, *rate, *live); err != nil {
				return fmt.Errorf("freshness, %s: %w", f.variant(), err)
			}
		}
	}
	return printResults(contenders, results, fresh)
}

// selectContenders returns the contenders whose names start with one of the wanted prefixes.
func selectContenders(b *bench, wanted string) ([]contender, error) {
	all := []contender{
		millrace{bench: b, landers: 1}, millrace{bench: b, landers: 2},
		icebergSink{b, 1}, icebergSink{b, 2},
		ceiling{b},
	}
	if wanted == "" {
		return all, nil
	}
	var some []contender
	for prefix := range strings.SplitSeq(wanted, ",") {
		found := len(some)
		for _, c := range all {
			if strings.HasPrefix(c.Name(), prefix) {
				some = append(some, c)
			}
		}
		if len(some) == found {
			return nil, fmt.Errorf("-contenders: no contender starts with %q; there are %s", prefix, names(all))
		}
	}
	return some, nil
}

// names returns the names of contenders, for an error.
func names(contenders []contender) string {
	var all []string
	for _, c := range contenders {
		all = append(all, c.Name())
	}
	return strings.Join(all, ", ")
}

// kind is the result of all runs of one kind of contender, with the run of the least CPU time at
// the top level. Runs has all of them by variant, such as the number of landers.
type kind struct {
	result
	Runs map[string]result `json:"runs"`
}

// printResults prints the tables, and the line of JSON.
func printResults(contenders []contender, results map[string]result, fresh map[string]distribution) error {
	// People read the tables, and scripts read the last line.
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "contender\trows/s\tsteady\trows/CPU s\twall s\tCPU s\tpeak MB\tcommits\tfiles\tB/row\t")
	kinds, line := map[string]*kind{}, map[string]any{}
	for _, c := range contenders {
		r := results[c.Name()]
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%d\t%d\t%.1f\t\n",
			c.Name(), r.RowsPerSecond, r.SteadyRowsPerSecond,
			r.RowsPerCPUSecond, r.Seconds, r.CPUSeconds, r.PeakMB, r.Commits, r.Files, r.BytesPerRow)
		kindName, variant, _ := strings.Cut(c.Name(), "/")
		k := kinds[kindName]
		if k == nil {
			k = &kind{Runs: map[string]result{}}
			kinds[kindName], line[kindName] = k, k
		}
		k.Runs[variant] = r
		if r.RowsPerCPUSecond > k.RowsPerCPUSecond {
			k.result = r
		}
	}
	if len(fresh) > 0 {
		line["freshness"] = fresh
		fmt.Fprintln(t, "\nevent to queryable\tevents/s\tmedian ms\t90 %\t99 %\tmax\tcommits\tfiles\t")
		for _, what := range slices.Sorted(maps.Keys(fresh)) {
			d := fresh[what]
			fmt.Fprintf(t, "%s\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t\n",
				what, d.EventsPerSecond, d.Median, d.P90, d.P99, d.Max, d.Commits, d.Files)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(line)
}

// The last progress message, its time and its format. Only one goroutine reports progress.
var (
	started              = time.Now()
	lastText, lastFormat string
	lastAt               time.Time
)

// progress reports progress on stderr. It omits repetitions, and prints at most one line in two
// seconds while only numbers change. So it may be called at every poll.
func progress(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text == lastText || format == lastFormat && time.Since(lastAt) < 2*time.Second {
		return
	}
	lastText, lastFormat, lastAt = text, format, time.Now()
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(started).Seconds(), text)
}
