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
	"github.com/millrace/millrace/internal/tracing"
)

// Config configures a Runtime.
type Config struct {
	Name       string   // name and version of the sink: "orderstatus/v1"
	Topics     []string // must exist
	Sink       Sink
	Watermarks *Watermarks // kept current while Run runs
	Kafka      kafka.Config
	// Decoder reads values that were written with a schema registry. If it is nil, only plain
	// values are readable.
	Decoder *registry.Decoder
	Workers int // concurrent calls of Sink.Apply; 0 means 4
	Batch   int // maximum number of records per Apply; 0 means 500
	Queue   int // maximum number of records that wait for the workers together; 0 means 4096
	// SaveEvery is how often positions are saved and lag is measured. 0 means 250 ms.
	SaveEvery time.Duration
	// InspectEvery is how often a Sink that is an Inspector is inspected, after once at start. 0
	// means 5 minutes.
	InspectEvery time.Duration
	Logger       *slog.Logger // nil means slog.Default()
}

const (
	attemptTimeout = 30 * time.Second // limit of one attempt to apply records, or to save or read positions
	stopGrace      = 5 * time.Second  // how long Apply may continue after Run is told to stop
	pauseAfter     = time.Second      // how long a full queue is tolerated before fetching is paused
	identifyEvery  = time.Second      // how often the ids of the topics are checked
	// Maximum time that a repair or a stop waits for the poll loop.
	pollFor = 100 * time.Millisecond
)

// Runtime feeds one sink.
//
// One goroutine, the poll loop, reads messages and changes the map of partitions. It puts each
// record on the lane of its key. Each lane has a worker, so the events of a stream are applied in
// order, and streams in parallel. Another goroutine saves positions and measures lag.
type Runtime struct {
	cfg           Config
	seed          maphash.Seed    // of the hash that assigns keys to lanes
	lanes         []chan *item    // one per worker
	repairs       chan repair     // repairs that the poll loop has to do
	archived      chan struct{}   // has an element if a partition begins in the archive
	redrives      chan struct{}   // has an element if parked events have to be applied again
	attempts      context.Context // ends stopGrace after Run's context, so that Apply can finish
	deadLetters   deadLetterWriter
	deadLetterLog deadLetterLog
	meter         Meter         // set before Run
	running       chan struct{} // closed when consumer is set
	tracer        *tracing.Tracer
	archive       Archive // nil if there is none
	pace          pacer

	// closing protects consumer against calls of CatchUp while Run closes it. All goroutines of Run
	// end before that.
	closing  sync.RWMutex
	consumer *kafka.Consumer

	// mu protects partitions. Only the poll loop changes the map, so the poll loop reads it without
	// the lock.
	mu         sync.Mutex
	partitions map[kafka.TopicPartition]*partition

	identified time.Time // when the ids of the topics were last checked; used by trackPositions only

	// saving is held while the sink's positions of owned partitions are read or written, so that a
	// save in progress does not look like a loss.
	saving sync.Mutex
}

// New returns a Runtime. Run starts it.
func New(cfg Config) *Runtime {
	setDefault(&cfg.Workers, 4)
	setDefault(&cfg.Batch, 500)
	setDefault(&cfg.Queue, 4096)
	setDefault(&cfg.SaveEvery, 250*time.Millisecond)
	setDefault(&cfg.InspectEvery, inspectEvery)
	setDefault(&cfg.Logger, slog.Default())
	r := &Runtime{
		cfg: cfg, seed: maphash.MakeSeed(), repairs: make(chan repair), redrives: make(chan struct{}, 1),
		archived:   make(chan struct{}, 1),
		running:    make(chan struct{}),
		partitions: map[kafka.TopicPartition]*partition{}, deadLetters: deadLetterWriter{cfg: cfg.Kafka},
		deadLetterLog: deadLetterLog{sink: cfg.Name, logger: cfg.Logger}, meter: noMeter{},
	}
	for range cfg.Workers {
		r.lanes = append(r.lanes, make(chan *item, max(1, cfg.Queue/cfg.Workers)))
	}
	return r
}

// Trace records each event that the sink applies, in the trace of its command. Call it before Run. A
// nil Tracer records nothing.
func (r *Runtime) Trace(t *tracing.Tracer) { r.tracer = t }

// UseArchive makes the Runtime read from an archive what the log has deleted. Without it, such events
// are lost for the sink. Call it before Run.
func (r *Runtime) UseArchive(a Archive) { r.archive = a }

// setDefault sets a field that is zero.
func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run reads until ctx ends, and then returns nil. When it returns, no call of the sink is active,
// positions are saved and the group is left. It may be called once.
func (r *Runtime) Run(ctx context.Context) error {
	// attempts outlives ctx by stopGrace, so that calls of the sink can finish.
	attempts, cancelAttempts := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelAttempts()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancelAttempts) })()
	r.attempts = attempts

	// stop ends the workers when polling fails before ctx ends.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	consumer, err := kafka.NewConsumer(kafka.ConsumerConfig{
		Config: r.cfg.Kafka,
		// A new version of a sink has its own group, so both versions can run at the same time.
		Group:  "millrace." + strings.ReplaceAll(r.cfg.Name, "/", "."),
		Topics: r.cfg.Topics,
		Assigned: func(ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
			return r.onAssigned(ctx, ps)
		},
		Revoked:    r.onRevoked,
		OutOfRange: func(tp kafka.TopicPartition) bool { return r.onOutOfRange(ctx, tp) },
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
	running.Go(func() { r.redrive(ctx) })
	if r.archive != nil {
		running.Go(func() { r.readArchive(ctx) })
	}
	err = r.poll(ctx)

	// Stop in this order: give up the partitions, which waits for the workers' records and saves
	// the positions; wait for the goroutines; close what they used.
	stop()
	r.onRevoked(slices.Collect(maps.Keys(r.partitions)), false)
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

// poll reads messages, puts each on the lane of its key, and runs repairs in between.
func (r *Runtime) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case req := <-r.repairs:
			if err := r.repair(ctx, req); err != nil {
				return err
			}
		default:
		}
		if r.awaitPace(time.Now(), ctx.Done()) {
			continue
		}
		it, err := r.next()
		if err != nil {
			return err
		}
		if it == nil {
			continue
		}
		r.pace.passed(time.Now())
		select {
		case r.lane(it) <- it:
		default:
			if err := r.enqueueBlocking(ctx, it); err != nil {
				return err
			}
		}
	}
	return nil
}

// next polls once. It returns nil if there was no record.
func (r *Runtime) next() (*item, error) {
	m, err := r.consumer.Poll(pollFor)
	if err != nil || m == nil {
		return nil, err
	}
	p := r.partitions[m.TopicPartition]
	switch {
	case p == nil: // the partition was assigned while the runtime stops
		return nil, nil
	case p.archived: // this is read again when the archive has been read
		if err := r.consumer.Pause([]kafka.TopicPartition{m.TopicPartition}); err != nil {
			return nil, fmt.Errorf("pause: %w", err)
		}
		return nil, nil
	case m.End: // there is no record up to this offset
		p.end(m.Offset)
		return nil, nil
	}
	return r.newItem(p, m), nil
}

// lane returns the lane of an item's key. The seed is random per Runtime, so keys cannot be chosen
// to share a lane.
func (r *Runtime) lane(it *item) chan *item {
	return r.lanes[maphash.String(r.seed, it.record.Event.Stream)%uint64(len(r.lanes))]
}

// enqueueBlocking blocks until the full lane takes the item. If this takes longer than pauseAfter,
// the sink is probably unavailable. Then fetching is paused, and polling continues: a consumer that
// does not poll is removed from its group.
func (r *Runtime) enqueueBlocking(ctx context.Context, it *item) error {
	enough := time.NewTimer(pauseAfter)
	defer enough.Stop()
	// At first, wait without polling: the sink may be slow for a moment only.
	for waiting := true; waiting; {
		select {
		case r.lane(it) <- it:
			return nil
		case req := <-r.repairs:
			if err := r.repair(ctx, req); err != nil {
				return err
			}
		case <-enough.C:
			waiting = false
		case <-ctx.Done():
			return nil
		}
	}
	r.cfg.Logger.Warn("streams: sink is slow or unavailable; fetching paused", "sink", r.cfg.Name)
	paused := map[kafka.TopicPartition]*partition{}
	// held are records that were fetched before the pause, in order. They go to their lanes one by
	// one.
	for held := []*item{it}; len(held) > 0 && ctx.Err() == nil; {
		if !maps.Equal(paused, r.partitions) { // at first, and after a rebalance, which resumes partitions
			paused = maps.Clone(r.partitions)
			if err := r.consumer.Pause(slices.Collect(maps.Keys(paused))); err != nil {
				return fmt.Errorf("pause: %w", err)
			}
		}
		select {
		case r.lane(held[0]) <- held[0]:
			held = held[1:]
			continue
		case req := <-r.repairs:
			if err := r.repair(ctx, req); err != nil {
				return err
			}
			continue
		default:
		}
		it, err := r.next()
		if err != nil {
			return err
		}
		if it != nil { // it was fetched before the pause
			held = append(held, it)
		}
	}
	if err := r.consumer.Resume(slices.Collect(maps.Keys(r.partitions))); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	r.cfg.Logger.Info("streams: fetching resumed", "sink", r.cfg.Name)
	return nil
}

// onAssigned returns where to start the assigned partitions: at the sink's positions. It retries
// until ctx ends. The consumer calls it on the poll loop.
func (r *Runtime) onAssigned(ctx context.Context, ps []kafka.TopicPartition) map[kafka.TopicPartition]int64 {
	for waits := backoff.Server.Start(); ; {
		starts, err := r.startPositions(ctx, ps)
		var parked map[kafka.TopicPartition]*parking
		if err == nil {
			parked, err = r.loadParked(ctx, starts)
		}
		var offsets map[kafka.TopicPartition]int64
		var archived map[kafka.TopicPartition]bool
		if err == nil {
			offsets, archived, err = r.fromArchive(ctx, starts)
		}
		if err == nil {
			r.meter.Rebalanced()
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, tp := range ps {
				p := newPartition(tp.Topic, tp.Partition, starts[tp], r.cfg.Watermarks)
				p.parking = parked[tp]
				r.partitions[tp] = p
				if p.parking.events > 0 {
					r.Redrive()
				}
			}
			r.beginInArchive(archived)
			return offsets
		}
		wait := waits.Next()
		r.cfg.Logger.Warn("streams: starting partitions failed; retrying",
			"sink", r.cfg.Name, "partitions", ps, "retry_in", wait, "error", err)
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// onRevoked gives up partitions. When it returns, none of their records is inside the sink, and
// their positions are saved. lost reports that the group has already given them to another member.
func (r *Runtime) onRevoked(ps []kafka.TopicPartition, lost bool) {
	gone := map[kafka.TopicPartition]*partition{}
	r.meter.Rebalanced()
	r.mu.Lock()
	for _, tp := range ps {
		if p := r.partitions[tp]; p != nil {
			gone[tp] = p
			delete(r.partitions, tp)
		}
	}
	r.mu.Unlock()
	for _, p := range gone {
		p.drain()
	}
	if lost { // the new owner may have saved a later position
		return
	}
	if err := r.save(gone); err != nil {
		r.cfg.Logger.Warn("streams: positions not saved; records applied since the last save will be delivered again",
			"sink", r.cfg.Name, "error", err)
	}
}
