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

// prepare creates missing tables and brings existing ones to their declarations. A table that
// cannot be read or landed does not affect the others; Stopped returns its fault.
func (l *Lake) prepare(ctx context.Context, readOnly bool) error {
	for _, t := range l.tables {
		if readOnly {
			// Read-only: tables must exist, but a fault of one is no reason to fail.
			_, err := l.loadOwn(ctx, t)
			if errors.Is(err, ErrNoLake) || err != nil && faults.Of(t.DisplayName(), err) == nil {
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

// Declare adds a table to the lake's own tables and prepares it, as Open does with those of its
// Config. It must be called before the tables are landed.
func (l *Lake) Declare(ctx context.Context, t declare.Table) error {
	l.tables = append(l.tables, t)
	return l.prepareOne(ctx, t)
}

// prepareOne prepares one table. A fault of the table stops its landing; only other errors are
// returned.
func (l *Lake) prepareOne(ctx context.Context, t declare.Table) error {
	have, err := l.loadOwn(ctx, t)
	if errors.Is(err, catalog.ErrNoSuchTable) {
		if have, err = l.Create(ctx, t); err == nil {
			err = l.checkWarehouse(t, have)
		}
	}
	// A table of another topic is left alone.
	if err == nil {
		err = progress.CheckOwner(t, have.Properties())
	}
	if err == nil {
		err = l.Evolve(ctx, t)
	}
	// A fault stops only this table. Other errors, such as an unreachable catalog, fail the start.
	fault := faults.Of(t.DisplayName(), err)
	if err != nil && fault == nil {
		return err
	}
	if fault != nil {
		l.Stop(ctx, t, fault)
	}
	return nil
}

// Prepare brings an existing table to its declaration.
func (l *Lake) Prepare(ctx context.Context, t declare.Table) error {
	if _, err := l.loadOwn(ctx, t); err != nil {
		return err
	}
	return l.Evolve(ctx, t)
}

// loadOwn loads a table and checks that it is in this lake's warehouse.
func (l *Lake) loadOwn(ctx context.Context, t declare.Table) (*table.Table, error) {
	have, err := l.Load(ctx, t.Identifier())
	if err != nil {
		return nil, err
	}
	return have, l.checkWarehouse(t, have)
}

// checkWarehouse returns an error if the table is not in a warehouse of this kind.
func (l *Lake) checkWarehouse(t declare.Table, have *table.Table) error {
	if l.warehouse.owns(have.Location()) {
		return nil
	}
	return fmt.Errorf("table %s is at %s, but the warehouse is %s: "+
		"configure the warehouse that has the catalog's tables",
		t.Name, have.Location(), l.warehouse.url)
}

// tableProperties are set on every new table.
//
// commit.retry.num-retries is omitted on purpose. Without it, iceberg-go does not retry, and other
// engines use their default. Landers must not retry blindly: an outdated append must fail, not be
// replayed onto a new head. The lander decides, see package landing. Other engines have to retry,
// because landers commit often.
var tableProperties = iceberg.Properties{
	// The cost of a commit must not grow with the number of earlier commits.
	table.MetadataDeleteAfterCommitEnabledKey: "true",
	table.MetadataPreviousVersionsMaxKey:      "100",
	table.ManifestMergeEnabledKey:             "true",
	table.ManifestMinMergeCountKey:            "50",
	// A DELETE, UPDATE or MERGE of another engine covers the rows that exist when it begins. Under
	// Iceberg's default, serializable, it would also have to cover rows that arrive meanwhile, and
	// would fail for as long as landers commit.
	"write.delete.isolation-level": "snapshot",
	"write.update.isolation-level": "snapshot",
	"write.merge.isolation-level":  "snapshot",
	// Files of other engines should match ours.
	table.ParquetCompressionKey:      "zstd",
	table.ParquetCompressionLevelKey: "1",
}

// Create creates a table. If two processes try at once, the second one uses the first one's table.
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
	// CreateTable is not used because it removes the table's metadata after any error, even if the
	// commit succeeded and only the catalog's answer was lost.
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
	if err == nil { // recorded faults belong to an earlier table of this name
		l.lost.clear(t.DisplayName())
		l.recordFault(ctx, t, []string{propFault + t.Name, propLost + t.Name}, nil)
	}
	if loadErr == nil {
		return made, nil // whichever process created it
	}
	if err == nil || !errors.Is(loadErr, catalog.ErrNoSuchTable) {
		err = errors.Join(err, loadErr)
	}
	return fail(err)
}

// describe returns the properties that record a table's declaration.
func describe(t declare.Table, step evolution.Step) iceberg.Properties {
	props := iceberg.Properties{evolution.Property: step.Keys.String(), progress.KeyTopic: t.Topic}
	if t.Doc != "" {
		props["comment"] = t.Doc
	}
	return props
}

// evolveAttempts is the number of attempts to commit a declaration. Other processes evolve and
// commit at the same time, so each attempt starts from a new load.
const evolveAttempts = 20

// Evolve brings an existing table to its declaration: columns, partitioning, sort order. It does
// not disturb landers: files that are being written use field ids, which do not change, so they can
// be committed before or after. A table that matches its declaration is left unchanged.
func (l *Lake) Evolve(ctx context.Context, t declare.Table) error {
	var err error
	waits := backoff.Commit.Start()
	for range evolveAttempts {
		var done bool
		if done, err = l.tryEvolve(ctx, t); done {
			return err
		}
		l.log.Info("cannot apply the table's declaration; retrying", "table", t.Name, "error", err)
		if !waits.Wait(ctx) {
			return ctx.Err()
		}
	}
	if err != nil && !faults.IsTemporary(err) && faults.Of(t.DisplayName(), err) == nil {
		return &faults.TableError{Table: t.DisplayName(), Remedy: faults.RemedyCommit, Err: err}
	}
	return err
}

// tryEvolve makes one attempt. done is false if the commit failed and another attempt may succeed.
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
	// The requirements make the commit fail if another process has changed the same part meanwhile.
	var reqs []table.Requirement
	var updates []table.Update
	if len(step.Changes) > 0 {
		reqs = append(reqs, table.AssertCurrentSchemaID(have.Schema().ID),
			table.AssertLastAssignedFieldID(meta.LastColumnID()))
		updates = append(updates, table.NewAddSchemaUpdate(step.Schema), table.NewSetCurrentSchemaUpdate(-1))
	}
	// A partitioning or order that the declaration leaves open may be a user's choice, so only a
	// declared one is applied.
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
		step.Changes = append(step.Changes, "the sort order of files changes")
	}
	if opened := upgradeProperties(meta.Properties()); len(opened) > 0 {
		updates = append(updates, opened...)
		step.Changes = append(step.Changes, "other engines may write it beside landers")
	}
	if len(step.Changes) == 0 {
		return true, nil
	}
	// The table must not be dropped and created again in between.
	reqs = append(reqs, table.AssertTableUUID(meta.TableUUID()))
	updates = append(updates, table.NewSetPropertiesUpdate(describe(t, step)))
	if _, _, err := l.catalog.CommitTable(ctx, t.Identifier(), reqs, updates); err != nil {
		return false, fmt.Errorf("apply the declaration of table %s: %w", t.Name, err)
	}
	l.log.Info("applied the table's declaration", "table", t.Name, "changes", strings.Join(step.Changes, "; "))
	return true, nil
}

// upgradeProperties brings the properties of tables made by earlier versions to tableProperties.
// Values that a user has set are kept.
func upgradeProperties(have iceberg.Properties) (updates []table.Update) {
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
