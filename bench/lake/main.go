// Command lake measures who brings a Kafka topic into an Iceberg table, and how fast: Iceberg's own sink for Kafka Connect, and
// this repository's lander; and beside them the ceiling, which is the same bytes from memory to a closed Parquet file. All read from
// one Apache Kafka, beside which each runs alone; all write a table of the same 13 columns, which is then compared with what was
// generated, row by row.
//
// It prints a table, and last one line of JSON: {"iceberg_sink":{"tasks_1":{…},…},…}. Progress goes to stderr.
//
//	go run ./bench/lake -rows 10000000
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

// The part of the rows that contenders get warm on, and its bounds: Java has compiled what is hot after some hundred thousand.
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
	return show(contenders, results)
}

// chosen are the contenders whose names begin as wanted.
func chosen(b *bench, wanted string) ([]contender, error) {
	all := []contender{millrace{b, 1}, millrace{b, 2}, icebergSink{b, 1}, icebergSink{b, 2}, ceiling{b}}
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

// show prints the table, and the line for programs.
func show(contenders []contender, results map[string]result) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "contender\trows/s\tsteady\trows/CPU s\twall s\tCPU s\tpeak MB\tcommits\tfiles\tB/row\t")
	byKind := map[string]map[string]result{}
	for _, c := range contenders {
		r := results[c.Name()]
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%d\t%d\t%.1f\t\n", c.Name(), r.RowsPerSecond, r.SteadyRowsPerSecond,
			r.RowsPerCPUSecond, r.Seconds, r.CPUSeconds, r.PeakMB, r.Commits, r.Files, r.BytesPerRow)
		kind, how, _ := strings.Cut(c.Name(), "/")
		if byKind[kind] == nil {
			byKind[kind] = map[string]result{}
		}
		byKind[kind][how] = r
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(byKind)
}

// What was said last, when, and in what form; by one goroutine.
var (
	begun                = time.Now()
	lastSaid, lastFormat string
	lastAt               time.Time
)

// progress tells on stderr what is going on: what has not been said, and of one thing that moves, every two seconds a line.
func progress(format string, args ...any) {
	said := fmt.Sprintf(format, args...)
	if said == lastSaid || format == lastFormat && time.Since(lastAt) < 2*time.Second {
		return
	}
	lastSaid, lastFormat, lastAt = said, format, time.Now()
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(begun).Seconds(), said)
}
