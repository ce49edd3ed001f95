// Package refusals knows which customers refuse a purpose, such as analytics.
//
// Follower reads the topic of customers from its beginning, and then follows it; Read only reads it. It
// keeps what each customer has said: about 100 bytes each. Who was not asked refuses nothing. A person who
// is several customers refuses what one of them refuses, and what some of them grant and others do not,
// as in profiles.
//
// Invariant: once Ready returns nil, every refusal that was on the topic when Run started counts. A
// later one counts as soon as it is fetched. Ready returns an error while the topic is read again because
// it was created again.
package refusals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/registry"
)

const (
	poll          = 500 * time.Millisecond
	describeEvery = 5 * time.Second // new partitions, and a topic that was created again, are noticed in this time
	stall         = time.Minute     // how long Read waits for a record
)

// Follower knows who refuses what. It is safe for concurrent use.
type Follower struct {
	kafka   kafka.Config
	decoder *registry.Decoder
	log     *slog.Logger

	// mu protects the fields below.
	mu    sync.RWMutex
	said  map[string]answers // by customer; nothing for those who were not asked
	ready bool

	// Used by Run only.
	topicID string
	next    map[int32]int64 // offset to read next, by partition
	upto    map[int32]int64 // records from these offsets on do not count; nil: all do
}

// answers are the purposes that a customer grants and refuses, a bit each.
type answers struct{ granted, refused uint32 }

// bit returns the bit of a purpose. It is 0 for one that this program does not know.
func bit(purpose customerv1.ConsentPurpose) uint32 {
	if purpose < 0 || purpose > 31 {
		return 0
	}
	return 1 << purpose
}

// NewFollower returns a follower. It connects when it runs.
func NewFollower(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *Follower {
	return &Follower{kafka: cfg, decoder: decoder, log: logger,
		said: map[string]answers{}, next: map[int32]int64{}}
}

// Refuses reports whether a person refuses a purpose. The customers are all who are that person.
func (f *Follower) Refuses(purpose customerv1.ConsentPurpose, customers ...string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	granting, registered := 0, 0
	for _, id := range customers {
		a, ok := f.said[event.CanonicalID(id)]
		if !ok {
			continue
		}
		registered++
		switch {
		case a.refused&bit(purpose) != 0:
			return true
		case a.granted&bit(purpose) != 0:
			granting++
		}
	}
	return granting > 0 && granting < registered
}

// Read reads the topic of customers up to the offsets upto, by partition, or to its ends if upto is nil.
// It returns who refuses what then, and the offsets. A topic that does not exist has no refusals.
func Read(ctx context.Context, cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger,
	upto map[int32]int64) (*Follower, map[int32]int64, error) {
	f := NewFollower(cfg, decoder, logger)
	r, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	topic, err := r.Describe(ctx)
	if errors.Is(err, fetch.ErrNoTopic) && len(upto) == 0 {
		return f, map[int32]int64{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if upto == nil {
		upto = map[int32]int64{}
		for p, log := range topic.Partitions {
			upto[p] = log.End
		}
	}
	for p, end := range upto {
		if log := topic.Partitions[p]; log.End < end {
			return nil, nil, fmt.Errorf("%s/%d ends at offset %d, before %d: it was truncated or created again",
				event.Customer.Topic, p, log.End, end)
		}
	}
	f.upto = upto
	if err := f.assign(r, topic); err != nil {
		return nil, nil, err
	}
	began := time.Now()
	for !f.reached(upto) {
		batches, err := r.Poll(ctx, poll)
		if err != nil {
			return nil, nil, err
		}
		for _, b := range batches {
			if err := f.read(ctx, b); err != nil {
				return nil, nil, err
			}
			began = time.Now()
		}
		if time.Since(began) > stall {
			return nil, nil, fmt.Errorf("read %s: %w: no records for %v", event.Customer.Topic, context.DeadlineExceeded, stall)
		}
	}
	return f, upto, nil
}

// Ready returns nil once the topic was read to its end.
func (f *Follower) Ready() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.ready {
		return errors.New("the consents of customers are being read; try again")
	}
	return nil
}

// Run follows the topic until ctx ends, and then returns nil. It logs errors and retries.
func (f *Follower) Run(ctx context.Context) error {
	retry, failed := backoff.Server.Start(), ""
	for again := true; again; again = retry.Wait(ctx) {
		err := f.follow(ctx, func() { failed = ""; retry.Reset() })
		if ctx.Err() == nil && err.Error() != failed { // log an error once, not at every attempt
			failed = err.Error()
			f.log.Warn("reading the consents of customers failed; retrying", "topic", event.Customer.Topic, "error", err)
		}
	}
	return nil
}

// follow reads with one reader until an error. It calls progress whenever the brokers respond.
func (f *Follower) follow(ctx context.Context, progress func()) error {
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	var topic fetch.Topic
	var described time.Time
	for {
		if time.Since(described) >= describeEvery {
			if topic, err = r.Describe(ctx); err != nil {
				return err
			}
			if err := f.assign(r, topic); err != nil {
				return err
			}
			described = time.Now()
		}
		f.passed(topic)
		progress()
		batches, err := r.Poll(ctx, poll)
		if err != nil {
			return err
		}
		for _, b := range batches {
			if err := f.read(ctx, b); err != nil {
				return err
			}
		}
	}
}

// open returns a reader of the topic.
func (f *Follower) open() (*fetch.Reader, error) {
	return fetch.Open(fetch.Config{Brokers: strings.Split(f.kafka.Brokers, ","), Security: f.kafka.Security,
		Topic: event.Customer.Topic, ClientID: f.kafka.ClientID, Logger: f.log})
}

// errRecreated ends a follow, so that the next one reads the new topic.
var errRecreated = errors.New("the topic was created again")

// assign reads the partitions of the topic from where the follower is. If the log does not have those
// offsets, the follower starts again from its beginning.
func (f *Follower) assign(r *fetch.Reader, topic fetch.Topic) error {
	changed := f.topicID != "" && topic.ID != f.topicID
	for p, log := range topic.Partitions {
		next, known := f.next[p]
		changed = changed || known && (next < log.Start || next > log.End)
	}
	if changed {
		f.reset()
	}
	f.topicID = topic.ID
	if changed && len(r.Assigned()) > 0 {
		return errRecreated
	}
	for p, log := range topic.Partitions {
		if _, known := f.next[p]; !known {
			f.next[p] = log.Start
		}
	}
	r.Assign(f.next)
	return nil
}

// read applies the events of a batch.
func (f *Follower) read(ctx context.Context, b fetch.Batch) error {
	for r := range b.Records() {
		if f.upto != nil && r.Offset >= f.upto[b.Partition] {
			break
		}
		e, err := f.decoder.Event(ctx, registry.Record{Topic: event.Customer.Topic, Partition: b.Partition,
			Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers})
		if errors.Is(err, registry.ErrUnavailable) {
			return err
		}
		if err == nil { // else it is not an event, and the views make it a dead letter
			f.apply(e)
		}
	}
	f.next[b.Partition] = b.Next
	return nil
}

// passed makes the follower ready once it has read up to the ends of the topic.
func (f *Follower) passed(topic fetch.Topic) {
	ends := map[int32]int64{}
	for p, log := range topic.Partitions {
		ends[p] = log.End
	}
	if !f.reached(ends) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = true
}

// reached reports whether the partitions were read up to these offsets.
func (f *Follower) reached(ends map[int32]int64) bool {
	for p, end := range ends {
		if f.next[p] < end {
			return false
		}
	}
	return true
}

// reset forgets everything.
func (f *Follower) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said, f.ready = map[string]answers{}, false
	f.next = map[int32]int64{}
}

// apply applies an event. Applying one again changes nothing once those after it were applied again.
func (f *Follower) apply(e event.Event) {
	var m customerv1.CustomerEvent
	if proto.Unmarshal(e.Data, &m) != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.said[e.Stream]
	if c := m.GetConsentChanged(); c.GetGranted() {
		a.granted |= bit(c.GetPurpose())
		a.refused &^= bit(c.GetPurpose())
	} else if c != nil {
		a.refused |= bit(c.GetPurpose())
		a.granted &^= bit(c.GetPurpose())
	}
	f.said[e.Stream] = a
}
