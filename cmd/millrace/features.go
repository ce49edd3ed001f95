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
		Short: "Describe, read and check the features of customers, products and visitors",
		Long: `Describe, read and check feature groups: what models can know about customers, products and visitors. The setting
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
		all := make([]describedGroup, len(groups))
		rows := make([][]any, len(groups))
		for i, g := range groups {
			all[i] = describedGroup{Description: g.Describe(), State: stateOf(groups, g, live, unknown)}
			rows[i] = []any{g.Name, g.Version, all[i].State, g.Entity, len(g.Outputs()), g.Owner}
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), all)
		}
		printTable(cmd.OutOrStdout(), []string{"group", "version", "state", "entity", "features", "owner"}, rows)
		return nil
	}
	return cmd
}

// describedGroup is a version of a group in words. The names of its fields are an interface for scripts.
type describedGroup struct {
	features.Description
	State string         `json:"state"`
	Other []otherVersion `json:"other_versions,omitempty"`
}

// otherVersion is another version of the same group.
type otherVersion struct {
	Version int    `json:"version"`
	State   string `json:"state"`
}

// stateOf returns the state of a version of a group: live, filling or replaced. It is unknown if the
// running system has not said which of several versions is live.
func stateOf(groups []*features.Group, g *features.Group, live map[string]int, unknown error) string {
	switch {
	case unknown != nil && severalVersions(groups, g.Name):
		return "unknown"
	case groupNamed(groups, g.Name, live) == g:
		return "live"
	case g.Version < live[g.Name]:
		return "replaced"
	}
	return "filling"
}

// describeGroup describes a version by its ID, or the live version by the name of the group.
func describeGroup(
	groups []*features.Group, name string, live map[string]int, unknown error,
) (describedGroup, error) {
	g := groupNamed(groups, name, live)
	switch {
	case g == nil:
		return describedGroup{}, unknownGroup(name)
	case unknown != nil && g.ID() != name && severalVersions(groups, name):
		var ids []string
		for _, version := range versionsOf(groups, name) {
			ids = append(ids, version.ID())
		}
		return describedGroup{}, fmt.Errorf("%w: name a version: %s", unknown, strings.Join(ids, " or "))
	}
	d := describedGroup{Description: g.Describe(), State: stateOf(groups, g, live, unknown)}
	for _, other := range versionsOf(groups, g.Name) {
		if other != g {
			d.Other = append(d.Other, otherVersion{other.Version, stateOf(groups, other, live, unknown)})
		}
	}
	return d, nil
}

// newFeaturesDescribe returns the command features describe.
func newFeaturesDescribe(a *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "describe GROUP",
		Short: "Describe a feature group: its features, their definitions and windows, and its sources",
		Long: `Describe a feature group: its features, their definitions and windows, and its sources. Of a group with several
versions, it describes the live one, and names the others and their states. GROUP/vN is one version.`,
		Example: "  millrace features describe customer_value\n  millrace features describe customer_value/v1",
		Args:    cobra.ExactArgs(1),
	}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		groups, err := a.groups()
		if err != nil {
			return err
		}
		live, unknown := a.liveVersions(cmd.Context(), groups)
		d, err := describeGroup(groups, args[0], live, unknown)
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(cmd.OutOrStdout(), d)
		}
		printGroup(cmd.OutOrStdout(), d)
		return nil
	}
	return cmd
}

// printGroup prints a group for people.
func printGroup(w io.Writer, d describedGroup) {
	fmt.Fprintf(w, "%s/v%d (%s): features of each %s (%s)\n%s\n", d.Group, d.Version, d.State, d.Entity, d.Owner,
		d.Description.Description)
	if len(d.Other) > 0 {
		var others []string
		for _, o := range d.Other {
			others = append(others, fmt.Sprintf("%s/v%d (%s)", d.Group, o.Version, o.State))
		}
		fmt.Fprintf(w, "Other versions: %s\n", strings.Join(others, ", "))
	}
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
