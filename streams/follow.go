package streams

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace/millrace/internal/kafka"
)

// FollowConfig describes what to follow.
type FollowConfig struct {
	Name       string   // of the sink and its version: "orderstatus/v1"
	Topics     []string // that the sink is fed from
	Sink       Sink     // only its Positions are read
	Watermarks *Watermarks
	Kafka      kafka.Config
	Every      time.Duration // how often to look; 0 means 100 ms
	Logger     *slog.Logger  // slog.Default() where nil
}

// Follower keeps the watermarks of a sink that other processes feed, for callers that answer
// queries from it.
type Follower struct {
	cfg       FollowConfig
	refreshed chan struct{} // closed after the first look

	identified map[string]identified // by topic; of Run alone
}

// identified is which topic has a name, and when that was asked.
type identified struct {
	id string
	at time.Time
}

// NewFollower returns a Follower; Run runs it.
func NewFollower(cfg FollowConfig) *Follower {
	setDefault(&cfg.Every, 100*time.Millisecond)
	setDefault(&cfg.Logger, slog.Default())
	return &Follower{cfg: cfg, refreshed: make(chan struct{}), identified: map[string]identified{}}
}

// Run looks until ctx ends, which is not an error. What cannot be read now is read later. It can be
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
		case err.Error() != failed: // once, not at every look
			failed = err.Error()
			f.cfg.Logger.Warn("streams: the positions of a sink cannot be followed now", "sink", f.cfg.Name, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *Follower) refresh(ctx context.Context, admin *kafka.Admin) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	for _, topic := range f.cfg.Topics {
		if time.Since(f.identified[topic].at) >= identifyEvery {
			info, err := admin.Topic(ctx, topic)
			if err != nil {
				return err
			}
			f.identified[topic] = identified{info.ID, time.Now()}
		}
		ends, err := admin.EndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		stored, err := f.cfg.Sink.Positions(ctx, topic)
		if err != nil {
			return fmt.Errorf("read the sink's positions in %s: %w", topic, err)
		}
		for id := range ends {
			at := stored[id]
			if another(at.Topic, f.identified[topic].id) { // the topic was recreated, and the sink has not started on it
				at = Applied{}
			}
			if before, known := f.cfg.Watermarks.Applied(topic, id); known && at.Next < before.Next {
				f.cfg.Watermarks.faults.Report(f.cfg.Logger, f.cfg.Name, "content", fmt.Sprintf(
					"partition %d of %s went back from offset %d to %d", id, topic, before.Next, at.Next))
			}
			f.cfg.Watermarks.set(topic, id, at)
		}
		f.cfg.Watermarks.setEnds(topic, ends)
	}
	return nil
}

// CatchUp returns nil once the sink has applied everything that was on the topics when it was
// called.
func (f *Follower) CatchUp(ctx context.Context) error {
	select {
	case <-f.refreshed:
	case <-ctx.Done():
		return fmt.Errorf("follow %s: wait for the first look: %w", f.cfg.Name, context.Cause(ctx))
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
