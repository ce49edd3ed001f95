package fetch

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Group says how a Reader shares the topic with others. The group only tells who reads what: where
// to read on is the caller's to know, and offsets that somebody commits or resets for the group
// change nothing.
type Group struct {
	Name string
	// Instance names a member for good, so that the group gives it its partitions back as soon as
	// it comes again after a crash, instead of missing it first. No other may have the name at the
	// same time. May be empty.
	Instance string
	Patience time.Duration // how long the group waits for a member that does not yield, and then continues without it; 0 means a minute
	Refresh  time.Duration // how often to look for partitions that the topic was given; 0 means 30 seconds
	// Position is asked for the offsets to read from when partitions come to this member, in a
	// goroutine of its own. Its error is what Poll returns next.
	Position func(ctx context.Context, partitions []int32) (map[int32]int64, error)
}

// member is a Reader's place in a group.
type member struct {
	group  Group
	mu     sync.Mutex
	next   map[int32]int64 // where each partition of ours stands
	failed error           // why we can no longer be a member
	wanted bool            // a rebalance waits for Yield
	wake   func()          // ends the Poll under way; nil if there is none
}

// How often a member tells the brokers that it lives. One that falls silent loses its partitions
// after the session's timeout.
const (
	groupRefresh      = 30 * time.Second
	groupRefreshLeast = time.Second // between two looks, whatever there is to find
	groupHeartbeat    = 500 * time.Millisecond
	groupSession      = 6 * time.Second
	groupPatience     = time.Minute
)

// Join returns a Reader that reads the partitions which the group gives it. Between a Poll and the
// next Yield none of them goes, so the caller can finish what it does with the records. It must not
// let more than the group's patience pass, or the group continues without it; then another member
// may read the same records, and only the sink can tell who was first.
func Join(c Config, g Group) (*Reader, error) {
	refresh := cmp.Or(g.Refresh, groupRefresh)
	m := &member{group: g, next: map[int32]int64{}}
	var known []kgo.Opt
	if g.Instance != "" {
		known = append(known, kgo.InstanceID(g.Instance))
	}
	r, err := open(c, append(known,
		kgo.ConsumeTopics(c.Topic),
		kgo.ConsumerGroup(g.Name),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.HeartbeatInterval(groupHeartbeat),
		kgo.SessionTimeout(groupSession),
		kgo.RebalanceTimeout(cmp.Or(g.Patience, groupPatience)),
		kgo.MetadataMaxAge(refresh),
		kgo.MetadataMinAge(min(refresh, groupRefreshLeast)),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.AdjustFetchOffsetsFn(m.assigned),
		kgo.OnPartitionsRevoked(m.gone),
		kgo.OnPartitionsLost(m.gone),
		kgo.OnPartitionsCallbackBlocked(m.blocked),
	)...)
	if err != nil {
		return nil, err
	}
	r.member = m
	return r, nil
}

// assigned replaces the group's offsets of new partitions by those that the caller knows.
func (m *member) assigned(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	for topic, partitions := range offsets {
		if len(partitions) == 0 {
			continue
		}
		from, err := m.group.Position(ctx, slices.Sorted(maps.Keys(partitions)))
		for p := range partitions {
			if _, ok := from[p]; !ok && err == nil {
				err = fmt.Errorf("nobody knows where to read %s/%d from", topic, p)
			}
		}
		m.mu.Lock()
		if err != nil && ctx.Err() == nil && m.failed == nil {
			m.failed = err
		}
		for p := range partitions {
			if err == nil {
				m.next[p] = from[p]
				partitions[p] = kgo.NewOffset().At(from[p])
			}
		}
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	return offsets, nil
}

func (m *member) gone(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, partitions := range topics {
		for _, p := range partitions {
			delete(m.next, p)
		}
	}
}

func (m *member) blocked(context.Context, *kgo.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = true
	if m.wake != nil {
		m.wake()
	}
}

// wake lets a rebalance that waits end a Poll, until the function that it returns is called.
func (r *Reader) wake(end func()) (done func()) {
	m := r.member
	if m == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wanted {
		end()
	}
	m.wake = end
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wake = nil
	}
}

// expelled returns why the reader can no longer be a member.
func (r *Reader) expelled() error {
	if r.member == nil {
		return nil
	}
	r.member.mu.Lock()
	defer r.member.mu.Unlock()
	return r.member.failed
}

// Yield says that nothing which Poll returned is still in work: partitions may come and go until
// the next Poll. A Reader of no group has nothing to yield.
func (r *Reader) Yield() {
	if r.member == nil {
		return
	}
	r.member.mu.Lock()
	r.member.wanted = false
	r.member.mu.Unlock()
	r.client.AllowRebalance()
}

// Wanted reports whether the group waits for Yield. It is no more than a hint: finish soon.
func (r *Reader) Wanted() bool {
	if r.member == nil {
		return false
	}
	r.member.mu.Lock()
	defer r.member.mu.Unlock()
	return r.member.wanted
}

// Commit tells the group how far the caller is, for tools that show consumers' lag. Nothing depends
// on it.
func (r *Reader) Commit(ctx context.Context, next map[int32]int64) error {
	offsets := map[int32]kgo.EpochOffset{}
	for p, offset := range next {
		offsets[p] = kgo.EpochOffset{Epoch: -1, Offset: offset}
	}
	var failed error
	r.client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{r.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			failed = err
			if resp == nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					if err := kerr.ErrorForCode(p.ErrorCode); err != nil && failed == nil {
						failed = err
					}
				}
			}
		})
	if failed != nil {
		return fmt.Errorf("tell the group the offsets of %s: %w", r.topic, failed)
	}
	return nil
}
