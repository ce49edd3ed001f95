package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/apache/iceberg-go/catalog"
)

// DropFedBy takes those of the lake's own tables that a topic feeds out of the catalog, so that the next lake that is
// opened creates them again, empty. Nothing may land meanwhile. Their files stay until maintenance finds that no table
// has them.
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
