package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"

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

// retry is what an item has that is a dead letter.
type retry struct {
	attempts int
	applied  bool          // its dead letter is deleted
	failed   bool          // the sink could not apply it again
	done     chan struct{} // closed when the worker is done with it
}

// letter is a dead letter as it is on the topic.
type letter struct {
	from     kafka.TopicPartition
	offset   int64
	message  kafka.Message // the event's record; its headers are the original ones
	attempts int
	topicID  string // of the topic when the event was parked
	reason   string // set if the event is not complete
}

// letters calls fn with the dead letters of events of this sink that are on their topic, in the
// order in which they were written. Deleted ones have no value. The same one may come several
// times, and the last time counts.
func (r *Runtime) letters(ctx context.Context, fn func(letter)) error {
	ends, err := r.ends(ctx, DeadLetterTopic)
	if errors.Is(err, kafka.ErrUnknownTopic) {
		return nil // there never was one
	}
	if err != nil {
		return fmt.Errorf("find the dead letters: %w", err)
	}
	err = kafka.ReadAll(ctx, r.cfg.Kafka, DeadLetterTopic, nil, ends, func(m kafka.Message) error {
		if l, ok := r.letter(m); ok {
			fn(l)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	return nil
}

// letter reads a record of DeadLetterTopic. ok is false if it is of another sink, or of a record
// that is not an event, or not written by a sink.
func (r *Runtime) letter(m kafka.Message) (l letter, ok bool) {
	of, ok := bytes.CutPrefix(m.Key, []byte(r.cfg.Name+"|"))
	words := strings.Split(string(of), "|")
	if !ok || len(words) != 3 {
		return letter{}, false
	}
	partition, err1 := strconv.ParseInt(words[1], 10, 32)
	offset, err2 := strconv.ParseInt(words[2], 10, 64)
	if err1 != nil || err2 != nil || partition < 0 || offset < 0 {
		return letter{}, false
	}
	l = letter{from: kafka.TopicPartition{Topic: words[0], Partition: int32(partition)}, offset: offset}
	if m.Value == nil {
		return l, true
	}
	l.message = kafka.Message{TopicPartition: l.from, Offset: offset, Value: m.Value}
	var event bool
	for _, h := range m.Headers {
		switch h.Key {
		case HeaderDeadLetterAttempts:
			n, err := strconv.ParseUint(string(h.Value), 10, 31)
			if err != nil {
				return letter{}, false
			}
			l.attempts, event = int(n), true
		case HeaderDeadLetterKey:
			l.message.Key = h.Value
		case HeaderDeadLetterTopicID:
			l.topicID = string(h.Value)
		case HeaderDeadLetterSize:
			l.reason = fmt.Sprintf("the dead letter has the first %d of %s bytes of the event only: "+
				"rebuild the view to read the whole event from its topic", len(m.Value), h.Value)
		case HeaderDeadLetterReason, HeaderDeadLetterStack, HeaderDeadLetterSHA256:
		default:
			l.message.Headers = append(l.message.Headers, h)
		}
	}
	return l, event && len(l.message.Key) > 0
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
	err := r.letters(ctx, func(l letter) {
		of := found[l.from]
		switch {
		case of == nil || differentTopic(l.topicID, starts[l.from].at.Topic):
		case l.message.Value == nil:
			delete(of, l.offset)
		case len(of) < maxParked:
			of[l.offset] = string(l.message.Key)
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

// redrive does what Redrive asks for, until ctx ends.
func (r *Runtime) redrive(ctx context.Context) {
	for {
		select {
		case <-r.redrives:
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
	map[kafka.TopicPartition]map[int64]letter, error,
) {
	found := map[kafka.TopicPartition]map[int64]letter{}
	for of, offsets := range wanted {
		tp := of.partition.topicPartition()
		if found[tp] == nil {
			found[tp] = map[int64]letter{}
		}
		for _, offset := range offsets {
			found[tp][offset] = letter{}
		}
	}
	size := 0
	err := r.letters(ctx, func(l letter) {
		before, ok := found[l.from][l.offset]
		if !ok {
			return
		}
		size += len(l.message.Value) - len(before.message.Value)
		if size > redriveBytes && size > len(l.message.Value) {
			size -= len(l.message.Value)
			delete(found[l.from], l.offset) // later, in another pass
			return
		}
		found[l.from][l.offset] = l
	})
	return found, err
}

// redriveSome puts dead letters on the lanes of their streams, and waits until they are applied or
// have failed. It returns the number of released events, and adds the streams that failed.
func (r *Runtime) redriveSome(ctx context.Context, wanted map[streamOf][]int64,
	found map[kafka.TopicPartition]map[int64]letter, failed map[streamOf]bool,
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
func (r *Runtime) redriveStream(ctx context.Context, of streamOf, offsets []int64, found map[int64]letter,
) (released int, ok bool) {
	for _, offset := range offsets {
		l, there := found[offset]
		if !there { // it exceeded the limit of this pass
			return released, true
		}
		if l.message.Value == nil { // somebody has deleted the dead letter: the event is skipped
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
		if err != nil || it.retried.failed {
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
func (r *Runtime) retriedItem(p *partition, l letter) (*item, error) {
	if l.reason != "" {
		return nil, errors.New(l.reason)
	}
	e, err := event.FromRecord(l.message.Key, l.message.Value, l.message.Headers)
	if err != nil {
		return nil, err
	}
	return &item{
		record:    Record{Event: e, Topic: l.from.Topic, Partition: l.from.Partition, Offset: l.offset},
		partition: p, unread: &l.message,
		retried: &retry{attempts: l.attempts, done: make(chan struct{})},
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
