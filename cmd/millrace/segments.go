package main

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
)

// newSegments returns the command segments. It asks a running system for the segments, or for the
// members of one.
func newSegments(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "segments [NAME]",
		Short: "Show the segments of customers, or the members of one",
		Long: `Show the segments of the setting customer360.segments with the number of their members, or the members of one
segment. Only customers who consent to the purpose of a segment are members. The demo shop has no segments: lapsed
stands for a name of the setting.

With auth.tokens, the caller needs the right queries.customer360.`,
		Example: `  millrace segments
  millrace segments lapsed
  millrace segments --output json lapsed`,
		Args: cobra.MaximumNArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		var answer proto.Message
		var header []string
		var rows [][]any
		if len(args) == 0 {
			r, err := caller.customers().DescribeSegments(cmd.Context(),
				connect.NewRequest(&customer360v1.DescribeSegmentsRequest{}))
			if err != nil {
				return explain(err)
			}
			answer, header = r.Msg, []string{"segment", "members", "purpose", "expression"}
			for _, s := range r.Msg.GetSegments() {
				purpose := strings.ToLower(strings.TrimPrefix(s.GetPurpose().String(), "CONSENT_PURPOSE_"))
				rows = append(rows, []any{s.GetName(), s.GetMembers(), purpose, s.GetExpression()})
			}
		} else {
			// All pages, because the output is redirected to files.
			all := &customer360v1.ListSegmentResponse{}
			for next, more := "", true; more; more = next != "" {
				r, err := caller.customers().ListSegment(cmd.Context(), connect.NewRequest(
					&customer360v1.ListSegmentRequest{Segment: args[0], PageSize: 1000, After: next}))
				if err != nil {
					return explain(err)
				}
				all.CustomerIds = append(all.CustomerIds, r.Msg.GetCustomerIds()...)
				next = r.Msg.GetNext()
			}
			answer, header = all, []string{"customer"}
			for _, id := range all.GetCustomerIds() {
				rows = append(rows, []any{id})
			}
		}
		if *output == "json" {
			return printMessage(cmd.OutOrStdout(), answer)
		}
		if len(args) == 0 && len(rows) == 0 {
			fmt.Fprintln(cmd.OutOrStdout(), "no segments: the setting customer360.segments has none")
			return nil
		}
		printTable(cmd.OutOrStdout(), header, rows)
		return nil
	}
	return cmd
}
