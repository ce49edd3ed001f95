// Package refusals knows which customers refuse a purpose, such as analytics.
//
// Follower reads the topic of customers from its beginning, and then follows it. It keeps only the
// customers who refuse something: about 100 bytes each. Whoever was not asked refuses nothing.
//
// Invariant: once Ready returns nil, every refusal that was on the topic when Run started counts. A
// later one counts within about a second. While the topic is read again, because it was created again,
// Ready returns an error.
package refusals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/event"
	customerv1 "github.com/millrace/millrace/gen/millrace/customer/v1"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/registry"
)

// followEvery is how often the follower looks for new events. Each look asks the broker twice, and one
// that finds events opens a consumer, so it is not more often.
const followEvery = time.Second

// Follower knows who refuses what. It is safe for concurrent use.
type Follower struct {
	kafka   kafka.Config
	decoder *registry.Decoder
	log     *slog.Logger

	// mu protects the fields below.
	mu      sync.RWMutex
	refused map[string]map[customerv1.ConsentPurpose]bool
	ready   bool

	// Used by Run only.
	topic string // its id
	next  map[int32]int64
}

// NewFollower returns a follower. It connects when it runs.
func NewFollower(cfg kafka.Config, decoder *registry.Decoder, logger *slog.Logger) *Follower {
	return &Follower{kafka: cfg, decoder: decoder, log: logger,
		refused: map[string]map[customerv1.ConsentPurpose]bool{}, next: map[int32]int64{}}
}

// Refuses reports whether a customer refuses a purpose.
func (f *Follower) Refuses(customer string, purpose customerv1.ConsentPurpose) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.refused[event.CanonicalID(customer)][purpose]
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
	admin, err := kafka.NewAdmin(f.kafka)
	if err != nil {
		return fmt.Errorf("follow the consents of customers: %w", err)
	}
	defer admin.Close()
	failed := ""
	for {
		switch err := f.catchUp(ctx, admin); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = ""
		case err.Error() != failed: // log an error once, not at every attempt
			failed = err.Error()
			f.log.Warn("reading the consents of customers failed; retrying", "topic", event.Customer.Topic, "error", err)
		}
		if !backoff.Sleep(ctx, followEvery) {
			return nil
		}
	}
}

// catchUp reads what is on the topic and was not read yet.
func (f *Follower) catchUp(ctx context.Context, admin *kafka.Admin) error {
	topic, err := admin.Topic(ctx, event.Customer.Topic)
	if err != nil {
		return err
	}
	ends, err := admin.EndOffsets(ctx, event.Customer.Topic)
	if err != nil {
		return err
	}
	if topic.ID != f.topic {
		f.reset()
		f.topic = topic.ID
	}
	grown := false
	for partition, end := range ends {
		grown = grown || end > f.next[partition]
	}
	if grown {
		err = kafka.ReadAll(ctx, f.kafka, event.Customer.Topic, f.next, ends, func(m kafka.Message) error {
			e, _, err := f.decoder.Sealed(ctx, registry.Record{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset,
				Key: m.Key, Value: m.Value, Headers: m.Headers})
			if errors.Is(err, registry.ErrUnavailable) {
				return err
			}
			if err == nil { // else it is not an event, and the views make it a dead letter
				f.apply(e)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for partition, end := range ends {
			f.next[partition] = end
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = true
	return nil
}

// reset forgets everything.
func (f *Follower) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused, f.ready = map[string]map[customerv1.ConsentPurpose]bool{}, false
	f.next = map[int32]int64{}
}

// apply applies an event. Applying one again changes nothing once those after it were applied again.
func (f *Follower) apply(e event.Event) {
	var m customerv1.CustomerEvent
	if proto.Unmarshal(e.Data, &m) != nil || m.GetConsentChanged() == nil {
		return
	}
	purpose := m.GetConsentChanged().GetPurpose()
	f.mu.Lock()
	defer f.mu.Unlock()
	of := f.refused[e.Stream]
	switch {
	case !m.GetConsentChanged().GetGranted():
		if of == nil {
			of = map[customerv1.ConsentPurpose]bool{}
			f.refused[e.Stream] = of
		}
		of[purpose] = true
	case of != nil:
		delete(of, purpose)
		if len(of) == 0 {
			delete(f.refused, e.Stream)
		}
	}
}
