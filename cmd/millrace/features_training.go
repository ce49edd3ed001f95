package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/training"
	adminv1 "github.com/millrace/millrace/gen/millrace/admin/v1"
	"github.com/millrace/millrace/internal/app"
	"github.com/millrace/millrace/internal/config"
)

// trainingSet is the flags of the command features training-set.
type trainingSet struct {
	spine, at, known       string
	lag                    time.Duration
	keys, groups, features []string
	fullNames              bool
	out, from, manifest    string
	memory                 int64
}

// newFeaturesTrainingSet returns the command features training-set. It works on the files and
// servers itself; only a query as the spine, and the address of an embedded broker, are asked from a
// running system.
func newFeaturesTrainingSet(a *cli) *cobra.Command {
	var t trainingSet
	cmd := &cobra.Command{
		Use:   "training-set",
		Short: "Build a training set: a file of rows, with the features that were known at the time of each",
		Long: `Build a training set. The spine has a row per example: one or more entities, a time, and anything else, such as
a label. The output has the spine's columns and rows, in their order, and the features of each row's entities at its
time. The groups say which entities there are; each is in the column of its name (customer_id, sku, visitor_id), or
in the one that --key names.

A feature contains only what a model in production would have known: facts up to the row's time (--at) that the
system had recorded by then. So late events, later corrections and the label's own event do not leak. With
--known latest, facts are used whenever they became known, for data that was imported after the fact; with
--known COLUMN, each row says what was known. --lag 1us excludes facts of the row's very moment.

The spine is a Parquet file, or a SELECT, which the running system at --addr answers as "millrace sql" does; its
result is kept beside the output. Keys are columns of texts, signed integers or UUIDs, the times are timestamps.

--out FILE gets a manifest, FILE.manifest.json. "--manifest FILE" builds the same set again, byte by byte, also
after more events were recorded. --out iceberg:NAMESPACE.TABLE makes the set a table of the lake, or replaces the set
in it, in one commit; the manifest is a property of the table and of its snapshot, and --manifest takes the table, too.

--from log reads the events from the topics; --from clickhouse (the default if clickhouse.url is set) reads the
tables of the role features, which is faster: those of the configured server, or of the system that runs in the
data folder. Memory is bounded by --memory; what does not fit is in temporary files.

The first example and the last one run on the demo shop; the others read files of yours.`,
		Example: `  millrace features training-set --spine "SELECT customer_id, ordered_at, total FROM orders_current WHERE customer_id IS NOT NULL" --at ordered_at --group customer_value --out set.parquet
  millrace features training-set --spine labels.parquet --at event_time --group customer_activity --out set.parquet
  millrace features training-set --spine labels.parquet --key buyer --at event_time --known latest --lag 1us --group customer_activity,customer_value --features orders,monetary_sum_30d --out set.parquet
  millrace features training-set --spine lines.parquet --key customer_id=buyer,sku=product --at event_time --group customer_value,product_popularity --out set.parquet
  millrace features training-set --manifest set.parquet.manifest.json --out again.parquet`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&t.spine, "spine", "", "Parquet file, or a SELECT")
	flags.StringSliceVar(&t.keys, "key", nil,
		"column of the spine with the entity, or entity=column (default the entity's name)")
	flags.StringVar(&t.at, "at", "", "column of the spine with the time")
	flags.StringVar(&t.known, "known", training.KnownAt, "what is known: at (the row's time), latest, or a column of times")
	durationFlag(flags, &t.lag, "lag", 0, "how long before the row's time features end")
	flags.StringSliceVar(&t.groups, "group", nil, "feature groups (see millrace features list)")
	flags.StringSliceVar(&t.features, "features", nil, "features to keep, with or without window (default all)")
	flags.BoolVar(&t.fullNames, "full-names", false, "name the columns group__feature")
	flags.StringVar(&t.out, "out", "", "Parquet file to write, or iceberg:NAMESPACE.TABLE")
	flags.StringVar(&t.from, "from", "", "where the facts are: clickhouse or log")
	flags.StringVar(&t.manifest, "manifest", "",
		"build the set of this manifest, or of the table iceberg:NAMESPACE.TABLE, again")
	flags.Int64Var(&t.memory, "memory", training.DefaultMemory>>20, "memory to use, in MiB")
	a.dataFlag(cmd, "data folder of the running system, for --from clickhouse and for tables, unless servers are set")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // unreachable: the flag is defined above
	}
	cmd.MarkFlagsOneRequired("spine", "manifest")
	for _, parameter := range []string{"key", "at", "known", "lag", "group", "features", "full-names"} {
		cmd.MarkFlagsMutuallyExclusive("manifest", parameter) // the manifest has them
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return t.run(cmd, a) }
	return cmd
}

// run builds the set.
func (t trainingSet) run(cmd *cobra.Command, a *cli) (err error) {
	c, err := a.loadConfig()
	if err != nil {
		return err
	}
	groups, err := a.groups()
	if err != nil {
		return err
	}
	if err := t.checkOut(); err != nil {
		return err
	}
	set := training.Config{
		Spine: t.spine, At: t.at, Known: t.known, Lag: t.lag, Features: t.features, FullNames: t.fullNames,
		Out: t.out, Memory: t.memory << 20, Program: programVersion(), Groups: groups, From: t.from,
	}
	log := c.Log.Logger(os.Stderr)
	var manifest training.Manifest
	if t.manifest != "" {
		if manifest, err = readManifest(cmd.Context(), c, t.manifest, log); err != nil {
			return err
		}
		if err := manifest.Apply(&set); err != nil {
			return err
		}
		set.From = cmp.Or(t.from, manifest.Facts.From)
	} else {
		live, err := a.liveVersions(cmd.Context(), groups)
		if err != nil {
			return err
		}
		if set.Groups, err = groupsNamed(groups, t.groups, live); err != nil {
			return err
		}
		if set.Keys, err = keysOf(set.Groups, t.keys); err != nil {
			return err
		}
	}
	if set.From == "" {
		set.From = app.FromLog
		if c.ClickHouse.URL != "" {
			set.From = app.FromClickHouse
		}
	}
	name, isTable := strings.CutPrefix(t.out, tablePrefix)
	var table *app.TrainingTable
	if isTable {
		if table, err = app.OpenTrainingTable(cmd.Context(), c, name, log); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		defer func() { err = errors.Join(err, table.Close()) }()
		// The table is loaded from the same file that --out FILE gives.
		dir, dirErr := os.MkdirTemp("", "millrace-training-set-")
		if dirErr != nil {
			return dirErr
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		set.Out = filepath.Join(dir, "set.parquet")
	}
	if isQuery(t.spine) {
		// The spine of an earlier set must stay until this one is complete.
		set.SQL, set.KeepSpine = t.spine, name+".spine.parquet"
		set.Spine = set.KeepSpine + ".partial"
		defer func() {
			if removeErr := os.Remove(set.Spine); !errors.Is(removeErr, os.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}()
		if err := a.writeSpine(cmd.Context(), t.spine, set.Spine); err != nil {
			return err
		}
	}
	if set.From == app.FromLog && c.Kafka.Brokers == "" {
		if c.Kafka.Brokers, err = a.embeddedBroker(cmd.Context()); err != nil {
			return err
		}
	}
	facts, closeFacts, err := app.TrainingFacts(c, set.From, groups, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeFacts()) }()
	set.Facts = facts
	if slices.ContainsFunc(set.Groups, func(g *features.Group) bool { return g.Entity == app.CustomerEntity }) {
		if c.Kafka.Brokers == "" {
			if c.Kafka.Brokers, err = a.embeddedBroker(cmd.Context()); err != nil {
				return err
			}
		}
		set.Refuses, set.Consents, err = app.TrainingConsents(cmd.Context(), c, set.Consents, log)
		if err != nil {
			return err
		}
	}

	progress := newBar("training set")
	set.Progress = func(stage string, n, of int64) { progress.set(n, of, stage) }
	var made training.Manifest
	if t.manifest != "" {
		made, err = training.Repeat(cmd.Context(), manifest, set)
	} else {
		made, err = training.Build(cmd.Context(), set)
	}
	if err == nil && isTable {
		made.Output.Path = t.out
		err = table.Load(cmd.Context(), set.Out, made)
	}
	progress.end(err)
	if err != nil {
		return err
	}
	used := int64(0)
	for _, n := range made.Facts.Used {
		used += n
	}
	where := training.ManifestPath(t.out)
	if isTable {
		where = "is a property of the table"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d rows, %d features of %d facts; manifest %s\n", t.out, made.Output.Rows,
		len(made.Output.Columns), used, where)
	for _, entity := range slices.Sorted(maps.Keys(made.Output.Informed)) {
		n := made.Output.Informed[entity]
		fmt.Fprintf(cmd.OutOrStdout(), "%d rows have facts of their %s that were known at their time\n", n, entity)
		if n < made.Output.Rows/2 {
			fmt.Fprintf(cmd.ErrOrStderr(), "Is the column of %s right? Facts that were imported later were not known then: "+
				"see --known latest.\n", entity)
		}
	}
	return nil
}

// otherFormats are extensions of files with rows that are not Parquet.
var otherFormats = []string{".arrow", ".avro", ".csv", ".db", ".feather", ".gz", ".ipc", ".json", ".jsonl", ".ndjson", ".orc",
	".sqlite", ".tsv", ".txt", ".xls", ".xlsx", ".zip", ".zst"}

// checkOut refuses a name that promises another format than the file would have.
func (t trainingSet) checkOut() error {
	ext := filepath.Ext(t.out)
	if strings.HasPrefix(t.out, tablePrefix) || !slices.Contains(otherFormats, strings.ToLower(ext)) {
		return nil
	}
	return fmt.Errorf("--out %s: the file would be Parquet, and not %s: want a name that ends in .parquet, or "+
		"%sNAMESPACE.TABLE for a table of the lake", t.out, ext, tablePrefix)
}

// tablePrefix begins the name of a table where a file may be named, too.
const tablePrefix = "iceberg:"

// readManifest reads the manifest of a file, or of a table of the lake.
func readManifest(
	ctx context.Context, c config.Config, from string, log *slog.Logger,
) (_ training.Manifest, err error) {
	name, isTable := strings.CutPrefix(from, tablePrefix)
	if !isTable {
		return training.ReadManifest(from)
	}
	table, err := app.OpenTrainingTable(ctx, c, name, log)
	if err != nil {
		return training.Manifest{}, fmt.Errorf("--manifest: %w", err)
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	return table.Manifest(ctx)
}

// groupsNamed returns the groups of these names, or the versions of these IDs. Of a group with several
// versions, it returns the one that live has, or the lowest one.
func groupsNamed(groups []*features.Group, names []string, live map[string]int) ([]*features.Group, error) {
	var named []*features.Group
	var all []string
	for _, g := range groups {
		if !slices.Contains(all, g.Name) {
			all = append(all, g.Name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("--group is missing: name one or more of %s", strings.Join(all, ", "))
	}
	for _, name := range names {
		g := groupNamed(groups, strings.TrimSpace(name), live)
		if g == nil {
			return nil, fmt.Errorf("--group: unknown feature group %q: want some of %s", name, strings.Join(all, ", "))
		}
		named = append(named, g)
	}
	return named, nil
}

// keysOf returns the column of each entity from entity=column, or from the column of the only entity.
func keysOf(groups []*features.Group, keys []string) (map[string]string, error) {
	columns := map[string]string{}
	for _, key := range keys {
		entity, column, named := strings.Cut(key, "=")
		if !named {
			entity, column = groups[0].Entity, key
			if i := slices.IndexFunc(groups, func(g *features.Group) bool { return g.Entity != entity }); i >= 0 {
				return nil, fmt.Errorf("--key %s: the groups describe %s and %s, so say of which it is the key: %s=%s",
					key, entity, groups[i].Entity, entity, key)
			}
		}
		if entity == "" || column == "" {
			return nil, fmt.Errorf("--key %q: want a column of the spine, or entity=column", key)
		}
		if other, ok := columns[entity]; ok {
			return nil, fmt.Errorf("--key: %s has two columns, %s and %s", entity, other, column)
		}
		columns[entity] = column
	}
	return columns, nil
}

// groupNamed returns a group as groupsNamed, or nil.
func groupNamed(groups []*features.Group, name string, live map[string]int) *features.Group {
	var lowest *features.Group
	for _, g := range groups {
		switch {
		case g.ID() == name, g.Name == name && g.Version == live[name]:
			return g
		case g.Name == name && (lowest == nil || g.Version < lowest.Version):
			lowest = g
		}
	}
	return lowest
}

// liveGroups returns the live versions of groups.
func liveGroups(groups []*features.Group, live map[string]int) []*features.Group {
	var all []*features.Group
	for _, g := range groups {
		if groupNamed(groups, g.Name, live) == g {
			all = append(all, g)
		}
	}
	return all
}

// isQuery reports whether a spine is a query and not the name of a file.
func isQuery(spine string) bool {
	first, _, _ := strings.Cut(strings.TrimSpace(spine)+" ", " ")
	return strings.EqualFold(first, "SELECT") || strings.EqualFold(first, "WITH")
}

// writeSpine runs a query on the running system and writes its result to a file.
func (a *cli) writeSpine(ctx context.Context, query, path string) error {
	resp, err := a.postSQL(ctx, query, url.Values{"output": {"parquet"}})
	if err != nil {
		return fmt.Errorf("--spine: %w", err)
	}
	defer resp.Body.Close()   //nolint:errcheck // read to its end or given up
	f, err := os.Create(path) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("--spine: the result ended early: %w", explain(err))
	}
	return nil
}

// embeddedBroker returns the address of the broker of the running system.
func (a *cli) embeddedBroker(ctx context.Context) (string, error) {
	caller, err := a.caller(adminListener)
	if err != nil {
		return "", err
	}
	r, err := caller.admin().Status(ctx, connect.NewRequest(&adminv1.StatusRequest{}))
	if err != nil {
		return "", fmt.Errorf("kafka.brokers is not set, so the running system was asked for its broker: %w", explain(err))
	}
	return r.Msg.Addresses["kafka"], nil
}

// programVersion returns the version of this program, or the revision that it was built from.
func programVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = s.Value
		}
	}
	return cmp.Or(version, "unknown")
}
