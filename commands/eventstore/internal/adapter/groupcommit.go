package adapter

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/millrace/millrace/commands/eventstore"
)

// Limits of the queue and of a group.
const (
	// queueSize is room for two groups, which can fill up while another is stored. When the queue
	// is full, callers block in Append.
	queueSize = 1024
	maxGroup  = 512      // maximum number of batches in one transaction
	maxBytes  = 16 << 20 // data in one transaction, in bytes; the last batch may exceed it
)

// Call is an Append that waits for its result.
type Call struct {
	Batch eventstore.Batch

	// state is queued, claimed or abandoned; see these constants.
	state    atomic.Int32
	resolved chan struct{} // closed when appended and err are set
	appended eventstore.Appended
	err      error
}

// The states of a call. A queued call is either claimed by the writer or abandoned by its caller.
// The state changes once, with a compare-and-swap, so exactly one of the two happens.
const (
	queued int32 = iota
	claimed
	abandoned
)

// Resolve sets the result of the call and wakes its caller. It must be called exactly once.
func (c *Call) Resolve(a eventstore.Appended, err error) {
	c.appended, c.err = a, err
	close(c.resolved)
}

// size returns the bytes of events and snapshots in the batch.
func (c *Call) size() (n int) {
	for _, s := range c.Batch.Streams {
		for i := range s.Events {
			n += len(s.Events[i].Data)
		}
	}
	for _, s := range c.Batch.Snapshots {
		n += len(s.State)
	}
	return n
}

// Writer is the group commit. It collects concurrent appends into groups, so that one transaction,
// and one sync of the disk, stores many.
type Writer struct {
	// Closing queue stops the goroutine.
	queue   chan *Call
	stopped chan struct{} // closed when the goroutine has ended
}

// StartWriter starts the goroutine that stores groups. store must resolve every call of a group, or
// return it. Returned calls come first in the next group.
func StartWriter(store func(group []*Call) (again []*Call)) *Writer {
	w := &Writer{queue: make(chan *Call, queueSize), stopped: make(chan struct{})}
	go w.run(store)
	return w
}

// Append queues a batch and blocks until it is stored or refused. If ctx ends first, Append returns
// at once. A batch that was still queued is then not stored. A batch that the writer had claimed
// may be stored.
func (w *Writer) Append(ctx context.Context, b eventstore.Batch) (eventstore.Appended, error) {
	if err := b.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, fmt.Errorf("append: batch not stored: %w", err)
	}
	c := &Call{Batch: b, resolved: make(chan struct{})}
	select {
	case w.queue <- c:
	case <-ctx.Done():
		return eventstore.Appended{}, fmt.Errorf("append: batch not stored: wait for room in the queue: %w", ctx.Err())
	}
	select {
	case <-c.resolved:
		return c.appended, c.err
	case <-ctx.Done():
		// If the writer has not claimed the call yet, it never will.
		if c.state.CompareAndSwap(queued, abandoned) {
			return eventstore.Appended{}, fmt.Errorf("append: batch not stored: wait for the writer: %w", ctx.Err())
		}
		return eventstore.Appended{}, fmt.Errorf(
			"append: batch may be stored, retry with the same idempotency key: %w", ctx.Err())
	}
}

// Queued returns the number of queued calls, for tests.
func (w *Writer) Queued() int { return len(w.queue) }

// Stop stores what is queued and ends the goroutine. No Append may be in progress or follow.
func (w *Writer) Stop() {
	close(w.queue)
	<-w.stopped
}

// run stores groups until the queue is closed and empty, and no call is left to retry.
func (w *Writer) run(store func([]*Call) []*Call) {
	defer close(w.stopped)
	var group []*Call
	for open := true; open || len(group) > 0; {
		if group, open = w.collect(group, open); len(group) > 0 {
			group = store(group)
		}
	}
}

// collect adds queued calls to the group, up to its limits. It blocks only if the group is empty.
// It returns false when the queue is closed.
func (w *Writer) collect(group []*Call, open bool) ([]*Call, bool) {
	size := 0
	for _, c := range group {
		size += c.size()
	}
	for open && len(group) < maxGroup && size < maxBytes {
		var c *Call
		if len(group) == 0 {
			c, open = <-w.queue
		} else {
			select {
			case c, open = <-w.queue:
			default:
				return group, true
			}
		}
		// Skip calls that their callers have abandoned.
		if c != nil && c.state.CompareAndSwap(queued, claimed) {
			group = append(group, c)
			size += c.size()
		}
	}
	return group, open
}
