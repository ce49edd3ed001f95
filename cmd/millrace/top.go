package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/millrace/millrace/internal/dependency"
	"github.com/millrace/millrace/internal/telemetry"
)

// topInterval is the time between two readings.
const topInterval = time.Second

// newTop returns the command top, which shows what moves. It reads the metrics of the processes, so it
// needs no token.
func newTop(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top [ADMIN_ADDR...]",
		Short: "Show lag, rates, freshness and dead letters of each sink, every second",
		Long: `Show lag, rates, freshness and dead letters of each sink, every second.

It reads the metrics of the process at --admin-addr, or of all processes that are named: HOST:PORT of
their admin.addr. Rates and dead letters of several processes are added, and the largest lag counts.
Freshness is the time in which 99 % of the last second's events became visible. In a pipe, or with
--once, the table is printed once.`,
		Example: "  millrace top\n  millrace top --once --output json",
	}
	once := cmd.Flags().Bool("once", false, "print one table and end")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, addrs []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		if len(addrs) == 0 {
			addrs = []string{caller.c.Admin.Addr}
		}
		t := &top{caller: caller, addrs: addrs}
		live := !*once && *output == "table" && cmd.OutOrStdout() == os.Stdout && term.IsTerminal(int(os.Stdout.Fd()))
		if live {
			return t.live(cmd.Context(), cmd.OutOrStdout())
		}
		rows, err := t.pair(cmd.Context())
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		printTop(cmd.OutOrStdout(), rows, t.breakers)
		return nil
	}
	return cmd
}

// breakerMetric is the state of a circuit breaker, as dependency.Breaker.
const breakerMetric = "millrace_dependency_breaker_state"

// top reads the metrics of processes.
type top struct {
	caller caller
	addrs  []string // of the admin listeners
	// breakers are those that were not closed at the last reading, by server.
	breakers map[string]dependency.Breaker
}

// topRow is what top shows of a sink. The names are an interface for scripts.
type topRow struct {
	Sink          string  `json:"sink"`
	Items         float64 `json:"items"`
	Unit          string  `json:"unit"`
	LagEvents     float64 `json:"lag_events"`
	LagSeconds    float64 `json:"lag_seconds"`
	EventsPerS    float64 `json:"events_per_second"`
	Freshness99   float64 `json:"freshness_99_seconds"` // upper bound of the bucket; 0 without events
	Failures      float64 `json:"failed_attempts"`      // since the start of the processes
	DeadLetters   float64 `json:"dead_letters"`         // since the start of the processes
	ParkedStreams float64 `json:"parked_streams"`

	events  float64
	buckets map[float64]uint64 // of freshness, cumulated
}

// pair reads twice, so that there are rates.
func (t *top) pair(ctx context.Context) ([]topRow, error) {
	before, err := t.read(ctx)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	select {
	case <-time.After(topInterval):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after, err := t.read(ctx)
	if err != nil {
		return nil, err
	}
	return topRows(before, after, time.Since(begun)), nil
}

// live draws until ctx ends, on the terminal's second screen, which leaves the first one as it was.
func (t *top) live(ctx context.Context, w io.Writer) error {
	fmt.Fprint(w, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(w, "\x1b[?25h\x1b[?1049l")
	for {
		var frame bytes.Buffer
		rows, err := t.pair(ctx)
		if ctx.Err() != nil {
			return nil // the user has ended it
		}
		if err != nil { // the system may come back
			fmt.Fprintln(&frame, explain(err))
		}
		printTop(&frame, rows, t.breakers)
		// Home, the lines without what was behind them, and nothing below.
		fmt.Fprint(w, "\x1b[H", string(bytes.ReplaceAll(frame.Bytes(), []byte("\n"), []byte("\x1b[K\n"))), "\x1b[J")
		if err != nil {
			select {
			case <-time.After(topInterval):
			case <-ctx.Done():
			}
		}
	}
}

// read reads the metrics of all processes, and returns what they say of each sink.
func (t *top) read(ctx context.Context) (map[string]*topRow, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	sinks := map[string]*topRow{}
	t.breakers = map[string]dependency.Breaker{}
	for _, addr := range t.addrs {
		samples, err := t.metrics(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", addr, err)
		}
		for _, s := range samples {
			if s.Labels["sink"] != "" {
				addSample(sinks, s)
			}
			if server := s.Labels["dependency"]; s.Name == breakerMetric && s.Value > 0 {
				t.breakers[server] = max(t.breakers[server], dependency.Breaker(s.Value))
			}
		}
	}
	return sinks, nil
}

// metrics reads the metrics of one process.
func (t *top) metrics(ctx context.Context, addr string) (_ []telemetry.Sample, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.caller.url(addr)+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := t.caller.http().Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %s: name the address of admin.addr", res.Status)
	}
	return telemetry.Read(res.Body)
}

// addSample adds a series to its sink's row.
func addSample(sinks map[string]*topRow, s telemetry.Sample) {
	r := sinks[s.Labels["sink"]]
	if r == nil {
		r = &topRow{Sink: s.Labels["sink"], buckets: map[float64]uint64{}}
		sinks[r.Sink] = r
	}
	switch s.Name {
	case "millrace_sink_items":
		r.Items, r.Unit = max(r.Items, s.Value), s.Labels["unit"]
	case "millrace_sink_lag_events":
		r.LagEvents = max(r.LagEvents, s.Value)
	case "millrace_sink_lag_seconds":
		r.LagSeconds = max(r.LagSeconds, s.Value)
	case "millrace_sink_events_total":
		r.events += s.Value
	case "millrace_sink_freshness_seconds":
		for bound, n := range s.Buckets {
			r.buckets[bound] += n
		}
	case "millrace_sink_errors_total":
		r.Failures += s.Value
	case "millrace_dead_letters_total":
		r.DeadLetters += s.Value
	case "millrace_parked_streams":
		r.ParkedStreams += s.Value
	}
}

// topRows returns the rows of the second reading, with the rates since the first one.
func topRows(before, after map[string]*topRow, elapsed time.Duration) []topRow {
	rows := make([]topRow, 0, len(after))
	for _, r := range after {
		if old := before[r.Sink]; old != nil {
			// After a restart of a process, a counter begins again.
			r.EventsPerS = max(r.events-old.events, 0) / elapsed.Seconds()
			r.Freshness99 = percentile99(old.buckets, r.buckets)
		}
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b topRow) int { return cmp.Compare(a.Sink, b.Sink) })
	return rows
}

// percentile99 returns the bound within which 99 % of the observations between two readings are. It is
// 0 if there are none.
func percentile99(before, after map[float64]uint64) float64 {
	bounds := slices.Sorted(maps.Keys(after))
	grown := func(bound float64) uint64 { return after[bound] - min(before[bound], after[bound]) }
	if len(bounds) == 0 || grown(bounds[len(bounds)-1]) == 0 {
		return 0
	}
	all := float64(grown(bounds[len(bounds)-1]))
	for i, bound := range bounds {
		if float64(grown(bound)) >= 0.99*all {
			if math.IsInf(bound, 1) && i > 0 {
				return bounds[i-1] // more than the largest bound
			}
			return bound
		}
	}
	return 0
}

// printTop prints the table, and the servers that are not called because they fail.
func printTop(w io.Writer, rows []topRow, breakers map[string]dependency.Breaker) {
	table := make([][]any, 0, len(rows))
	for _, r := range rows {
		freshness := "–"
		if r.Freshness99 > 0 {
			freshness = "≤ " + seconds(r.Freshness99)
		}
		table = append(table, []any{r.Sink, uint64(r.Items), r.Unit, uint64(r.LagEvents), seconds(r.LagSeconds),
			fmt.Sprintf("%.0f", r.EventsPerS), freshness, uint64(r.Failures), uint64(r.DeadLetters), uint64(r.ParkedStreams)})
	}
	printTable(w, []string{"sink", "count", "of", "events behind", "behind for", "events/s", "freshness",
		"failed attempts", "dead letters", "parked streams"}, table)
	for _, server := range slices.Sorted(maps.Keys(breakers)) {
		fmt.Fprintf(w, "the breaker of %s is %s: it failed in most of the last calls\n", server, breakers[server])
	}
}

// seconds formats a number of seconds.
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}
