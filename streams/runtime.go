package streams

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// Config describes what is read, into what, and how hard.
type Config struct {
	Name       string   // of the sink and its version: "orderstatus/v1"
	Topics     []string // must exist
	Sink       Sink
	Watermarks *Watermarks // kept current while Run runs
	Kafka      kafka.Config
	Decoder    *registry.Decoder // reads values that were written with a schema registry; nil knows plain ones only
	Workers    int               // that call Sink.Apply at the same time; 0 means 4
	Batch      int               // most records of one Apply; 0 means 500
	Queue      int               // most records that wait for all workers; 0 means 4096
	SaveEvery  time.Duration     // how often positions are saved and lag is measured; 0 means 250 ms
	// InspectEvery is how often a Sink that is an Inspector is inspected, beside once at the start;
	// 0 means 5 minutes.
	InspectEvery time.Duration
	Logger       *slog.Logger // slog.Default() where nil
}

const (
	attemptTimeout = 30 * time.Second       // of one Sink.Apply or Sink.SavePositions
	stopGrace      = 5 * time.Second        // that Apply has left when Run is told to stop
	pauseAfter     = time.Second            // with a full queue, before fetching is paused
	identifyEvery  = time.Second            // topics are looked at, whether they are still the same
	pollFor        = 100 * time.Millisecond // the longest that a repair or a stop waits for the poll loop
)

// Runtime feeds one sink.
type Runtime struct {
	cfg           Config
	seed          maphash.Seed
	lanes         []chan *item
	repairs       chan repair
	attempts      context.Context // ends stopGrace after Run's
	deadLetters   deadLetterWriter
	deadLetterLog deadLetterLog
	running       chan struct{} // closed once consumer is set

	closing  sync.RWMutex // of consumer, for CatchUp: all else ends before it is closed
	consumer *kafka.Consumer

	mu    sync.Mutex // of parts, which the poll loop alone changes
	parts map[kafka.TopicPartition]*partition

	identified time.Time // when topics were last looked at; used by trackPositions alone

	saving sync.Mutex // held while the sink's positions are read or written for owned partitions
}

// New returns a Runtime; Run runs it.
func New(cfg Config) *Runtime {
	setDefault(&cfg.Workers, 4)
	setDefault(&cfg.Batch, 500)
	setDefault(&cfg.Queue, 4096)
	setDefault(&cfg.SaveEvery, 250*time.Millisecond)
	setDefault(&cfg.InspectEvery, inspectEvery)
	setDefault(&cfg.Logger, slog.Default())
	r := &Runtime{
		cfg: cfg, seed: maphash.MakeSeed(), repairs: make(chan repair), running: make(chan struct{}),
		parts: map[kafka.TopicPartition]*partition{}, deadLetters: deadLetterWriter{cfg: cfg.Kafka}, deadLetterLog: deadLetterLog{sink: cfg.Name, logger: cfg.Logger},
	}
	for range cfg.Workers {
		r.lanes = append(r.lanes, make(chan *item, max(1, cfg.Queue/cfg.Workers)))
	}
	return r
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run reads until ctx ends, which is not an error. It returns once no call of the sink is active, its
// positions are saved and the group is left. It can be called once.
func (r *Runtime) Run(ctx context.Context) error {
	attempts, cancelAttempts := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelAttempts()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancelAttempts) })()
	r.attempts = attempts

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	consumer, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Config: r.cfg.Kafka,
		Group:  "millrace." + strings.ReplaceAll(r.cfg.Name, "/", "."),
		Topics: r.cfg.Topics,
		Assigned: func(ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
			return r.assigned(ctx, ps)
		},
		Revoked: r.revoked,
		Gone:    func(tp kafka.TopicPartition) bool { return r.gone(ctx, tp) },
	})
	if err != nil {
		return fmt.Errorf("streams %s: %w", r.cfg.Name, err)
	}
	r.consumer = consumer
	close(r.running)

	var running sync.WaitGroup
	for _, lane := range r.lanes {
		running.Go(func() { r.work(ctx, lane) })
	}
	running.Go(func() { r.trackPositions(ctx) })
	running.Go(func() { r.inspect(ctx) })
	err = r.poll(ctx)

	stop()
	r.revoked(slices.Collect(maps.Keys(r.parts)), false)
	running.Wait()
	r.deadLetters.close()
	r.deadLetterLog.flush(true)
	r.closing.Lock()
	r.consumer = nil
	r.closing.Unlock()
	if errors.Is(err, kafka.ErrOutOfRange) {
		err = fmt.Errorf("%w: the log lost records that this sink has not read: %s", err, remedy(r.cfg.Topics))
	}
	if err = errors.Join(err, consumer.Close()); err != nil {
		return fmt.Errorf("streams %s: %w", r.cfg.Name, err)
	}
	return nil
}

// poll reads messages and puts each on the lane of its key.
func (r *Runtime) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case ask := <-r.repairs:
			if err := r.repair(ctx, ask); err != nil {
				return err
			}
		default:
		}
		it, err := r.next()
		if err != nil {
			return err
		}
		if it == nil {
			continue
		}
		select {
		case r.lane(it) <- it:
		default:
			if err := r.pushBack(ctx, it); err != nil {
				return err
			}
		}
	}
	return nil
}

// next polls once; nil if there was no record.
func (r *Runtime) next() (*item, error) {
	m, err := r.consumer.Poll(pollFor)
	if err != nil || m == nil {
		return nil, err
	}
	p := r.parts[m.TopicPartition]
	switch {
	case p == nil: // assigned while the runtime stops
		return nil, nil
	case m.End:
		p.end(m.Offset)
		return nil, nil
	}
	return r.newItem(p, m), nil
}

func (r *Runtime) lane(it *item) chan *item {
	return r.lanes[maphash.String(r.seed, it.record.Event.Stream)%uint64(len(r.lanes))]
}

// pushBack waits until a full lane takes the item. If that is not soon, the sink is away: fetching
// is paused, and polling continues so that the group can move partitions.
func (r *Runtime) pushBack(ctx context.Context, it *item) error {
	enough := time.NewTimer(pauseAfter)
	defer enough.Stop()
	for waiting := true; waiting; {
		select {
		case r.lane(it) <- it:
			return nil
		case ask := <-r.repairs:
			if err := r.repair(ctx, ask); err != nil {
				return err
			}
		case <-enough.C:
			waiting = false
		case <-ctx.Done():
			return nil
		}
	}
	r.cfg.Logger.Warn("streams: the sink is slow or away; fetching is paused", "sink", r.cfg.Name)
	paused := map[kafka.TopicPartition]*partition{}
	for held := []*item{it}; len(held) > 0 && ctx.Err() == nil; {
		if !maps.Equal(paused, r.parts) { // at first, and after a rebalance
			paused = maps.Clone(r.parts)
			if err := r.consumer.Pause(slices.Collect(maps.Keys(paused))); err != nil {
				return fmt.Errorf("pause: %w", err)
			}
		}
		select {
		case r.lane(held[0]) <- held[0]:
			held = held[1:]
			continue
		case ask := <-r.repairs:
			if err := r.repair(ctx, ask); err != nil {
				return err
			}
			continue
		default:
		}
		it, err := r.next()
		if err != nil {
			return err
		}
		if it != nil { // fetched before the pause
			held = append(held, it)
		}
	}
	if err := r.consumer.Resume(slices.Collect(maps.Keys(r.parts))); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	r.cfg.Logger.Info("streams: fetching goes on", "sink", r.cfg.Name)
	return nil
}

// assigned starts partitions where the sink stands.
func (r *Runtime) assigned(ctx context.Context, ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
	for waits := backoff.Server.Start(); ; {
		starts, err := r.begin(ctx, ps)
		if err == nil {
			offsets := map[kafka.TopicPartition]int64{}
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, tp := range ps {
				offsets[tp] = starts[tp].at.Next
				r.parts[tp] = newPartition(tp.Topic, tp.Partition, starts[tp], r.cfg.Watermarks)
			}
			return offsets
		}
		wait := waits.Next()
		r.cfg.Logger.Warn("streams: cannot start partitions", "sink", r.cfg.Name, "partitions", ps, "again in", wait, "error", err)
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// revoked lets partitions go: nothing of them is inside the sink when it returns, and what was
// applied is saved.
func (r *Runtime) revoked(ps []kafka.TopicPartition, lost bool) {
	gone := map[kafka.TopicPartition]*partition{}
	r.mu.Lock()
	for _, tp := range ps {
		if p := r.parts[tp]; p != nil {
			gone[tp] = p
			delete(r.parts, tp)
		}
	}
	r.mu.Unlock()
	for _, p := range gone {
		p.drain()
	}
	if lost { // somebody else may have saved more by now
		return
	}
	if err := r.save(gone); err != nil {
		r.cfg.Logger.Warn("streams: positions not saved; what was applied since will be delivered again", "sink", r.cfg.Name, "error", err)
	}
}
