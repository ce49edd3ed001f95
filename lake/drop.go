package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/iceberg-go/catalog"
)

// DropFedBy drops the lake's own tables of a topic from the catalog. The next Open creates them
// again, empty. Nothing may land meanwhile. The files remain until maintenance removes them as
// orphans.
func (l *Lake) DropFedBy(ctx context.Context, topic string) (dropped []string, err error) {
	for _, t := range l.tables {
		if t.Topic != topic {
			continue
		}
		err := l.catalog.DropTable(ctx, t.Identifier())
		if err != nil && !errors.Is(err, catalog.ErrNoSuchTable) {
			return dropped, fmt.Errorf("drop table %s: %w", t.Name, err)
		}
		dropped = append(dropped, t.Name)
	}
	slices.Sort(dropped)
	return dropped, nil
}
