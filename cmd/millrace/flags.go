package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	flagsv1 "github.com/millrace/millrace/gen/millrace/flags/v1"
	"github.com/millrace/millrace/gen/millrace/flags/v1/flagsv1connect"
)

// newFlags returns the command flags, which reads and changes the flags of a running system.
func newFlags(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flags",
		Short: "Show and change the flags of the running system",
		Long: `Show and change flags: typed values that apply in every process that reads them, without a restart. A flag has
one value, or variants that are rolled out to a percentage of keys. Every change is recorded with the caller, the time
and the reason.

With auth.tokens, the caller needs the right flags.read, and to change flags flags.write.`,
		Example: `  millrace flags ls
  millrace flags set lake.maintenance false --reason "the disk is busy"
  millrace flags set lake.maintenance --variant on=true --variant off=false --rollout on=25,off=75
  millrace flags set lake.maintenance --rollout on=100,off=0
  millrace flags history lake.maintenance
  millrace flags delete lake.maintenance`,
	}
	cmd.AddCommand(newFlagsList(a), newFlagsGet(a), newFlagsSet(a), newFlagsDelete(a), newFlagsHistory(a))
	return cmd
}

// flags returns a client of the service of flags.
func (c caller) flags() flagsv1connect.FlagServiceClient {
	return flagsv1connect.NewFlagServiceClient(c.http(), c.url(c.c.Admin.Addr))
}

// newFlagsList returns the command flags ls.
func newFlagsList(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the flags, and those that Millrace reads and nobody has set",
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r, err := caller.flags().ListFlags(cmd.Context(), connect.NewRequest(&flagsv1.ListFlagsRequest{}))
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r.Msg)
		}
		rows := make([][]any, 0, len(r.Msg.GetFlags()))
		for _, f := range r.Msg.GetFlags() {
			rows = append(rows, []any{f.GetName(), f.GetType(), flagValue(f), flagRevision(f.GetRevision()),
				flagChanged(f.GetLastChange()), f.GetDescription()})
		}
		printTable(cmd.OutOrStdout(), []string{"flag", "type", "value", "revision", "changed", "description"}, rows)
		if r.Msg.GetStale() {
			fmt.Fprintln(cmd.OutOrStdout(), "The brokers do not answer: these are the last known flags.")
		}
		return nil
	}
	return cmd
}

// newFlagsGet returns the command flags get.
func newFlagsGet(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show one flag with its variants and its last change",
		Args:  cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r, err := caller.flags().GetFlag(cmd.Context(), connect.NewRequest(&flagsv1.GetFlagRequest{Name: args[0]}))
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r.Msg.GetFlag())
		}
		printFlag(cmd.OutOrStdout(), r.Msg.GetFlag())
		return nil
	}
	return cmd
}

// newFlagsSet returns the command flags set.
func newFlagsSet(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME [VALUE]",
		Short: "Set a flag to a value, or roll variants out to percentages of keys",
		Long: `Set a flag to a value, or roll variants out to percentages of keys. What is not given remains as it is.

The type of a new flag follows from its value: bool, int, float, object for {…}, and else string. --type sets another one.
The type of an existing flag cannot change; delete the flag first.

A variant keeps its keys when its percentage is raised, and those that it gains come from variants whose percentage is
lowered. With --revision, the flag is changed only if nobody else has changed it meanwhile.`,
		Example: `  millrace flags set lake.maintenance false --reason "the disk is busy"
  millrace flags set checkout --variant old='"v1"' --variant new='"v2"' --rollout old=90,new=10
  millrace flags set checkout --rollout old=50,new=50
  millrace flags set limits '{"lines": 20}' --revision -1`,
		Args: cobra.RangeArgs(1, 2),
	}
	output := outputFlag(cmd, "table", "json")
	kind := cmd.Flags().String("type", "", "type of a new flag: bool, string, int, float, object")
	description := cmd.Flags().String("description", "", "description of the flag")
	reason := cmd.Flags().String("reason", "", "reason of the change, for the history")
	variants := cmd.Flags().StringArray("variant", nil, "NAME=VALUE of a variant; repeat it for each one")
	rollout := cmd.Flags().StringSlice("rollout", nil, "NAME=PERCENT of each variant; they sum to 100")
	revision := cmd.Flags().Int64("revision", 0, "change the flag only if it has this revision; -1: only if it does not exist")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (len(args) == 2) == (len(*rollout) > 0) {
			return errors.New("want either a VALUE, or --rollout with the percentage of each variant")
		}
		if len(*variants) > 0 && len(*rollout) == 0 {
			return errors.New("--variant needs --rollout with the percentage of each variant")
		}
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		client := caller.flags()
		present := &flagsv1.Flag{Revision: absent}
		got, err := client.GetFlag(cmd.Context(), connect.NewRequest(&flagsv1.GetFlagRequest{Name: args[0]}))
		switch {
		case err == nil:
			present = got.Msg.GetFlag()
		case connect.CodeOf(err) != connect.CodeNotFound:
			return explain(err)
		}
		req := &flagsv1.SetFlagRequest{Name: args[0], Type: *kind, Reason: *reason}
		if cmd.Flags().Changed("description") {
			req.Description = description
		}
		if cmd.Flags().Changed("revision") {
			req.Revision = revision
		}
		if req.Type == "" {
			req.Type = present.GetType()
		}
		if len(args) == 2 {
			if req.Type == "" {
				req.Type = typeOf(args[1])
			}
			req.Value = new(flagJSON(req.Type, args[1]))
		} else if err := setRollout(req, present, *variants, *rollout); err != nil {
			return err
		}
		set, err := client.SetFlag(cmd.Context(), connect.NewRequest(req))
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), set.Msg.GetFlag())
		}
		printFlag(cmd.OutOrStdout(), set.Msg.GetFlag())
		return nil
	}
	return cmd
}

// absent is the revision of a flag that nobody has set.
const absent = -1

// setRollout adds the variants to a request. Those without a value have the one of the present flag.
func setRollout(req *flagsv1.SetFlagRequest, present *flagsv1.Flag, variants, rollout []string) error {
	values := map[string]string{}
	for _, v := range present.GetVariants() {
		values[v.GetName()] = v.GetValue()
	}
	for _, text := range variants {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("--variant %q: want NAME=VALUE", text)
		}
		if req.Type == "" {
			req.Type = typeOf(value)
		}
		values[name] = flagJSON(req.Type, value)
		if !slices.ContainsFunc(rollout, func(share string) bool { return strings.HasPrefix(share, name+"=") }) {
			return fmt.Errorf("--variant %q: add %s=PERCENT to --rollout", text, name)
		}
	}
	for _, text := range rollout {
		name, percent, ok := strings.Cut(text, "=")
		p, err := strconv.ParseFloat(strings.TrimSuffix(percent, "%"), 64)
		// A hundredth of a percent is the smallest share, and finer ones are not rounded silently.
		share := math.Round(p * 100)
		if valid := ok && err == nil && math.Abs(p*100-share) <= 1e-6 && share >= 0 && share <= 10_000; !valid {
			return fmt.Errorf("--rollout %q: want NAME=PERCENT, from 0 to 100 with at most two decimals", text)
		}
		value, ok := values[name]
		if !ok {
			return fmt.Errorf("--rollout %q: the flag has no variant %s: add --variant %s=VALUE", text, name, name)
		}
		req.Variants = append(req.Variants, &flagsv1.Variant{Name: name, Value: value, Share: uint32(share)})
	}
	// The values may be those of the flag that was read, so it must not have changed since then.
	if req.Revision == nil && len(present.GetVariants()) > 0 {
		req.Revision = &present.Revision
	}
	return nil
}

// typeOf returns the type that a value of a new flag has.
func typeOf(value string) string {
	if value == "true" || value == "false" {
		return "bool"
	}
	if _, err := strconv.ParseInt(value, 10, 64); err == nil {
		return "int"
	}
	var object map[string]any
	var number float64
	if json.Unmarshal([]byte(value), &object) == nil && object != nil {
		return "object"
	}
	if json.Unmarshal([]byte(value), &number) == nil && value != "null" {
		return "float"
	}
	return "string"
}

// flagJSON returns a value as JSON. A string may be given with its quotes or without.
func flagJSON(kind, value string) string {
	var text string
	if kind != "string" || json.Unmarshal([]byte(value), &text) == nil && value != "null" {
		return value
	}
	b, err := json.Marshal(value)
	if err != nil {
		return value // unreachable: a string can always be JSON
	}
	return string(b)
}

// newFlagsDelete returns the command flags delete.
func newFlagsDelete(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a flag, so that the default in the program applies",
		Args:  cobra.ExactArgs(1),
	}
	reason := cmd.Flags().String("reason", "", "reason of the change, for the history")
	revision := cmd.Flags().Int64("revision", 0, "delete the flag only if it has this revision")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		req := &flagsv1.DeleteFlagRequest{Name: args[0], Reason: *reason}
		if cmd.Flags().Changed("revision") {
			req.Revision = revision
		}
		if _, err := caller.flags().DeleteFlag(cmd.Context(), connect.NewRequest(req)); err != nil {
			return explain(err)
		}
		fmt.Fprintln(cmd.OutOrStdout(), "deleted", args[0])
		return nil
	}
	return cmd
}

// newFlagsHistory returns the command flags history.
func newFlagsHistory(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "Show the changes of a flag: who, when, why",
		Args:  cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	limit := cmd.Flags().Uint32("limit", 50, "show at most as many changes, the last ones (up to 1000)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r, err := caller.flags().ListFlagHistory(cmd.Context(),
			connect.NewRequest(&flagsv1.ListFlagHistoryRequest{Name: args[0], Limit: *limit}))
		if err != nil {
			return explain(err)
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r.Msg)
		}
		rows := make([][]any, 0, len(r.Msg.GetChanges()))
		for _, c := range r.Msg.GetChanges() {
			value := any("(deleted)")
			if c.GetAfter() != nil {
				value = flagValue(c.GetAfter())
			}
			rows = append(rows, []any{c.GetChange().GetAt().AsTime().Local().Format(time.DateTime),
				cmp.Or(c.GetChange().GetBy(), "–"), flagRevision(c.GetRevisionBefore()), value, c.GetChange().GetReason()})
		}
		printTable(cmd.OutOrStdout(), []string{"when", "who", "changed revision", "value", "reason"}, rows)
		return nil
	}
	return cmd
}

// printFlag prints one flag as a table.
func printFlag(w io.Writer, f *flagsv1.Flag) {
	rows := [][]any{{"type", f.GetType()}, {"value", flagValue(f)},
		{"revision", flagRevision(f.GetRevision())}, {"changed", flagChanged(f.GetLastChange())},
		{"reason", f.GetLastChange().GetReason()}, {"description", f.GetDescription()}}
	printTable(w, []string{"flag", f.GetName()}, rows)
}

// flagValue returns the value of a flag, or a line for each variant.
func flagValue(f *flagsv1.Flag) any {
	if len(f.GetVariants()) == 0 {
		return f.GetValue()
	}
	var all lines
	for _, v := range f.GetVariants() {
		all = append(all, fmt.Sprintf("%g %% %s: %s", float64(v.GetShare())/100, v.GetName(), v.GetValue()))
	}
	return all
}

// flagRevision returns a revision, or a dash if nobody has set the flag.
func flagRevision(revision int64) string {
	if revision == absent {
		return "–"
	}
	return strconv.FormatInt(revision, 10)
}

// flagChanged says when a flag was changed, and by whom.
func flagChanged(c *flagsv1.Change) string {
	if c == nil {
		return "never: the default applies"
	}
	when := ago(time.Now(), c.GetAt().AsTime())
	if c.GetBy() == "" {
		return when
	}
	return when + " by " + c.GetBy()
}
