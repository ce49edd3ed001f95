package streams

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// FollowConfig configures a Follower.
type FollowConfig struct {
	Name       string   // name and version of the sink: "orderstatus/v1"
	Topics     []string // topics that the sink reads
	Sink       Sink     // only its Positions method is called
	Watermarks *Watermarks
	Kafka      kafka.Config
	Every      time.Duration // polling interval; 0 means 100 ms
	Logger     *slog.Logger  // nil means slog.Default()
}

// Follower keeps the Watermarks of a sink current in a process that answers queries from the sink
// but does not feed it.
type Follower struct {
	cfg       FollowConfig
	refreshed chan struct{} // closed after the first successful refresh

	identified map[string]identified // by topic; used by Run only
	ends       map[string]ends       // by topic; used by Run only
}

// endsEvery is how often the ends of the topics are read. Unlike the sink's positions, nobody waits
// for them: they are only compared with the positions.
const endsEvery = time.Second

// ends are the ends of the partitions of a topic, and when they were read.
type ends struct {
	offsets map[int32]int64
	at      time.Time
}

// identified is the id of a topic, and when it was read.
type identified struct {
	id string
	at time.Time
}

// NewFollower returns a Follower. Run starts it.
func NewFollower(cfg FollowConfig) *Follower {
	setDefault(&cfg.Every, 100*time.Millisecond)
	setDefault(&cfg.Logger, slog.Default())
	return &Follower{cfg: cfg, refreshed: make(chan struct{}), identified: map[string]identified{},
		ends: map[string]ends{}}
}

// Run polls positions until ctx ends, and then returns nil. It logs errors and retries. It may be
// called once.
func (f *Follower) Run(ctx context.Context) error {
	admin, err := kafka.NewAdmin(f.cfg.Kafka)
	if err != nil {
		return fmt.Errorf("follow %s: %w", f.cfg.Name, err)
	}
	defer admin.Close()
	tick := time.NewTicker(f.cfg.Every)
	defer tick.Stop()
	first, failed := true, ""
	for {
		begun := time.Now()
		switch err := f.refresh(ctx, admin); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = ""
			f.cfg.Watermarks.clearFaults(f.cfg.Logger, f.cfg.Name, f.cfg.Topics, begun)
			if first {
				close(f.refreshed)
				first = false
			}
		case err.Error() != failed: // log an error once, not at every poll
			failed = err.Error()
			f.cfg.Logger.Warn("streams: following the sink's positions failed; retrying",
				"sink", f.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh reads the sink's positions and the ends of the topics into the watermarks.
func (f *Follower) refresh(ctx context.Context, admin *kafka.Admin) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	for _, topic := range f.cfg.Topics {
		// The id is read again now and then, because the client would continue in a recreated
		// topic.
		if time.Since(f.identified[topic].at) >= identifyEvery {
			info, err := admin.Topic(ctx, topic)
			if err != nil {
				return err
			}
			f.identified[topic] = identified{info.ID, time.Now()}
		}
		if time.Since(f.ends[topic].at) >= endsEvery {
			offsets, err := admin.EndOffsets(ctx, topic)
			if err != nil {
				return err
			}
			f.ends[topic] = ends{offsets, time.Now()}
			f.cfg.Watermarks.setEnds(topic, offsets)
		}
		stored, err := f.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		for id := range f.ends[topic].offsets {
			at := stored[id]
			// The topic was recreated, and the sink has not started reading the new one.
			if differentTopic(at.Topic, f.identified[topic].id) {
				at = Applied{}
			}
			// A position that decreases means that the sink lost data or was rebuilt.
			if before, known := f.cfg.Watermarks.Applied(topic, id); known && at.Next < before.Next {
				f.cfg.Watermarks.faults.Report(f.cfg.Logger, f.cfg.Name, "content", fmt.Sprintf(
					"the position in partition %d of %s decreased from offset %d to %d",
					id, topic, before.Next, at.Next))
			}
			f.cfg.Watermarks.set(topic, id, at)
		}
	}
	return nil
}

// CatchUp blocks until the sink has applied everything that was on the topics when it was called.
func (f *Follower) CatchUp(ctx context.Context) error {
	select {
	case <-f.refreshed:
	case <-ctx.Done():
		return fmt.Errorf("follow %s: wait for the first refresh: %w", f.cfg.Name, context.Cause(ctx))
	}
	admin, err := kafka.NewAdmin(f.cfg.Kafka)
	if err != nil {
		return fmt.Errorf("follow %s: %w", f.cfg.Name, err)
	}
	defer admin.Close()
	for _, topic := range f.cfg.Topics {
		ends, err := admin.EndOffsets(ctx, topic)
		if err == nil {
			err = f.cfg.Watermarks.WaitFor(ctx, topic, ends)
		}
		if err != nil {
			return fmt.Errorf("follow %s: %w", f.cfg.Name, err)
		}
	}
	return nil
}
