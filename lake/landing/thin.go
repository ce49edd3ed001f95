package landing

import (
	"context"

	"github.com/millrace/millrace/lake/maintenance"
)

// thin removes snapshots that the retention rules no longer need, once every thinInterval commits.
func (l *lander) thin(ctx context.Context) {
	if l.commits++; l.commits%thinInterval != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := maintenance.Thin(ctx, l.load, l.lake.Catalog()); err != nil {
		l.log.Warn("cannot thin out the table's history; retrying later", "error", err)
	}
}

// thinInterval is the number of commits between two checks of the history.
const thinInterval = 8
