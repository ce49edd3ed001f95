package flags

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/internal/kafka/fetch"
)

const (
	// poll bounds the wait for records. They are returned as soon as they are on the topic.
	poll = 500 * time.Millisecond
	// describeEvery is how often the topic is described. So a topic that was created again is noticed,
	// and that the brokers do not answer.
	describeEvery = 2 * time.Second
	// describeTimeout is how long the brokers may take to describe it.
	describeTimeout = 5 * time.Second
)

// Reader follows Topic and has all flags. It is safe for concurrent use.
type Reader struct {
	kafka   kafka.Config
	log     *slog.Logger
	invalid atomic.Int64
	flags   atomic.Pointer[map[string]Flag] // not changed once stored

	// mu protects the fields below.
	mu       sync.Mutex
	state    State
	reached  int64         // offset that flags has reached
	moved    chan struct{} // closed and replaced when flags, reached or state changes
	watchers map[int]func(Update)
	watched  int // number of watchers so far

	// Used by Run only. They are ahead of the fields above until the topic is read to its end.
	topicID string
	seen    bool            // the topic has existed
	fold    map[string]Flag // flags up to next
	bytes   map[string]int  // sizes of their records
	size    int             // their sum
	next    int64           // offset to read next
}

// State is whether the flags of a Reader are those of the topic.
type State int

// The states of a Reader.
const (
	Starting State = iota // the topic was not read to its end yet, so the reader has no flags
	Current
	Stale // the brokers do not answer; the flags are the last known ones
)

// Update is a change of what a Reader knows.
type Update struct {
	State   State
	Changed []string // names of flags that were set or deleted, in order
}

// NewReader returns a reader. It connects when it runs. The logger is required.
func NewReader(cfg kafka.Config, logger *slog.Logger) *Reader {
	r := &Reader{kafka: cfg, log: logger, moved: make(chan struct{}), watchers: map[int]func(Update){}}
	r.flags.Store(&map[string]Flag{})
	r.reset()
	return r
}

// Get returns a flag. The caller must not change its slices.
func (r *Reader) Get(name string) (Flag, bool) {
	f, ok := (*r.flags.Load())[name]
	return f, ok
}

// All returns all flags, by name.
func (r *Reader) All() []Flag {
	all := *r.flags.Load()
	out := make([]Flag, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out
}

// Invalid returns how many records were skipped, because they are not valid flags.
func (r *Reader) Invalid() int64 { return r.invalid.Load() }

// State returns the state.
func (r *Reader) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// CatchUp blocks until the topic was read to its end once.
func (r *Reader) CatchUp(ctx context.Context) error {
	return r.await(ctx, func() bool { return r.state != Starting })
}

// reach blocks until the flags have reached an offset of the topic.
func (r *Reader) reach(ctx context.Context, offset int64) error {
	return r.await(ctx, func() bool { return r.state != Starting && r.reached >= offset })
}

// await blocks until a condition on the fields that mu protects holds.
func (r *Reader) await(ctx context.Context, holds func() bool) error {
	for {
		r.mu.Lock()
		ok, moved := holds(), r.moved
		r.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for the flags to be read from %s: %w", Topic, context.Cause(ctx))
		}
	}
}

// Watch calls fn with the present state, and then after each change, and never concurrently. fn must not
// block, and may call only Get and All. After stop has returned, fn is not called any more.
func (r *Reader) Watch(fn func(Update)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.watched
	r.watched++
	r.watchers[id] = fn
	fn(Update{State: r.state})
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// Run follows the topic until ctx ends, and then returns nil. It logs errors and retries.
func (r *Reader) Run(ctx context.Context) error {
	retry, failed := backoff.Server.Start(), ""
	for again := true; again; again = retry.Wait(ctx) {
		err := r.follow(ctx, func() { failed = ""; retry.Reset() })
		if ctx.Err() == nil {
			r.interrupt(err)
			if err.Error() != failed { // log an error once, not at every attempt
				failed = err.Error()
				r.log.Warn("flags: reading failed; retrying with the last known flags", "topic", Topic, "error", err)
			}
		}
	}
	return nil
}

// interrupt sets the state after an error.
func (r *Reader) interrupt(err error) {
	switch {
	case errors.Is(err, fetch.ErrNoTopic) && !r.seen:
		r.publish() // nobody has set a flag
	case r.State() == Current:
		// The flags remain if the topic is unknown now: a broker that has just started may not know it yet.
		r.announce(Stale, nil)
	}
}

// errRecreated ends a follow, so that the next one reads the new topic.
var errRecreated = errors.New("the topic was created again")

// follow reads with one client until an error. It calls progress when the brokers have described the
// topic.
func (r *Reader) follow(ctx context.Context, progress func()) error {
	client, err := fetch.Open(fetch.Config{Brokers: strings.Split(r.kafka.Brokers, ","), Security: r.kafka.Security,
		Topic: Topic, ClientID: r.kafka.ClientID, Logger: r.log, Stall: describeTimeout})
	if err != nil {
		return err
	}
	defer client.Close()
	var described time.Time
	var end int64 // the flags are published once they have reached it
	for {
		if time.Since(described) >= describeEvery {
			first := described.IsZero()
			topic, err := client.Describe(ctx)
			if err != nil {
				return err
			}
			log := topic.Partitions[0]
			if r.topicID != "" && topic.ID != r.topicID || r.next > log.End || r.next < log.Start && r.next > 0 {
				r.reset()
				if !first {
					return errRecreated
				}
			}
			r.topicID, r.seen = topic.ID, true
			if first {
				// An open transaction hides what is behind it, so the end is where readers get to now.
				if end, err = client.StableEnd(ctx, 0); err != nil {
					return err
				}
				client.Assign(map[int32]int64{0: max(r.next, log.Start)})
				r.next = max(r.next, log.Start)
			}
			described = time.Now()
			progress()
		}
		if r.next >= end {
			r.publish()
		}
		batches, err := client.Poll(ctx, poll)
		if err != nil {
			return err
		}
		for _, b := range batches {
			for record := range b.Records() {
				r.apply(record)
			}
			r.next = b.Next
		}
	}
}

// reset makes the next follow start at the beginning of the topic. The flags remain until it has caught
// up.
func (r *Reader) reset() {
	r.topicID, r.next, r.size = "", 0, 0
	r.fold, r.bytes = map[string]Flag{}, map[string]int{}
}

// apply applies a record to fold.
func (r *Reader) apply(record fetch.Record) {
	name := string(record.Key)
	if record.Value == nil {
		delete(r.fold, name)
		r.size -= r.bytes[name]
		delete(r.bytes, name)
		return
	}
	f, err := decode(name, record.Value)
	size := r.size - r.bytes[name] + len(record.Value)
	if _, known := r.fold[name]; err == nil && (!known && len(r.fold) >= MaxFlags || size > maxBytes) {
		err = invalid("more than %d flags, or more than %d bytes", MaxFlags, maxBytes)
	}
	if err != nil {
		r.invalid.Add(1)
		r.log.Warn("flags: skipping an invalid record; the flag keeps its last valid value", "topic", Topic,
			"offset", record.Offset, "flag", fmt.Sprintf("%.*q", maxName, name), "error", err)
		return
	}
	f.Revision = record.Offset
	r.fold[name] = f
	r.bytes[name], r.size = len(record.Value), size
}

// publish makes fold visible.
func (r *Reader) publish() {
	before := *r.flags.Load()
	var changed []string
	for name, f := range r.fold {
		if was, ok := before[name]; !ok || was.Change.ID != f.Change.ID || was.Revision != f.Revision {
			changed = append(changed, name)
		}
	}
	for name := range before {
		if _, ok := r.fold[name]; !ok {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	if len(changed) > 0 {
		now := maps.Clone(r.fold)
		r.flags.Store(&now)
	}
	r.announce(Current, changed)
}

// announce sets the state, and tells the watchers if it or a flag has changed.
func (r *Reader) announce(state State, changed []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tell := len(changed) > 0 || state != r.state
	if r.state = state; state == Current {
		r.reached = r.next
	}
	close(r.moved)
	r.moved = make(chan struct{})
	if !tell {
		return
	}
	for _, fn := range r.watchers {
		fn(Update{state, changed})
	}
}
