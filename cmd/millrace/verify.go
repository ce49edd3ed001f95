package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
)

// newVerify returns the command verify. The server does the comparison. This command shows progress
// and the result.
//
// A difference is a result and not an error of the command. It is printed with the digests, and
// then the exit code is 1, for scripts.
func newVerify(a *cli) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare store, topics, tables and views by count and content; exit 1 on any difference",
		Long: `Wait (at most --wait) until every sink has reached the position that the stores have now. Then compute a
digest of each side, a count and a hash that does not depend on order, and compare the digests per aggregate
type. The first difference is named by its stream. Exit code 0 means equal everywhere. Records on a topic that
are not events are counted, and the first one is named. They do not make the sides differ. A store or broker
that does not answer is asked again, until --wait has passed.

It calls the system at --admin-addr. --addr alone is refused, because it does not determine --admin-addr.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	durationFlag(cmd.Flags(), &wait, "wait", time.Minute, "how long to wait for the sinks to catch up")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		stream, err := caller.admin().Verify(cmd.Context(),
			connect.NewRequest(&adminv1.VerifyRequest{Wait: durationpb.New(wait)}))
		if err != nil {
			return explain(err)
		}
		result, err := receiveResult(stream)
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			err = printJSON(cmd.OutOrStdout(), verifyJSON(result))
		} else {
			fmt.Fprintln(cmd.OutOrStdout(), "the system at", caller.url(caller.c.Admin.Addr))
			printVerify(cmd.OutOrStdout(), result)
		}
		// The difference has been printed, so only the exit code remains.
		if err == nil && !result.Equal {
			err = errSilent
		}
		return err
	}
	return cmd
}

// receiveResult shows the progress of a verification and returns its result.
//
// The server sends progress for as long as it works. A stream that ends without a result was cut,
// which must not look like equality.
func receiveResult(stream *connect.ServerStreamForClient[adminv1.VerifyResponse]) (*adminv1.VerifyResult, error) {
	// The stream has progress messages, and one result at its end.
	b := newBar("verify")
	var result *adminv1.VerifyResult
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil {
			b.set(int64(p.Done), int64(p.Total), "verify: "+p.Doing)
		}
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	err := errors.Join(stream.Err(), stream.Close())
	if err == nil && result == nil {
		err = errors.New("verify: the response ended without a result")
	}
	b.end(err)
	return result, err
}

// printVerify prints the digest of each side, the first difference of each aggregate, and records
// that are not events.
func printVerify(w io.Writer, r *adminv1.VerifyResult) {
	var rows [][]any
	for _, g := range r.Aggregates {
		for _, s := range g.Sides {
			rows = append(rows, []any{g.Aggregate, s.Side, s.Count, s.Unit, s.Hash[:16]}) // a prefix is enough for a person to compare
		}
	}
	printTable(w, []string{"aggregate", "side", "count", "of", "content hash"}, rows)
	for _, g := range r.Aggregates {
		if !g.Equal {
			fmt.Fprintln(w, "different:", g.Difference)
		}
	}
	// Not a difference: every sink leaves these records out.
	for _, g := range r.Aggregates {
		for _, s := range g.Sides {
			if s.NotEvents > 0 {
				fmt.Fprintf(w,
					"not events: %d records on %s, which every sink wrote to its dead letters; the first: %s\n",
					s.NotEvents, s.Side, s.FirstNotEvent)
			}
		}
	}
	// The last line is the verdict.
	if r.Equal {
		fmt.Fprintln(w, "equal everywhere")
	}
}

// verifyJSON returns the result with stable names and plain numbers, for scripts. Protobuf's JSON
// would print 64-bit counts as strings.
func verifyJSON(r *adminv1.VerifyResult) any {
	// Field names are part of the interface for scripts: add fields, but do not rename any.
	type side struct {
		Side  string `json:"side"`
		Unit  string `json:"unit"`
		Count uint64 `json:"count"`
		Hash  string `json:"hash"`

		NotEvents     uint64 `json:"not_events,omitempty"`
		FirstNotEvent string `json:"first_not_event,omitempty"`
	}
	type aggregate struct {
		Aggregate  string `json:"aggregate"`
		Equal      bool   `json:"equal"`
		Difference string `json:"difference,omitempty"`
		Sides      []side `json:"sides"`
	}
	out := struct {
		Equal      bool        `json:"equal"`
		Aggregates []aggregate `json:"aggregates"`
	}{Equal: r.Equal}
	for _, g := range r.Aggregates {
		o := aggregate{Aggregate: g.Aggregate, Equal: g.Equal, Difference: g.Difference}
		for _, s := range g.Sides {
			o.Sides = append(o.Sides, side{s.Side, s.Unit, s.Count, s.Hash, s.NotEvents, s.FirstNotEvent})
		}
		out.Aggregates = append(out.Aggregates, o)
	}
	return out
}
