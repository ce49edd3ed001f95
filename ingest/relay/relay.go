// Package relay is the outbox relay: it carries what a service's event store has taken onto Kafka, once and in order.
//
// A Kafka transaction carries a batch of events and the store position they reach, so that the log itself says how far it
// is. A relay that starts takes over the transactional id, which ends the transaction of the one before and fences it,
// and then asks the log where to go on. It never trusts its memory over the log: whatever goes wrong, and above all where
// the answer to a commit was lost, it starts over from there.
//
// Events are published in the order of the store. So the events of a stream keep their order, the store position (a header)
// only rises along a partition, and the last event of a partition tells which others that partition has.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// PositionsTopic has, by service, the store position that the log has reached. It is compacted.
const PositionsTopic = "millrace.positions"

// Topics are those that the relays of the aggregates write to: one each, with so many partitions, and the positions.
func Topics(aggregates []event.Aggregate, partitions int32) []kafka.Topic {
	topics := []kafka.Topic{{Name: PositionsTopic, Partitions: 1, Compacted: true}}
	for _, a := range aggregates {
		topics = append(topics, kafka.Topic{Name: a.Topic, Partitions: partitions})
	}
	return topics
}

// Config says what to publish and where.
type Config struct {
	Store     eventstore.Store
	Aggregate event.Aggregate // of the store's events; names the topic and, by its service, the position
	Kafka     kafka.Config

	// Encoder writes the values of the topic. Nil writes plain Protobuf.
	Encoder *registry.Encoder

	// TransactionalID is what at most one relay of the store may hold, whatever process or machine it runs in.
	TransactionalID string

	// MaxEvents and MaxBytes bound a transaction; 5000 events and 4 MiB where 0. A single event may be larger.
	MaxEvents int
	MaxBytes  int

	Logger *slog.Logger // slog.Default() where nil
}

var (
	// ErrFenced says that another relay took over, or that the broker gave up on a transaction that was open too long (a
	// machine that slept). Only who started this relay can know whether to start it again.
	ErrFenced = errors.New("relay: another one took over")

	// ErrStoreBehind says that the log has events which the store does not: the store was lost, or restored from a backup, or
	// is another one. Publishing its new events beside the old ones would make a false history.
	ErrStoreBehind = errors.New("relay: the log is ahead of the store")

	// ErrCannotWrite says that the registry refuses the topic's schema, or that an event cannot be written in the topic's codec without
	// loss. To go on without it would make a false history.
	ErrCannotWrite = errors.New("relay: an event cannot be written")
)

// Progress tells how far the log is.
type Progress struct {
	Position   event.Position // of the last event on the log; zero where there is none, or nothing is known yet
	RecordedAt time.Time      // when the store took that event
	Published  uint64         // events that this relay has put on the log
	Live       bool           // this relay holds its transactional id and has read where to go on
}

// Relay publishes one store.
type Relay struct {
	cfg  Config
	log  *slog.Logger
	hook func(step) error // what tests make go wrong

	mu       sync.Mutex
	progress Progress
}

// The steps of a transaction at which things can go wrong.
type step string

const (
	beforeBegin  step = "before begin"
	afterProduce step = "after produce"
	beforeCommit step = "before commit"
	afterCommit  step = "after commit"
)

// New checks the configuration. Nothing runs before Run.
func New(cfg Config) (*Relay, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("relay: no store given")
	case cfg.Aggregate.Topic == "" || cfg.Aggregate.Service == "":
		return nil, errors.New("relay: the aggregate has no topic or no service")
	case cfg.TransactionalID == "":
		return nil, errors.New("relay: no transactional id given")
	case cfg.MaxEvents < 0 || cfg.MaxBytes < 0:
		return nil, errors.New("relay: a transaction cannot be bounded by a negative number")
	}
	if cfg.MaxEvents == 0 {
		cfg.MaxEvents = 5000
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 4 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Relay{
		cfg:  cfg,
		log:  cfg.Logger.With("relay", cfg.Aggregate.Service),
		hook: func(s step) error { return failpoint.Hit("relay." + cfg.Aggregate.Service + "." + string(s)) },
	}, nil
}

// Progress may be called at any time.
func (r *Relay) Progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}

func (r *Relay) report(change func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.progress)
}

// Run publishes until ctx ends, and returns nil then. It gets over any trouble with Kafka, the store or the schema registry but
// ErrFenced, ErrStoreBehind, ErrCannotWrite and eventstore.ErrClosed, which it returns. A transaction under way when ctx ends gets a few seconds to
// commit. Run it once.
func (r *Relay) Run(ctx context.Context) error {
	const first, longest = 50 * time.Millisecond, 5 * time.Second
	pause := first
	for {
		before := r.Progress().Published
		err := r.session(ctx)
		r.report(func(p *Progress) { p.Live = false })
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		switch {
		case errors.Is(err, kafka.ErrFenced):
			return fmt.Errorf("%w: %w", ErrFenced, err)
		case errors.Is(err, ErrStoreBehind), errors.Is(err, ErrCannotWrite), errors.Is(err, eventstore.ErrClosed):
			return err
		}
		if r.Progress().Published > before {
			pause = first
		}
		r.log.Warn("relay: starting over", "error", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause + rand.N(pause)):
		}
		pause = min(2*pause, longest)
	}
}

// session publishes with one producer, until something goes wrong.
func (r *Relay) session(ctx context.Context) error {
	// Before anybody is fenced: who cannot write must not stop one who can.
	if err := r.cfg.Encoder.Start(ctx); err != nil {
		return cannotWrite(err)
	}
	p, err := kafka.NewTransactionalProducer(r.cfg.Kafka, r.cfg.TransactionalID)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Init(ctx); err != nil {
		return err
	}
	at, err := r.resume(ctx)
	if err != nil {
		return err
	}
	r.log.Info("relay: publishing", "after", at.after, "topic", r.cfg.Aggregate.Topic)

	ctx, cancel := context.WithCancel(ctx)
	next := r.readAhead(ctx, at.after)
	defer func() {
		cancel()
		if next != nil {
			<-next
		}
	}()
	for {
		read := <-next
		next = nil
		if read.err != nil {
			return fmt.Errorf("read the store after %s: %w", at.after, read.err)
		}
		events := read.events
		if len(events) == r.cfg.MaxEvents { // there is probably more: read it while this is published
			next = r.readAhead(ctx, events[len(events)-1].Position)
		}
		for len(events) > 0 {
			batch := r.cut(events)
			if err := r.publish(ctx, p, at, batch); err != nil {
				return err
			}
			events = events[len(batch):]
			at.after = batch[len(batch)-1].Position
		}
		if len(read.events) == 0 {
			if err := r.cfg.Store.Wait(ctx, at.after); err != nil {
				return fmt.Errorf("wait for the store: %w", err)
			}
		}
		if next == nil {
			next = r.readAhead(ctx, at.after)
		}
	}
}

// page is what one reading of the store gave.
type page struct {
	events []event.Event
	err    error
}

// readAhead reads a page in a goroutine of its own, which ends with the reading.
func (r *Relay) readAhead(ctx context.Context, after event.Position) <-chan page {
	c := make(chan page, 1)
	go func() {
		events, err := r.cfg.Store.Read(ctx, after, r.cfg.MaxEvents)
		c <- page{events, err}
	}()
	return c
}

// cut takes from the front of events what one transaction may carry.
func (r *Relay) cut(events []event.Event) []event.Event {
	bytes := 0
	for i, e := range events {
		bytes += len(e.Data) + len(e.Stream) + headerBytes
		if bytes > r.cfg.MaxBytes && i > 0 {
			return events[:i]
		}
	}
	return events
}

// headerBytes is about what an event's headers take.
const headerBytes = 400

// publish brings the batch onto the log in one transaction, but for events that are there already.
func (r *Relay) publish(ctx context.Context, p *kafka.TransactionalProducer, at *place, batch []event.Event) (err error) {
	if at.has(batch) {
		return nil
	}
	if err := r.hook(beforeBegin); err != nil {
		return err
	}
	if err := p.Begin(); err != nil {
		return err
	}
	// Stopping between a commit and its answer would be safe, but cost the next start a second look.
	ctx, cancel := outlive(ctx, 3*time.Second)
	defer cancel()
	committed := false
	defer func() {
		if err == nil || committed || errors.Is(err, kafka.ErrFenced) || errors.Is(err, kafka.ErrFatal) {
			return
		}
		// A courtesy to readers, who would wait for the end of the transaction. The next session ends it in any case.
		if abortErr := p.Abort(ctx); abortErr != nil {
			r.log.Debug("relay: abort", "error", abortErr)
		}
	}()

	published := uint64(0)
	for _, e := range batch {
		partition := kafka.Partition([]byte(e.Stream), at.partitions)
		if at.published(partition, e.Position) {
			continue
		}
		published++
		value, contentType, err := r.cfg.Encoder.Encode(ctx, e.Data)
		if err != nil {
			return cannotWrite(fmt.Errorf("event %s, version %d of stream %q: %w", e.ID, e.Version, e.Stream, err))
		}
		err = p.Produce(ctx, kafka.Record{
			Topic: r.cfg.Aggregate.Topic, Partition: partition, Key: []byte(e.Stream), Value: value, Headers: e.HeadersOf(contentType),
		})
		if err != nil {
			return err
		}
	}
	last := batch[len(batch)-1]
	if err := p.Produce(ctx, (mark{from: at.after, to: last.Position, recorded: last.RecordedAt}).record(r.cfg.Aggregate.Service)); err != nil {
		return err
	}
	if err := r.hook(afterProduce); err != nil {
		return err
	}
	if err := r.hook(beforeCommit); err != nil {
		return err
	}
	if err := p.Commit(ctx); err != nil {
		return err
	}
	committed = true
	if err := r.hook(afterCommit); err != nil {
		return err
	}
	r.report(func(p *Progress) {
		p.Position, p.RecordedAt, p.Published = last.Position, last.RecordedAt, p.Published+published
	})
	return nil
}

// cannotWrite marks an encoder's error that does not pass by itself.
func cannotWrite(err error) error {
	if errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCannotWrite, err)
}

// outlive is a context that ends so long after its parent.
func outlive(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		select {
		case <-ctx.Done():
		case <-time.After(grace):
			cancel(context.Cause(parent))
		}
	})
	return ctx, func() { stop(); cancel(context.Canceled) }
}
