package lake

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"
	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/lake/declare"
	"github.com/millrace/millrace/lake/evolution"
	"github.com/millrace/millrace/lake/faults"
	"github.com/millrace/millrace/lake/internal/progress"
)

// prepare creates what is missing, and brings what is there to what is declared. A table that cannot be read or landed
// as it is takes nothing from the others: Stopped says what is the matter with it.
func (l *Lake) prepare(ctx context.Context, readOnly bool) error {
	for _, t := range l.tables {
		if readOnly {
			if _, err := l.loadOwn(ctx, t); err != nil && (errors.Is(err, ErrNoLake) || faults.Of(t.DisplayName(), err) == nil) {
				return err
			}
			continue
		}
		if err := l.prepareOne(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// Declare adds a table to the lake's own, as Open does with those of its Config. Call it before they are landed.
func (l *Lake) Declare(ctx context.Context, t declare.Table) error {
	l.tables = append(l.tables, t)
	return l.prepareOne(ctx, t)
}

func (l *Lake) prepareOne(ctx context.Context, t declare.Table) error {
	have, err := l.loadOwn(ctx, t)
	if errors.Is(err, catalog.ErrNoSuchTable) {
		if have, err = l.Create(ctx, t); err == nil {
			err = l.placed(t, have)
		}
	}
	if err == nil {
		err = progress.CheckOwner(t, have.Properties())
	}
	if err == nil {
		err = l.Evolve(ctx, t)
	}
	fault := faults.Of(t.DisplayName(), err)
	if err != nil && fault == nil {
		return err
	}
	if fault != nil {
		l.Stop(ctx, t, fault)
	}
	return nil
}

// Prepare brings one that is there to what is declared.
func (l *Lake) Prepare(ctx context.Context, t declare.Table) error {
	if _, err := l.loadOwn(ctx, t); err != nil {
		return err
	}
	return l.Evolve(ctx, t)
}

// loadOwn loads a table that must lie in the warehouse.
func (l *Lake) loadOwn(ctx context.Context, t declare.Table) (*table.Table, error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return nil, err
	}
	return have, l.placed(t, have)
}

func (l *Lake) placed(t declare.Table, have *table.Table) error {
	if l.warehouse.owns(have.Location()) {
		return nil
	}
	return fmt.Errorf("table %s lies at %s, and the warehouse is %s: name the warehouse that the catalog's tables are in",
		t.Name, have.Location(), l.warehouse.url)
}

// properties of every table. commit.retry.num-retries is not among them: iceberg-go does not try again where it is
// missing, and a stale append must fail, not be replayed onto the new head, as the lander decides (see lander.go).
// Other engines do try again then, as they must beside landers.
var tableProperties = iceberg.Properties{
	// What a commit reads and writes must not grow with the number of commits before it.
	table.MetadataDeleteAfterCommitEnabledKey: "true",
	table.MetadataPreviousVersionsMaxKey:      "100",
	table.ManifestMergeEnabledKey:             "true",
	table.ManifestMinMergeCountKey:            "50",
	// Others' DELETE, UPDATE and MERGE are of the rows that are there when they begin. Were they of those too that come
	// meanwhile, which is what Iceberg takes for granted, they would fail beside landers for as long as these land.
	"write.delete.isolation-level": "snapshot",
	"write.update.isolation-level": "snapshot",
	"write.merge.isolation-level":  "snapshot",
	// What other engines write shall look like what we write.
	table.ParquetCompressionKey:      "zstd",
	table.ParquetCompressionLevelKey: "1",
}

// Create makes a table. Two processes may try at once: the second takes what the first made.
func (l *Lake) Create(ctx context.Context, t declare.Table) (*table.Table, error) {
	fail := func(err error) (*table.Table, error) { return nil, fmt.Errorf("create table %s: %w", t.Name, err) }
	if t.Unready != nil {
		return fail(t.Unready)
	}
	err := l.catalog.CreateNamespace(ctx, catalog.NamespaceFromIdent(t.Identifier()), nil)
	if err != nil && !errors.Is(err, catalog.ErrNamespaceAlreadyExists) {
		return fail(err)
	}
	step, err := evolution.New(t.AllColumns(), nil)
	if err != nil {
		return fail(err)
	}
	spec, err := t.Spec(step.Schema, nil)
	if err != nil {
		return nil, err
	}
	order, err := t.Order(step.Schema, 1)
	if err != nil {
		return nil, err
	}
	// Not CreateTable, which removes the table's metadata after an error, even where only the catalog's answer was
	// lost.
	_, _, err = l.catalog.CommitTable(ctx, t.Identifier(), []table.Requirement{table.AssertCreate()}, []table.Update{
		table.NewAssignUUIDUpdate(uuid.New()),
		table.NewUpgradeFormatVersionUpdate(2),
		table.NewAddSchemaUpdate(step.Schema),
		table.NewSetCurrentSchemaUpdate(-1), // the one just added
		table.NewAddPartitionSpecUpdate(&spec, true),
		table.NewSetDefaultSpecUpdate(-1),
		table.NewAddSortOrderUpdate(&order),
		table.NewSetDefaultSortOrderUpdate(-1),
		table.NewSetLocationUpdate(l.warehouse.tableLocation(t.Identifier())),
		table.NewSetPropertiesUpdate(tableProperties),
		table.NewSetPropertiesUpdate(describe(t, step)),
	})
	made, loadErr := l.Load(ctx, t.Identifier())
	if err == nil { // what is told is of a table that was here before
		l.lost.clear(t.DisplayName())
		l.writeFault(ctx, t, []string{propFault + t.Name, propLost + t.Name}, nil)
	}
	if loadErr == nil {
		return made, nil // by whomever
	}
	if err == nil || !errors.Is(loadErr, catalog.ErrNoSuchTable) {
		err = errors.Join(err, loadErr)
	}
	return fail(err)
}

// describe is what the table's properties say of its declaration.
func describe(t declare.Table, step evolution.Step) iceberg.Properties {
	props := iceberg.Properties{evolution.Property: step.Keys.String(), progress.KeyTopic: t.Topic}
	if t.Doc != "" {
		props["comment"] = t.Doc
	}
	return props
}

// Others evolve and commit at the same time; each try begins with what they left.
const evolveTries = 20

// Evolve brings a table that exists to its declaration: columns, how rows are spread, their order. What landers have
// under way keeps the ids that it was written with, so it may land before or after. A table that is as declared is left
// alone.
func (l *Lake) Evolve(ctx context.Context, t declare.Table) error {
	var err error
	waits := backoff.Commit.Start()
	for range evolveTries {
		var done bool
		if done, err = l.tryEvolve(ctx, t); done {
			return err
		}
		l.log.Info("a table's declaration could not be committed and will be tried again", "table", t.Name, "error", err)
		if !waits.Wait(ctx) {
			return ctx.Err()
		}
	}
	if err != nil && !faults.Passes(err) && faults.Of(t.DisplayName(), err) == nil {
		return &faults.TableError{Table: t.DisplayName(), Remedy: faults.RemedyCommit, Err: err}
	}
	return err
}

func (l *Lake) tryEvolve(ctx context.Context, t declare.Table) (done bool, err error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return true, err
	}
	if err := progress.CheckOwner(t, have.Properties()); err != nil {
		return true, err
	}
	meta := have.Metadata()
	step, err := t.Step(meta)
	if err != nil {
		return true, err
	}
	var reqs []table.Requirement
	var updates []table.Update
	if len(step.Changes) > 0 {
		reqs = append(reqs, table.AssertCurrentSchemaID(have.Schema().ID), table.AssertLastAssignedFieldID(meta.LastColumnID()))
		updates = append(updates, table.NewAddSchemaUpdate(step.Schema), table.NewSetCurrentSchemaUpdate(-1))
	}
	// What the declaration leaves open may be somebody's choice: only what it names is changed.
	now, sorted := meta.PartitionSpec(), meta.SortOrder()
	spec, err := t.Spec(step.Schema, meta.PartitionSpecs())
	if err != nil {
		return true, err
	}
	if len(t.Partition) > 0 && !declare.SameSpec(now, spec) {
		reqs = append(reqs, table.AssertDefaultSpecID(now.ID()))
		updates = append(updates, table.NewAddPartitionSpecUpdate(&spec, false), table.NewSetDefaultSpecUpdate(-1))
		step.Changes = append(step.Changes, fmt.Sprintf("new files are partitioned by %s", spec))
	}
	order, err := t.Order(step.Schema, sorted.OrderID()+1)
	if err != nil {
		return true, err
	}
	if len(t.Sort) > 0 && !declare.SameOrder(sorted, order) {
		reqs = append(reqs, table.AssertDefaultSortOrderID(sorted.OrderID()))
		updates = append(updates, table.NewAddSortOrderUpdate(&order), table.NewSetDefaultSortOrderUpdate(-1))
		step.Changes = append(step.Changes, "files are sorted otherwise from now on")
	}
	if opened := openToOthers(meta.Properties()); len(opened) > 0 {
		updates = append(updates, opened...)
		step.Changes = append(step.Changes, "others may write it beside landers")
	}
	if len(step.Changes) == 0 {
		return true, nil
	}
	reqs = append(reqs, table.AssertTableUUID(meta.TableUUID()))
	updates = append(updates, table.NewSetPropertiesUpdate(describe(t, step)))
	if _, _, err := l.catalog.CommitTable(ctx, t.Identifier(), reqs, updates); err != nil {
		return false, fmt.Errorf("bring table %s to its declaration: %w", t.Name, err)
	}
	l.log.Info("a table was brought to its declaration", "table", t.Name, "changes", strings.Join(step.Changes, "; "))
	return true, nil
}

// openToOthers brings properties of tables that were made before to what is said above. What somebody has chosen stays.
func openToOthers(have iceberg.Properties) (updates []table.Update) {
	missing := iceberg.Properties{}
	for key, value := range tableProperties {
		if _, ok := have[key]; !ok && strings.HasSuffix(key, ".isolation-level") {
			missing[key] = value
		}
	}
	if len(missing) > 0 {
		updates = append(updates, table.NewSetPropertiesUpdate(missing))
	}
	if have[table.CommitNumRetriesKey] == "0" {
		updates = append(updates, table.NewRemovePropertiesUpdate([]string{table.CommitNumRetriesKey}))
	}
	return updates
}
