package online

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/features/feed"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/kafka/security"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/internal/tracing"
	"github.com/millrace/millrace/streams"
)

// Config configures a Runner.
type Config struct {
	Brokers  []string // host:port
	Security security.Config
	Decoder  *registry.Decoder // nil: plain values only
	Past     Past              // of records that the log does not have any more; may be nil
	// Dir is the folder of the snapshot, and SaveEvery the interval between two. Another one is
	// written at the end. An empty Dir means none.
	Dir       string
	SaveEvery time.Duration
	// WriteDeadLetters makes records durable that cannot be read.
	WriteDeadLetters func(context.Context, ...streams.DeadLetter) error
	Logger           *slog.Logger // required
	// Tracer records when the facts of each event are in memory, in the trace of its command. It may be
	// nil.
	Tracer *tracing.Tracer
}

// traced records that a batch was applied, or the error.
func (c Config) traced(b feed.Batch, apply func() error) error {
	span := c.Tracer.Batch(tracing.Hop{Name: "apply", Sink: sink})
	span.Add(b.Traced...)
	err := apply()
	span.End(err)
	return err
}

const (
	sink          = "features/online" // of dead letters
	pollWait      = time.Second
	describeEvery = time.Second
	trimEvery     = time.Minute
)

// Runner feeds a Store from the log: all partitions of the topics of its groups. It starts at the
// positions of the snapshot. It reads the log from its beginning if there is none, if it is of other
// definitions or damaged, or if a topic is not the one that was read. See past.go for a log whose
// beginning is gone.
type Runner struct {
	cfg        Config
	store      *Store
	watermarks *streams.Watermarks

	caughtUp atomic.Bool
	fault    atomic.Pointer[error]
}

// NewRunner returns a Runner that feeds an empty store.
func NewRunner(s *Store, c Config) *Runner {
	return &Runner{cfg: c, store: s, watermarks: streams.NewWatermarks()}
}

// Store returns the store that is fed.
func (r *Runner) Store() Reader { return r.store }

// Watermarks returns how far the log is applied, for callers that wait for a token.
func (r *Runner) Watermarks() *streams.Watermarks { return r.watermarks }

// errCatchingUp is the reason why a Runner is not ready at first.
var errCatchingUp = errors.New("the online features are catching up with the log; try again")

// Ready returns nil once everything is applied that was on the log at the start. Otherwise it
// returns why vectors cannot be trusted: before that, or because the store is full.
func (r *Runner) Ready() error {
	if fault := r.fault.Load(); fault != nil {
		return *fault
	}
	if !r.caughtUp.Load() {
		return errCatchingUp
	}
	return nil
}

// Run feeds the store until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	if r.cfg.Dir != "" {
		restored, why, err := r.store.Restore(r.cfg.Dir)
		switch {
		case err != nil:
			return err
		case why != nil:
			r.cfg.Logger.Warn("the snapshot of the online features is not used; reading the log", "reason", why)
		case restored:
			entities, bytes := r.store.Size()
			r.cfg.Logger.Info("restored the online features", "entities", entities, "bytes", bytes)
		}
	}
	var upkeep sync.WaitGroup
	upkeep.Go(func() { r.upkeep(ctx) })
	defer upkeep.Wait()
	for ctx.Err() == nil {
		err := r.feed(ctx)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, ErrFull):
			r.cfg.Logger.Error("the online features are not fed any more, and are not answered", "error", err)
			r.fault.Store(&err)
			<-ctx.Done()
		default:
			// The positions are those of records that the log does not have, or not any more.
			r.cfg.Logger.Warn("reading the log again for the online features", "reason", err)
			r.caughtUp.Store(false)
			r.store.Reset()
		}
	}
	return nil
}

// upkeep drops old facts and writes snapshots at intervals, and a last snapshot at the end.
func (r *Runner) upkeep(ctx context.Context) {
	trim := time.NewTicker(trimEvery)
	defer trim.Stop()
	var save <-chan time.Time
	if r.cfg.Dir != "" && r.cfg.SaveEvery > 0 {
		t := time.NewTicker(r.cfg.SaveEvery)
		defer t.Stop()
		save = t.C
	}
	for {
		select {
		case now := <-trim.C:
			r.store.Trim(now)
		case <-save:
			r.save()
		case <-ctx.Done():
			r.save()
			return
		}
	}
}

// save writes a snapshot. Without one, only a restart takes longer.
func (r *Runner) save() {
	if r.cfg.Dir == "" {
		return
	}
	if err := r.store.Save(r.cfg.Dir); err != nil {
		r.cfg.Logger.Warn("cannot write the snapshot of the online features", "error", err)
	}
}

// feed feeds all topics. It returns ErrFull, or an error that makes the positions void.
func (r *Runner) feed(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	var behind atomic.Int32
	behind.Store(int32(len(r.store.Topics())))
	for _, topic := range r.store.Topics() {
		reached := sync.OnceFunc(func() {
			if behind.Add(-1) == 0 {
				r.caughtUp.Store(true)
				r.cfg.Logger.Info("the online features have caught up with the log")
			}
		})
		all.Go(func() error { return r.feedTopic(ctx, topic, reached) })
	}
	return all.Wait()
}

// feedTopic feeds a topic, with a new reader after each temporary error. It calls reached once the
// store has what was on the topic at the start.
func (r *Runner) feedTopic(ctx context.Context, topic string, reached func()) error {
	waits := backoff.Server.Start()
	for {
		progress, err := r.read(ctx, topic, reached)
		var outOfRange *fetch.OutOfRangeError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrFull), errors.Is(err, ErrGap), errors.Is(err, feed.ErrRecreated),
			errors.Is(err, errPast), errors.As(err, &outOfRange):
			return err
		case errors.Is(err, fetch.ErrNoTopic) && len(r.store.Positions(topic)) == 0:
			reached() // a topic that does not exist has no events
		default:
			r.cfg.Logger.Warn("cannot read a topic for the online features; retrying", "topic", topic, "error", err)
		}
		if progress {
			waits.Reset()
		}
		waits.Wait(ctx)
	}
}

// open returns a feed of a topic that starts at the positions of the store. If nothing of the topic was
// read, and the log does not have its beginning, it fills the store from the Past first.
func (r *Runner) open(ctx context.Context, topic string) (*feed.Feed, fetch.Topic, error) {
	for {
		f, err := feed.Open(feed.Config{Brokers: r.cfg.Brokers, Security: r.cfg.Security, Decoder: r.cfg.Decoder,
			Topic: topic, Sources: r.store.sources(topic), Sink: sink, WriteDeadLetters: r.cfg.WriteDeadLetters,
			Logger: r.cfg.Logger, Traced: r.cfg.Tracer != nil})
		if err != nil {
			return nil, fetch.Topic{}, err
		}
		positions := r.store.Positions(topic)
		log, err := f.Topic(ctx)
		restored := false
		if err == nil && r.cfg.Past != nil && len(positions) == 0 && truncated(log) {
			restored, err = r.restorePast(ctx, topic, log)
		}
		if err == nil && !restored {
			if log, err = f.Start(ctx, r.store.TopicID(topic), positions); err == nil {
				r.store.SetTopicID(topic, log.ID)
			}
		}
		if err == nil && !restored {
			return f, log, nil
		}
		f.Close()
		if err != nil {
			return nil, fetch.Topic{}, err
		}
	}
}

// read reads a topic until an error. progress reports whether it read anything.
func (r *Runner) read(ctx context.Context, topic string, reached func()) (progress bool, err error) {
	f, info, err := r.open(ctx, topic)
	if err != nil {
		return false, err
	}
	defer f.Close()
	first, described := info, time.Now()
	r.describe(topic, info)
	for p, at := range f.Positions() {
		r.applied(topic, info.ID, p, at)
	}
	for behind := true; ; {
		if behind && atEnds(f, first) {
			behind = false
			reached()
		}
		batches, err := f.Poll(ctx, pollWait)
		if err != nil {
			return progress, err
		}
		for _, b := range batches {
			if err := r.cfg.traced(b, func() error {
				return r.store.Apply(Batch{Topic: b.Topic, Partition: b.Partition, First: b.First, After: b.After,
					Facts: b.Facts})
			}); err != nil {
				return progress, err
			}
			progress = true
			r.applied(topic, info.ID, b.Partition, b.After)
		}
		if time.Since(described) >= describeEvery {
			if info, err = f.Describe(ctx); err != nil {
				return progress, err
			}
			described = time.Now()
			r.describe(topic, info)
		}
	}
}

// atEnds reports whether a feed has read up to the ends of a topic.
func atEnds(f *feed.Feed, topic fetch.Topic) bool {
	at := f.Positions()
	for p, log := range topic.Partitions {
		if at[p].Next < log.End {
			return false
		}
	}
	return true
}

// describe publishes the ends of a topic.
func (r *Runner) describe(topic string, info fetch.Topic) {
	ends := make(map[int32]int64, len(info.Partitions))
	for p, log := range info.Partitions {
		ends[p] = log.End
	}
	r.watermarks.SetEnds(topic, ends)
}

// applied publishes the position of a partition.
func (r *Runner) applied(topic, id string, partition int32, at feed.Position) {
	r.watermarks.Set(topic, partition, streams.Applied{Next: at.Next, Watermark: at.Watermark, AsOf: at.AsOf, Topic: id})
}
