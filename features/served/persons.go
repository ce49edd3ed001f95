package served

import (
	"context"
	"slices"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/features/persons"
	featuresv1 "github.com/millrace/millrace/gen/millrace/features/v1"
)

// link is a change of the identity graph, and its place on the log.
type link struct {
	change persons.Change
	origin features.Origin
}

// findPersons finds the members of each vector's person, as the identity graph was at the vector's
// positions. The whole graph is in memory meanwhile. A vector without positions in the graph, as
// earlier versions logged it, has the facts of its own entity only.
func (v *verification) findPersons(ctx context.Context) error {
	var following []*pending
	for _, p := range v.left {
		p.members = []string{p.GetEntity()}
		reflects := func(at *featuresv1.ServedPosition) bool { return at.GetTopic() == persons.Source.Topic }
		if persons.Follow(p.group) && slices.ContainsFunc(p.GetPositions(), reflects) {
			following = append(following, p)
		}
	}
	if len(following) == 0 {
		return nil
	}
	links := map[identity.Node][]link{}
	done := int64(0)
	_, total, err := v.cfg.Events.Next(ctx, persons.Source.Topic)
	if err != nil {
		return err
	}
	err = v.cfg.Events.Events(ctx, persons.Source.Topic, func(e event.Event, partition int32, offset int64) error {
		if done++; done%progressEvery == 0 {
			v.cfg.Progress("read the identity graph", min(done, total), total)
		}
		origin := features.Origin{Topic: persons.Source.Topic, Partition: partition, Offset: offset}
		facts, err := feed.Project(&persons.Source, e, origin)
		if err != nil {
			return nil //nolint:nilerr // it is a dead letter of whatever reads the log, too
		}
		for i := range facts {
			c, err := persons.ChangeOf(&facts[i])
			if err != nil {
				return err
			}
			links[c.Ends[0]] = append(links[c.Ends[0]], link{c, origin})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range following {
		graph, err := persons.Explore(p.group.Identity, []string{p.GetEntity()},
			func(nodes []identity.Node) (changes []persons.Change, err error) {
				for _, n := range nodes {
					for _, l := range links[n] {
						if p.reflects(l.origin) {
							changes = append(changes, l.change)
						}
					}
				}
				return changes, nil
			})
		if err != nil {
			return err
		}
		if members := graph.Members(p.group.Identity, p.GetEntity(), persons.Now); members != nil {
			p.members = members
		}
	}
	return nil
}
