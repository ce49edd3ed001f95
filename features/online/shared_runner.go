package online

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/redis"
	"github.com/millrace/millrace/streams"
)

// SharedRunner feeds a Shared from the log, together with those of other processes: each topic has a
// consumer group, which shares its partitions. It starts at the positions in Redis. It builds a new
// epoch, and reads the log from where that begins, if Redis has lost data, if a topic is not the one that
// was read, or if the log does not have the records after the positions; see shared_build.go.
//
// It also follows the epoch and the positions, which are of all processes.
type SharedRunner struct {
	cfg        Config
	store      *Shared
	watermarks *streams.Watermarks
	fault      atomic.Pointer[error]
	// restarts counts how often the positions in Redis were found to be others than those that the feeds
	// have written: of another epoch, or of an older copy.
	restarts atomic.Int64

	building sync.Mutex // one topic builds an epoch for all
	tooMany  error      // ErrFull once a build found too many entities; guarded by building

	mu        sync.Mutex
	described map[string]described
}

// described is a topic at a time.
type described struct {
	at    time.Time
	topic fetch.Topic // without partitions if it does not exist
}

const (
	lookEvery        = 100 * time.Millisecond
	countEvery       = time.Second
	sharedTrimEvery  = 10 * time.Minute
	sharedStepWithin = 30 * time.Second // limit of each step in Redis
)

// NewSharedRunner returns a runner that feeds a Shared. Config.Dir and SaveEvery do not apply.
func NewSharedRunner(s *Shared, c Config) *SharedRunner {
	return &SharedRunner{cfg: c, store: s, watermarks: streams.NewWatermarks(), described: map[string]described{}}
}

// Store returns what is fed.
func (r *SharedRunner) Store() Reader { return r.store }

// Watermarks returns how far the log is applied, for callers that wait for a token.
func (r *SharedRunner) Watermarks() *streams.Watermarks { return r.watermarks }

// Ready returns nil once everything is applied that was on the log when the current epoch was first
// seen. Otherwise it returns why vectors cannot be trusted.
func (r *SharedRunner) Ready() error {
	if fault := r.fault.Load(); fault != nil {
		return *fault
	}
	if st := r.store.state.Load(); st == nil || !st.ready.Load() {
		return ErrRestoring
	}
	return nil
}

// Run feeds Redis until ctx ends.
func (r *SharedRunner) Run(ctx context.Context) error {
	var all errgroup.Group
	for _, topic := range r.store.Topics() {
		all.Go(func() error {
			r.feedTopic(ctx, topic)
			return nil
		})
	}
	all.Go(func() error {
		r.follow(ctx)
		return nil
	})
	all.Go(func() error {
		r.upkeep(ctx)
		return nil
	})
	return all.Wait()
}

// follow keeps it known how far the facts are, until ctx ends.
func (r *SharedRunner) follow(ctx context.Context) {
	var goal goal
	var counted time.Time
	failing := false
	for backoff.Sleep(ctx, lookEvery) {
		err := r.look(ctx, &goal)
		if err == nil && time.Since(counted) >= countEvery {
			err, counted = r.count(ctx), time.Now()
		}
		if err != nil && !failing && ctx.Err() == nil {
			r.cfg.Logger.Warn("cannot read how far the features in Redis are; retrying", "error", err)
		}
		failing = err != nil
	}
}

// goal is the ends of the topics that must be reached before vectors of a state are answered.
type goal struct {
	state *sharedState
	since time.Time
	ends  map[string]fetch.Topic // as they are described after since
}

// look reads the epoch and the positions.
func (r *SharedRunner) look(ctx context.Context, g *goal) error {
	ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	st := r.store.state.Load()
	before := st.writes() // counts only rise, so they must be known before the shards are read
	epoch, err := r.store.facts.Epoch(ctx)
	if err != nil {
		return r.unknown(err)
	}
	shards, err := r.store.facts.Shards(ctx, epoch)
	if err != nil {
		return r.unknown(err)
	}
	older := st == nil || st.epoch != epoch
	for i := range shards {
		older = older || shards[i].Writes < before[i]
	}
	if older {
		st = &sharedState{epoch: epoch}
	}
	for i := range shards {
		m, err := r.store.moment(&shards[i], st.moments[i].Load())
		if err != nil {
			return r.unknown(err)
		}
		st.keep(i, m)
	}
	if older && r.store.state.Swap(st) != nil {
		r.restarts.Add(1)
	}
	ids, positions := r.store.lowest(shards)
	for topic, at := range positions {
		for p, position := range at {
			r.applied(topic, ids[topic], p, position)
		}
	}
	if st.ready.Load() {
		return nil
	}
	if g.state != st {
		*g = goal{state: st, since: time.Now(), ends: map[string]fetch.Topic{}}
	}
	if r.reached(g, ids, positions) {
		st.ready.Store(true)
		entities, _ := r.store.Size()
		r.cfg.Logger.Info("the features in Redis have caught up with the log", "entities", entities)
	}
	return nil
}

// unknown makes the store unready if its state is lost.
func (r *SharedRunner) unknown(err error) error {
	if errors.Is(err, redis.ErrLost) {
		if r.store.state.Swap(nil) != nil {
			r.restarts.Add(1) // the feeds find out, too, and begin a new epoch
		}
		return nil
	}
	return err
}

// reached reports whether positions have reached a goal. It sets the goal's ends once they are known.
func (r *SharedRunner) reached(g *goal, ids map[string]string, positions map[string]map[int32]feed.Position) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.store.Topics() {
		topic, known := g.ends[name]
		if !known {
			d := r.described[name]
			if d.at.Before(g.since) {
				return false
			}
			topic = d.topic
			g.ends[name] = topic
		}
		for p, log := range topic.Partitions {
			at, ok := positions[name][p]
			if log.End > 0 && (!ok || ids[name] != topic.ID || at.Next < log.End) {
				return false
			}
		}
	}
	return true
}

// count counts the entities. A store that has too many is not answered, as a Store.
func (r *SharedRunner) count(ctx context.Context) error {
	st := r.store.state.Load()
	if st == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	counts, err := r.store.facts.Count(ctx, st.epoch)
	if err != nil {
		return err
	}
	var n int64
	for _, count := range counts {
		n += count
	}
	r.store.entities.Store(n)
	full, before := r.store.Full(), r.fault.Load()
	switch {
	case full == nil:
		r.fault.Store(nil)
	case before == nil:
		r.cfg.Logger.Error("the features in Redis are not fed any more, and are not answered", "error", full)
		r.fault.Store(&full)
	}
	return nil
}

// feedTopic feeds a topic until ctx ends, with a new reader after each error.
func (r *SharedRunner) feedTopic(ctx context.Context, topic string) {
	waits := backoff.Server.Start()
	for ctx.Err() == nil {
		epoch, progress, err := r.read(ctx, topic)
		var outOfRange *fetch.OutOfRangeError
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, redis.ErrLost), errors.Is(err, feed.ErrRecreated), errors.As(err, &outOfRange):
			switch built := r.build(ctx, epoch, err); {
			case built == nil:
				waits.Reset()
				continue
			case ctx.Err() != nil:
				return
			case errors.Is(built, ErrFull):
				<-ctx.Done() // build has said so
				return
			case errors.Is(built, redis.ErrFactsBuilding):
			default:
				r.cfg.Logger.Warn("cannot restore the features in Redis; retrying", "error", built)
			}
		case errors.Is(err, errRestarted), errors.Is(err, ErrGap):
			r.cfg.Logger.Info("continuing with the features in Redis from other positions", "topic", topic, "reason", err)
		case errors.Is(err, fetch.ErrNoTopic):
			r.describe(topic, fetch.Topic{}) // a topic that does not exist has no events
		case errors.Is(err, ErrFull): // count has said so
		default:
			r.cfg.Logger.Warn("cannot read a topic for the features in Redis; retrying", "topic", topic, "error", err)
		}
		if progress {
			waits.Reset()
		}
		waits.Wait(ctx)
	}
}

// errRestarted means that feeds must continue from other positions than their own.
var errRestarted = errors.New("the positions in Redis are of an earlier time or of another epoch")

// read reads the partitions of a topic that the group assigns, until an error. It returns the epoch in
// which it did, and whether it read anything.
func (r *SharedRunner) read(ctx context.Context, topic string) (epoch string, progress bool, err error) {
	restarts := r.restarts.Load()
	if epoch, err = r.store.facts.Epoch(ctx); err != nil {
		return "", false, err
	}
	positions := func(ctx context.Context) (string, map[int32]feed.Position, error) {
		ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
		defer cancel()
		shards, err := r.store.facts.Shards(ctx, epoch)
		if err != nil {
			return "", nil, err
		}
		if err := r.store.check(shards); err != nil {
			return "", nil, err
		}
		ids, at := r.store.lowest(shards)
		return ids[topic], at[topic], nil
	}
	id, at, err := positions(ctx)
	if err != nil {
		return epoch, false, err
	}
	f, err := feed.Join(feed.Config{Brokers: r.cfg.Brokers, Security: r.cfg.Security, Decoder: r.cfg.Decoder,
		Topic: topic, Sources: r.store.sources(topic), Sink: sink, WriteDeadLetters: r.cfg.WriteDeadLetters,
		Logger: r.cfg.Logger, Traced: r.cfg.Tracer != nil}, feed.Group{Name: r.store.group(topic), Positions: positions})
	if err != nil {
		return epoch, false, err
	}
	defer f.Close()
	info, err := f.Start(ctx, id, at)
	if err != nil {
		return epoch, false, err
	}
	r.describe(topic, info)
	for described := time.Now(); ; {
		f.Yield()
		batches, err := f.Poll(ctx, pollWait)
		if err != nil {
			return epoch, progress, err
		}
		for _, b := range batches {
			if err := r.cfg.traced(b, func() error { return r.apply(ctx, epoch, info.ID, b) }); err != nil {
				return epoch, progress, err
			}
			progress = true
		}
		if st := r.store.state.Load(); r.restarts.Load() != restarts || st != nil && st.epoch != epoch {
			return epoch, progress, errRestarted
		}
		if time.Since(described) >= describeEvery {
			if info, err = f.Describe(ctx); err != nil {
				return epoch, progress, err
			}
			described = time.Now()
			r.describe(topic, info)
		}
	}
}

// apply applies a batch.
func (r *SharedRunner) apply(ctx context.Context, epoch, topicID string, b feed.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	if err := failpoint.Hit("features.shared.apply.before"); err != nil {
		return err
	}
	if err := r.store.Apply(ctx, epoch, topicID, Batch{Topic: b.Topic, Partition: b.Partition, First: b.First,
		After: b.After, Facts: b.Facts}, b.Begins); err != nil {
		return err
	}
	if err := failpoint.Hit("features.shared.apply.after"); err != nil {
		return err
	}
	r.applied(b.Topic, topicID, b.Partition, b.After)
	return nil
}

// describe publishes the ends of a topic.
func (r *SharedRunner) describe(name string, topic fetch.Topic) {
	ends := make(map[int32]int64, len(topic.Partitions))
	for p, log := range topic.Partitions {
		ends[p] = log.End
	}
	r.watermarks.SetEnds(name, ends)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.described[name] = described{time.Now(), topic}
}

// applied publishes the position of a partition.
func (r *SharedRunner) applied(topic, id string, partition int32, at feed.Position) {
	r.watermarks.Set(topic, partition, streams.Applied{Next: at.Next, Watermark: at.Watermark, AsOf: at.AsOf, Topic: id})
}

// group returns the name of the consumer group of a topic.
func (s *Shared) group(topic string) string {
	const digits = 16
	return fmt.Sprintf("millrace.features.%s.%s", s.fingerprint[:digits], topic)
}
