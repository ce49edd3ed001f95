package relay

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/millrace/millrace/internal/kafka"
)

// Follower reads from the log how far the relays are, whichever processes they run in. It is safe for concurrent use.
type Follower struct {
	cfg   kafka.Config
	admin *kafka.Admin

	mu    sync.Mutex
	next  map[int32]int64
	known map[string]Progress // by service
}

// NewFollower knows nothing before the first Look. Close ends its use of Kafka.
func NewFollower(cfg kafka.Config) (*Follower, error) {
	admin, err := kafka.NewAdmin(cfg)
	if err != nil {
		return nil, err
	}
	return &Follower{cfg: cfg, admin: admin, next: map[int32]int64{}, known: map[string]Progress{}}, nil
}

// Close lets go of Kafka.
func (f *Follower) Close() { f.admin.Close() }

// Look reads what has been marked since the last look, and tells for each service how far the log is. Published is not
// known from the log, and 0.
func (f *Follower) Look(ctx context.Context) (map[string]Progress, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end, err := f.admin.EndOffsets(ctx, PositionsTopic)
	if err != nil {
		return nil, err
	}
	err = kafka.ReadAll(ctx, f.cfg, PositionsTopic, f.next, end, func(m kafka.Message) error {
		found, err := parseMark(m)
		if err != nil {
			return nil //nolint:nilerr // the relay reports it; here an older mark does
		}
		// The last one, and not the highest: a stray record is forgotten with the relay's next transaction.
		f.known[string(m.Key)] = Progress{Position: found.to, RecordedAt: found.recorded}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("follow the relays: %w", err)
	}
	f.next = end
	return maps.Clone(f.known), nil
}
