package tracking

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/event/behavior"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka/fetch"
)

const (
	idlePoll      = 500 * time.Millisecond
	barrierPoll   = 50 * time.Millisecond
	pause         = 25 * time.Millisecond // between two reads, so that each has many records
	describeEvery = 30 * time.Second      // new partitions are noticed in this time
)

// tail reads the ids of the events on the log, from a day ago up to the present, and all the time
// after that. So a process knows what was written before it started, what other processes write,
// and what was written although the producer reported an error.
type tail struct {
	config  fetch.Config
	copies  *copies
	maxIDs  int
	log     *slog.Logger
	waiters chan chan struct{} // requests for a barrier

	suspended suspension

	// The following belong to the goroutine of run.
	topicID  string
	next     map[int32]int64
	barriers []barrier
	ids      []seen // reused
}

// barrier is closed when the tail has read up to these offsets.
type barrier struct {
	reached chan struct{}
	ends    map[int32]int64
}

// barrier returns when every record that was on the log at the call has been read.
func (t *tail) barrier(ctx context.Context) error {
	reached := make(chan struct{})
	select {
	case t.waiters <- reached:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-reached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// current returns once this process knows what was written while it was suspended. It returns at once
// if it was not.
func (t *tail) current(ctx context.Context, now time.Time) error {
	number := t.suspended.alive(now)
	if t.suspended.over(number) {
		return nil
	}
	if err := t.barrier(ctx); err != nil {
		return err
	}
	t.suspended.end(number)
	return nil
}

// run reads until ctx ends.
func (t *tail) run(ctx context.Context) {
	retry := backoff.Server.Start()
	for again := true; again; again = retry.Wait(ctx) {
		if err := t.follow(ctx, retry.Reset); ctx.Err() == nil {
			t.log.Warn("tracking: cannot read the ids of the log; retrying", "topic", t.config.Topic, "error", err)
		}
	}
}

// errRecreated ends a follow, so that the next one begins with the new topic.
var errRecreated = errors.New("the topic was recreated")

// follow reads with one reader until an error. It calls progress whenever the brokers respond.
func (t *tail) follow(ctx context.Context, progress func()) error {
	r, err := fetch.Open(t.config)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := t.position(ctx, r); err != nil {
		return err
	}
	described := time.Now()
	for {
		progress()
		t.suspended.alive(time.Now())
		if err := t.takeBarriers(ctx, r); err != nil {
			return err
		}
		if time.Since(described) > describeEvery {
			described = time.Now()
			if err := t.position(ctx, r); err != nil {
				return err
			}
		}
		wait := idlePoll
		if len(t.barriers) > 0 {
			wait = barrierPoll
		}
		batches, err := r.Poll(ctx, wait)
		if err != nil {
			return err
		}
		for _, b := range batches {
			t.read(b)
		}
		t.passBarriers()
		if len(batches) > 0 && len(t.barriers) == 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// position assigns the partitions to the reader, each from where the tail is, or else from a day
// ago. It also sets the ends of barriers that have none.
func (t *tail) position(ctx context.Context, r *fetch.Reader) error {
	topic, err := r.Describe(ctx)
	if err != nil {
		return err
	}
	if topic.ID != t.topicID {
		assigned := len(r.Assigned()) > 0
		t.topicID, t.next = topic.ID, map[int32]int64{}
		for i := range t.barriers {
			t.barriers[i].ends = nil
		}
		if assigned {
			return errRecreated
		}
	}
	var ago map[int32]int64 // offsets of a day ago, if any partition needs them
	from := map[int32]int64{}
	for p, log := range topic.Partitions {
		next, known := t.next[p]
		if !known {
			if ago == nil {
				if ago, err = r.OffsetsAfter(ctx, time.Now().Add(-behavior.Window)); err != nil {
					return err
				}
			}
			// Earlier ids would be forgotten again.
			next = max(ago[p], log.End-int64(t.maxIDs))
		}
		if next < log.Start || next > log.End { // records were deleted, or the log lost its end
			next = max(min(next, log.End), log.Start)
		}
		from[p] = next
		t.next[p] = next
	}
	r.Assign(from)
	for i := range t.barriers {
		if t.barriers[i].ends == nil {
			t.barriers[i].ends = ends(topic)
		}
	}
	return nil
}

// ends returns the end offsets of a topic.
func ends(topic fetch.Topic) map[int32]int64 {
	all := map[int32]int64{}
	for p, log := range topic.Partitions {
		all[p] = log.End
	}
	return all
}

// takeBarriers accepts new barriers, and gives them the present ends of the log.
func (t *tail) takeBarriers(ctx context.Context, r *fetch.Reader) error {
	for {
		select {
		case reached := <-t.waiters:
			t.barriers = append(t.barriers, barrier{reached: reached})
			if err := t.position(ctx, r); err != nil {
				return err
			}
			t.passBarriers()
		default:
			return nil
		}
	}
}

// passBarriers closes the barriers that the tail has reached.
func (t *tail) passBarriers() {
	kept := t.barriers[:0]
	for _, b := range t.barriers {
		reached := b.ends != nil
		for p, end := range b.ends {
			reached = reached && t.next[p] >= end
		}
		if reached {
			close(b.reached)
		} else {
			kept = append(kept, b)
		}
	}
	t.barriers = kept
}

// read remembers the ids in a batch.
func (t *tail) read(b fetch.Batch) {
	const chunk = 512 // between which requests get their turn
	now := time.Now()
	for r := range b.Records() {
		id, ok := event.BehaviorHeaderID(r.Headers)
		if !ok {
			continue // not an event
		}
		// Another program may have written any timestamp.
		at := time.UnixMilli(r.Millis)
		if at.After(now) {
			at = now
		}
		if t.ids = append(t.ids, seen{id, at}); len(t.ids) == chunk {
			t.copies.addSeen(t.ids)
			t.ids = t.ids[:0]
		}
	}
	t.copies.addSeen(t.ids)
	t.ids = t.ids[:0]
	t.next[b.Partition] = b.Next
}
