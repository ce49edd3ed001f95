// Package relay is the outbox relay. It publishes the events of a service's store to Kafka, exactly
// once and in store order.
//
// Config names the store, the topic and the transactional id. Relay.Run publishes until its context
// ends. Follower reads from the log how far relays in other processes are. Seals checks for readers
// that a record was published by the relay.
//
// Invariants:
//
//   - Each Kafka transaction contains a batch of events and the checkpoint that it reaches, so the
//     log itself records how far it is.
//   - The log is the only truth about published events. After any error, above all a commit whose
//     answer was lost, the relay starts a new session and reads its position from the log.
//   - At most one relay of a store publishes. A new one takes over the transactional id, which
//     aborts the open transaction of the previous one and fences it. With Config.Hold, it waits
//     until the previous one has ended, so several processes can be ready to publish.
//   - Events are published in store order. So the events of a stream keep their order, the store
//     position (a header) only increases within a partition, and the last event of a partition
//     shows which earlier events it has.
//
// relay.go runs sessions, and session.go is the state of one. resume.go determines where a session
// continues and compares log and store, with the help of scan.go. checkpoint.go is the checkpoint
// record, announcement.go and announce.go are the announcement of the seal.
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
	"github.com/millrace/millrace/internal/tracing"
)

// PositionsTopic holds each service's last checkpoint: the store position that the log has reached.
// It is compacted.
const PositionsTopic = "millrace.positions"

// Topics returns the topics that the relays of the aggregates write to: one per aggregate, with the
// given number of partitions, and PositionsTopic.
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
	Aggregate event.Aggregate // of the store's events; it names the topic and the service
	Kafka     kafka.Config

	// Encoder writes the values of the topic. Nil writes plain Protobuf.
	Encoder *registry.Encoder

	// DeadLetter stores a record that was not written by a relay, with the reason. The record is
	// from the aggregate's topic or from PositionsTopic. The same record may be passed more than
	// once. If DeadLetter is nil, such records remain on the log only.
	DeadLetter func(ctx context.Context, m kafka.Message, reason error) error

	// Published is called with the events of each transaction that was committed, in store order, for
	// metrics. It must not block. It may be nil.
	Published func([]event.Event)

	// TransactionalID is held by at most one relay of the store, in any process and on any machine.
	// Kafka fences the previous holder.
	TransactionalID string

	// Hold blocks until no other relay of the store publishes, and keeps others waiting until release
	// is called. With it, relays can run in several processes: one publishes, and the others are its
	// standbys. It need not be safe, because Kafka fences. Without it, a second relay fences the first.
	Hold func(ctx context.Context) (release func(), err error)

	// MaxEvents and MaxBytes bound a transaction. 0 means 5000 events and 4 MiB. A single event may
	// be larger.
	MaxEvents int
	MaxBytes  int

	Logger *slog.Logger // nil means slog.Default()

	// Tracer records each event that is published, in the trace of its command. It may be nil.
	Tracer *tracing.Tracer
}

var (
	// ErrFenced means that another relay took over, or that the broker aborted a transaction that
	// was open too long (the machine slept). Without Config.Hold, Run does not retry: two relays would
	// fence each other forever. The caller decides whether to start the relay again.
	ErrFenced = errors.New("relay: fenced by another relay, or a transaction timed out")

	// ErrStoreBehind means that the log has events that were published from this store and that the
	// store does not have: the store was lost, restored from a backup, or replaced by another one.
	// New events beside the old ones would make a false history.
	ErrStoreBehind = errors.New("relay: the log is ahead of the store")

	// ErrLogChanged means that the log is not the one that the store was published to: the topic
	// was recreated, or has lost events. Its readers would miss events that are published now, or
	// see them twice.
	ErrLogChanged = errors.New("relay: the log was replaced or has lost events")

	// ErrCannotWrite means that the registry refuses the topic's schema, or that an event cannot be
	// written in the topic's codec without loss. Skipping the event would make a false history.
	ErrCannotWrite = errors.New("relay: cannot encode an event for its topic")
)

// Progress describes how far the log has come.
type Progress struct {
	Position       event.Position // of the last event on the log; zero if none is known
	RecordedAt     time.Time      // when the store recorded that event
	Published      uint64         // events that this relay has published
	InvalidRecords uint64         // records found that were not written by a relay
	Live           bool           // this relay holds its transactional id and has resumed
	Standby        bool           // another relay publishes, and this one waits to take its place
}

// Relay publishes the events of one store.
type Relay struct {
	cfg  Config
	log  *slog.Logger
	hook func(step) error // called at each step; tests make it fail or block

	checkInterval time.Duration // how often the announcements are checked

	// mu protects progress, which callers read while Run changes it.
	mu       sync.Mutex
	progress Progress
}

// A step is a point of a session at which tests inject faults.
type step string

const (
	resumed      step = "resumed" // log and store are compared, and nothing is published yet
	beforeBegin  step = "before begin"
	afterProduce step = "after produce"
	beforeCommit step = "before commit"
	afterCommit  step = "after commit"
)

// New checks the configuration and applies its defaults. It opens nothing; Run does.
func New(cfg Config) (*Relay, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("relay: Config.Store is not set")
	case cfg.Aggregate.Topic == "" || cfg.Aggregate.Service == "":
		return nil, errors.New("relay: Config.Aggregate has no topic or no service")
	case cfg.TransactionalID == "":
		return nil, errors.New("relay: Config.TransactionalID is not set")
	case cfg.MaxEvents < 0 || cfg.MaxBytes < 0:
		return nil, errors.New("relay: Config.MaxEvents and Config.MaxBytes must not be negative")
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
		cfg:           cfg,
		log:           cfg.Logger.With("relay", cfg.Aggregate.Service),
		checkInterval: checkInterval,
		hook:          func(at step) error { return failpoint.Hit("relay." + cfg.Aggregate.Service + "." + string(at)) },
	}, nil
}

// Progress returns how far the log has come. It may be called at any time.
func (r *Relay) Progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}

// report changes the progress that callers see.
func (r *Relay) report(change func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.progress)
}

// Run publishes until ctx ends, and then returns nil. It retries after any error of Kafka, the
// store or the schema registry, except for those that a retry cannot resolve: it returns ErrFenced,
// ErrStoreBehind, ErrLogChanged, ErrCannotWrite, eventstore.ErrReplaced and eventstore.ErrClosed. A
// transaction in progress when ctx ends has three seconds to commit. Run may be called again after it
// has returned, but not concurrently.
func (r *Relay) Run(ctx context.Context) error {
	waits := backoff.Server.Start()
	for {
		before := r.Progress().Published
		err := r.takeTurn(ctx)
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		switch {
		case errors.Is(err, kafka.ErrFenced) && r.cfg.Hold == nil:
			return fmt.Errorf("%w: %w", ErrFenced, err)
		case errors.Is(err, ErrStoreBehind), errors.Is(err, ErrLogChanged), errors.Is(err, ErrCannotWrite),
			errors.Is(err, eventstore.ErrReplaced), errors.Is(err, eventstore.ErrClosed):
			return err
		}
		// A session that published something made progress, so the next wait is short again.
		if r.Progress().Published > before {
			waits.Reset()
		}
		wait := waits.Next()
		r.log.Warn("relay: publishing failed; resuming from the last checkpoint", "error", err, "in", wait)
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// takeTurn waits until no other relay publishes, and runs a session. A session that fails ends the
// turn, so that a standby which may have fewer problems takes over.
func (r *Relay) takeTurn(ctx context.Context) error {
	if r.cfg.Hold != nil {
		r.report(func(p *Progress) { p.Standby = true })
		release, err := r.cfg.Hold(ctx)
		r.report(func(p *Progress) { p.Standby = false })
		if err != nil {
			return fmt.Errorf("wait for the relay that publishes: %w", err)
		}
		defer release()
	}
	err := r.runSession(ctx)
	r.report(func(p *Progress) { p.Live = false })
	return err
}

// callTimeout bounds every call to Kafka, the store or the registry, so that a hung server cannot
// block the relay. It does not apply to waiting for new events; see waitForEvents. Long reads are
// bounded per step.
const callTimeout = time.Minute

// errTimeout is the cause of a context that callTimeout has ended.
var errTimeout = errors.New("no answer within a minute")

// withTimeout calls f with a context that ends after callTimeout.
func withTimeout[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer cancel()
	return f(ctx)
}

// runSession publishes with one producer until an error occurs or ctx ends. It always returns an
// error.
func (r *Relay) runSession(ctx context.Context) error {
	// Start the encoder before fencing the previous relay: a relay that cannot write must not stop
	// one that can.
	_, err := withTimeout(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.cfg.Encoder.Start(ctx)
	})
	if err != nil {
		return cannotWrite(err)
	}
	p, err := kafka.NewTransactionalProducer(r.cfg.Kafka, r.cfg.TransactionalID)
	if err != nil {
		return err
	}
	defer p.Close()
	// Init takes over the transactional id. From here on, the previous relay is fenced and none of
	// its transactions is open.
	_, err = withTimeout(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Init(ctx) })
	if err != nil {
		return err
	}
	a, err := kafka.NewAdmin(r.cfg.Kafka)
	if err != nil {
		return err
	}
	defer a.Close()
	s, err := r.resume(ctx, a)
	if err != nil {
		return err
	}
	if err := r.hook(resumed); err != nil {
		return err
	}
	if err := r.announce(ctx, p, s.seals); err != nil {
		return err
	}
	// The last checkpoint does not identify this relay's store and topic. Write one that does, so
	// that the next relay can rely on it.
	if s.renew != nil {
		if err := r.commit(ctx, p, s, nil, *s.renew); err != nil {
			return err
		}
	}
	r.log.Info("relay: publishing", "after", s.after, "topic", r.cfg.Aggregate.Topic)

	// One page is read ahead while the previous one is published. The deferred function waits for
	// the reader, so that it does not outlive the session.
	ctx, cancel := context.WithCancel(ctx)
	next := r.readAhead(ctx, s.after)
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
			return fmt.Errorf("read the store after %s: %w", s.after, read.err)
		}
		// The epoch is read after the events. If it has changed since resume, the store may have
		// lost events that the log has. A new session compares them.
		if len(read.events) > 0 && read.epoch != s.epoch {
			return fmt.Errorf("the store's epoch changed from %s to %s: it failed over or was restored", s.epoch, read.epoch)
		}
		events := read.events
		if len(events) == r.cfg.MaxEvents { // there is probably more: read it while this page is published
			next = r.readAhead(ctx, events[len(events)-1].Position)
		}
		for len(events) > 0 {
			batch := r.takeBatch(events)
			if err := r.publish(ctx, p, a, s, batch); err != nil {
				return err
			}
			events = events[len(batch):]
			s.advance(batch[len(batch)-1].Position)
		}
		// Wait only when the last read returned nothing: an event may have been recorded since.
		if len(read.events) == 0 {
			if err := r.waitForEvents(ctx, s.after); err != nil {
				return fmt.Errorf("wait for the store: %w", err)
			}
		}
		if err := r.maintainAnnouncements(ctx, p, a, s.seals); err != nil {
			return err
		}
		if next == nil {
			next = r.readAhead(ctx, s.after)
		}
	}
}

// waitForEvents blocks until the store may have an event after a position. It also returns after
// checkInterval, because a connection can be dead without an error, and because the announcements
// have to be checked.
func (r *Relay) waitForEvents(ctx context.Context, after event.Position) error {
	waiting, cancel := context.WithTimeout(ctx, r.checkInterval)
	defer cancel()
	err := r.cfg.Store.Wait(waiting, after)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil
	}
	return err
}

// page is the result of one read of the store.
type page struct {
	events []event.Event
	epoch  string // of the store, after the events were read
	err    error
}

// readAhead reads a page in its own goroutine and sends it on the returned channel. The channel is
// buffered, so the goroutine ends even if nothing receives.
func (r *Relay) readAhead(ctx context.Context, after event.Position) <-chan page {
	c := make(chan page, 1)
	go func() {
		read, err := withTimeout(ctx, func(ctx context.Context) (page, error) {
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

// takeBatch returns the events, from the front, that fit in one transaction: at least one, and at
// most MaxBytes.
func (r *Relay) takeBatch(events []event.Event) []event.Event {
	bytes := 0
	for i, e := range events {
		bytes += len(e.Data) + len(e.Stream) + headerBytes
		if bytes > r.cfg.MaxBytes && i > 0 {
			return events[:i]
		}
	}
	return events
}

// headerBytes is an estimate of the size of an event's headers.
const headerBytes = 400

// publish publishes a batch in one transaction. Events that are on the log already are left out.
func (r *Relay) publish(
	ctx context.Context, p *kafka.TransactionalProducer, a *kafka.Admin, s *session, batch []event.Event,
) error {
	if s.hasAll(batch) {
		return nil
	}
	if err := r.checkTopic(ctx, a, s); err != nil {
		return err
	}
	return r.commit(ctx, p, s, batch, batch[len(batch)-1])
}

// topicCheckInterval is how often a publishing relay checks the identity and the ends of its topic.
const topicCheckInterval = time.Second

// checkTopic checks at most every topicCheckInterval that the topic is still the same one. The client
// reconnects silently, and would continue in a topic that was recreated. It also moves the base,
// from which the next relay has to compare log and store.
func (r *Relay) checkTopic(ctx context.Context, a *kafka.Admin, s *session) error {
	if time.Since(s.topicChecked) < topicCheckInterval {
		return nil
	}
	in := &inspector{Relay: r, admin: a, topic: r.cfg.Aggregate.Topic}
	if err := in.load(ctx); err != nil {
		return err
	}
	now := checkpoint{
		to: s.after, identity: identity{topicID: s.topicID, partitions: s.partitions, floors: s.floors},
	}
	if err := in.compareLog(&now); err != nil {
		return err
	}
	// The base and its floors may move only when the log ends exactly at this position. Otherwise
	// it still has events that this relay has not reached, and the ends would be too high.
	if s.caughtUp() {
		s.base, s.floors = s.after, make([]int64, in.info.Partitions)
		for p := range s.floors {
			s.floors[p] = in.end[int32(p)]
		}
	}
	s.topicChecked = time.Now()
	return nil
}

// commit publishes a batch and its checkpoint in one transaction. Events that are on the log
// already are left out; the checkpoint covers them. last is the last event covered.
func (r *Relay) commit(
	ctx context.Context, p *kafka.TransactionalProducer, s *session, batch []event.Event, last event.Event,
) (err error) {
	if span := r.cfg.Tracer.Batch(tracing.Hop{Name: "publish", Sink: r.cfg.Aggregate.Topic, Writes: true}); span != nil {
		defer func() {
			for i := range batch {
				if !s.has(batch[i]) {
					span.Add(tracing.Of(&batch[i], s.partition(batch[i]), -1))
				}
			}
			span.End(err)
		}()
	}
	if err := r.hook(beforeBegin); err != nil {
		return err
	}
	// Let a commit finish if the parent context ends. Stopping between a commit and its answer
	// would be safe, but the next start would have to find out its result.
	ctx, cancel := withGrace(ctx, 3*time.Second)
	defer cancel()
	ctx, late := context.WithTimeoutCause(ctx, callTimeout, errTimeout)
	defer late()
	records, err := r.records(ctx, s, batch)
	if err != nil {
		return err
	}
	if err := p.Begin(); err != nil {
		return err
	}
	// A failed transaction is not aborted here. An abort beside a request in progress can fail an
	// assertion of librdkafka, which kills the process. The next session takes over the
	// transactional id, and this aborts the transaction at once.
	checkpoint := s.checkpoint(last).record(r.cfg.Aggregate.Service, s.secret)
	for _, record := range append(records, checkpoint) {
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
	if r.cfg.Published != nil {
		r.cfg.Published(batch)
	}
	return nil
}

// records encodes the events of a batch that are not on the log yet.
func (r *Relay) records(ctx context.Context, s *session, batch []event.Event) ([]kafka.Record, error) {
	// The extra element of capacity is for the checkpoint.
	records, partitions := make([]kafka.Record, 0, len(batch)+1), kafka.PartitionsHeader(s.partitions)
	for _, e := range batch {
		if s.has(e) {
			continue
		}
		value, contentType, err := r.cfg.Encoder.Encode(ctx, e.Data)
		if err != nil {
			return nil, cannotWrite(fmt.Errorf("event %s (version %d of stream %q): %w", e.ID, e.Version, e.Stream, err))
		}
		headers := e.HeadersOf(contentType)
		if err := r.cfg.Aggregate.Check(e); err == nil {
			headers = append(headers, e.Seal(s.seals.name))
		} else { // publish it without a seal, so that every reader rejects it alike
			r.log.Error("relay: publishing an invalid event of the store, which readers will reject",
				"event", e.ID, "stream", e.Stream, "version", e.Version, "error", err)
		}
		// The partition already has later events: the log lost this one of its last transaction, or a
		// tool copied the later ones. The header shows readers that the event is not a copy.
		if head, late := s.partitionHead(e); late {
			headers = append(headers, event.LateHeader(head))
		}
		records = append(records, kafka.Record{
			Topic: r.cfg.Aggregate.Topic, Partition: s.partition(e),
			Key: []byte(e.Stream), Value: value, Headers: append(headers, partitions),
		})
	}
	return records, nil
}

// cannotWrite wraps err in ErrCannotWrite unless it is temporary, that is, the registry is
// unavailable.
func cannotWrite(err error) error {
	if errors.Is(err, registry.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCannotWrite, err)
}

// withGrace returns a context that ends grace after its parent ends.
func withGrace(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
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
