// Package relay is the outbox relay: it carries what a service's event store has taken onto Kafka,
// once and in order.
//
// A Kafka transaction carries a batch of events and the store position they reach, so that the log
// itself says how far it is. A relay that starts takes over the transactional id, which ends the
// transaction of the one before and fences it, and then asks the log where to continue. It never
// trusts its memory over the log: whatever goes wrong, and above all where the answer to a commit
// was lost, it starts over from there.
//
// Events are published in the order of the store. So the events of a stream keep their order, the
// store position (a header) only rises along a partition, and the last event of a partition tells
// which others that partition has.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/millrace/millrace/commands/eventstore"
	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// PositionsTopic has, by service, the store position that the log has reached. It is compacted.
const PositionsTopic = "millrace.positions"

// Topics are those that the relays of the aggregates write to: one each, with so many partitions,
// and the positions.
func Topics(aggregates []event.Aggregate, partitions int32) []kafka.Topic {
	topics := []kafka.Topic{{Name: PositionsTopic, Partitions: 1, Compacted: true}}
	for _, a := range aggregates {
		topics = append(topics, kafka.Topic{Name: a.Topic, Partitions: partitions})
	}
	return topics
}

// Config describes what to publish and where.
type Config struct {
	Store     eventstore.Store
	Aggregate event.Aggregate // of the store's events; names the topic and, by its service, the position
	Kafka     kafka.Config

	// Encoder writes the values of the topic. Nil writes plain Protobuf.
	Encoder *registry.Encoder

	// PutAside is given each record that no relay has written, on the aggregate's topic or on the
	// positions, with the reason why it is passed over. It may be given the same again. Nil leaves
	// such records to the log.
	PutAside func(ctx context.Context, m kafka.Message, reason error) error

	// TransactionalID is what at most one relay of the store may hold, whatever process or machine
	// it runs in.
	TransactionalID string

	// MaxEvents and MaxBytes bound a transaction; 5000 events and 4 MiB where 0. A single event may
	// be larger.
	MaxEvents int
	MaxBytes  int

	Logger *slog.Logger // slog.Default() where nil
}

var (
	// ErrFenced says that another relay took over, or that the broker gave up on a transaction that
	// was open too long (a machine that slept). Only who started this relay can know whether to
	// start it again.
	ErrFenced = errors.New("relay: another one took over")

	// ErrStoreBehind says that the log has events which were published from this store and which
	// the store does not have: it was lost, or restored from a backup, or is another one.
	// Publishing its new events beside the old ones would make a false history.
	ErrStoreBehind = errors.New("relay: the log is ahead of the store")

	// ErrLogChanged says that the log is not the one that the store was published to: the topic was
	// made again, or has lost events. Who has read it would miss what is published now, or see it
	// twice.
	ErrLogChanged = errors.New("relay: the log is not the one that was written")

	// ErrCannotWrite says that the registry refuses the topic's schema, or that an event cannot be
	// written in the topic's codec without loss. To continue without it would make a false history.
	ErrCannotWrite = errors.New("relay: an event cannot be written")
)

// Progress tells how far the log is.
type Progress struct {
	Position   event.Position // of the last event on the log; zero if there is none, or nothing is known yet
	RecordedAt time.Time      // when the store took that event
	Published  uint64         // events that this relay has put on the log
	Strays     uint64         // records found that no relay has written
	Live       bool           // this relay holds its transactional id and has read where to continue
}

// Relay publishes one store.
type Relay struct {
	cfg  Config
	log  *slog.Logger
	hook func(step) error // what tests make go wrong

	verifyEvery time.Duration

	mu       sync.Mutex
	progress Progress
}

// The steps of a transaction at which things can go wrong.
type step string

const (
	resumed      step = "resumed" // log and store are compared, and nothing is published yet
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
		cfg:         cfg,
		log:         cfg.Logger.With("relay", cfg.Aggregate.Service),
		verifyEvery: verifyEvery,
		hook:        func(s step) error { return failpoint.Hit("relay." + cfg.Aggregate.Service + "." + string(s)) },
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

// Run publishes until ctx ends, and returns nil then. It gets over any trouble with Kafka, the
// store or the schema registry but ErrFenced, ErrStoreBehind, ErrLogChanged, ErrCannotWrite,
// eventstore.ErrReplaced and eventstore.ErrClosed, which it returns. A transaction under way when
// ctx ends gets a few seconds to commit. Run it once.
func (r *Relay) Run(ctx context.Context) error {
	waits := backoff.Server.Start()
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
		case errors.Is(err, ErrStoreBehind), errors.Is(err, ErrLogChanged), errors.Is(err, ErrCannotWrite), errors.Is(err, eventstore.ErrReplaced),
			errors.Is(err, eventstore.ErrClosed):
			return err
		}
		if r.Progress().Published > before {
			waits.Reset()
		}
		wait := waits.Next()
		r.log.Warn("relay: starting over", "error", err, "in", wait)
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// attempt bounds every wait for Kafka, the store or the registry, except for what there is to
// publish. What reads much, bounds the wait for its next step.
const attempt = time.Minute

var errSlow = errors.New("no answer within a minute")

func within[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer cancel()
	return ask(ctx)
}

// session publishes with one producer, until something goes wrong.
func (r *Relay) session(ctx context.Context) error {
	// Before anybody is fenced: who cannot write must not stop one who can.
	_, err := within(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.cfg.Encoder.Start(ctx) })
	if err != nil {
		return cannotWrite(err)
	}
	p, err := kafka.NewTransactionalProducer(r.cfg.Kafka, r.cfg.TransactionalID)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := within(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Init(ctx) }); err != nil {
		return err
	}
	a, err := kafka.NewAdmin(r.cfg.Kafka)
	if err != nil {
		return err
	}
	defer a.Close()
	at, err := r.resume(ctx, a)
	if err != nil {
		return err
	}
	if err := r.hook(resumed); err != nil {
		return err
	}
	if err := r.announce(ctx, p, at.seals); err != nil {
		return err
	}
	if at.renew != nil {
		if err := r.commit(ctx, p, at, nil, *at.renew); err != nil {
			return err
		}
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
		if len(read.events) > 0 && read.epoch != at.epoch {
			return fmt.Errorf("the store's epoch was %s and is %s, after a failover or a restore", at.epoch, read.epoch)
		}
		events := read.events
		if len(events) == r.cfg.MaxEvents { // there is probably more: read it while this is published
			next = r.readAhead(ctx, events[len(events)-1].Position)
		}
		for len(events) > 0 {
			batch := r.cut(events)
			if err := r.publish(ctx, p, a, at, batch); err != nil {
				return err
			}
			events = events[len(batch):]
			at.moveTo(batch[len(batch)-1].Position)
		}
		if len(read.events) == 0 {
			if err := r.wait(ctx, at.after); err != nil {
				return fmt.Errorf("wait for the store: %w", err)
			}
		}
		if err := r.keepAnnounced(ctx, p, a, at.seals); err != nil {
			return err
		}
		if next == nil {
			next = r.readAhead(ctx, at.after)
		}
	}
}

// wait returns when the store may have something after a position. It asks anew now and then, as a
// connection may be dead without a word.
func (r *Relay) wait(ctx context.Context, after event.Position) error {
	waiting, cancel := context.WithTimeout(ctx, r.verifyEvery)
	defer cancel()
	err := r.cfg.Store.Wait(waiting, after)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil
	}
	return err
}

// page is what one reading of the store gave.
type page struct {
	events []event.Event
	epoch  string // of the store, after the events were read
	err    error
}

// readAhead reads a page in a goroutine of its own, which ends with the reading.
func (r *Relay) readAhead(ctx context.Context, after event.Position) <-chan page {
	c := make(chan page, 1)
	go func() {
		read, err := within(ctx, func(ctx context.Context) (page, error) {
			events, err := r.cfg.Store.Read(ctx, after, r.cfg.MaxEvents)
			if err != nil || len(events) == 0 {
				return page{events: events}, err
			}
			epoch, err := r.cfg.Store.Epoch(ctx)
			return page{events: events, epoch: epoch}, err
		})
		read.err = err
		c <- read
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

// publish brings the batch onto the log in one transaction, except for events that are there
// already.
func (r *Relay) publish(ctx context.Context, p *kafka.TransactionalProducer, a *kafka.Admin, at *place, batch []event.Event) error {
	if at.hasAll(batch) {
		return nil
	}
	if err := r.compare(ctx, a, at); err != nil {
		return err
	}
	return r.commit(ctx, p, at, batch, batch[len(batch)-1])
}

// compareEvery is how often a relay at work looks whether the topic is still the one it was, and
// how far it has come.
const compareEvery = time.Second

// compare looks whether the topic is still the one it was, now and then: its client connects anew
// without a word. It also moves the base, from which the next relay has to compare.
func (r *Relay) compare(ctx context.Context, a *kafka.Admin, at *place) error {
	if time.Since(at.compared) < compareEvery {
		return nil
	}
	l := &lookout{Relay: r, admin: a, topic: r.cfg.Aggregate.Topic}
	if err := l.look(ctx); err != nil {
		return err
	}
	now := mark{to: at.after, identity: identity{topicID: at.topicID, partitions: at.partitions, floors: at.floors}}
	if err := l.compareLog(&now); err != nil {
		return err
	}
	if at.even() {
		at.base, at.floors = at.after, make([]int64, l.info.Partitions)
		for p := range at.floors {
			at.floors[p] = l.end[int32(p)]
		}
	}
	at.compared = time.Now()
	return nil
}

// commit publishes a batch, except for the events that are on the log already, and with it the mark
// of the last event that it covers.
func (r *Relay) commit(ctx context.Context, p *kafka.TransactionalProducer, at *place, batch []event.Event, last event.Event) error {
	if err := r.hook(beforeBegin); err != nil {
		return err
	}
	// Stopping between a commit and its answer would be safe, but cost the next start a second
	// look.
	ctx, cancel := outlive(ctx, 3*time.Second)
	defer cancel()
	ctx, late := context.WithTimeoutCause(ctx, attempt, errSlow)
	defer late()
	records, err := r.records(ctx, at, batch)
	if err != nil {
		return err
	}
	if err := p.Begin(); err != nil {
		return err
	}
	// A failed transaction is not aborted here: an abort beside a request that is still under way
	// can end in an assertion of librdkafka, which kills the process. The next session takes over
	// the transactional id, which aborts it at once.
	for _, record := range append(records, at.mark(last).record(r.cfg.Aggregate.Service, at.secret)) {
		if err := p.Produce(ctx, record); err != nil {
			return err
		}
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
	if err := r.hook(afterCommit); err != nil {
		return err
	}
	r.report(func(p *Progress) {
		p.Position, p.RecordedAt, p.Published = last.Position, last.RecordedAt, p.Published+uint64(len(records))
	})
	return nil
}

// records encodes the events of a batch that are not on the log.
func (r *Relay) records(ctx context.Context, at *place, batch []event.Event) ([]kafka.Record, error) {
	records, spread := make([]kafka.Record, 0, len(batch)+1), kafka.PartitionsHeader(at.partitions) // and the mark
	for _, e := range batch {
		if at.has(e) {
			continue
		}
		value, contentType, err := r.cfg.Encoder.Encode(ctx, e.Data)
		if err != nil {
			return nil, cannotWrite(fmt.Errorf("event %s, version %d of stream %q: %w", e.ID, e.Version, e.Stream, err))
		}
		headers := e.HeadersOf(contentType)
		if err := r.cfg.Aggregate.Check(e); err == nil {
			headers = append(headers, e.Seal(at.seals.name))
		} else { // without a seal, every reader rejects it alike
			r.log.Error("relay: the store has an event that readers reject",
				"event", e.ID, "stream", e.Stream, "version", e.Version, "error", err)
		}
		if passed, late := at.passed(e); late {
			headers = append(headers, event.LateHeader(passed))
		}
		records = append(records, kafka.Record{
			Topic: r.cfg.Aggregate.Topic, Partition: at.partition(e), Key: []byte(e.Stream), Value: value, Headers: append(headers, spread),
		})
	}
	return records, nil
}

// cannotWrite marks an encoder's error that does not pass by itself.
func cannotWrite(err error) error {
	if errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCannotWrite, err)
}

// outlive returns a context that ends so long after its parent.
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
