// Command lake compares ways to land a Kafka topic in an Iceberg table: Iceberg's own sink for
// Kafka Connect, and this repository's lander. The ceiling beside them is the same bytes from
// memory to a closed Parquet file. All of them read from the same Apache Kafka, one after the
// other. All of them write tables of the same 13 columns, which are then compared with the
// generated events, row by row.
//
// Then events arrive at half of the rate that a lander achieved. The benchmark measures how long
// each waits until it can be queried, with maintenance and without.
//
// It prints tables, and one line of JSON at the end:
// {"millrace":{"rows_per_second":…,"rows_per_cpu_second":…,"peak_mb":…,"runs":{…}},
// "iceberg_sink":{…},"ceiling":{…},"freshness":{…}}. Of each kind, it is the run with the least CPU
// time. Progress goes to stderr.
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

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench lake:", err)
		cancel()
		os.Exit(1)
	}
}

// The share of the rows for warming up, and its limits. Java has compiled hot code after some
// hundred thousand rows.
const (
	warmPart = 5
	warmMost = 1_000_000
)

func run(ctx context.Context) (err error) {
	b := &bench{}
	rows := flag.Int64("rows", 10_000_000, "how many events to land")
	wanted := flag.String("contenders", "", "whom to measure, comma-separated, by the begin of their names; all where empty")
	keep := flag.Bool("keep", false, "leave the tables, and say where")
	flag.IntVar(&b.partitions, "partitions", 2, "of each topic")
	flag.DurationVar(&b.commit, "commit", 10*time.Second, "how often contenders commit")
	flag.IntVar(&b.heapMB, "heap", 2048, "MB of memory for contenders in Java")
	live := flag.Duration("live", 30*time.Second, "for how long events come in to see how fresh the table is; 0: not at all")
	rate := flag.Int64("rate", 0, "events per second meanwhile; 0: half of what one lander was able to do")
	flag.Parse()
	if flag.NArg() > 0 || *rows < 1 || b.partitions < 1 {
		return errors.New("it takes flags alone, and at least one row and one partition: see -help")
	}
	b.warmRows = max(1, min(*rows/warmPart, warmMost))

	contenders, err := chosen(b, *wanted)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "millrace-bench-lake-"); err != nil {
		return err
	}
	if *keep {
		defer fmt.Fprintln(os.Stderr, "the tables are under", b.dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	}
	progress("starting Apache Kafka")
	brokers, err := b.cluster.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cluster.Stop()) }()
	b.kafka = kafka.Config{Brokers: brokers, Replicas: 1}

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
		progress("%s: %.0f rows/s, %.0f rows per CPU-second, %d MB", c.Name(), r.RowsPerSecond, r.RowsPerCPUSecond, r.PeakMB)
	}
	fresh := map[string]distribution{}
	if *rate == 0 {
		*rate = int64(results[millrace{bench: b, landers: 1}.Name()].RowsPerSecond / 2)
	}
	if *live > 0 && *rate > 0 {
		for _, f := range []freshness{b.freshness(false), b.freshness(true)} {
			if fresh[f.what()], err = f.measure(ctx, *rate, *live); err != nil {
				return fmt.Errorf("freshness, %s: %w", f.what(), err)
			}
		}
	}
	return show(contenders, results, fresh)
}

// chosen returns the contenders whose names start with one of the wanted prefixes.
func chosen(b *bench, wanted string) ([]contender, error) {
	all := []contender{millrace{bench: b, landers: 1}, millrace{bench: b, landers: 2}, icebergSink{b, 1}, icebergSink{b, 2}, ceiling{b}}
	if wanted == "" {
		return all, nil
	}
	var some []contender
	for begin := range strings.SplitSeq(wanted, ",") {
		found := len(some)
		for _, c := range all {
			if strings.HasPrefix(c.Name(), begin) {
				some = append(some, c)
			}
		}
		if len(some) == found {
			return nil, fmt.Errorf("no contender is named %s…; there are: %s", begin, names(all))
		}
	}
	return some, nil
}

func names(contenders []contender) string {
	var all []string
	for _, c := range contenders {
		all = append(all, c.Name())
	}
	return strings.Join(all, ", ")
}

// kind is the result of all runs of one kind of contender, with the run of the least CPU time at
// the top level.
type kind struct {
	result
	Runs map[string]result `json:"runs"`
}

// show prints the tables, and the line of JSON.
func show(contenders []contender, results map[string]result, fresh map[string]distribution) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "contender\trows/s\tsteady\trows/CPU s\twall s\tCPU s\tpeak MB\tcommits\tfiles\tB/row\t")
	kinds, line := map[string]*kind{}, map[string]any{}
	for _, c := range contenders {
		r := results[c.Name()]
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%d\t%d\t%.1f\t\n", c.Name(), r.RowsPerSecond, r.SteadyRowsPerSecond,
			r.RowsPerCPUSecond, r.Seconds, r.CPUSeconds, r.PeakMB, r.Commits, r.Files, r.BytesPerRow)
		of, how, _ := strings.Cut(c.Name(), "/")
		if kinds[of] == nil {
			kinds[of] = &kind{Runs: map[string]result{}}
			line[of] = kinds[of]
		}
		kinds[of].Runs[how] = r
		if r.RowsPerCPUSecond > kinds[of].RowsPerCPUSecond {
			kinds[of].result = r
		}
	}
	if len(fresh) > 0 {
		line["freshness"] = fresh
		fmt.Fprintln(t, "\nevent to queryable\tevents/s\tmedian ms\t90 %\t99 %\tmost\tcommits\tfiles\t")
		for _, what := range slices.Sorted(maps.Keys(fresh)) {
			d := fresh[what]
			fmt.Fprintf(t, "%s\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t\n", what, d.EventsPerSecond, d.Median, d.P90, d.P99, d.Most, d.Commits, d.Files)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(line)
}

// The last progress message, its time and its format. Only one goroutine reports progress.
var (
	begun                = time.Now()
	lastSaid, lastFormat string
	lastAt               time.Time
)

// progress reports progress on stderr. It omits repetitions, and prints at most one line in two
// seconds while only numbers change.
func progress(format string, args ...any) {
	said := fmt.Sprintf(format, args...)
	if said == lastSaid || format == lastFormat && time.Since(lastAt) < 2*time.Second {
		return
	}
	lastSaid, lastFormat, lastAt = said, format, time.Now()
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(begun).Seconds(), said)
}
