package lake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/internal/timeunit"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/progress"
	"github.com/millrace/millrace/lake/maintenance"
)

// Name is a table's full name in the catalog: namespace and table name.
type Name = table.Identifier

// ParseName parses "order_lines" or "namespace.table".
func ParseName(name string) (Name, error) {
	parts := strings.Split(name, ".")
	if slices.Contains(parts, "") || len(parts) > 2 {
		return nil, fmt.Errorf("table %q: want TABLE or NAMESPACE.TABLE", name)
	}
	if len(parts) == 1 {
		return declare.Identifier(name), nil
	}
	return parts, nil
}

// All returns the names of all tables in the catalog, including other engines' tables.
func (l *Lake) All(ctx context.Context) ([]Name, error) {
	namespaces, err := l.catalog.ListNamespaces(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list the lake's namespaces: %w", err)
	}
	var all []Name
	for _, ns := range namespaces {
		for name, err := range l.catalog.ListTables(ctx, ns) {
			if err != nil {
				return nil, fmt.Errorf("list the tables of %s: %w", strings.Join(ns, "."), err)
			}
			all = append(all, name)
		}
	}
	slices.SortFunc(all, func(a, b Name) int { return slices.Compare(a, b) })
	return all, nil
}

// Summary describes the contents of a table.
type Summary struct {
	Name        string // with namespace
	Doc         string
	Rows        int64 // for a table of state, the landers' count; otherwise the rows in its files
	RowsInFiles int64 // including rows that deletes remove
	DataFiles   int64
	DataBytes   int64
	DeleteFiles int64
	Snapshots   int
	Partitioned string    // empty if unpartitioned
	Sorted      string    // empty if unsorted
	AsOf        time.Time // recording time of the newest event; zero if no lander has set it
}

// Summarize describes the contents of a table from its metadata, without reading data files. If the
// table cannot be read, the error is a *TableError.
func (l *Lake) Summarize(ctx context.Context, name Name) (Summary, error) {
	t, err := l.Load(ctx, name)
	if fault := faults.Of(declare.DisplayName(name), err); fault != nil {
		return Summary{}, fault
	}
	if err != nil {
		return Summary{}, err
	}
	s := Summary{
		Name: strings.Join(name, "."), Doc: t.Properties()["comment"], Snapshots: len(t.Metadata().Snapshots()),
	}
	if spec := t.Spec(); !spec.IsUnpartitioned() {
		s.Partitioned = specText(spec, t.Schema())
	}
	if order := t.SortOrder(); !order.IsUnsorted() {
		s.Sorted = orderText(order, t.Schema())
	}
	if v := t.Properties()[progress.KeyAsOf]; v != "" {
		if s.AsOf, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return Summary{}, fmt.Errorf("table %s: property %s: %w", s.Name, progress.KeyAsOf, err)
		}
	}
	if head := t.CurrentSnapshot(); head != nil && head.Summary != nil {
		total := func(key string) int64 { return int64(head.Summary.Properties.GetInt(key, 0)) }
		s.RowsInFiles, s.DataFiles = total("total-records"), total("total-data-files")
		s.DeleteFiles = total("total-delete-files")
		s.DataBytes, _ = strconv.ParseInt(head.Summary.Properties["total-files-size"], 10, 64)
	}
	// Landers of keyed tables count rows, because files include deleted ones.
	s.Rows = s.RowsInFiles
	if counted, err := progress.ReadRows(t.Properties()); err != nil {
		return Summary{}, fmt.Errorf("table %s: %w", s.Name, err)
	} else if counted > 0 {
		s.Rows = counted
	}
	return s, nil
}

// specText, orderText and transformText format a spec and an order for display, such as
// "day(recorded_at)" and "order_id descending".
func specText(spec iceberg.PartitionSpec, s *iceberg.Schema) string {
	var parts []string
	for _, f := range spec.Fields() {
		column, _ := s.FindColumnName(f.SourceID())
		parts = append(parts, transformText(f.Transform, column))
	}
	return strings.Join(parts, ", ")
}

func orderText(order table.SortOrder, s *iceberg.Schema) string {
	var parts []string
	for i := range order.Len() {
		f := order.Field(i)
		column, _ := s.FindColumnName(f.SourceID())
		text := transformText(f.Transform, column)
		if f.Direction == table.SortDESC {
			text += " descending"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

func transformText(t iceberg.Transform, column string) string {
	if _, plain := t.(iceberg.IdentityTransform); plain {
		return column
	}
	return fmt.Sprintf("%s(%s)", t, column)
}

// SnapshotState is one snapshot in a table's history.
type SnapshotState struct {
	ID        int64
	Time      time.Time
	Operation string // append, overwrite, delete, replace
	Rows      int64  // in the table's files, including rows that deletes remove
	Added     int64  // rows added
	Files     int64  // data files in the table
	// Offsets is the "partition=offset,…" list that a lander's commit recorded: by partition,
	// the first offset that is not in the table. Compactions copy it. It is empty in snapshots of
	// other engines.
	Offsets string
	Commit  string // the lander's commit id
	Current bool
}

// Snapshots returns the retained history of a table, newest first.
func (l *Lake) Snapshots(ctx context.Context, name Name) ([]SnapshotState, error) {
	t, err := l.Load(ctx, name)
	if err != nil {
		return nil, err
	}
	var states []SnapshotState
	for _, s := range t.Metadata().Snapshots() {
		state := SnapshotState{ID: s.SnapshotID, Time: timeunit.Time(s.TimestampMs)}
		if head := t.CurrentSnapshot(); head != nil {
			state.Current = head.SnapshotID == s.SnapshotID
		}
		if s.Summary != nil {
			props := s.Summary.Properties
			state.Operation, state.Commit = string(s.Summary.Operation), props[progress.KeyCommit]
			state.Offsets = props[progress.KeySummaryNext]
			state.Rows, state.Added = int64(props.GetInt("total-records", 0)), int64(props.GetInt("added-records", 0))
			state.Files = int64(props.GetInt("total-data-files", 0))
		}
		states = append(states, state)
	}
	slices.SortStableFunc(states, func(a, b SnapshotState) int { return b.Time.Compare(a.Time) })
	return states, nil
}

// FileState is one data file of a table.
type FileState struct {
	Path      string
	Rows      int64
	Bytes     int64
	Partition string // such as "day=2026-11-22"; empty if unpartitioned
	Deletes   int    // number of delete files that a reader applies to it
	Sorted    bool   // by one of the table's sort orders
}

// Files returns the data files of the table's current snapshot.
func (l *Lake) Files(ctx context.Context, name Name) ([]FileState, error) {
	t, err := l.Load(ctx, name)
	if err != nil {
		return nil, err
	}
	// Planning reads manifests only, no data.
	tasks, err := t.Scan(table.WithMaxConcurrency(2)).PlanFiles(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the files of table %s: %w", strings.Join(name, "."), err)
	}
	files := make([]FileState, len(tasks))
	for i, task := range tasks {
		f := task.File
		order := f.SortOrderID()
		files[i] = FileState{
			Path: f.FilePath(), Rows: f.Count(), Bytes: f.FileSizeBytes(), Partition: partitionText(t, f),
			Deletes: len(task.DeleteFiles) + len(task.EqualityDeleteFiles),
			Sorted:  order != nil && *order != table.UnsortedSortOrderID,
		}
	}
	slices.SortFunc(files, func(a, b FileState) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// partitionText returns the partition of a file as "name=value" pairs.
func partitionText(t *table.Table, f iceberg.DataFile) string {
	var parts []string
	values := f.Partition()
	// A file refers to the spec that was current when it was written.
	names := map[int]string{}
	for _, spec := range t.Metadata().PartitionSpecs() {
		if spec.ID() == int(f.SpecID()) {
			for _, p := range spec.Fields() {
				names[p.FieldID] = p.Name
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(values)) {
		parts = append(parts, fmt.Sprintf("%s=%v", names[id], values[id]))
	}
	return strings.Join(parts, "/")
}

// Maintain maintains a table once, while others may write it. See package maintenance.
func (l *Lake) Maintain(
	ctx context.Context, name Name, c maintenance.Config, progress func(maintenance.Progress),
) (maintenance.Report, error) {
	r, err := maintenance.Run(ctx, l.loader(name), c, progress)
	return r, errors.Join(err, l.Check(ctx, name))
}

// PlanMaintenance reports what Maintain would do.
func (l *Lake) PlanMaintenance(ctx context.Context, name Name, c maintenance.Config) (maintenance.Planned, error) {
	return maintenance.Plan(ctx, l.loader(name), c)
}

// loader returns the loader that package maintenance needs.
func (l *Lake) loader(name Name) maintenance.Load {
	return func(ctx context.Context) (*table.Table, error) { return l.Load(ctx, name) }
}

// stateCompactInterval is the compaction interval of State tables. It is short because each of
// their commits adds equality deletes, which every reader must apply.
const stateCompactInterval = time.Minute

// fileCheckInterval is the interval at which maintenance checks that all files of a table exist.
const fileCheckInterval = 10 * time.Minute

// Keep maintains one of the lake's own tables until ctx is done. It pauses while maintains reports
// false: then another process maintains the table, or nobody is to do it now.
func (l *Lake) Keep(ctx context.Context, t declare.Table, c maintenance.Config, maintains func() bool) error {
	log := l.log.With("table", t.Name)
	if t.Keyed() && c.CompactEvery == 0 {
		c.CompactEvery = stateCompactInterval
	}
	// Checked at each load, so that maintenance stops soon after a rebalance, or when it is switched off.
	load := func(ctx context.Context) (*table.Table, error) {
		if !maintains() {
			return nil, errNotMaintainer
		}
		return l.Load(ctx, t.Identifier())
	}
	var checked time.Time
	return maintenance.Keep(ctx, load, c, func(r maintenance.Report, err error) {
		// Check files after a failure, which may be due to a missing one, and otherwise at
		// intervals.
		if maintains() && (err != nil || time.Since(checked) >= fileCheckInterval) {
			checked = time.Now()
			err = errors.Join(err, l.Check(ctx, t.Identifier()))
		}
		switch {
		case errors.Is(err, errNotMaintainer):
		case err != nil:
			log.Warn("maintenance failed; retrying later", "error", err)
		default:
			level := slog.LevelInfo
			if r.Compacted.Commits+r.Manifests.Before+r.Expired.Snapshots+r.Orphans.Files == 0 {
				level = slog.LevelDebug
			}
			log.Log(context.Background(), level, "maintenance", "compacted", r.Compacted.String(),
				"manifests", r.Manifests, "expired", r.Expired, "orphans", r.Orphans, "took", r.Took)
		}
	})
}

// errNotMaintainer is returned while another process has the first partition of the table's topic,
// which maintains the table, and while maintenance of the table is switched off.
var errNotMaintainer = errors.New("another process maintains the table, or its maintenance is switched off")
