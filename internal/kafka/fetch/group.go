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

// Group configures the consumer group of a Reader. The group only decides which member reads which
// partition. The caller stores the offsets, so offsets that are committed or reset for the group
// change nothing.
type Group struct {
	Name string
	// Instance is a static member id. With it, a member that comes back after a crash gets its
	// partitions back at once, instead of after the session timeout. No other member may have the
	// same one at the same time. It may be empty.
	Instance string
	// RebalanceTimeout is how long the group waits for a member that does not yield before it
	// continues without it. 0 means 1 minute.
	RebalanceTimeout time.Duration
	// Refresh is how often to look for partitions that were added to the topic. 0 means 30 seconds.
	Refresh time.Duration
	// Position returns the offsets to read from when partitions are assigned. It is called in
	// another goroutine than Poll's. Poll returns its error.
	Position func(ctx context.Context, partitions []int32) (map[int32]int64, error)
}

// member is a Reader's membership in a group. The client's goroutine calls its methods, too.
type member struct {
	group Group
	// mu protects the fields below.
	mu      sync.Mutex
	next    map[int32]int64 // next offset of each assigned partition
	failed  error           // why this reader cannot remain a member
	pending bool            // a rebalance waits for Yield
	wake    func()          // ends the Poll in progress; nil if there is none
}

// Defaults of a member. One that sends no heartbeat loses its partitions after the session timeout.
const (
	groupRefresh      = 30 * time.Second
	groupRefreshLeast = time.Second // minimum time between two refreshes
	groupHeartbeat    = 500 * time.Millisecond
	groupSession      = 6 * time.Second
	groupRebalance    = time.Minute // default of Group.RebalanceTimeout
)

// Join returns a Reader of the partitions that the group assigns to it. None of them is revoked
// between a Poll and the next Yield, so the caller can finish its work on the records. If it takes
// longer than the rebalance timeout, the group continues without it. Then another member may read
// the same records, and only the sink can tell which one was first.
func Join(c Config, g Group) (*Reader, error) {
	refresh := cmp.Or(g.Refresh, groupRefresh)
	m := &member{group: g, next: map[int32]int64{}}
	var opts []kgo.Opt
	if g.Instance != "" {
		opts = append(opts, kgo.InstanceID(g.Instance))
	}
	r, err := open(c, append(opts,
		kgo.ConsumeTopics(c.Topic),
		kgo.ConsumerGroup(g.Name),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.HeartbeatInterval(groupHeartbeat),
		kgo.SessionTimeout(groupSession),
		kgo.RebalanceTimeout(cmp.Or(g.RebalanceTimeout, groupRebalance)),
		kgo.MetadataMaxAge(refresh),
		kgo.MetadataMinAge(min(refresh, groupRefreshLeast)),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // until Yield
		kgo.AdjustFetchOffsetsFn(m.assigned),
		kgo.OnPartitionsRevoked(m.revoked),
		kgo.OnPartitionsLost(m.revoked),
		kgo.OnPartitionsCallbackBlocked(m.blocked),
	)...)
	if err != nil {
		return nil, err
	}
	r.member = m
	return r, nil
}

// assigned replaces the group's offsets of new partitions with those of Group.Position.
func (m *member) assigned(ctx context.Context,
	offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	for topic, partitions := range offsets {
		if len(partitions) == 0 {
			continue
		}
		from, err := m.group.Position(ctx, slices.Sorted(maps.Keys(partitions)))
		for p := range partitions {
			// Without an offset, the client would use the group's.
			if _, ok := from[p]; !ok && err == nil {
				err = fmt.Errorf("no offset to read %s/%d from", topic, p)
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

// revoked removes partitions that were revoked or lost.
func (m *member) revoked(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, partitions := range topics {
		for _, p := range partitions {
			delete(m.next, p)
		}
	}
}

// blocked is called when a rebalance waits for Yield. It ends the Poll in progress.
func (m *member) blocked(context.Context, *kgo.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending = true
	if m.wake != nil {
		m.wake()
	}
}

// wake registers end, which cancels a Poll, to be called when a rebalance waits. It calls end at
// once if one already does. The returned function removes it.
func (r *Reader) wake(end func()) (done func()) {
	m := r.member
	if m == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending {
		end()
	}
	m.wake = end
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wake = nil
	}
}

// memberError returns why the reader cannot remain a member, or nil.
func (r *Reader) memberError() error {
	if r.member == nil {
		return nil
	}
	r.member.mu.Lock()
	defer r.member.mu.Unlock()
	return r.member.failed
}

// Yield declares that the work on all returned batches is finished. Partitions may be assigned and
// revoked until the next Poll. Yield does nothing for a Reader without a group.
func (r *Reader) Yield() {
	if r.member == nil {
		return
	}
	r.member.mu.Lock()
	r.member.pending = false
	r.member.mu.Unlock()
	r.client.AllowRebalance()
}

// RebalancePending reports whether the group waits for Yield. It is a hint to finish soon.
func (r *Reader) RebalancePending() bool {
	if r.member == nil {
		return false
	}
	r.member.mu.Lock()
	defer r.member.mu.Unlock()
	return r.member.pending
}

// Commit commits offsets to the group, for tools that show lag. Nothing depends on them.
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
		return fmt.Errorf("commit offsets of %s to the group: %w", r.topic, failed)
	}
	return nil
}
