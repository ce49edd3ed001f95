package app

import (
	"context"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/online"
	"github.com/millrace/millrace/internal/backoff"
)

// liveInterval is the interval of looking which versions of groups are live.
const liveInterval = 2 * time.Second

// followLive makes the vectors answer with the live version of each group that has
// several. The history decides which one that is. Without a history, nothing compares versions, and
// the last one is answered: its facts are complete as soon as the log was read.
func (p *App) followLive(store online.Reader, groups []*features.Group) {
	versions := map[string]*features.Group{} // the last one of each group
	several := map[string]bool{}
	for _, g := range groups {
		if other := versions[g.Name]; other != nil {
			several[g.Name] = true
			if other.Version > g.Version {
				continue
			}
		}
		versions[g.Name] = g
	}
	if p.history == nil {
		for name := range several {
			store.SetLive(versions[name])
		}
		return
	}
	if len(several) == 0 {
		return
	}
	p.background("versions of features", func(ctx context.Context) error {
		for {
			for name := range several {
				live, err := p.history.Live(ctx, name)
				if err != nil {
					p.log.Warn("features: which version is live is not known; the last known one is answered",
						"group", name, "error", err)
					continue
				}
				for _, g := range groups { // those of the store, which are other values
					if g.ID() == live.ID() {
						store.SetLive(g)
					}
				}
			}
			if !backoff.Sleep(ctx, liveInterval) {
				return nil
			}
		}
	})
}
