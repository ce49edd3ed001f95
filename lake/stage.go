package lake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/io"
	"github.com/apache/iceberg-go/table"

	"github.com/millrace/millrace/lake/location"
)

// Stage returns a table that does not exist yet. Its first commit creates it with all that the commit
// contains, so that no reader ever sees the table without its rows. The commit fails if a table of this
// name exists by then.
func (l *Lake) Stage(name table.Identifier, schema *iceberg.Schema, props iceberg.Properties) (*table.Table, error) {
	at := l.warehouse.tableLocation(name)
	all := maps.Clone(tableProperties)
	maps.Copy(all, props)
	meta, err := table.NewMetadata(schema, iceberg.UnpartitionedSpec, table.UnsortedSortOrder, at, all)
	if err != nil {
		return nil, fmt.Errorf("describe table %s: %w", name, err)
	}
	storage := fencedCatalog{l.catalog, l.warehouse.url, l.warehouse.aws}
	files := func(ctx context.Context) (io.IO, error) {
		fs, err := io.LoadFS(storage.storageContext(ctx), l.warehouse.props, at)
		if err != nil {
			return nil, err
		}
		return location.Fence(fs, at), nil
	}
	return table.New(name, meta, "", files, creating{l.catalog, meta}), nil
}

// creating is the catalog of a table that its first commit creates.
type creating struct {
	catalog.Catalog
	meta table.Metadata
}

// CommitTable creates the table and applies the updates, in one commit.
func (c creating) CommitTable(
	ctx context.Context, name table.Identifier, _ []table.Requirement, updates []table.Update,
) (table.Metadata, string, error) {
	err := c.CreateNamespace(ctx, catalog.NamespaceFromIdent(name), nil)
	if err != nil && !errors.Is(err, catalog.ErrNamespaceAlreadyExists) {
		return nil, "", fmt.Errorf("create namespace: %w", err)
	}
	spec, order := c.meta.PartitionSpec(), c.meta.SortOrder()
	// The requirements of the commit are those of a table that exists.
	return c.Catalog.CommitTable(ctx, name, []table.Requirement{table.AssertCreate()}, slices.Concat([]table.Update{
		table.NewAssignUUIDUpdate(c.meta.TableUUID()),
		table.NewUpgradeFormatVersionUpdate(c.meta.Version()),
		table.NewAddSchemaUpdate(c.meta.CurrentSchema()),
		table.NewSetCurrentSchemaUpdate(-1), // the one just added
		table.NewAddPartitionSpecUpdate(&spec, true),
		table.NewSetDefaultSpecUpdate(-1),
		table.NewAddSortOrderUpdate(&order),
		table.NewSetDefaultSortOrderUpdate(-1),
		table.NewSetLocationUpdate(c.meta.Location()),
		table.NewSetPropertiesUpdate(c.meta.Properties()),
	}, updates))
}
