package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/features/quality"
	"github.com/millrace/millrace/features/quality/plot"
	featureserving "github.com/millrace/millrace/features/serving"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
	"github.com/millrace/millrace/gen/millrace/features/v1/featuresv1connect"
)

// profileFlags are the flags that say what is profiled.
type profileFlags struct {
	at, referenceEnd string
	days, entities   uint32
}

// add adds the flags to a command.
func (f *profileFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.at, "at", "", "time of the vectors in RFC 3339 (default: now)")
	cmd.Flags().Uint32Var(&f.days, "days", 28, "number of reference days, at most 90")
	cmd.Flags().StringVar(&f.referenceEnd, "reference-end", "",
		"time of the latest reference day in RFC 3339, such as when a model was trained (default: one day before --at)")
	cmd.Flags().Uint32Var(&f.entities, "entities", 1000, "size of the sample, at most 10000")
}

// request returns a request for a group.
func (f *profileFlags) request(group string) (*featuresv1.ProfileGroupRequest, error) {
	r := &featuresv1.ProfileGroupRequest{Group: group, Days: f.days, Entities: f.entities}
	if f.days == 0 || f.entities == 0 {
		return nil, fmt.Errorf("--days %d, --entities %d: want at least 1 of each", f.days, f.entities)
	}
	var err error
	if r.At, err = timeFlag("at", f.at); err != nil {
		return nil, err
	}
	r.ReferenceEnd, err = timeFlag("reference-end", f.referenceEnd)
	return r, err
}

// newFeaturesCheck returns the command features check. What is wrong with the features is a result
// and not an error of the command: it is printed, and then the exit code is 1.
func newFeaturesCheck(a *cli) *cobra.Command {
	var profile profileFlags
	limits := quality.DefaultLimits
	cmd := &cobra.Command{
		Use:   "check [GROUP]...",
		Short: "Check freshness, nulls and drift of features; exit 1 if a limit is exceeded",
		Long: `Compute the vectors of a sample of entities, now and on reference days at the same time of day, and
compare them. A source is stale if its newest event is too old. A feature has drifted if the population
stability index (PSI) of its values is too high, or if its share of nulls has risen too much. Groups with
too few entities are not compared. Without a GROUP, all groups are checked.

What is beyond a limit is in tables, and the rest of each group is one line. --all shows all of it.

Freshness, nulls and drift are measured in memory, as far as it has the facts. Memory has all facts of groups
with the window lifetime, and those of the longest window and of features.online.retention of the others
("millrace features describe" shows the windows). Reference days before that are read from ClickHouse, which takes
much longer: fewer --days, a later --reference-end and fewer --entities make it faster.

The exit code is 0 if no limit is exceeded, and 1 otherwise.`,
		Example: `  millrace features check
  millrace features check customer_value --reference-end 2026-01-31T00:00:00Z --days 7
  millrace features check product_popularity --all
  millrace features check --output json`,
	}
	output := outputFlag(cmd, "table", "json")
	all := cmd.Flags().Bool("all", false, "show every source and feature, also those within the limits")
	profile.add(cmd)
	durationFlag(cmd.Flags(), &limits.Freshness, "max-age", limits.Freshness, "age of the newest event of a source")
	cmd.Flags().Float64Var(&limits.NullShare, "max-nulls", limits.NullShare,
		"increase of a feature's share of nulls over the reference, from 0 to 1")
	cmd.Flags().Float64Var(&limits.PSI, "max-psi", limits.PSI, "PSI of a feature against the reference")
	cmd.Flags().Int64Var(&limits.Found, "min-entities", limits.Found,
		"entities of the sample that must have facts, else distributions are not compared")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := profile.request(""); err != nil {
			return err
		}
		caller, err := a.caller(apiListener)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			if args, err = groupsOf(cmd.Context(), caller); err != nil {
				return err
			}
		}
		c := featuresv1connect.NewQualityServiceClient(caller.http(), caller.api())
		b := newBar("features check")
		var checks []groupCheck
		for i, group := range args {
			b.set(int64(i), int64(len(args)), "features check: "+group)
			var r *quality.Report
			if r, err = profileOf(cmd.Context(), c, profile, group); err != nil {
				break
			}
			checks = append(checks, checkOf(r, limits))
		}
		b.end(err)
		if err != nil {
			return err
		}
		return printChecks(cmd.OutOrStdout(), *output, checks, *all)
	}
	return cmd
}

// groupsOf returns the names of the groups that a system serves.
func groupsOf(ctx context.Context, caller caller) ([]string, error) {
	res, err := featuresv1connect.NewFeatureServiceClient(caller.http(), caller.api()).ListGroups(ctx,
		connect.NewRequest(&featuresv1.ListGroupsRequest{}))
	if err != nil {
		return nil, explainFeatures(err)
	}
	var names []string
	for _, g := range res.Msg.GetGroups() {
		names = append(names, g.GetName())
	}
	return names, nil
}

// profileOf returns the report of a group.
func profileOf(ctx context.Context, c featuresv1connect.QualityServiceClient, f profileFlags, group string) (
	*quality.Report, error) {
	r, err := f.request(group)
	if err != nil {
		return nil, err
	}
	res, err := c.ProfileGroup(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, explainFeatures(err)
	}
	return featureserving.ReportOf(res.Msg), nil
}

// explainFeatures adds a remedy to the errors of calls to the role features.
func explainFeatures(err error) error {
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return fmt.Errorf("%w: the process at --addr does not have the role features", err)
	}
	return explain(err)
}

// groupCheck is the result for a group. The names of its fields are an interface for scripts.
type groupCheck struct {
	Group    string            `json:"group"`
	At       time.Time         `json:"at"`
	Entities int64             `json:"entities"`
	Sampled  int               `json:"sampled"`
	Compared bool              `json:"compared"` // enough entities have facts
	Sources  []sourceCheck     `json:"sources"`
	Features []featureCheck    `json:"features"`
	Missing  []missingDay      `json:"missing_days"`
	Findings []quality.Finding `json:"findings"`
	least    int64             // entities that must have facts to be compared
}

type sourceCheck struct {
	Source     string     `json:"source"`
	Topic      string     `json:"topic"`
	Newest     *time.Time `json:"newest_event"`
	AgeSeconds float64    `json:"age_seconds"`
	Lag        uint64     `json:"lag_events"`
	Verdict    string     `json:"verdict"`
	found      bool       // a limit is exceeded
}

type featureCheck struct {
	Feature       string  `json:"feature"`
	NullShare     float64 `json:"null_share"`
	ReferenceNull float64 `json:"reference_null_share"`
	PSI           float64 `json:"psi"`
	Verdict       string  `json:"verdict"`
	typical       [2]string
	found         bool // a limit is exceeded
}

type missingDay struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// Verdicts on sources that exceed no limit.
const (
	fresh    = "fresh"
	noEvents = "no events"
)

// checkOf compares a report with limits.
func checkOf(r *quality.Report, limits quality.Limits) groupCheck {
	g := groupCheck{Group: r.Group, At: r.At, Entities: r.Entities, Sampled: r.Sampled, Compared: r.Comparable(limits),
		Sources: []sourceCheck{}, Missing: []missingDay{}, Findings: quality.Check(r, limits), least: limits.Found}
	if g.Findings == nil {
		g.Findings = []quality.Finding{}
	}
	verdict := func(of string, otherwise string) (text string, found bool) {
		for _, f := range g.Findings {
			if f.Of != of {
				continue
			}
			if text != "" {
				text += ", "
			}
			text += string(f.Kind)
		}
		if text == "" {
			return otherwise, false
		}
		return text, true
	}
	for _, s := range r.Sources {
		to := sourceCheck{Source: s.Source, Topic: s.Topic, Lag: s.Lag, Verdict: noEvents}
		if !s.Newest.IsZero() {
			to.Newest, to.AgeSeconds = &s.Newest, r.At.Sub(s.Newest).Seconds()
			to.Verdict, to.found = verdict(s.Source, fresh)
		}
		g.Sources = append(g.Sources, to)
	}
	for _, d := range r.Days {
		if d.Missing != "" {
			g.Missing = append(g.Missing, missingDay{d.At, d.Missing})
		}
	}
	otherwise := "ok"
	if !g.Compared {
		otherwise = "too few"
	}
	for _, m := range r.Features {
		f := featureCheck{Feature: m.Current.Output, NullShare: m.Current.NullShare(),
			ReferenceNull: m.Reference.NullShare(), PSI: m.PSI, typical: [2]string{typical(&m.Current), typical(&m.Reference)}}
		f.Verdict, f.found = verdict(f.Feature, otherwise)
		g.Features = append(g.Features, f)
	}
	return g
}

// typical returns the median of numbers, or the most frequent text.
func typical(d *quality.Distribution) string {
	if x, ok := d.Quantile(0.5); ok {
		return strconv.FormatFloat(x, 'g', 3, 64)
	}
	if most := d.Frequent(1); len(most) > 0 {
		return plot.Label(most[0])
	}
	return "–"
}

// printChecks prints the results. The last line is the verdict.
func printChecks(w io.Writer, output string, checks []groupCheck, all bool) error {
	broken := 0
	for _, g := range checks {
		broken += len(g.Findings)
	}
	if output == "json" {
		if checks == nil {
			checks = []groupCheck{}
		}
		if err := printJSON(w, struct {
			OK     bool         `json:"ok"`
			Groups []groupCheck `json:"groups"`
		}{broken == 0, checks}); err != nil {
			return err
		}
	} else {
		for _, g := range checks {
			printCheck(w, g, all)
		}
		for _, g := range checks {
			for _, f := range g.Findings {
				fmt.Fprintln(w, f)
			}
		}
	}
	switch {
	case broken > 0:
		return errSilent
	case output == "json":
	case all:
		fmt.Fprintln(w, "no limit is exceeded")
	default:
		fmt.Fprintln(w, "no limit is exceeded; --all shows every source and feature")
	}
	return nil
}

// printCheck prints the result for a group: all of it, or what is beyond a limit and one line for the rest.
func printCheck(w io.Writer, g groupCheck, all bool) {
	fmt.Fprintf(w, "%s at %s: %d of %d entities", g.Group, g.At.Format(time.RFC3339), g.Sampled, g.Entities)
	if !all {
		for _, part := range g.unremarkable() {
			fmt.Fprint(w, "; ", part)
		}
	}
	fmt.Fprintln(w)
	var rows [][]any
	for _, s := range g.Sources {
		if !all && !s.found {
			continue
		}
		age := "–"
		if s.Newest != nil {
			age = ago(g.At, *s.Newest)
		}
		rows = append(rows, []any{s.Source, s.Topic, age, s.Lag, s.Verdict})
	}
	if len(rows) > 0 {
		printTable(w, []string{"source", "topic", "newest event", "lag", "verdict"}, rows)
	}
	if len(g.Missing) > 0 {
		fmt.Fprintf(w, "%d days have no vectors; that of %s: %s\n", len(g.Missing),
			g.Missing[0].At.Format(time.DateOnly), g.Missing[0].Reason)
	}
	rows = rows[:0]
	for _, f := range g.Features {
		if !all && !f.found {
			continue
		}
		rows = append(rows, []any{f.Feature, percent(f.NullShare), percent(f.ReferenceNull), f.typical[0], f.typical[1],
			strconv.FormatFloat(f.PSI, 'f', 3, 64), f.Verdict})
	}
	if len(rows) > 0 {
		printTable(w, []string{"feature", "nulls", "reference", "median or most frequent", "reference", "PSI", "verdict"},
			rows)
	}
}

// unremarkable says how many sources and features exceed no limit, and why.
func (g groupCheck) unremarkable() (parts []string) {
	verdicts := map[string]int{}
	for _, s := range g.Sources {
		if !s.found {
			verdicts[s.Verdict]++
		}
	}
	if n := verdicts[fresh]; n > 0 {
		parts = append(parts, counted(n, "source is fresh", "sources are fresh"))
	}
	if n := verdicts[noEvents]; n > 0 {
		parts = append(parts, counted(n, "source has no events", "sources have no events"))
	}
	n := 0
	for _, f := range g.Features {
		if !f.found {
			n++
		}
	}
	switch {
	case n == 0:
	case g.Compared:
		parts = append(parts, counted(n, "feature is within the limits", "features are within the limits"))
	default:
		parts = append(parts, counted(n, "feature is", "features are")+
			fmt.Sprintf(" not compared: fewer than %d entities have facts, now or on the reference days", g.least))
	}
	return parts
}

// counted returns a number with the words for one or for several.
func counted(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// percent formats a share.
func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + " %" }
