// This file compares what is not in a store: views of topics from outside with these topics, and the
// members of segments with an evaluation of everybody.

package app

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/digest"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
	"github.com/millrace/millrace/verify"
)

// sourceEnds returns the end offsets of the topics that come from outside.
func (p *App) sourceEnds(ctx context.Context) (map[string]map[int32]int64, error) {
	ends := map[string]map[int32]int64{}
	for _, s := range p.modules.Sources {
		end, err := p.admin.EndOffsets(ctx, s.Aggregate.Topic)
		if err != nil {
			return nil, err
		}
		ends[s.Aggregate.Topic] = end
	}
	return ends, nil
}

// sourceComparisons compares the views that show a source with its topic. If the topic has lost its
// beginning by retention, nobody knows what the views should show, and there are no comparisons.
func (p *App) sourceComparisons(ctx context.Context, a event.Aggregate) []verify.Comparison {
	starts, err := p.admin.StartOffsets(ctx, a.Topic)
	for _, offset := range starts {
		if err == nil && offset > 0 {
			p.log.Info("verify: views of a topic from outside are left out, because its beginning was deleted",
				"topic", a.Topic)
			return nil
		}
	}
	var all []verify.Comparison
	for _, v := range p.views {
		for _, f := range v.Feeds {
			if f.Aggregate != a || f.ExpectedOfTopic == nil {
				continue
			}
			sides := []verify.Side{{Name: "topic " + a.Topic, Digest: func(ctx context.Context) (*digest.Digest, error) {
				return f.ExpectedOfTopic(p.records(ctx, a.Topic))
			}}}
			for _, o := range v.complete() {
				sides = append(sides, verify.Side{Name: "view " + o.sink,
					Digest: func(ctx context.Context) (*digest.Digest, error) { return o.Digest(ctx, a) }})
			}
			all = append(all, verify.Comparison{Unit: "documents", Sides: sides})
		}
	}
	return all
}

// errEnough ends the reading of a topic.
var errEnough = errors.New("enough")

// records returns the events of a topic from its beginning, in order per partition. It ends with the
// first error, which the last pair contains.
func (p *App) records(ctx context.Context, topic string) iter.Seq2[streams.Record, error] {
	return func(yield func(streams.Record, error) bool) {
		ends, err := p.admin.EndOffsets(ctx, topic)
		if err == nil {
			err = kafka.ReadAll(ctx, p.kafka, topic, nil, ends, func(m kafka.Message) error {
				e, err := event.FromRecord(m.Key, m.Value, m.Headers)
				if err == nil {
					e, _, err = p.decoder.Complete(ctx, registry.Record{Topic: topic, Partition: m.Partition, Offset: m.Offset,
						Key: m.Key, Value: m.Value, Headers: m.Headers}, e)
				}
				switch {
				case errors.Is(err, registry.ErrUnavailable):
					return err
				case err != nil:
					return nil //nolint:nilerr // a dead letter
				case !yield(streams.Record{Event: e, Topic: topic, Partition: m.Partition, Offset: m.Offset}, nil):
					return errEnough
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(streams.Record{}, err)
		}
	}
}

// membershipView is a view that keeps the members of segments.
type membershipView interface {
	HasSegments() bool
	Membership(ctx context.Context, now time.Time) (evaluated, published *digest.Digest, err error)
}

// membershipComparisons compares the members of a view's segments with an evaluation of everybody.
func (p *App) membershipComparisons(v *view) []verify.Comparison {
	m, ok := v.now().OpenView.(membershipView)
	if !ok || !m.HasSegments() {
		return nil
	}
	// Both sides are of one moment, so the first one computes both.
	var once sync.Once
	var sides [2]*digest.Digest
	var failed error
	side := func(i int) func(context.Context) (*digest.Digest, error) {
		return func(ctx context.Context) (*digest.Digest, error) {
			once.Do(func() { sides, failed = p.settledMembership(ctx, m) })
			return sides[i], failed
		}
	}
	return []verify.Comparison{{Unit: "members", Sides: []verify.Side{
		{Name: "profiles", Digest: side(0)}, {Name: "segments", Digest: side(1)},
	}}}
}

// membershipSettles is how long members may differ from the profiles: changes are published a moment
// after the view shows their cause.
const membershipSettles = 30 * time.Second

// settledMembership returns who should be a member and who is one, as soon as both are equal, or when
// they have differed for membershipSettles.
func (p *App) settledMembership(ctx context.Context, m membershipView) (sides [2]*digest.Digest, err error) {
	bounded, cancel := context.WithTimeout(ctx, membershipSettles)
	defer cancel()
	err = p.until(bounded, "members of segments", func() (bool, error) {
		evaluated, published, err := m.Membership(ctx, time.Now())
		if err != nil {
			return false, err
		}
		sides = [2]*digest.Digest{evaluated, published}
		return evaluated.Total() == published.Total(), nil
	})
	if bounded.Err() != nil && ctx.Err() == nil && sides[0] != nil {
		err = nil // they differ, and the comparison says how
	}
	return sides, err
}
