package customer360

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/identity"
	customer360v1 "github.com/millrace/millrace/gen/millrace/customer360/v1"
	identityv1 "github.com/millrace/millrace/gen/millrace/identity/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
	"github.com/millrace/millrace/streams"
)

// How membership is kept:
//
// One process at a time evaluates segments. It has a lease in Redis, so that the others wait, and a
// transactional id, so that a process that only believes to have the lease cannot publish. It reads
// SegmentTopic to its end, and evaluates everybody once. Then it evaluates the persons whose events
// arrive, and those whose due time has come: the next instant at which an expression may change by
// time alone.
//
// What is published is also what is known: a change is a record on the topic, in a transaction. So
// there is no moment at which one exists without the other. After a kill, the next process reads
// from the topic what was published, evaluates everybody, and publishes the difference. Nothing is
// lost, and nothing is published twice.

const (
	defaultLease = 10 * time.Second
	perRound     = 100 // nodes that are evaluated for one transaction
)

// WorkConfig configures Work.
type WorkConfig struct {
	Kafka   kafka.Config
	Decoder *registry.Decoder
	Logger  *slog.Logger
	// Evaluate makes this process a candidate for evaluating segments. Otherwise it only follows.
	Evaluate bool
	// Owner names the process, so that another version of the view in it takes over at once. Empty is a
	// name of its own.
	Owner string
	// TransactionalID must be the same in all processes.
	TransactionalID string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Lease is how long another process waits for one that was killed; 0 means 10 seconds.
	Lease time.Duration
}

// renew is how often the lease is renewed, and how often the others ask for it.
func (c WorkConfig) renew() time.Duration { return c.Lease / 3 }

// Work keeps the membership of segments until ctx ends, and then returns nil. It returns at once if
// there are no segments.
func (v *View) Work(ctx context.Context, cfg WorkConfig) error {
	if len(v.segments) == 0 {
		<-ctx.Done()
		return nil
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	var following sync.WaitGroup
	defer following.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if !cfg.Evaluate {
		return v.members.follow(ctx, cfg.Kafka, cfg.Logger)
	}
	if err := kafka.EnsureTopics(ctx, cfg.Kafka, segmentTopic()); err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	following.Go(func() {
		if err := v.members.follow(ctx, cfg.Kafka, cfg.Logger); err != nil {
			cfg.Logger.Error("segments: following the topic failed", "error", err)
		}
	})
	owner := cmp.Or(cfg.Owner, uuid.NewString())
	for waits := backoff.Server.Start(); ctx.Err() == nil; {
		leads, err := v.lease.Lease(ctx, owner, time.Now(), cfg.Lease)
		if err == nil && leads {
			err = v.lead(ctx, cfg, owner)
			waits = backoff.Server.Start()
		}
		if err != nil && ctx.Err() == nil {
			cfg.Logger.Warn("segments: evaluation stopped; retrying", "error", err)
			if !backoff.Sleep(ctx, waits.Next()) {
				return nil
			}
			continue
		}
		if !backoff.Sleep(ctx, cfg.renew()) {
			return nil
		}
	}
	return nil
}

// errLeaseLost means that another process evaluates segments now.
var errLeaseLost = errors.New("another process has taken over")

// errReleased means that everybody is to be evaluated again: the view has applied events that the feed
// has read long before.
var errReleased = errors.New("the view has applied parked events: everybody is evaluated again")

// lead evaluates segments until ctx ends or something fails.
func (v *View) lead(ctx context.Context, cfg WorkConfig, owner string) error {
	producer, err := kafka.NewTransactionalProducer(cfg.Kafka, cfg.TransactionalID)
	if err != nil {
		return err
	}
	defer producer.Close()
	// From here on, no other process can publish, so the end of the topic is final.
	if err := producer.Init(ctx); err != nil {
		return err
	}
	admin, err := kafka.NewAdmin(cfg.Kafka)
	if err != nil {
		return err
	}
	defer admin.Close()
	ends, err := admin.EndOffsets(ctx, SegmentTopic)
	if err != nil {
		return err
	}
	if err := v.members.await(ctx, ends[0]); err != nil {
		return err
	}
	e := &evaluator{view: v, cfg: cfg, producer: producer, pending: map[identity.Node]bool{},
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), positions: map[string]map[int32]streams.Applied{},
		due: map[string]time.Time{}}
	// Events from here on are read by the feed; everything before is in the first pass.
	for _, topic := range topics() {
		ends, err := admin.EndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		e.positions[topic] = map[int32]streams.Applied{}
		for partition, end := range ends {
			e.positions[topic][partition] = streams.Applied{Next: end}
		}
	}
	return e.run(ctx, owner)
}

// evaluator evaluates segments while this process has the lease. It is the sink of a feed of its
// own, which only notes whose profile may have changed.
type evaluator struct {
	view     *View
	cfg      WorkConfig
	producer *kafka.TransactionalProducer
	wake     chan struct{} // has a value if pending may have grown
	room     chan struct{} // has a value if pending may have shrunk

	// mu protects the fields below. The feed adds, and the loop removes.
	mu        sync.Mutex
	pending   map[identity.Node]bool
	positions map[string]map[int32]streams.Applied // in memory: a new leader evaluates everybody

	// Used by the loop only.
	due     map[string]time.Time // by customer
	dueHeap dueHeap
}

// run evaluates until ctx ends or something fails.
func (e *evaluator) run(ctx context.Context, owner string) error {
	ctx, stop := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop(nil)
	feed := streams.New(streams.Config{
		Name: "customer360-segments/v1", Topics: topics(), Sink: e, Watermarks: streams.NewWatermarks(),
		Kafka: e.cfg.Kafka, Decoder: e.cfg.Decoder, Workers: 1, Logger: e.cfg.Logger,
	})
	parts.Go(func() {
		if err := feed.Run(ctx); err != nil {
			stop(err)
		}
	})
	parts.Go(func() {
		if streams.AwaitReleased(ctx, e.cfg.Kafka, e.view.sink) == nil {
			stop(errReleased)
		}
	})
	parts.Go(func() {
		for backoff.Sleep(ctx, e.cfg.renew()) {
			if leads, err := e.view.lease.Lease(ctx, owner, time.Now(), e.cfg.Lease); err == nil && !leads {
				stop(errLeaseLost)
			}
		}
	})
	// The view must have applied what the feed does not read.
	for topic, partitions := range e.snapshot() {
		ends := map[int32]int64{}
		for partition, at := range partitions {
			ends[partition] = at.Next
		}
		if err := e.view.watermarks.WaitFor(ctx, topic, ends); err != nil {
			return cause(ctx, err)
		}
	}
	e.cfg.Logger.Info("segments: evaluating all customers", "segments", len(e.view.segments))
	parts.Go(func() {
		err := e.view.everyCustomer(ctx, func(id string) error { return e.note(ctx, identity.Customer(id)) })
		if err != nil {
			stop(err)
		}
	})
	for ctx.Err() == nil {
		if err := e.round(ctx); err != nil {
			return cause(ctx, err)
		}
		e.wait(ctx)
	}
	return cause(ctx, nil)
}

// cause returns why ctx ended, if another part ended it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end of ctx is not a failure
	}
	return err
}

// snapshot returns a copy of the positions.
func (e *evaluator) snapshot() map[string]map[int32]streams.Applied {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string]map[int32]streams.Applied{}
	for topic, partitions := range e.positions {
		all[topic] = map[int32]streams.Applied{}
		for partition, at := range partitions {
			all[topic][partition] = at
		}
	}
	return all
}

// note adds a node to those that are to be evaluated. It blocks while there are too many.
func (e *evaluator) note(ctx context.Context, nodes ...identity.Node) error {
	for {
		e.mu.Lock()
		full := len(e.pending) >= e.view.limits.Pending
		if !full {
			for _, n := range nodes {
				e.pending[n] = true
			}
		}
		e.mu.Unlock()
		if !full {
			select {
			case e.wake <- struct{}{}:
			default:
			}
			return nil
		}
		select {
		case <-e.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take removes some of the nodes that are to be evaluated.
func (e *evaluator) take() []identity.Node {
	e.mu.Lock()
	defer e.mu.Unlock()
	var some []identity.Node
	for n := range e.pending {
		if len(some) == perRound {
			break
		}
		some = append(some, n)
		delete(e.pending, n)
	}
	select {
	case e.room <- struct{}{}:
	default:
	}
	return some
}

// wait blocks until there is something to evaluate.
func (e *evaluator) wait(ctx context.Context) {
	e.mu.Lock()
	busy := len(e.pending) > 0
	e.mu.Unlock()
	if busy {
		return
	}
	until := time.Minute
	if next, ok := e.dueHeap.peek(); ok {
		until = min(until, max(next.at.Sub(e.cfg.Now()), 0))
	}
	timer := time.NewTimer(until)
	defer timer.Stop()
	select {
	case <-e.wake:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// round evaluates some of what is pending or due, and publishes the changes in one transaction.
func (e *evaluator) round(ctx context.Context) error {
	now := e.cfg.Now()
	nodes := e.take()
	for next, ok := e.dueHeap.peek(); ok && !next.at.After(now) && len(nodes) < 2*perRound; next, ok = e.dueHeap.peek() {
		heap.Pop(&e.dueHeap)
		if e.due[next.customer].Equal(next.at) { // else another evaluation has moved it
			delete(e.due, next.customer)
			nodes = append(nodes, identity.Customer(next.customer))
		}
	}
	var changes []*customer360v1.SegmentChange
	seen := map[string]bool{} // customers that this round has evaluated
	for _, n := range nodes {
		some, err := e.evaluate(ctx, n, now, seen)
		if err != nil {
			return err
		}
		changes = append(changes, some...)
	}
	if len(changes) == 0 {
		return nil
	}
	// A profile that was read after the view has lost data is not one.
	if positions, err := e.view.docs.Positions(ctx); err != nil || len(positions) == 0 || e.view.Faults().Any() {
		return errors.Join(errRebuilding, err)
	}
	return e.publish(ctx, changes)
}

// errRebuilding stops the evaluation until the view is complete again.
var errRebuilding = errors.New("the view has lost data and is being rebuilt")

// evaluate returns the changes of membership of the person that a node belongs to. A segment
// contains canonical customers only, so the others leave it when they are merged.
func (e *evaluator) evaluate(
	ctx context.Context, n identity.Node, now time.Time, seen map[string]bool,
) ([]*customer360v1.SegmentChange, error) {
	parts, err := e.view.parts(ctx, n)
	var o outcome
	switch {
	// Whether such a person consents is not known, so they are in no segment.
	case errors.Is(err, identity.ErrTooLarge):
		e.cfg.Logger.Warn("segments: a person is in no segment", "error", err)
	case err != nil || seen[parts.Person.Canonical()] || parts.Person.Canonical() == "":
		return nil, err
	default:
		o = evaluate(e.view.segments, e.view.features, e.view.limits.Recheck, parts, now)
	}
	if o.err != nil {
		e.cfg.Logger.Debug("segments: an evaluation failed; the customer is not a member", "error", o.err)
	}
	var changes []*customer360v1.SegmentChange
	for i, id := range parts.Person.Customers {
		if seen[id] { // as a part of a person who is too large
			continue
		}
		seen[id] = true
		if i > 0 {
			delete(e.due, id)
			changes = append(changes, e.view.members.changes(id, nil, now)...)
			continue
		}
		changes = append(changes, e.view.members.changes(id, o.members, now)...)
		e.schedule(id, o.due)
	}
	return changes, nil
}

// schedule sets when a customer is due; zero means never.
func (e *evaluator) schedule(customer string, at time.Time) {
	switch before, known := e.due[customer]; {
	case at.IsZero():
		delete(e.due, customer)
	case known && before.Equal(at): // its entry is in the heap
	default:
		e.due[customer] = at
		heap.Push(&e.dueHeap, dueAt{customer, at})
	}
	// Void entries remain in the heap until it has twice as many as it needs.
	if len(e.dueHeap) < 1000 || len(e.dueHeap) < 2*len(e.due) {
		return
	}
	e.dueHeap = e.dueHeap[:0]
	for customer, at := range e.due {
		e.dueHeap = append(e.dueHeap, dueAt{customer, at})
	}
	heap.Init(&e.dueHeap)
}

// publish writes changes in one transaction, and then adds them to the members. After an error it
// is unknown whether they were written; the next leader reads that from the topic.
func (e *evaluator) publish(ctx context.Context, changes []*customer360v1.SegmentChange) error {
	if err := failpoint.Hit("segments.publish.before"); err != nil {
		return err
	}
	err := e.producer.Begin()
	for _, c := range changes {
		if err != nil {
			break
		}
		var r kafka.Record
		if r, err = record(c); err == nil {
			err = e.producer.Produce(ctx, r)
		}
	}
	if err == nil {
		err = e.producer.Commit(ctx)
	}
	if err == nil {
		err = failpoint.Hit("segments.publish.after")
	}
	if err != nil {
		return fmt.Errorf("publish %d changes of membership: %w", len(changes), err)
	}
	for _, c := range changes {
		e.view.members.add(c)
	}
	return nil
}

// Positions implements streams.Sink.
func (e *evaluator) Positions(_ context.Context, topic string) (map[int32]streams.Applied, error) {
	return e.snapshot()[topic], nil
}

// SavePositions implements streams.Sink.
func (e *evaluator) SavePositions(_ context.Context, topic string, moves []streams.Move) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range moves {
		e.positions[topic][m.Partition] = m.To
	}
	return nil
}

// Apply implements streams.Sink: it notes whose profile the records may have changed, once the view
// has applied them.
func (e *evaluator) Apply(ctx context.Context, records []streams.Record) error {
	ends := map[string]map[int32]int64{}
	for _, r := range records {
		if ends[r.Topic] == nil {
			ends[r.Topic] = map[int32]int64{}
		}
		ends[r.Topic][r.Partition] = max(ends[r.Topic][r.Partition], r.Offset+1)
	}
	for topic, partitions := range ends {
		if err := e.view.watermarks.WaitFor(ctx, topic, partitions); err != nil {
			return err
		}
	}
	var nodes []identity.Node
	var orders []string // whose customer only the view knows
	for _, r := range records {
		switch r.Topic {
		case event.Customer.Topic:
			nodes = append(nodes, identity.Customer(r.Event.Stream))
		case event.Order.Topic:
			orders = append(orders, r.Event.Stream)
		case event.Identity.Topic:
			var m identityv1.IdentityEvent
			if err := proto.Unmarshal(r.Event.Data, &m); err != nil {
				continue // the view has made it a dead letter
			}
			if c, ok := identity.ChangeOf(&m); ok {
				nodes = append(nodes, c.Subject, c.Other)
			}
		case event.Behavior.Topic:
			nodes = append(nodes, visitors(r.Event.Stream)...)
		}
	}
	found, err := e.view.load(ctx, event.Order, orders...)
	if err != nil {
		return err
	}
	for _, f := range found {
		if id := f.GetOrder().GetCustomerId(); id != "" {
			nodes = append(nodes, identity.Customer(id))
		}
	}
	return e.note(ctx, nodes...)
}

// visitors returns the nodes that the key of a record of behaviour may belong to; see behaviorKeys.
func visitors(key string) []identity.Node {
	var nodes []identity.Node
	if n, err := identity.ParseNode(key); err == nil {
		nodes = append(nodes, n)
	}
	for _, kind := range []identityv1.IdentifierKind{
		identityv1.IdentifierKind_IDENTIFIER_KIND_ANONYMOUS_ID, identityv1.IdentifierKind_IDENTIFIER_KIND_DEVICE_ID,
		identityv1.IdentifierKind_IDENTIFIER_KIND_EXTERNAL_ID,
	} {
		if n, err := identity.NodeOf(kind, key); err == nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// dueAt is when a customer is due.
type dueAt struct {
	customer string
	at       time.Time
}

// dueHeap is a heap of due times, the earliest first. An entry is void if the customer has another
// due time by now.
type dueHeap []dueAt

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) { *h = append(*h, x.(dueAt)) }

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// peek returns the earliest entry.
func (h *dueHeap) peek() (dueAt, bool) {
	if len(*h) == 0 {
		return dueAt{}, false
	}
	return (*h)[0], true
}
