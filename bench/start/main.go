// Command start measures how long `millrace up` takes to become ready on a data folder that already
// has orders, and how much memory it uses. It first creates the folder: it appends orders to the
// event store in large batches and runs the system once until every sink has them. It then
// measures:
//
//   - a start after a clean stop,
//   - a start after kill -9,
//   - a start without the views' files, which are rebuilt from the log.
//
// Ready means that /readyz returns 200. The last order is then queried with its token and must be
// confirmed.
//
//	go run ./bench/start -orders 37000,200000,1000000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// main runs the benchmark until it ends or is interrupted. An interrupt also ends the system under
// test, which does not outlive this process.
func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench start:", err)
		cancel()
		os.Exit(1)
	}
}

// run measures each number of orders, and prints a row for each start. For every number there is a
// data folder, on which the three kinds of start are measured one after the other.
func run(ctx context.Context) (err error) {
	orders := flag.String("orders", "37000,200000,1000000", "numbers of orders to measure, comma-separated")
	keep := flag.String("keep", "",
		"folder for the data folders, which are kept and reused; empty uses a temporary folder")
	binary := flag.String("binary", "", "millrace binary to measure; empty builds it from this tree")
	flag.Parse()
	if flag.NArg() > 0 {
		return errors.New("unexpected arguments: see -help")
	}
	// The data folders are deleted at the end unless they are kept.
	dir := *keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "millrace-bench-start-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	// The binary is built into the same folder, so it is kept or deleted with the data.
	if *binary == "" {
		*binary = filepath.Join(dir, "millrace")
		args := []string{"build", "-o", *binary, "./cmd/millrace"}
		build := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the flag's own value
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build millrace: %w", err)
		}
	}
	// Rows are printed as they are measured, because a run of a million orders takes a while.
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer out.Flush() //nolint:errcheck // standard output
	fmt.Fprintln(out, "orders\tstart after\tready, s\tRSS at ready, MB\tpeak RSS, MB\t")
	for count := range strings.SplitSeq(*orders, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(count))
		if err != nil || n < 1 {
			return fmt.Errorf("-orders: %q is not a positive number", count)
		}
		// With -keep, a data folder of an earlier run is used again.
		s := system{binary: *binary, data: filepath.Join(dir, "orders-"+strconv.Itoa(n)), orders: n}
		if err := s.prepare(ctx); err != nil {
			return fmt.Errorf("%d orders: %w", n, err)
		}
		for _, c := range []struct {
			name string
			end  syscall.Signal // how the previous run ends
			drop bool           // delete the views' files
		}{
			{"a clean stop", syscall.SIGTERM, false},
			{"kill -9", syscall.SIGKILL, false},
			{"views lost", syscall.SIGTERM, true},
		} {
			m, err := s.measure(ctx, c.end, c.drop)
			if err != nil {
				return fmt.Errorf("%d orders, start after %s: %w", n, c.name, err)
			}
			fmt.Fprintf(out, "%d\t%s\t%.2f\t%d\t%d\t\n", n, c.name, m.ready.Seconds(), m.rssMB, m.peakMB)
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// measurement is the result of one start. It does not include the query afterwards.
type measurement struct {
	ready         time.Duration // from the start of the process to the first 200 of /readyz
	rssMB, peakMB int64         // memory when it became ready, and the highest until then
}

// measure runs the system, ends it with a signal, and measures the next start. The first run waits
// for all sinks, so that the measured start does not have to catch up. The measured run is stopped
// cleanly, so the folder is as it was for the next measurement.
func (s system) measure(ctx context.Context, end syscall.Signal, dropViews bool) (m measurement, err error) {
	before, err := s.start(ctx)
	if err != nil {
		return m, err
	}
	if err := errors.Join(before.awaitSinks(ctx), before.stop(end)); err != nil {
		return m, err
	}
	// Without the files of its views, the system rebuilds them from the log before it is ready.
	if dropViews {
		for _, view := range []string{"redis", "search"} {
			if err := os.RemoveAll(filepath.Join(s.data, view)); err != nil {
				return m, err
			}
		}
	}
	// The time includes the start of the process itself, as an operator would experience it.
	started := time.Now()
	p, err := s.start(ctx)
	if err != nil {
		return m, err
	}
	m.ready = time.Since(started)
	m.rssMB, m.peakMB, err = p.memory() // before the query, which could allocate more
	return m, errors.Join(err, p.checkLastOrder(ctx), p.stop(syscall.SIGTERM))
}
