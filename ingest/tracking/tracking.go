// Package tracking receives the events of tracking clients over HTTP, as Segment's API does, and
// writes them to the topic millrace.behavior. Segment's own clients send to it unmodified.
//
// Intake.Handler serves the API, and Intake.Run keeps the connection to the log. A request passes
// these steps: admission (http.go), its source by write key (sources.go) and what it may send now
// (allowance.go), the events in its body (scan.go, payload.go), consent (consent.go), the tracking
// plan (plan.go), copies (copies.go), and the write (Intake.take).
//
// Guarantees:
//
//   - An answer of 200 means that every event of the request is durable on the log, or was there
//     before, or is a dead letter, or was dropped for lack of consent. Otherwise the client sends
//     the request again.
//   - An event that is sent again is written once. Its id is remembered for a day. tail.go reads the
//     ids back from the log at start, and follows it to learn what other processes write. Only if
//     two processes receive the same event within a moment can both write it. Readers drop the
//     later copy with behavior.Recent. A process that was suspended reads the log before it accepts
//     more (suspension.go).
//   - Everything that a client can make a process hold is bounded: bodies, requests in progress,
//     and remembered ids.
//   - Write keys are on no log, in no answer and in no event. An event has the name of its source.
package tracking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/failpoint"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
	"github.com/millrace/millrace/internal/server"
)

// Config configures an Intake.
type Config struct {
	Kafka   kafka.Config
	Sources *Sources
	Plan    *Plan // nil allows everything
	Consent Consent

	// WriteDeadLetters stores events that the plan does not allow, and those of a batch that cannot
	// be read. It returns once they are durable.
	WriteDeadLetters func(context.Context, []DeadLetter) error

	Requests int // requests in progress; more are refused
	IDs      int // remembered ids of events
	Logger   *slog.Logger
}

// DeadLetter is an event that was not written to the topic.
type DeadLetter struct {
	ID     uuid.UUID // the same for all copies of the event
	Source string
	Key    string // the user or visitor, if known
	Value  []byte // the event as the client sent it
	Reason error
}

// Stats counts events and requests since the start of the process.
type Stats struct {
	Accepted    int64 // events written to the log
	Duplicates  int64 // copies of earlier events
	DeadLetters int64 // events that became dead letters
	Dropped     int64 // events dropped for lack of consent
	Rejected    int64 // requests that will never be accepted (4xx)
	Overloaded  int64 // requests that found too many others, or whose source has sent too much (429)
	Unavailable int64 // requests that could not be written (503)
	IDs         int   // remembered ids
}

// Intake is the tracking API.
type Intake struct {
	config    Config
	log       *slog.Logger
	copies    *copies
	tail      *tail
	limiter   *server.Limiter
	deadlines deadlines
	stats     struct{ accepted, duplicates, rejected, deadLetters, dropped, overloaded, unavailable atomic.Int64 }
}

const (
	deliveryTimeout = 8 * time.Second  // of a write; Segment's clients wait for 10 s
	writeTimeout    = 10 * time.Second // after which a write without a report counts as failed (deadlines.go)
	linger          = "2"              // ms, in which the records of several requests become one batch
)

// New returns an intake. It connects when it runs.
func New(c Config) (*Intake, error) {
	if err := c.Consent.Check(); err != nil {
		return nil, fmt.Errorf("consent: %w", err)
	}
	ids := newCopies(c.IDs)
	return &Intake{
		config: c, log: c.Logger, copies: ids, limiter: server.NewLimiter(c.Requests),
		tail: &tail{
			config: fetch.Config{
				Brokers: strings.Split(c.Kafka.Brokers, ","), Security: c.Kafka.Security,
				Topic: event.Behavior.Topic, ClientID: c.Kafka.ClientID, Logger: c.Logger,
			},
			copies: ids, maxIDs: c.IDs, log: c.Logger, waiters: make(chan chan struct{}), next: map[int32]int64{},
		},
	}, nil
}

// Run keeps the log available until ctx ends. It returns an error only if the configuration of Kafka
// cannot work.
func (t *Intake) Run(ctx context.Context) error {
	following := make(chan struct{})
	go func() {
		defer close(following)
		t.tail.run(ctx)
	}()
	defer func() { <-following }()
	retry := backoff.Server.Start()
	for {
		began := time.Now()
		if err := t.session(ctx); err != nil {
			return err
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		if !retry.Wait(ctx) {
			return nil
		}
	}
}

// session opens a producer, and returns after its first error or when ctx ends. Before it accepts
// events, it learns which ones are on the log, whether or not earlier producers reported them.
func (t *Intake) session(ctx context.Context) error {
	c := t.config.Kafka
	c.Extra = map[string]string{
		"linger.ms":          linger,
		"message.timeout.ms": fmt.Sprint(deliveryTimeout.Milliseconds()),
	}
	producer, err := kafka.NewProducer(c)
	if err != nil {
		return err
	}
	defer producer.Close()
	if t.tail.barrier(ctx) != nil {
		return nil // ctx has ended
	}
	s := &session{producer: producer, broken: make(chan struct{})}
	t.copies.open(s)
	defer t.copies.close(s)
	select {
	case <-ctx.Done():
	case <-s.broken:
	}
	return nil
}

// Available reports whether events are accepted.
func (t *Intake) Available() bool { return t.copies.available() && t.config.Consent.ready() == nil }

// Stats returns what became of the events so far.
func (t *Intake) Stats() Stats {
	s := &t.stats
	return Stats{
		Accepted: s.accepted.Load(), Duplicates: s.duplicates.Load(), Rejected: s.rejected.Load(),
		DeadLetters: s.deadLetters.Load(), Dropped: s.dropped.Load(), Overloaded: s.overloaded.Load(),
		Unavailable: s.unavailable.Load(), IDs: t.copies.len(),
	}
}

// rejection is an event of a batch that cannot be read.
type rejection struct {
	index int
	bad   *FieldError
}

// sorted is what a request's events are: records to write, dead letters, and rejected ones.
type sorted struct {
	ids      []uuid.UUID
	records  []kafka.Record // parallel to ids
	letters  []DeadLetter
	rejected []rejection
	dropped  int
}

// sort decides what becomes of each event of a request. It has no effects. The records refer to mem.
func (t *Intake) sort(b *batch, mem *memory, kind string, source *Source, received time.Time) (s sorted) {
	s.ids, s.records = slices.Grow(mem.ids[:0], len(b.events)), slices.Grow(mem.records[:0], len(b.events))
	m := &mem.message
	mem.data = mem.data[:0]
	for i := range b.events {
		p := &b.events[i]
		if bad := p.fill(m, b, kind, source, received); bad != nil {
			s.rejected = append(s.rejected, rejection{i, bad})
			continue
		}
		if !t.config.Consent.apply(m) {
			s.dropped++
			continue
		}
		if bad := t.config.Plan.check(m); bad != nil {
			letter := DeadLetter{ID: event.BehaviorID(source.Name, m.GetMessageId()), Source: source.Name,
				Key: behavior.Key(m), Value: p.raw, Reason: bad}
			if len(m.GetReducedFor()) > 0 {
				letter.Value = nil // it tells who the visitor is
			}
			s.letters = append(s.letters, letter)
			continue
		}
		// The scanner has checked the JSON in the message, and fill the rest: FuzzBody checks both.
		e, data, err := behavior.Encode(mem.data, m)
		mem.data = data
		if err != nil { // a mistake here, because the payload has been checked
			t.log.Error("tracking: an event cannot be written", "source", source.Name, "error", err)
			s.rejected = append(s.rejected, rejection{i, &FieldError{"event", "cannot be stored"}})
			continue
		}
		s.ids = append(s.ids, e.ID)
		s.records = append(s.records, kafka.Record{Topic: event.Behavior.Topic, Partition: kafka.AnyPartition,
			Key: []byte(e.Stream), Value: e.Data, Headers: e.Headers()})
	}
	mem.ids, mem.records = s.ids, s.records
	return s
}

// take makes the events of a request durable.
func (t *Intake) take(s sorted, source *Source, b *batch) error {
	ctx := t.deadlines.context(time.Now())
	letters := s.letters
	for _, r := range s.rejected {
		letters = append(letters, t.unreadable(b, r, source))
	}
	if len(letters) > 0 {
		if err := t.config.WriteDeadLetters(ctx, letters); err != nil {
			t.log.Warn("tracking: cannot write dead letters", "error", err)
			return errUnavailable
		}
		t.stats.deadLetters.Add(int64(len(letters)))
	}
	t.stats.dropped.Add(int64(s.dropped))
	if len(s.ids) == 0 {
		return nil
	}
	now := time.Now()
	if err := t.tail.current(ctx, now); err != nil {
		return errUnavailable
	}
	k, err := t.copies.claim(s.ids, now)
	if err != nil {
		return err
	}
	err = t.write(ctx, k, s.records)
	t.copies.settle(k, time.Now(), err)
	if err != nil {
		t.log.Warn("tracking: cannot write events", "events", len(k.ids), "error", err)
		return errUnavailable
	}
	t.stats.accepted.Add(int64(len(k.ids)))
	t.stats.duplicates.Add(int64(len(s.ids) - len(k.ids)))
	// Copies of events that other requests are writing have the outcome of these.
	for _, other := range k.others {
		select {
		case <-other.done:
			err = errors.Join(err, other.err)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return errUnavailable
	}
	return nil
}

// write writes the events of a claim. After an error, any of them may be on the log.
func (t *Intake) write(ctx context.Context, k *claim, records []kafka.Record) error {
	if len(k.ids) == 0 {
		return nil
	}
	ours := records[:0]
	for i, mine := range k.mine {
		if mine {
			ours = append(ours, records[i])
		}
	}
	if err := failpoint.Hit("tracking.write.before"); err != nil {
		return err
	}
	// If this process was suspended here, then the client has sent the events to another one.
	if deadline, ok := ctx.Deadline(); ok && time.Now().After(deadline) {
		return context.DeadlineExceeded
	}
	if err := k.session.producer.ProduceAll(ctx, ours); err != nil {
		return err
	}
	return failpoint.Hit("tracking.write.after")
}

// unreadable returns the dead letter of an event of a batch that cannot be read. The other events of
// the batch are accepted, so the client drops this one. If consent matters, nothing of it is kept,
// because the event does not tell whether there is any.
func (t *Intake) unreadable(b *batch, r rejection, source *Source) DeadLetter {
	p := &b.events[r.index]
	letter := DeadLetter{ID: event.BehaviorID(source.Name, p.messageID), Source: source.Name, Reason: r.bad}
	if p.messageID == "" {
		letter.ID = uuid.New()
	}
	if len(t.config.Consent.Purposes) == 0 {
		letter.Value = p.raw
	}
	return letter
}
