package streams

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/internal/kafka"
)

// Watermarks tracks how far a sink has read, in memory, for callers that answer queries from it. A
// Runtime keeps it current: immediately for its own partitions, and within its save interval for
// partitions of other processes. It is safe for concurrent use.
type Watermarks struct {
	// mu protects all fields but faults.
	mu      sync.Mutex
	topics  map[string]*topicWatermarks
	changed chan struct{} // closed at the next change; nil while there is no waiter
	faults  Faults
}

// topicWatermarks is how far a sink is in a topic.
type topicWatermarks struct {
	partitions map[int32]*watermark
	complete   bool // every partition of the topic is in partitions
}

// watermark is how far a sink is in a partition.
type watermark struct {
	applied Applied
	end     int64 // offset after the last known record on the log
}

// NewWatermarks returns empty watermarks.
func NewWatermarks() *Watermarks { return &Watermarks{topics: map[string]*topicWatermarks{}} }

// Wait blocks until the partition of an event's key has been applied up to the event's position. If
// ctx ends first, the error wraps its cause.
func (w *Watermarks) Wait(ctx context.Context, topic, key string, position event.Position) error {
	return w.await(ctx, fmt.Sprintf("position %s of %s", position, topic), func() bool {
		t := w.topics[topic]
		return t != nil && t.complete && t.reached([]byte(key), position)
	})
}

// reached reports whether the key's partition has been applied up to a position. The topic's number
// of partitions does not determine that partition, because keys stay in their partitions when a
// topic is widened. Applied events do: each has the number of partitions that keys were spread
// over. If none has it, an earlier version published them, and it used all partitions.
func (t *topicWatermarks) reached(key []byte, position event.Position) bool {
	var otherwise watermark // the newest one that has the number
	for _, m := range t.partitions {
		if m.applied.Partitions > 0 && m.applied.Watermark.Compare(otherwise.applied.Watermark) >= 0 {
			otherwise = *m
		}
	}
	// The event's partition is the one that its key leads to with the number of that time.
	for id, m := range t.partitions {
		partitions := cmp.Or(m.applied.Partitions, otherwise.applied.Partitions, int32(len(t.partitions)))
		if m.applied.Watermark.Compare(position) >= 0 && kafka.Partition(key, partitions) == id {
			return true
		}
	}
	return false
}

// WaitFor blocks until the partitions of a topic have been applied up to the given offsets.
func (w *Watermarks) WaitFor(ctx context.Context, topic string, ends map[int32]int64) error {
	return w.await(ctx, "the end of "+topic, func() bool {
		t := w.topics[topic]
		for id, end := range ends {
			if t == nil || t.partitions[id] == nil || t.partitions[id].applied.Next < end {
				return false
			}
		}
		return true
	})
}

// await blocks until satisfied returns true. satisfied is called with mu held, after each change.
func (w *Watermarks) await(ctx context.Context, what string, satisfied func() bool) error {
	for {
		w.mu.Lock()
		// Check and take the channel under one lock, so that no change is missed in between.
		ok := satisfied()
		if !ok && w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is applied: %w", what, context.Cause(ctx))
		}
	}
}

// Lag returns how many records on the topics are not applied. Records written within the last save
// interval may be missing, and a transaction's marker counts until it is passed. ok is false until
// all partitions are known.
func (w *Watermarks) Lag(topics ...string) (events uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, topic := range topics {
		t := w.topics[topic]
		if t == nil || !t.complete {
			return 0, false
		}
		for _, m := range t.partitions {
			events += uint64(max(0, m.end-m.applied.Next))
		}
	}
	return events, true
}

// AsOf returns when the newest applied event of the topics was recorded. It is zero if nothing was
// applied.
func (w *Watermarks) AsOf(topics ...string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var newest time.Time
	for _, topic := range topics {
		if t := w.topics[topic]; t != nil {
			for _, m := range t.partitions {
				if m.applied.AsOf.After(newest) {
					newest = m.applied.AsOf
				}
			}
		}
	}
	return newest
}

// Applied returns the position in one partition. ok is false if it is not known.
func (w *Watermarks) Applied(topic string, partition int32) (a Applied, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.topics[topic]; t != nil && t.partitions[partition] != nil {
		return t.partitions[partition].applied, true
	}
	return Applied{}, false
}

// Set sets a partition's position, for sinks that no Runtime feeds.
func (w *Watermarks) Set(topic string, partition int32, a Applied) { w.set(topic, partition, a) }

// SetEnds sets the ends of all partitions of a topic, for sinks that no Runtime feeds.
func (w *Watermarks) SetEnds(topic string, ends map[int32]int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.topics[topic] == nil {
		w.topics[topic] = &topicWatermarks{partitions: map[int32]*watermark{}}
	}
	for id, end := range ends {
		m := w.partition(topic, id)
		m.end = max(m.end, end)
	}
	w.topics[topic].complete = len(w.topics[topic].partitions) == len(ends)
	w.wake()
}

// set sets a partition's position. It may decrease, because a sink can lose data.
func (w *Watermarks) set(topic string, partition int32, a Applied) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.partition(topic, partition)
	m.applied, m.end = a, max(m.end, a.Next)
	w.wake()
}

// reached raises the known end of a partition.
func (w *Watermarks) reached(topic string, partition int32, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.partition(topic, partition)
	m.end = max(m.end, end)
}

// setEnds sets the ends of all partitions of a topic.
func (w *Watermarks) setEnds(topic string, ends map[int32]int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, end := range ends {
		w.partition(topic, id).end = end
	}
	w.topics[topic].complete = len(w.topics[topic].partitions) == len(ends)
	w.wake()
}

// partition returns a partition's watermark, and adds it if necessary.
func (w *Watermarks) partition(topic string, partition int32) *watermark {
	t := w.topics[topic]
	if t == nil {
		t = &topicWatermarks{partitions: map[int32]*watermark{}}
		w.topics[topic] = t
	}
	m := t.partitions[partition]
	if m == nil {
		m = &watermark{}
		t.partitions[partition] = m
	}
	return m
}

// wake wakes up all waiters.
func (w *Watermarks) wake() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}
