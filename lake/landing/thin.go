package landing

import (
	"context"

	"github.com/millrace/millrace/lake/maintenance"
)

// thin takes surplus states away where there are enough of them.
func (l *lander) thin(ctx context.Context) {
	if l.commits++; l.commits%historyLook != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := maintenance.Thin(ctx, l.load, l.lake.Catalog()); err != nil {
		l.log.Warn("the table's history could not be thinned out and will be later", "error", err)
	}
}

// How many commits there are between two looks at the history.
const historyLook = 8
