package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
)

// newStatus returns the command status. It prints three parts: the sinks, the faults, and the
// addresses of the servers. It exits with 0 even if there are faults; readiness and metrics are for
// monitoring.
func newStatus(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show counts, lag, freshness, faults and addresses of the running system",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		caller, err := a.caller(adminListener)
		if err != nil {
			return err
		}
		r, err := caller.admin().Status(cmd.Context(), connect.NewRequest(&adminv1.StatusRequest{}))
		if err != nil {
			return explain(err)
		}
		// The message of the API is the format for scripts: field names of the contract, zero
		// values included.
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), r.Msg)
		}
		printSinks(cmd.OutOrStdout(), r.Msg)
		printAddresses(cmd.OutOrStdout(), r.Msg)
		return nil
	}
	return cmd
}

// printSinks prints the table of sinks. Counts of different sinks have different units: events,
// documents, rows.
func printSinks(w io.Writer, s *adminv1.StatusResponse) {
	now := time.Now()
	rows := make([][]any, 0, len(s.Sinks))
	for _, k := range s.Sinks {
		rows = append(rows, []any{k.Sink, k.Count, k.Unit, k.LagEvents, ago(now, k.AsOf.AsTime())})
	}
	printTable(w, []string{"where", "count", "of", "events behind", "newest recorded"}, rows)
}

// printAddresses prints the faults, and on the last line the addresses of the servers.
func printAddresses(w io.Writer, s *adminv1.StatusResponse) {
	for _, f := range s.Settings {
		fmt.Fprintf(w, "setting: %s: %s is %q, not %s: %s; %s\n", f.Resource, f.Setting, f.Value, f.Want,
			f.Effect, f.Remedy)
	}
	for _, f := range s.Tables {
		fmt.Fprintf(w, "table %s is broken: %s; %s\n", f.Table, f.Reason, f.Remedy)
	}
	for _, f := range s.Views {
		fmt.Fprintf(w, "view %s: %s damaged, being rebuilt from the log: %s\n", f.View, f.Part, f.Reason)
	}
	for _, v := range s.Outdated {
		fmt.Fprintf(w, "view %s was built by projection %d, and the code has %d: %s\n", v.View, v.BuiltBy,
			v.Current, v.Remedy)
	}
	if s.SqlEngine != "" {
		fmt.Fprintf(w, "SQL engine: %s; it is started again until it runs\n", s.SqlEngine)
	}
	// Sorted, because the order of a map is random.
	for i, name := range slices.Sorted(maps.Keys(s.Addresses)) {
		if i > 0 {
			fmt.Fprint(w, ", ")
		}
		fmt.Fprint(w, name, " ", s.Addresses[name])
	}
	fmt.Fprintln(w)
}
