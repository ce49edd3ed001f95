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

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench start:", err)
		cancel()
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	orders := flag.String("orders", "37000,200000,1000000", "how many orders to measure with, comma-separated")
	keep := flag.String("keep", "", "a folder for the data folders, which are left there and used again; a temporary one where empty")
	binary := flag.String("binary", "", "the millrace to measure; where empty it is built")
	flag.Parse()
	if flag.NArg() > 0 {
		return errors.New("it takes flags alone: see -help")
	}
	dir := *keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "millrace-bench-start-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if *binary == "" {
		*binary = filepath.Join(dir, "millrace")
		build := exec.CommandContext(ctx, "go", "build", "-o", *binary, "./cmd/millrace") //nolint:gosec // the flag's own value
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build millrace: %w", err)
		}
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer out.Flush() //nolint:errcheck // standard output
	fmt.Fprintln(out, "orders\tstart after\tready, s\tRSS at ready, MB\tpeak RSS, MB\t")
	for count := range strings.SplitSeq(*orders, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(count))
		if err != nil || n < 1 {
			return fmt.Errorf("orders %q: want a number above 0", count)
		}
		s := system{binary: *binary, data: filepath.Join(dir, "orders-"+strconv.Itoa(n)), orders: n}
		if err := s.prepare(ctx); err != nil {
			return fmt.Errorf("%d orders: %w", n, err)
		}
		for _, c := range []struct {
			name string
			end  syscall.Signal // how the previous run ends
			drop bool           // delete the views' files
		}{{"a clean stop", syscall.SIGTERM, false}, {"kill -9", syscall.SIGKILL, false}, {"views lost", syscall.SIGTERM, true}} {
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

// measured is the result of one start.
type measured struct {
	ready         time.Duration
	rssMB, peakMB int64
}

// measure ends a run by a signal, and measures the next start.
func (s system) measure(ctx context.Context, end syscall.Signal, dropViews bool) (m measured, err error) {
	before, err := s.start(ctx)
	if err != nil {
		return m, err
	}
	if err := errors.Join(before.settle(ctx), before.stop(end)); err != nil {
		return m, err
	}
	if dropViews {
		for _, view := range []string{"redis", "search"} {
			if err := os.RemoveAll(filepath.Join(s.data, view)); err != nil {
				return m, err
			}
		}
	}
	begun := time.Now()
	p, err := s.start(ctx)
	if err != nil {
		return m, err
	}
	m.ready = time.Since(begun)
	m.rssMB, m.peakMB, err = p.memory()
	return m, errors.Join(err, p.hasLast(ctx), p.stop(syscall.SIGTERM))
}
