package online

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/features"
	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/redis"
)

// An epoch is built by one process. It adds the facts of records that the log does not have any more,
// from the Past, and the positions up to which they reach; then the epoch is current, and all processes
// read the log from there. A partition that has lost its first records always has a position then, also
// if no Past has their facts: that of its first record.

const (
	buildLease      = 15 * time.Second // how long a builder that has gone keeps others from building
	keepEvery       = buildLease / 5
	factsPerAdd     = 2000
	describesWithin = 10 * time.Second
)

// build replaces an epoch by a new one, unless another process has replaced it. It returns
// redis.ErrFactsBuilding while another process does so.
func (r *SharedRunner) build(ctx context.Context, epoch string, reason error) error {
	r.building.Lock()
	defer r.building.Unlock()
	if r.tooMany != nil {
		return r.tooMany
	}
	b, err := r.take(ctx, epoch)
	if b == nil {
		return err
	}
	r.cfg.Logger.Warn("restoring the features in Redis", "reason", reason)
	if err := r.fillBuild(ctx, b); err != nil {
		if errors.Is(err, ErrFull) {
			r.cfg.Logger.Error("the features in Redis are not fed any more, and are not answered", "error", err)
			r.tooMany = err
			r.fault.Store(&err)
		}
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), describesWithin)
		defer cancel()
		return errors.Join(err, b.Abandon(within))
	}
	return nil
}

// take begins a build. It returns nil if another process has replaced the epoch, or replaces it.
func (r *SharedRunner) take(ctx context.Context, epoch string) (*redis.FactBuild, error) {
	ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	now, err := r.store.facts.Epoch(ctx)
	if err == nil && now != epoch {
		return nil, nil
	}
	if err != nil && !errors.Is(err, redis.ErrLost) {
		return nil, err
	}
	at := r.store.options.Now()
	if err := r.store.facts.Use(ctx, at); err != nil { // what is built is also found once it is not used any more
		return nil, err
	}
	b, err := r.store.facts.Build(ctx, now, at, at.Add(buildLease))
	if errors.Is(err, redis.ErrFactsReplaced) {
		err = nil
	}
	return b, err
}

// fillBuild adds what the log does not have to a build, and finishes it.
func (r *SharedRunner) fillBuild(ctx context.Context, b *redis.FactBuild) error {
	ctx, done := r.keepBuild(ctx, b)
	defer done()
	// Before there are more facts, those of the replaced epoch are deleted.
	if err := r.store.facts.Sweep(ctx); err != nil {
		return err
	}
	positions := map[string]string{}
	for _, topic := range r.store.Topics() {
		log, err := r.describeTopic(ctx, topic)
		if errors.Is(err, fetch.ErrNoTopic) || err == nil && !truncated(log) {
			continue
		}
		if err != nil {
			return err
		}
		upto, err := r.fillTopic(ctx, b, topic, log)
		if err != nil {
			return err
		}
		for p, at := range upto {
			positions[partitionField(topic, p)] = storedForm(log.ID, at)
		}
	}
	if len(positions) > 0 {
		if err := r.add(ctx, b, &[redis.FactShards][]redis.FactEntity{}, positions); err != nil {
			return err
		}
	}
	within, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	_, err := b.Finish(within)
	return err
}

// keepBuild renews the right to build until done is called. The context that it returns ends if another
// process has the right.
func (r *SharedRunner) keepBuild(ctx context.Context, b *redis.FactBuild) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for backoff.Sleep(ctx, keepEvery) {
			within, cancelStep := context.WithTimeout(ctx, keepEvery)
			err := b.Keep(within, r.store.options.Now().Add(buildLease))
			cancelStep()
			if errors.Is(err, redis.ErrLost) { // after another error, it is tried again
				cancel(err)
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// describeTopic describes a topic that is not read yet.
func (r *SharedRunner) describeTopic(ctx context.Context, topic string) (fetch.Topic, error) {
	reader, err := fetch.Open(fetch.Config{Brokers: r.cfg.Brokers, Security: r.cfg.Security, Topic: topic,
		ClientID: sink, Logger: r.cfg.Logger})
	if err != nil {
		return fetch.Topic{}, err
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(ctx, describesWithin)
	defer cancel()
	return reader.Describe(ctx)
}

// fillTopic adds the facts of a topic that has lost its first records, and returns the positions up to
// which they reach.
func (r *SharedRunner) fillTopic(ctx context.Context, b *redis.FactBuild, topic string, log fetch.Topic) (
	upto map[int32]feed.Position, err error,
) {
	if r.cfg.Past != nil {
		if upto, err = r.cfg.pastUpTo(ctx, topic, log); err != nil {
			return nil, err
		}
	}
	if upto == nil {
		upto = map[int32]feed.Position{}
		for p, have := range log.Partitions {
			if have.Start > 0 {
				r.cfg.Logger.Warn("the topic's first records are gone; the facts begin after them", "sink", sink,
					"topic", topic, "partition", p, "first", have.Start)
				upto[p] = feed.Position{Next: have.Start}
			}
		}
		return upto, nil
	}
	// As of a Store, the facts of one part are in memory at a time.
	for part := range shardCount {
		for _, source := range r.store.sources(topic) {
			facts, err := r.cfg.pastFacts(ctx, source.Name, part, shardCount, upto)
			if err != nil {
				return nil, fmt.Errorf("%w: %s: %w", errPast, topic, err)
			}
			for some := range slices.Chunk(facts, factsPerAdd) {
				var shards [redis.FactShards][]redis.FactEntity
				if err := r.store.addFacts(&shards, map[string][]features.Fact{source.Name: some}); err != nil {
					return nil, err
				}
				if err := r.add(ctx, b, &shards, nil); err != nil {
					return nil, err
				}
			}
		}
		n, err := b.Count(ctx)
		if err != nil {
			return nil, err
		}
		if err := r.store.fullWith(n); err != nil {
			return nil, err
		}
	}
	return upto, nil
}

// add adds to a build within the time of a step.
func (r *SharedRunner) add(ctx context.Context, b *redis.FactBuild, shards *[redis.FactShards][]redis.FactEntity,
	positions map[string]string,
) error {
	ctx, cancel := context.WithTimeout(ctx, sharedStepWithin)
	defer cancel()
	return b.Add(ctx, shards, positions)
}
