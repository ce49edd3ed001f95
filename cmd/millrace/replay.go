package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/backoff"
)

// newReplay returns the command replay, which builds the next version of a view.
func newReplay(a *cli) *cobra.Command {
	var targets []string
	var name string
	var limit recordRate
	var noSwap, yes bool
	cmd := &cobra.Command{
		Use:   "replay --target VIEW",
		Short: "Build the next version of a view from the log, compare it and swap it in",
		Long: `Build the next version of a view from the log, beside the one that serves. Once it has caught up, the documents
of both are compared. If all are equal, the new version is swapped in. The old one follows the log, too, so
"millrace replay rollback" can go back to it until it is dropped.

If documents differ, the command lists some and stops. After a change of the projection, that is expected: --yes swaps
the version in all the same. Queries are never answered from a version that is not complete, and a reader never sees an
older state after the swap than before. Events that Kafka has deleted are read from the lake.

The processes with the role views fill the version, also while this command does not run. Repeat the command to
continue, for example after an interruption. With auth.tokens, the caller needs the right operations.`,
		Example: `  millrace replay --target orderstatus
  millrace replay --target orderstatus,catalog
  millrace replay --target orderstatus --version 2026-12 --rate 5000/s --no-swap
  millrace replay --target orderstatus --yes`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringSliceVar(&targets, "target", nil, "views to build, separated by commas: orderstatus, catalog, customer360")
	f.StringVar(&name, "version", "",
		"name of the version (default: the one that is not swapped in yet, or the next number)")
	f.Var(&limit, "rate", "maximum of records per second in each process, such as 5000/s; 0 means no limit")
	f.BoolVar(&noSwap, "no-swap", false, "stop after the comparison")
	f.BoolVar(&yes, "yes", false, "swap the version in although documents differ")
	cmd.MarkFlagsMutuallyExclusive("no-swap", "yes")
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(targets) == 0 {
			return errors.New("--target is missing: name a view, such as orderstatus; `millrace replay ls` lists them")
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r := replay{caller: caller, noSwap: noSwap, yes: yes}
		err = r.run(cmd.Context(), targets, name, int32(limit))
		// What was done before an error is printed, too.
		if *output == "json" {
			return errors.Join(err, printJSON(cmd.OutOrStdout(), r.results))
		}
		for _, done := range r.results {
			done.print(cmd.OutOrStdout())
		}
		return err
	}
	cmd.AddCommand(newReplayList(a), newReplayCompare(a), newReplaySwap(a), newReplayRollback(a), newReplayDrop(a))
	return cmd
}

// recordRate is a flag with a number of records per second.
type recordRate int32

func (r *recordRate) String() string { return strconv.Itoa(int(*r)) }
func (r *recordRate) Type() string   { return "N/s" }
func (r *recordRate) Set(text string) error {
	n, err := strconv.ParseInt(strings.TrimSuffix(text, "/s"), 10, 32)
	if err != nil || n < 0 || n > maxRecordRate {
		return fmt.Errorf("want a number of records per second, such as 5000/s, and at most %d", maxRecordRate)
	}
	*r = recordRate(n)
	return nil
}

const (
	maxRecordRate = 10_000_000
	replayPoll    = 500 * time.Millisecond
	// silence is how long the system may not answer, for example because it is started again.
	silence = 2 * time.Minute
)

// final are the codes of errors that another attempt does not change.
var final = []connect.Code{connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented,
	connect.CodeInvalidArgument, connect.CodeNotFound}

// replay is a run of the command.
type replay struct {
	caller      caller
	noSwap, yes bool
	results     []*replayed
}

// replayed is the result of one target. Its JSON is an interface for scripts.
type replayed struct {
	Version    string          `json:"version"`
	Comparison json.RawMessage `json:"comparison,omitempty"`
	Swapped    bool            `json:"swapped"`

	comparison *adminv1.VersionComparison
}

// run builds a version of each target, and then compares and swaps one after the other.
func (r *replay) run(ctx context.Context, targets []string, name string, limit int32) error {
	var sinks []string
	for _, target := range targets {
		res, err := r.caller.admin().StartReplay(ctx, connect.NewRequest(&adminv1.StartReplayRequest{
			View: target, Name: name, RateLimit: limit}))
		if err != nil {
			return explain(err)
		}
		sinks = append(sinks, res.Msg.GetVersion().GetSink())
	}
	b := newBar("replay " + strings.Join(sinks, ", "))
	err := r.await(ctx, sinks, b)
	b.end(err)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %s is still being filled: repeat the command to continue, "+
			"or `millrace replay drop` it", strings.Join(sinks, ", "))
	}
	if err != nil {
		return err
	}
	for _, sink := range sinks {
		if err := r.finish(ctx, sink); err != nil {
			return err
		}
	}
	return nil
}

// await shows the progress until every version has caught up with the log.
func (r *replay) await(ctx context.Context, sinks []string, b *bar) error {
	var silentSince time.Time
	for {
		res, err := r.caller.admin().ListVersions(ctx, connect.NewRequest(&adminv1.ListVersionsRequest{}))
		switch {
		case err == nil:
			silentSince = time.Time{}
			done, err := filled(res.Msg.GetVersions(), sinks, b)
			if done || err != nil {
				return err
			}
		case slices.Contains(final, connect.CodeOf(err)):
			return explain(err)
		// The system is being started again, or a server is away. The state is not lost.
		case silentSince.IsZero():
			silentSince = time.Now()
		case time.Since(silentSince) > silence:
			return explain(err)
		}
		if !backoff.Sleep(ctx, replayPoll) {
			return context.Cause(ctx)
		}
	}
}

// filled shows how far versions are, and reports whether all of them have caught up.
func filled(all []*adminv1.Version, sinks []string, b *bar) (bool, error) {
	var passed, total uint64
	found, ready := 0, 0
	for _, sink := range sinks {
		for _, v := range all {
			if v.GetSink() != sink {
				continue
			}
			found, passed, total = found+1, passed+v.GetPassed(), total+v.GetTotal()
			if v.GetState() == adminv1.VersionState_VERSION_STATE_DROPPING {
				return false, fmt.Errorf("%s is being dropped", sink)
			}
			if v.GetState() != adminv1.VersionState_VERSION_STATE_FILLING {
				ready++
			}
		}
	}
	if found < len(sinks) {
		return false, fmt.Errorf("%s was dropped meanwhile", strings.Join(sinks, ", "))
	}
	b.set(int64(passed), int64(total), "")
	return ready == len(sinks), nil
}

// finish compares a version, and swaps it in if it may.
func (r *replay) finish(ctx context.Context, sink string) error {
	result := &replayed{Version: sink}
	r.results = append(r.results, result)
	c, err := r.caller.compareVersions(ctx, &adminv1.CompareVersionsRequest{Sink: sink})
	if err != nil {
		return err
	}
	result.comparison = c
	encode := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}
	if result.Comparison, err = encode.Marshal(c); err != nil {
		return err
	}
	if r.noSwap {
		return nil
	}
	if !c.GetEqual() && !r.yes {
		return fmt.Errorf("%d documents of %s differ from those of %s, so it is not swapped in: if that is intended, "+
			"`millrace replay swap %s`; otherwise `millrace replay drop %s --yes`",
			c.GetDifferentDocuments(), sink, c.GetServing(), sink, sink)
	}
	if _, err := r.caller.admin().SwapVersion(ctx,
		connect.NewRequest(&adminv1.SwapVersionRequest{Sink: sink})); err != nil {
		return explain(err)
	}
	result.Swapped = true
	return nil
}

// print prints the result for people.
func (r *replayed) print(w io.Writer) {
	if r.comparison == nil {
		return
	}
	printComparison(w, r.comparison)
	if r.Swapped {
		view, _, _ := strings.Cut(r.Version, "@")
		fmt.Fprintf(w, "%s is swapped in; `millrace replay rollback %s` goes back\n", plain(r.Version), plain(view))
	}
}

// compareVersions compares a version with the serving one, and shows the progress.
func (c caller) compareVersions(ctx context.Context, req *adminv1.CompareVersionsRequest) (
	result *adminv1.VersionComparison, err error,
) {
	b := newBar("compare " + req.GetSink())
	defer func() { b.end(err) }()
	stream, err := c.admin().CompareVersions(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, explain(err)
	}
	defer stream.Close() //nolint:errcheck // it was read to its end, or its error counts
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil {
			b.set(int64(p.GetDone()), int64(p.GetTotal()), "")
		}
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := stream.Err(); err != nil {
		return nil, explain(err)
	}
	if result == nil {
		return nil, errors.New("the comparison ended without a result: try again")
	}
	return result, nil
}

// printComparison prints the counts, and some differences.
func printComparison(w io.Writer, c *adminv1.VersionComparison) {
	fmt.Fprintf(w, "%s and %s: %d documents are equal, %d differ\n", plain(c.GetServing()), plain(c.GetVersion()),
		c.GetEqualDocuments(), c.GetDifferentDocuments())
	if len(c.GetDifferences()) == 0 {
		return
	}
	rows := make([][]any, len(c.GetDifferences()))
	for i, d := range c.GetDifferences() {
		var how lines
		switch d.GetKind() {
		case adminv1.DocumentDifferenceKind_DOCUMENT_DIFFERENCE_KIND_MISSING:
			how = lines{"is missing"}
		case adminv1.DocumentDifferenceKind_DOCUMENT_DIFFERENCE_KIND_ADDITIONAL:
			how = lines{"is additional"}
		case adminv1.DocumentDifferenceKind_DOCUMENT_DIFFERENCE_KIND_BEHIND:
			how = lines{fmt.Sprintf("shows version %d of the stream, not %d", d.GetVersion(), d.GetServingVersion())}
		}
		for _, f := range d.GetFields() {
			if f.GetServing() == "" && f.GetVersion() == "" {
				how = append(how, f.GetField()+" differs")
				continue
			}
			how = append(how, fmt.Sprintf("%s: %s → %s", f.GetField(), orNothing(f.GetServing()), orNothing(f.GetVersion())))
		}
		rows[i] = []any{d.GetKey(), how}
	}
	printTable(w, []string{"document", "in " + c.GetVersion()}, rows)
}

// orNothing returns a value, or what stands for a field that is not set.
func orNothing(value string) string {
	if value == "" {
		return "(not set)"
	}
	return value
}

// newReplayList returns the command replay ls.
func newReplayList(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls [VIEW...]",
		Short:   "List the versions of views, and how far they are",
		Example: "  millrace replay ls\n  millrace replay ls orderstatus --output json",
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		res, err := caller.admin().ListVersions(cmd.Context(), connect.NewRequest(&adminv1.ListVersionsRequest{Views: args}))
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), res.Msg)
		}
		now := time.Now()
		rows := make([][]any, len(res.Msg.GetVersions()))
		for i, v := range res.Msg.GetVersions() {
			rows[i] = []any{v.GetSink(), versionState(v), v.GetDocuments(), v.GetPassed(), v.GetTotal(), replayRate(v),
				ago(now, v.GetCreated().AsTime())}
		}
		printTable(cmd.OutOrStdout(),
			[]string{"version", "state", "documents", "records passed", "of", "progress", "created"}, rows)
		return nil
	}
	return cmd
}

// versionState returns the state as people write it.
func versionState(v *adminv1.Version) string {
	return strings.ToLower(strings.TrimPrefix(v.GetState().String(), "VERSION_STATE_"))
}

// replayRate returns the rate of a version that is being filled, and when it will have caught up.
func replayRate(v *adminv1.Version) string {
	if v.GetState() != adminv1.VersionState_VERSION_STATE_FILLING || v.GetRate() == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f/s, %s left", v.GetRate(), v.GetRemaining().AsDuration().Round(time.Second))
}

// newReplayCompare returns the command replay compare.
func newReplayCompare(a *cli) *cobra.Command {
	var samples int32
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "compare VERSION",
		Short: "Compare the documents of a version with those of the serving one",
		Long: `Compare the documents of a version with those of the serving one. Events may arrive meanwhile: a document is
compared at a version of its stream that both sides have had. The exit code is 1 if documents differ.`,
		Example: `  millrace replay compare orderstatus/v2@2
  millrace replay compare orderstatus/v2@2 --samples 100 --output json`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Int32Var(&samples, "samples", 20, "maximum number of differences to list, at most 1000")
	durationFlag(cmd.Flags(), &wait, "wait", 30*time.Second, "how long documents may have different versions")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		c, err := caller.compareVersions(cmd.Context(), &adminv1.CompareVersionsRequest{Sink: args[0], Samples: samples,
			Wait: durationpb.New(wait)})
		if err != nil {
			return err
		}
		if *output == "json" {
			err = printMessage(cmd.OutOrStdout(), c)
		} else {
			printComparison(cmd.OutOrStdout(), c)
		}
		if err == nil && !c.GetEqual() {
			err = errSilent
		}
		return err
	}
	return cmd
}

// newReplaySwap returns the command replay swap.
func newReplaySwap(a *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "swap VERSION",
		Short: "Make a version serve, without a comparison",
		Long: `Make a version serve, without a comparison. It must have applied everything that the serving version has.
Processes switch within about a second, each without an older answer. The old version follows the log, too, so
"millrace replay rollback" can go back.`,
		Example: "  millrace replay swap orderstatus/v2@2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			caller, err := a.caller(adminListener)
			if err != nil {
				return err
			}
			res, err := caller.admin().SwapVersion(cmd.Context(), connect.NewRequest(&adminv1.SwapVersionRequest{Sink: args[0]}))
			if err != nil {
				return explain(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s serves\n", plain(res.Msg.GetVersion().GetSink()))
			return nil
		},
	}
}

// newReplayRollback returns the command replay rollback.
func newReplayRollback(a *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "rollback VIEW",
		Short:   "Make the version serve again that served before the last swap",
		Example: "  millrace replay rollback orderstatus",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			caller, err := a.caller(adminListener)
			if err != nil {
				return err
			}
			res, err := caller.admin().RollbackVersion(cmd.Context(),
				connect.NewRequest(&adminv1.RollbackVersionRequest{View: args[0]}))
			if err != nil {
				return explain(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s serves again\n", plain(res.Msg.GetVersion().GetSink()))
			return nil
		},
	}
}

// newReplayDrop returns the command replay drop.
func newReplayDrop(a *cli) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "drop VERSION",
		Short: "Delete a version that does not serve",
		Long: `Delete the documents and positions of a version that does not serve. The processes with the role views delete
them within a few seconds. Nothing is lost that a replay does not build again.`,
		Example: "  millrace replay drop orderstatus/v2@2 --yes\n  millrace replay drop orderstatus/v2 --yes",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "delete it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return errors.New("this deletes all documents of the version: confirm with --yes")
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		if _, err := caller.admin().DropVersion(cmd.Context(),
			connect.NewRequest(&adminv1.DropVersionRequest{Sink: args[0]})); err != nil {
			return explain(err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is being deleted\n", plain(args[0]))
		return nil
	}
	return cmd
}
