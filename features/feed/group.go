package feed

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/kafka/fetch"
)

// Group makes processes share the partitions of a topic: each reads those that the consumer group
// assigns to it. The group only decides who reads what; positions are where the facts are stored. A
// partition without a position is read from offset 0: if the log does not have that any more, the
// error is a *fetch.OutOfRangeError.
type Group struct {
	Name string
	// Positions returns the positions that are stored of a topic, and the id of the topic to which they
	// belong. It is called in another goroutine than Poll's, whenever partitions are assigned.
	Positions func(ctx context.Context) (topicID string, at map[int32]Position, err error)
}

// member is a Feed's membership in a group.
type member struct {
	describe *fetch.Reader // apart from the group's, which may be in a rebalance

	mu sync.Mutex // protects Feed.at and Feed.begins
}

// rebalanceWithin is how long a group waits for a member that is busy, or that has gone while it joined.
// Then another one may read the same records, and the positions tell which one was first.
const rebalanceWithin = 10 * time.Second

// Join returns a Feed of the partitions that a group assigns to it. Start assigns none. After each
// Poll whose facts are stored, Yield must be called: until then, no partition is assigned or revoked.
func Join(c Config, g Group) (*Feed, error) {
	f, err := newFeed(c)
	if err != nil {
		return nil, err
	}
	open := fetch.Config{Brokers: f.cfg.Brokers, Security: f.cfg.Security, Topic: f.cfg.Topic,
		ClientID: f.cfg.ClientID, Logger: f.cfg.Logger}
	f.member = &member{}
	if f.member.describe, err = fetch.Open(open); err != nil {
		return nil, err
	}
	f.reader, err = fetch.Join(open, fetch.Group{Name: g.Name, RebalanceTimeout: rebalanceWithin,
		Position: func(ctx context.Context, partitions []int32) (map[int32]int64, error) {
			return f.assigned(ctx, g, partitions)
		}})
	if err != nil {
		f.member.describe.Close()
		return nil, err
	}
	return f, nil
}

// assigned returns from where partitions are read that the group has assigned.
func (f *Feed) assigned(ctx context.Context, g Group, partitions []int32) (map[int32]int64, error) {
	id, stored, err := g.Positions(ctx)
	if err != nil {
		return nil, err
	}
	topic, err := f.member.describe.Describe(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.check(topic, id, stored); err != nil {
		return nil, err
	}
	f.member.mu.Lock()
	defer f.member.mu.Unlock()
	from := map[int32]int64{}
	for _, p := range partitions {
		log, ok := topic.Partitions[p]
		if !ok {
			return nil, fmt.Errorf("%s/%d was assigned, and the topic does not have it", f.cfg.Topic, p)
		}
		f.at[p] = f.start(p, log, stored)
		from[p] = f.at[p].Next
	}
	return from, nil
}

// Assigned returns the partitions that are read, in order.
func (f *Feed) Assigned() []int32 { return f.reader.Assigned() }

// Yield says that the facts of the last Poll are stored. It does nothing without a group.
func (f *Feed) Yield() { f.reader.Yield() }
