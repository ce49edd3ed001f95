package relay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// Follower reads the relays' progress from PositionsTopic, whichever process they run in. It is safe
// for concurrent use.
type Follower struct {
	cfg    kafka.Config
	admin  *kafka.Admin
	stores map[string]eventstore.Store

	// mu is held during a Poll.
	mu      sync.Mutex
	topicID string              // of PositionsTopic when it was last read
	next    map[int32]int64     // offsets to read from
	known   map[string]Progress // by service
}

// NewFollower returns a Follower. It knows nothing before the first Poll. stores are keyed by
// service. A position is trusted only if the service's store has signed it and has its event. Close
// releases the Kafka client.
func NewFollower(cfg kafka.Config, stores map[string]eventstore.Store) (*Follower, error) {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return nil, err
	}
	return &Follower{cfg: cfg, admin: admin, stores: stores, next: map[int32]int64{}, known: map[string]Progress{}}, nil
}

// Close releases the Kafka client.
func (f *Follower) Close() { f.admin.Close() }

// Poll reads the new checkpoints and returns how far the log is, by service. The log does not
// contain Published, InvalidRecords and Live, so they are zero.
func (f *Follower) Poll(ctx context.Context) (map[string]Progress, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	secrets := map[string][]byte{}
	for service, store := range f.stores {
		var err error
		if secrets[service], err = store.Secret(ctx); err != nil {
			return nil, fmt.Errorf("read the relays' checkpoints: %w", err)
		}
	}
	topic, err := f.admin.Topic(ctx, PositionsTopic)
	if err != nil {
		return nil, err
	}
	end, err := f.admin.EndOffsets(ctx, PositionsTopic)
	if err != nil {
		return nil, err
	}
	// After the topic was recreated, earlier offsets and positions are void.
	if topic.ID != f.topicID {
		f.topicID, f.next, f.known = topic.ID, map[int32]int64{}, map[string]Progress{}
	}
	found := map[string][]event.Event{}
	err = kafka.ReadAll(ctx, f.cfg, PositionsTopic, f.next, end, func(m kafka.Message) error {
		service := string(m.Key)
		read, err := parseCheckpoint(m, secrets[service])
		// Skip checkpoints of earlier versions, which the relay replaces when it starts, and invalid
		// ones, which the relay reports.
		if err == nil && read.identified() && read.to.Compare(f.known[service].Position) > 0 {
			found[service] = append(found[service], read.last())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the relays' checkpoints: %w", err)
	}
	for service, events := range found {
		for chunk := range slices.Chunk(events, knownBatch) {
			has, err := f.stores[service].Known(ctx, chunk)
			if err != nil {
				return nil, fmt.Errorf("read the relays' checkpoints: %w", err)
			}
			for i, e := range chunk {
				if has[i] && e.Position.Compare(f.known[service].Position) > 0 {
					f.known[service] = Progress{Position: e.Position, RecordedAt: e.RecordedAt}
				}
			}
		}
	}
	f.next = end
	return maps.Clone(f.known), nil
}
