package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/internal/app"
)

// newFeatures returns the command features with its subcommands.
func newFeatures(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "features",
		Short: "Describe the feature groups",
		Long: `Describe the feature groups: what models can know about customers, products and visitors. The setting
features.groups selects the groups that are computed and served.`,
	}
	cmd.AddCommand(newFeaturesList(a), newFeaturesDescribe(a), newFeaturesGet(a), newFeaturesRegistry(a),
		newFeaturesTrainingSet(a), newFeaturesCheck(a), newFeaturesPlot(a), newFeaturesVerify(a),
		newFeaturesBackfill(a))
	return cmd
}

// newFeaturesList returns the command features list.
func newFeaturesList(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the feature groups",
		Long: `List the feature groups. Of a group with several versions, one is live, and the others are being filled or were
replaced: the running system is asked which one that is.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		groups, err := a.groups()
		if err != nil {
			return err
		}
		live, unknown := a.liveVersions(cmd.Context(), groups)
		all := make([]features.Description, len(groups))
		rows := make([][]any, len(groups))
		for i, g := range groups {
			all[i] = g.Describe()
			state := "filling"
			switch {
			case groupNamed(groups, g.Name, live) == g:
				state = "live"
			case g.Version < live[g.Name]:
				state = "replaced"
			}
			if unknown != nil && severalVersions(groups, g.Name) {
				state = "unknown"
			}
			rows[i] = []any{g.Name, g.Version, state, g.Entity, len(g.Outputs()), g.Owner}
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), all)
		}
		printTable(cmd.OutOrStdout(), []string{"group", "version", "state", "entity", "features", "owner"}, rows)
		return nil
	}
	return cmd
}

// newFeaturesDescribe returns the command features describe.
func newFeaturesDescribe(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "describe GROUP",
		Short:   "Describe a feature group: its features, their definitions and windows, and its sources",
		Example: "  millrace features describe customer_value\n  millrace features describe customer_value/v2",
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, err := a.groups()
		if err != nil {
			return err
		}
		g := groupNamed(groups, args[0], nil)
		if g == nil {
			return unknownGroup(args[0])
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), g.Describe())
		}
		printGroup(cmd.OutOrStdout(), g.Describe())
		return nil
	}
	return cmd
}

// printGroup prints a group for people.
func printGroup(w io.Writer, d features.Description) {
	fmt.Fprintf(w, "%s/v%d: features of each %s (%s)\n%s\n", d.Group, d.Version, d.Entity, d.Owner, d.Description)
	rows := make([][]any, 0, len(d.Features))
	for _, f := range d.Features {
		kind := f.Type
		if f.Nullable {
			kind += " or null"
		}
		rows = append(rows, []any{f.Feature, f.Description, strings.Join(f.Windows, " "), kind, f.Definition})
	}
	printTable(w, []string{"feature", "what", "windows", "type", "definition"}, rows)
	rows = rows[:0]
	for _, s := range d.Sources {
		for _, c := range s.Columns {
			rows = append(rows, []any{s.Source, s.Topic, c.Column, c.Type, c.Description})
		}
	}
	printTable(w, []string{"source", "topic", "column", "type", "what"}, rows)
}

// groups returns the feature groups that the configuration selects. It describes definitions only,
// so the rest of the configuration is not checked.
func (a *cli) groups() ([]*features.Group, error) {
	c, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	return app.FeatureGroups(c.Features)
}
