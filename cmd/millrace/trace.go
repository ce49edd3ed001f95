package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/event"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
)

// newTrace returns the command trace, which follows a stream through every hop.
func newTrace(a *cli) *cobra.Command {
	var stream string
	var limit int32
	cmd := &cobra.Command{
		Use:   "trace ORDER | trace --stream AGGREGATE/ID",
		Short: "Follow one order, or any stream, through every hop, with times and offsets",
		Long: `Follow one stream through every hop: its events in the store and on Kafka, what each view, table and set of features
has of it, and its dead letters. The answer has no content of events.

An event is looked for on Kafka among the records that were written from its time on. A sink that has not applied the
newest of the events is shown with the offset that it reads next.

The output is a table on a terminal, and JSON otherwise. With auth.tokens, the caller needs the right operations.`,
		Example: `  millrace trace 019b8d79-5de0-78c5-823e-e43e23039067
  millrace trace --stream product/STA-0301
  millrace trace --stream customer/019b8d65-39a0-7a9d-995e-44f4f199964e --limit 100 --output json`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&stream, "stream", "", "AGGREGATE/ID of any stream, such as customer/ID or product/SKU")
	cmd.Flags().Int32Var(&limit, "limit", 20, "maximum number of events: the newest, at most 1000")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &adminv1.TraceStreamRequest{Aggregate: event.Order.Name, Limit: limit}
		switch {
		case len(args) == 1 && stream == "":
			req.Stream = args[0]
		case len(args) == 0 && stream != "":
			var ok bool
			if req.Aggregate, req.Stream, ok = strings.Cut(stream, "/"); !ok {
				return fmt.Errorf("--stream %q: want AGGREGATE/ID, such as product/MUG", stream)
			}
		default:
			return errors.New("want the id of an order, or --stream AGGREGATE/ID")
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r, err := caller.admin().TraceStream(cmd.Context(), connect.NewRequest(req))
		if err != nil {
			return explain(err)
		}
		if *output == "json" || !cmd.Flags().Changed("output") && !onTerminal(cmd.OutOrStdout()) {
			return printMessage(cmd.OutOrStdout(), r.Msg)
		}
		printTrace(cmd.OutOrStdout(), r.Msg)
		return nil
	}
	return cmd
}

// printTrace prints the events, then the sinks, then the dead letters.
func printTrace(w io.Writer, r *adminv1.TraceStreamResponse) {
	rows := make([][]any, 0, len(r.Events))
	for _, e := range r.Events {
		where, published := "not published", ""
		switch {
		case e.Offset != nil:
			where, published = fmt.Sprintf("%d@%d", e.GetPartition(), e.GetOffset()), clock(e.PublishedAt)
		case e.Published:
			where = "not found"
		}
		rows = append(rows, []any{e.Version, e.Type, e.Position, clock(e.RecordedAt), where, published, e.TraceId})
	}
	printTable(w, []string{"version", "event", "store position", "recorded", "on kafka", "published", "trace"}, rows)
	if first := r.Events[0].Version; first > 1 {
		fmt.Fprintf(w, "%d earlier events: set --limit\n", first-1)
	}
	rows = rows[:0]
	for _, h := range r.Hops {
		state, shows := "behind", ""
		if h.Applied {
			state = "applied"
		}
		if h.Error != "" {
			state += ": " + h.Error
		}
		switch {
		case h.Version != nil:
			shows = "version " + strconv.FormatUint(h.GetVersion(), 10)
		case h.Snapshot != 0:
			shows = fmt.Sprintf("snapshot %d of %s", h.Snapshot, clock(h.CommittedAt))
		}
		rows = append(rows, []any{h.Sink, state, h.Next, shows})
	}
	printTable(w, []string{"sink", "newest event", "next offset", "shows"}, rows)
	if len(r.DeadLetters) == 0 {
		return
	}
	rows = rows[:0]
	for _, d := range r.DeadLetters {
		rows = append(rows, []any{d.Id, deadLetterState(d), d.Attempts})
	}
	printTable(w, []string{"dead letter", "state", "attempts"}, rows)
}

// clock returns a time of the system's clocks with milliseconds, or "" if there is none.
func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.DateTime + ".000")
}

// onTerminal reports whether w is a terminal.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
