package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/contractdiff"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/external"
	"github.com/millrace/millrace/lake/wire"
)

// newEvents returns the command events, which is about contracts of events.
func newEvents() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Explain changes of the contracts of events",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newEventsDiff())
	return cmd
}

// newEventsDiff returns the command events diff.
func newEventsDiff() *cobra.Command {
	var from, message string
	var imports []string
	cmd := &cobra.Command{
		Use:   "diff FILE",
		Short: "Explain what a change of a contract means for stored events and for tables",
		Long: `Explain what a change of a contract means for events that are stored, and for the tables of the lake.

FILE is the new contract: a .proto file, or a descriptor set of "buf build -o contract.binpb". The old one is that of this
program, or --from. Stored events are never rewritten. So a change is safe if the new contract reads each old event with
its old meaning. The command needs no running system. It fails if a change breaks stored events or a table.`,
		Example: `  millrace events diff proto/millrace/order/v1/events.proto --import proto
  buf build -o new.binpb && millrace events diff new.binpb
  millrace events diff new.proto --from old.proto --message ClickEvent`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&from, "from", "", "the old contract (default: that of this program)")
	cmd.Flags().StringVar(&message, "message", "",
		"the events message, with or without its package (default: those of Millrace that FILE has)")
	cmd.Flags().StringSliceVar(&imports, "import", nil, "folder to look for imported .proto files in; may be repeated")
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pairs, err := contracts(cmd.Context(), from, args[0], message, imports)
		if err != nil {
			return err
		}
		reports := make([]contractReport, len(pairs))
		for i, p := range pairs {
			if reports[i], err = compareContracts(p[0], p[1]); err != nil {
				return err
			}
		}
		if *output == "json" {
			err = printJSON(cmd.OutOrStdout(), reports)
		} else {
			printContracts(cmd.OutOrStdout(), reports)
		}
		if err != nil {
			return err
		}
		return broken(reports)
	}
	return cmd
}

// contracts returns the old and the new version of each events message to compare.
func contracts(
	ctx context.Context, from, to, message string, imports []string,
) (pairs [][2]protoreflect.MessageDescriptor, err error) {
	if message != "" {
		if from == "" {
			return nil, errors.New("--message needs --from: the file of the old contract")
		}
		before, err := external.Message(ctx, from, message, imports...)
		if err != nil {
			return nil, fmt.Errorf("--from: %w", err)
		}
		after, err := external.Message(ctx, to, message, imports...)
		if err != nil {
			return nil, err
		}
		return [][2]protoreflect.MessageDescriptor{{before, after}}, nil
	}
	for _, a := range append(event.Aggregates(), event.Behavior) {
		after, err := external.Message(ctx, to, a.Message, imports...)
		switch {
		case errors.Is(err, external.ErrNoMessage):
			continue
		case err != nil:
			return nil, err
		}
		before, err := oldContract(ctx, from, a.Message, imports)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, [2]protoreflect.MessageDescriptor{before, after})
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%s has no events message of Millrace: for another message, set --message and --from", to)
	}
	return pairs, nil
}

// oldContract returns the old version of one of Millrace's events messages.
func oldContract(
	ctx context.Context, from, message string, imports []string,
) (protoreflect.MessageDescriptor, error) {
	if from != "" {
		md, err := external.Message(ctx, from, message, imports...)
		if err != nil {
			return nil, fmt.Errorf("--from: %w", err)
		}
		return md, nil
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(message))
	if err != nil {
		return nil, fmt.Errorf("%s is not linked in: %w", message, err)
	}
	return d.(protoreflect.MessageDescriptor), nil
}

// contractReport explains the changes of one events message.
type contractReport struct {
	Message string           `json:"message"`
	Changes []contractChange `json:"changes"`
	// Columns are the changes of a table of these events. Refused is why there are none.
	Columns []string `json:"columns"`
	Refused string   `json:"refused,omitempty"`
}

// contractChange is a change in a report.
type contractChange struct {
	Path         string `json:"path"`
	Change       string `json:"change"`
	StoredEvents string `json:"stored_events"`
	Breaks       bool   `json:"breaks"`
}

// compareContracts compares two versions of an events message, and the columns of their tables.
func compareContracts(before, after protoreflect.MessageDescriptor) (contractReport, error) {
	r := contractReport{Message: string(after.FullName()), Changes: []contractChange{}, Columns: []string{}}
	for _, c := range contractdiff.Compare(before, after) {
		r.Changes = append(r.Changes, contractChange{c.Path, c.What, c.Effect, c.Breaks})
	}
	have, err := wire.Compile(before, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		return r, fmt.Errorf("the old contract: %w", err)
	}
	table, err := evolution.New(have.Fields(), nil)
	if err != nil {
		return r, fmt.Errorf("the old contract: %w", err)
	}
	want, err := wire.Compile(after, wire.Options{Unknown: wire.UnknownColumn})
	if err != nil {
		r.Refused = err.Error()
		return r, nil //nolint:nilerr // it is part of the report
	}
	step, err := evolution.Of(table.Schema, table.LastID, table.Keys, want.Fields())
	if err != nil {
		r.Refused = err.Error()
		return r, nil //nolint:nilerr // it is part of the report
	}
	for _, change := range step.Changes {
		// Descriptions are the comments of a .proto file, which this program's own contracts lack.
		if !strings.HasSuffix(change, "gets a new description") {
			r.Columns = append(r.Columns, change)
		}
	}
	return r, nil
}

// printContracts prints reports for people.
func printContracts(w io.Writer, reports []contractReport) {
	for i, r := range reports {
		if i > 0 {
			_, _ = fmt.Fprintln(w)
		}
		_, _ = fmt.Fprintln(w, r.Message)
		if len(r.Changes) == 0 {
			_, _ = fmt.Fprintln(w, "  no change")
		} else {
			rows := make([][]any, len(r.Changes))
			for i, c := range r.Changes {
				verdict := "safe"
				if c.Breaks {
					verdict = "breaks"
				}
				rows[i] = []any{c.Path, c.Change, verdict, lines(strings.Split(c.StoredEvents, "; "))}
			}
			printTable(w, []string{"path", "change", "", "stored events"}, rows)
		}
		for _, change := range r.Columns {
			_, _ = fmt.Fprintln(w, "table:", plain(change))
		}
		if r.Refused != "" {
			_, _ = fmt.Fprintln(w, "table: stops, because", plain(r.Refused))
		}
	}
}

// broken returns an error if a change breaks stored events or a table.
func broken(reports []contractReport) error {
	var what []string
	for _, r := range reports {
		if slices.ContainsFunc(r.Changes, func(c contractChange) bool { return c.Breaks }) {
			what = append(what, "stored events of "+r.Message)
		}
		if r.Refused != "" {
			what = append(what, "the table of "+r.Message)
		}
	}
	if len(what) == 0 {
		return nil
	}
	return fmt.Errorf("the change breaks %s: add a new field or event type instead", strings.Join(what, ", "))
}
