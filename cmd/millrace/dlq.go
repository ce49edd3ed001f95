package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
)

// newDLQ returns the command dlq, which looks at dead letters and applies parked events again.
func newDLQ(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters, and apply parked events again",
		Long: `Look at dead letters, and apply parked events again.

A dead letter has one of three states:

  rejected  the record is not an event, or does not fit the table; the sink continued without it
  parked    the sink could not apply the event; later events of its stream wait behind it
  waiting   the event waits behind a parked one

Once the cause of a parked event is corrected, it and those behind it are applied in order: at the next start of the
process that feeds the sink, or by "millrace dlq retry". Other streams are never held up.

With auth.tokens, the caller needs the right operations.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newDLQList(a), newDLQShow(a), newDLQRetry(a), newDLQSkip(a))
	return cmd
}

// newDLQList returns the command dlq ls.
func newDLQList(a *cli) *cobra.Command {
	var sink, key, state string
	var limit int32
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "Count the dead letters by sink, and list them",
		Example: `  millrace dlq ls
  millrace dlq ls --sink orderstatus/v2 --state parked
  millrace dlq ls --output json --limit 10000`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&sink, "sink", "", "only those of a sink, such as orderstatus/v2")
	cmd.Flags().StringVar(&key, "key", "", "only those of a key, which is the stream of an event")
	cmd.Flags().StringVar(&state, "state", "", "only those that are rejected, parked or waiting")
	cmd.Flags().Int32Var(&limit, "limit", 100, "maximum number to list, at most 10000; all are counted")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		req := &adminv1.ListDeadLettersRequest{Sink: sink, Key: key, Limit: limit}
		if state != "" {
			n, ok := adminv1.DeadLetterState_value["DEAD_LETTER_STATE_"+strings.ToUpper(state)]
			if !ok || n == 0 {
				return fmt.Errorf("--state %q: want rejected, parked or waiting", state)
			}
			req.State = adminv1.DeadLetterState(n)
		}
		r, err := a.listDeadLetters(cmd.Context(), req)
		if err != nil {
			return err
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r)
		}
		printDeadLetters(cmd.OutOrStdout(), r)
		return nil
	}
	return cmd
}

// listDeadLetters asks the running system.
func (a *cli) listDeadLetters(ctx context.Context, req *adminv1.ListDeadLettersRequest) (
	*adminv1.ListDeadLettersResponse, error,
) {
	caller, err := a.caller(adminListener)
	if err != nil {
		return nil, err
	}
	r, err := caller.admin().ListDeadLetters(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, explain(err)
	}
	return r.Msg, nil
}

// printDeadLetters prints the counts, and below them the dead letters.
func printDeadLetters(w io.Writer, r *adminv1.ListDeadLettersResponse) {
	if len(r.Counts) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	var counts [][]any
	var total int64
	for _, c := range r.Counts {
		counts = append(counts, []any{c.Sink, c.Streams, c.Parked, c.Waiting, c.Rejected})
		total += c.Parked + c.Waiting + c.Rejected
	}
	printTable(w, []string{"sink", "parked streams", "parked", "waiting", "rejected"}, counts)
	var rows [][]any
	for _, d := range r.DeadLetters {
		rows = append(rows, []any{d.Id, d.Key, deadLetterState(d), d.Attempts, cut(d.Reason, 80)})
	}
	printTable(w, []string{"dead letter", "key", "state", "attempts", "reason"}, rows)
	if n := total - int64(len(r.DeadLetters)); n > 0 {
		fmt.Fprintf(w, "%d more: set --limit, or select by --sink, --key and --state\n", n)
	}
}

// deadLetterState returns a dead letter's state as people write it.
func deadLetterState(d *adminv1.DeadLetter) string {
	return strings.ToLower(strings.TrimPrefix(d.State.String(), "DEAD_LETTER_STATE_"))
}

// cut shortens a text to a number of characters.
func cut(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// newDLQShow returns the command dlq show.
func newDLQShow(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a dead letter with its headers, its value and, after a panic, the stack",
		Example: `  millrace dlq show 'orderstatus/v2|millrace.orders|2|31'`,
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := a.listDeadLetters(cmd.Context(), &adminv1.ListDeadLettersRequest{Id: args[0]})
		if err != nil {
			return err
		}
		if len(r.DeadLetters) != 1 {
			return fmt.Errorf("unknown dead letter %q: `millrace dlq ls` lists them", args[0])
		}
		d, w := r.DeadLetters[0], cmd.OutOrStdout()
		if *output == "json" {
			return printMessage(w, d)
		}
		fmt.Fprintf(w, "%s\nkey       %s\nstate     %s\nattempts  %d\nreason    %s\n", plain(d.Id), plain(d.Key),
			deadLetterState(d), d.Attempts, plain(d.Reason))
		for _, name := range slices.Sorted(maps.Keys(d.Headers)) {
			fmt.Fprintf(w, "header    %s: %s\n", plain(name), plain(d.Headers[name]))
		}
		fmt.Fprintf(w, "value     %d bytes", d.ValueSize)
		if int64(len(d.Value)) != d.ValueSize {
			fmt.Fprintf(w, ", of which %d are kept", len(d.Value))
		}
		fmt.Fprintf(w, ": %q\n", d.Value)
		for line := range strings.Lines(d.Stack) {
			fmt.Fprintln(w, "  ", plain(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "  ")))
		}
		return nil
	}
	return cmd
}

// newDLQRetry returns the command dlq retry.
func newDLQRetry(a *cli) *cobra.Command {
	var wait time.Duration
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "retry SINK",
		Short: "Apply the parked events of a sink again, in order",
		Long: `Apply the parked events of a sink again, in order, each stream until one of its events fails. Applying an event
that the sink has already is a no-op. The command waits until every stream that was parked at its start is released or
has failed again, and exits with 1 if one has failed.`,
		Example: `  millrace dlq retry orderstatus/v2
  millrace dlq retry orderstatus/v2 --dry-run`,
		Args: cobra.ExactArgs(1),
	}
	durationFlag(cmd.Flags(), &wait, "wait", time.Minute, "how long to wait for the result")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "list what would be applied, and change nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		before, err := a.parkedEvents(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if dryRun {
			printDeadLetters(cmd.OutOrStdout(), before)
			return nil
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		if _, err := caller.admin().RetryDeadLetters(cmd.Context(),
			connect.NewRequest(&adminv1.RetryDeadLettersRequest{Sink: args[0]})); err != nil {
			return explain(err)
		}
		after, err := a.awaitRetry(cmd.Context(), args[0], before, wait)
		if err != nil {
			return err
		}
		if len(after.DeadLetters) == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "applied %d events of %d streams\n", len(before.DeadLetters), streamsOf(before))
			return nil
		}
		printDeadLetters(cmd.OutOrStdout(), after)
		return fmt.Errorf("%d streams of %s are still parked: `millrace dlq show ID` shows why", streamsOf(after), args[0])
	}
	return cmd
}

// parkedEvents returns the parked and waiting events of a sink.
func (a *cli) parkedEvents(ctx context.Context, sink string) (*adminv1.ListDeadLettersResponse, error) {
	r, err := a.listDeadLetters(ctx, &adminv1.ListDeadLettersRequest{Sink: sink, Limit: 10_000})
	if err == nil {
		r.DeadLetters = slices.DeleteFunc(r.DeadLetters, func(d *adminv1.DeadLetter) bool {
			return d.State == adminv1.DeadLetterState_DEAD_LETTER_STATE_REJECTED
		})
	}
	return r, err
}

// awaitRetry waits until each event that was parked before is released, or was tried again.
func (a *cli) awaitRetry(ctx context.Context, sink string, before *adminv1.ListDeadLettersResponse,
	wait time.Duration,
) (*adminv1.ListDeadLettersResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf(
		"no result within %v: the events will be applied when a process feeds %s; see `millrace dlq ls`", wait, sink))
	defer cancel()
	attempts := map[string]int32{}
	for _, d := range before.DeadLetters {
		attempts[d.Id] = d.Attempts
	}
	poll := time.NewTicker(500 * time.Millisecond)
	defer poll.Stop()
	for {
		after, err := a.parkedEvents(ctx, sink)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
		// A stream is done when its first event was tried.
		pending := slices.ContainsFunc(after.DeadLetters, func(d *adminv1.DeadLetter) bool {
			tried, known := attempts[d.Id]
			return known && d.State == adminv1.DeadLetterState_DEAD_LETTER_STATE_PARKED && d.Attempts == tried
		})
		released := !slices.ContainsFunc(after.DeadLetters, func(d *adminv1.DeadLetter) bool {
			return d.State == adminv1.DeadLetterState_DEAD_LETTER_STATE_PARKED
		})
		if !pending && (!released || len(after.DeadLetters) == 0) {
			return after, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// streamsOf returns the number of parked streams.
func streamsOf(r *adminv1.ListDeadLettersResponse) (n int64) {
	for _, c := range r.Counts {
		n += c.Streams
	}
	return n
}

// newDLQSkip returns the command dlq skip.
func newDLQSkip(a *cli) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "skip ID",
		Short: "Delete a dead letter; if its event is parked, the sink continues without it",
		Long: `Delete a dead letter. If its event is parked, the sink skips it at the next retry. The sink then lacks this event
for good, and "millrace verify" reports that. Most views need every event of a stream: the next one stays parked then,
because the one before it is missing.`,
		Example: `  millrace dlq skip 'orderstatus/v2|millrace.orders|2|31' --yes`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "delete it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return errors.New("the sink will lack this event for good: set --yes to delete its dead letter")
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		if _, err := caller.admin().DeleteDeadLetter(cmd.Context(),
			connect.NewRequest(&adminv1.DeleteDeadLetterRequest{Id: args[0]})); err != nil {
			return explain(err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", plain(args[0]))
		return nil
	}
	return cmd
}
