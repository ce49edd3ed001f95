package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/app"
)

// newFeaturesVerify returns the command features verify. It reads the topic and the tables itself;
// only the address of an embedded broker is asked from a running system.
func newFeaturesVerify(a *cli) *cobra.Command {
	var limit int
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Recompute served vectors from the lake; exit 1 on any difference",
		Long: `Recompute the newest vectors that were logged while they were served, from the lake's tables of events as of the
log positions that each vector names. Every value must be the same to the last bit. A vector that contains a
record after its positions, or the events of another window, differs. Exit code 0 means that all are equal.

The setting features.online.log_sample says which share of vectors is logged, on the topic
millrace.features.served. Vectors of another version of a group than this program has are counted as undefined.`,
		Example: `  millrace features verify
  millrace features verify --limit 100000 --output json`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd, "table", "json")
	cmd.Flags().IntVar(&limit, "limit", 10_000, "how many vectors to recompute: the newest ones")
	durationFlag(cmd.Flags(), &wait, "wait", time.Minute, "how long to wait for the tables to have what the vectors reflect")
	a.dataFlag(cmd, "data folder of the lake, unless the configuration sets a warehouse and a catalog")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if limit < 1 || limit > maxVerified {
			return fmt.Errorf("--limit %d: want a number from 1 to %d", limit, maxVerified)
		}
		c, err := a.config()
		if err != nil {
			return err
		}
		groups, err := app.FeatureGroups(c.Features)
		if err != nil {
			return err
		}
		if c.Kafka.Brokers == "" {
			if c.Kafka.Brokers, err = a.embeddedBroker(cmd.Context()); err != nil {
				return err
			}
		}
		progress := newBar("features verify")
		check, err := app.VerifyServed(cmd.Context(), c, groups, limit, wait,
			func(stage string, done, total int64) { progress.set(done, total, stage) }, c.Log.Logger(os.Stderr))
		progress.end(err)
		if err != nil {
			return err
		}
		if *output == "json" {
			err = printJSON(cmd.OutOrStdout(), servedJSON(check))
		} else {
			printServed(cmd.OutOrStdout(), check)
		}
		// The difference has been printed, so only the exit code remains.
		if err == nil && !verified(check) {
			err = errSilent
		}
		return err
	}
	return cmd
}

// maxVerified bounds the vectors in memory, which take a few kB each.
const maxVerified = 1_000_000

// verified reports whether nothing was found. A record that cannot be read may have been any vector.
func verified(c app.ServedCheck) bool { return c.Equal() && c.Unreadable == 0 }

// servedJSON returns the result with stable names, for scripts.
func servedJSON(c app.ServedCheck) any {
	return struct {
		Equal           bool   `json:"equal"`
		Groups          any    `json:"groups"`
		Differences     any    `json:"differences"`
		Unreadable      int    `json:"unreadable"`
		FirstUnreadable string `json:"first_unreadable,omitempty"`
	}{verified(c), c.Groups, c.Differences, c.Unreadable, c.FirstUnreadable}
}

// printServed prints the result for people.
func printServed(w io.Writer, c app.ServedCheck) {
	if len(c.Groups) == 0 && c.Unreadable == 0 {
		fmt.Fprintln(w, "no vectors are logged: set features.online.log_sample")
		return
	}
	rows := make([][]any, len(c.Groups))
	different := 0
	for i, g := range c.Groups {
		rows[i] = []any{g.Group, g.Vectors, g.Equal, g.Different, g.Undefined}
		different += g.Different
	}
	printTable(w, []string{"group", "vectors", "equal", "different", "undefined"}, rows)
	if len(c.Differences) > 0 {
		rows = make([][]any, len(c.Differences))
		for i, d := range c.Differences {
			rows[i] = []any{d.Group, d.Entity, d.At.Format(time.RFC3339Nano), d.Feature, d.Served, d.Recomputed, d.Record}
		}
		printTable(w, []string{"group", "entity", "at", "feature", "served", "recomputed", "record"}, rows)
	}
	if c.Unreadable > 0 {
		fmt.Fprintf(w, "unreadable: %d records, the first: %s\n", c.Unreadable, c.FirstUnreadable)
	}
	switch {
	case different > 0:
		fmt.Fprintf(w, "%d vectors differ; %d values are shown\n", different, len(c.Differences))
	case c.Unreadable == 0:
		fmt.Fprintln(w, "all vectors are equal")
	}
}
