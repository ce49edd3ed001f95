package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/backoff"
	"github.com/millrace/millrace/internal/kafka"
)

// Limits of one pass over the dead letters.
const (
	redriveStream = 100      // events of a stream
	redriveBytes  = 16 << 20 // of all events together
)

// redriveEvery is how often a Runtime looks for requests to apply its parked events.
const redriveEvery = time.Second

// retry is what an item has that is a dead letter.
type retry struct {
	attempts int
	applied  bool          // its dead letter is deleted
	failed   bool          // the sink could not apply it again
	done     chan struct{} // closed when the worker is done with it
}

// letters calls fn with the dead letters of this sink's events that are on their topic; see
// ReadDeadLetters.
func (r *Runtime) letters(ctx context.Context, fn func(StoredDeadLetter)) error {
	ends, err := r.ends(ctx, DeadLetterTopic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return nil // there never was one
	}
	if err != nil {
		return fmt.Errorf("find the dead letters: %w", err)
	}
	return readDeadLetters(ctx, r.cfg.Kafka, nil, ends, func(l StoredDeadLetter) {
		if l.Sink == r.cfg.Name && (l.Parked || l.Deleted) {
			fn(l)
		}
	})
}

// loadParked returns the index of the parked events of partitions, which start at starts. Offsets of
// a topic that was recreated are of other events.
func (r *Runtime) loadParked(ctx context.Context, starts map[kafka.TopicPartition]start) (
	map[kafka.TopicPartition]*parking, error,
) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	found := map[kafka.TopicPartition]map[int64]string{}
	for tp := range starts {
		found[tp] = map[int64]string{}
	}
	err := r.letters(ctx, func(l StoredDeadLetter) {
		of := found[l.from()]
		switch {
		case of == nil || !l.Deleted && differentTopic(l.topicID, starts[l.from()].at.Topic):
		case l.Deleted:
			delete(of, l.Offset)
		case len(of) < maxParked:
			of[l.Offset] = string(l.Key)
		}
	})
	if err != nil {
		return nil, err
	}
	all := make(map[kafka.TopicPartition]*parking, len(starts))
	for tp, of := range found {
		streams := map[string][]int64{}
		for offset, stream := range of {
			streams[stream] = append(streams[stream], offset)
		}
		all[tp] = parkingOf(streams)
	}
	return all, nil
}

// Redrive applies the parked events again, in order per stream, because their cause may be
// corrected. It happens by itself when partitions are assigned. It does not wait.
func (r *Runtime) Redrive() {
	select {
	case r.redrives <- struct{}{}:
	default: // one is waiting already
	}
}

// redrive does what Redrive and DeadLetters.Redrive ask for, until ctx ends.
func (r *Runtime) redrive(ctx context.Context) {
	look := time.NewTicker(redriveEvery)
	defer look.Stop()
	requests := redriveRequests{r: r}
	for {
		select {
		case <-r.redrives:
		case <-look.C:
			if !requests.any(ctx) {
				continue
			}
		case <-ctx.Done():
			return
		}
		for waits := backoff.Server.Start(); ; {
			released, err := r.redriveAll(ctx)
			if released > 0 {
				r.cfg.Logger.Info("streams: parked events were applied", "sink", r.cfg.Name, "events", released)
			}
			if err == nil || ctx.Err() != nil {
				break
			}
			wait := waits.Next()
			r.cfg.Logger.Warn("streams: applying parked events failed; retrying", "sink", r.cfg.Name,
				"retry_in", wait, "error", err)
			if !backoff.Sleep(ctx, wait) {
				return
			}
		}
	}
}

// redriveRequests looks for requests on DeadLetterTopic.
type redriveRequests struct {
	r    *Runtime
	seen map[int32]int64 // ends of the topic at the last look; nil at first
}

// any reports whether there is a request since the last call. At the first call there is none: the
// assignment of partitions has started a redrive.
func (q *redriveRequests) any(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	ends, err := q.r.ends(ctx, DeadLetterTopic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		ends, err = map[int32]int64{}, nil
	}
	if err != nil { // positions are tracked at the same time, and log it
		return false
	}
	first := q.seen == nil
	if first || maps.Equal(ends, q.seen) {
		q.seen = ends
		return false
	}
	found := false
	err = kafka.ReadAll(ctx, q.r.cfg.Kafka, DeadLetterTopic, q.seen, ends, func(m kafka.Message) error {
		found = found || string(m.Key) == redriveKey+q.r.cfg.Name
		return nil
	})
	if err != nil {
		q.r.cfg.Logger.Warn("streams: looking for requests to apply parked events failed; retrying",
			"sink", q.r.cfg.Name, "error", err)
		return false
	}
	q.seen = ends
	return found
}

// redriveAll passes over the dead letters until each parked stream is released, or has failed. It
// returns the number of released events.
func (r *Runtime) redriveAll(ctx context.Context) (released int, err error) {
	failed := map[streamOf]bool{}
	for {
		wanted := r.nextParked(failed)
		if len(wanted) == 0 {
			return released, nil
		}
		found, err := r.parkedLetters(ctx, wanted)
		if err != nil {
			return released, err
		}
		n := r.redriveSome(ctx, wanted, found, failed)
		released += n
		if n == 0 && len(r.nextParked(failed)) > 0 || ctx.Err() != nil {
			return released, context.Cause(ctx) // partitions are being revoked
		}
	}
}

// nextParked returns the first parked offsets of the owned streams that have not failed.
func (r *Runtime) nextParked(failed map[streamOf]bool) map[streamOf][]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := map[streamOf][]int64{}
	for _, p := range r.partitions {
		for stream, offsets := range p.parking.next(redriveStream) {
			if of := (streamOf{p, stream}); !failed[of] {
				wanted[of] = offsets
			}
		}
	}
	return wanted
}

// parkedLetters returns the dead letters at wanted offsets. It leaves out what exceeds redriveBytes.
func (r *Runtime) parkedLetters(ctx context.Context, wanted map[streamOf][]int64) (
	map[kafka.TopicPartition]map[int64]StoredDeadLetter, error,
) {
	found := map[kafka.TopicPartition]map[int64]StoredDeadLetter{}
	for of, offsets := range wanted {
		tp := of.partition.topicPartition()
		if found[tp] == nil {
			found[tp] = map[int64]StoredDeadLetter{}
		}
		for _, offset := range offsets {
			found[tp][offset] = StoredDeadLetter{Deleted: true}
		}
	}
	size := 0
	err := r.letters(ctx, func(l StoredDeadLetter) {
		before, ok := found[l.from()][l.Offset]
		if !ok {
			return
		}
		size += len(l.Value) - len(before.Value)
		if size > redriveBytes && size > len(l.Value) {
			size -= len(l.Value)
			delete(found[l.from()], l.Offset) // later, in another pass
			return
		}
		found[l.from()][l.Offset] = l
	})
	return found, err
}

// redriveSome puts dead letters on the lanes of their streams, and waits until they are applied or
// have failed. It returns the number of released events, and adds the streams that failed.
func (r *Runtime) redriveSome(ctx context.Context, wanted map[streamOf][]int64,
	found map[kafka.TopicPartition]map[int64]StoredDeadLetter, failed map[streamOf]bool,
) (released int) {
	var mu sync.Mutex // protects released and failed
	var all errgroup.Group
	all.SetLimit(4 * r.cfg.Workers) // so that the workers never wait for the next one
	for of, offsets := range wanted {
		all.Go(func() error {
			n, ok := r.redriveStream(ctx, of, offsets, found[of.partition.topicPartition()])
			mu.Lock()
			defer mu.Unlock()
			released += n
			if !ok {
				failed[of] = true
			}
			return nil
		})
	}
	_ = all.Wait() // the functions return no error
	return released
}

// redriveStream applies the dead letters of one stream in order. ok is false if one of them failed.
func (r *Runtime) redriveStream(ctx context.Context, of streamOf, offsets []int64, found map[int64]StoredDeadLetter,
) (released int, ok bool) {
	for _, offset := range offsets {
		l, there := found[offset]
		if !there { // it exceeded the limit of this pass
			return released, true
		}
		if l.Deleted {
			r.cfg.Logger.Warn("streams: a parked event is skipped, because its dead letter was deleted",
				"sink", r.cfg.Name, "topic", of.partition.topic, "partition", of.partition.id, "offset", offset)
			of.partition.parking.release(of.name, offset)
			released++
			continue
		}
		it, err := r.retriedItem(of.partition, l)
		if err == nil {
			select {
			case r.lane(it) <- it:
			case <-ctx.Done():
				return released, true
			}
			select {
			case <-it.retried.done:
			case <-ctx.Done():
				return released, true
			}
		}
		if err != nil {
			r.cfg.Logger.Warn("streams: a parked event cannot be applied from its dead letter",
				"sink", r.cfg.Name, "dead_letter", l.ID(), "error", err)
			return released, false
		}
		if it.retried.failed {
			return released, false
		}
		if !it.retried.applied { // the partition is revoked
			return released, true
		}
		released++
	}
	return released, true
}

// retriedItem returns the item of a dead letter.
func (r *Runtime) retriedItem(p *partition, l StoredDeadLetter) (*item, error) {
	if l.Shortened() {
		return nil, fmt.Errorf("the dead letter has only the first %d of %d bytes of the event: "+
			"rebuild the view to read the whole event from its topic", len(l.Value), l.Size)
	}
	e, err := event.FromRecord(l.Key, l.Value, l.Headers)
	if err != nil {
		return nil, err
	}
	return &item{
		record:    Record{Event: e, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset},
		partition: p,
		message:   &kafka.Message{TopicPartition: l.from(), Offset: l.Offset, Key: l.Key, Value: l.Value, Headers: l.Headers},
		unread:    true,
		retried:   &retry{attempts: l.Attempts, done: make(chan struct{})},
	}, nil
}

// Parked returns the number of streams and events of this process's partitions that are parked.
func (r *Runtime) Parked() (streams, events int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range maps.Values(r.partitions) {
		s, e := p.parking.size()
		streams, events = streams+s, events+e
	}
	return streams, events
}
